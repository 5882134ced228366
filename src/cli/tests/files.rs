//! Models in files, and their parts.

use std::path::Path;

use super::*;

fn reference(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference").join(path);
    path.to_str().expect("UTF-8").to_owned()
}

#[tokio::test]
async fn a_file_is_checked_together_with_its_base() {
    let data = tempfile::tempdir().expect("a folder");
    let model = format!("my/flux={}", reference("quant/fp8/flux1-dev-fp8-scaled.safetensors"));
    let base = reference("FLUX.1-dev");
    let (out, _) = run_in(data.path(), &["models", "check", &model, "--base", &base]).await.expect("complete");
    assert!(out.contains("flux1-dev-fp8-scaled.safetensors") && out.contains("complete"), "{out}");
    assert!(out.contains(&format!("{base}/vae/diffusion_pytorch_model.safetensors")), "{out}");
    let error =
        run_in(data.path(), &["models", "check", &model, "--base", "no/such-model"]).await.expect_err("no base");
    let text = error.to_string();
    assert!(
        text.contains("the base `no/such-model` of `my/flux` is neither a folder nor a downloaded model"),
        "{text}"
    );
    let error = run_in(data.path(), &["models", "check", "fluxserve/flux-shapes", "--base", &base]).await;
    assert!(error.expect_err("no file").to_string().contains("is complete in itself"));
}

#[tokio::test]
async fn an_image_is_generated_from_a_gguf_file_and_loose_text_encoders() {
    let data = tempfile::tempdir().expect("a folder");
    let model = format!("my/flux={}", reference("quant/FLUX.1-dev-256/tiny-flux-Q2_K.gguf"));
    let encoder = reference("quant/FLUX.1-dev-256/t5-v1_1-tiny-encoder-Q4_K_M.gguf");
    let output = data.path().join("image.png");
    let (base, output) = (reference("quant/FLUX.1-dev-256"), output.to_str().expect("UTF-8"));
    let size = ["--width", "64", "--height", "64", "--steps", "1", "--seed", "1", "--device", "cpu"];
    let files = ["generate", "--model", &model, "--base", &base, "--text-encoder", &encoder];
    let rest = ["--prompt", "a fox", "--output", output];
    run_in(data.path(), &[&files[..], &size, &rest].concat()).await.expect("generates");
    assert!(std::fs::read(output).expect("written").starts_with(b"\x89PNG"));
}
