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

#[tokio::test]
async fn an_image_is_generated_from_a_converted_file() {
    let data = tempfile::tempdir().expect("a folder");
    let file = |name: &str| data.path().join(name).to_str().expect("UTF-8").to_owned();
    let (input, base) = (reference("FLUX.1-dev/flux1-dev.safetensors"), reference("FLUX.1-dev"));
    let (made, encoder, output) = (file("small.gguf"), file("t5.safetensors"), file("image.png"));
    let convert = ["models", "convert", &input, "--to", "gguf:q8_0", &made];
    let (out, notes) = run_in(data.path(), &convert).await.expect("converts");
    assert_eq!(out, format!("{made}\n"));
    let said = format!("transformer of flux1-dev.safetensors to gguf:q8_0 in `{made}`, ");
    assert!(notes.starts_with(&said), "{notes}");
    assert!(notes.contains("29 tensors are quantized, ") && notes.contains(&format!("--model ID={made}")), "{notes}");
    let convert = ["models", "convert", &base, "--component", "t5", "--to", "fp8", &encoder];
    let (_, notes) = run_in(data.path(), &convert).await.expect("converts");
    assert!(notes.contains(&format!("--text-encoder {encoder}")), "{notes}");
    let model = format!("my/flux={made}");
    run_in(data.path(), &["models", "check", &model, "--base", &base]).await.expect("complete");
    let size = ["--width", "64", "--height", "64", "--steps", "1", "--seed", "1", "--device", "cpu"];
    let files = ["generate", "--model", &model, "--base", &base, "--text-encoder", &encoder];
    run_in(data.path(), &[&files[..], &size, &["--prompt", "a fox", "--output", &output]].concat())
        .await
        .expect("generates");
    assert!(std::fs::read(output).expect("written").starts_with(b"\x89PNG"));
}

#[tokio::test]
async fn a_file_that_cannot_be_made_is_refused_before_anything_is_read() {
    let data = tempfile::tempdir().expect("a folder");
    let file = |name: &str| data.path().join(name).to_str().expect("UTF-8").to_owned();
    let input = reference("FLUX.1-dev/flux1-dev.safetensors");
    std::fs::create_dir(file("folder.gguf")).expect("made");
    std::fs::create_dir(file("blocked.gguf.part")).expect("made");
    std::fs::write(file("old.gguf"), "old").expect("written");
    for (input, output, format, reason) in [
        (&input, "old.gguf", "gguf:q8_0", "exists: name another file, or replace it with `--force`"),
        (&input, "new.safetensors", "gguf:q4_0", "the name of a file in gguf:q4_0 must end in .gguf"),
        (&input, "new", "fp8", "the name of a file in fp8 must end in .safetensors"),
        (&input, "folder.gguf", "gguf:q8_0", "is a folder: name a file"),
        (&input, "nowhere/new.gguf", "gguf:q8_0", "does not exist: create"),
        (&input, "blocked.gguf", "gguf:q8_0", "blocked.gguf.part`: "),
        (&file("no such file"), "new.gguf", "gguf:q8_0", "is neither a folder nor a file"),
        (&reference("FLUX.1-dev/ae.safetensors"), "new.gguf", "gguf:q8_0", "it is no FLUX transformer"),
    ] {
        let convert = ["models", "convert", input, "--to", format, &file(output)];
        let error = format!("{:#}", run_in(data.path(), &convert).await.expect_err("refused"));
        assert!(error.contains(reason), "{error}");
    }
    assert_eq!(std::fs::read(file("old.gguf")).expect("readable"), b"old");
    assert!(!Path::new(&file("new.gguf")).exists() && !Path::new(&file("new.gguf.part")).exists());
    let convert = ["models", "convert", &input, "--to", "gguf:q8_0", &file("old.gguf"), "--force"];
    run_in(data.path(), &convert).await.expect("replaces");
    assert!(std::fs::read(file("old.gguf")).expect("readable").starts_with(b"GGUF"));
    for (options, reason) in [
        (&["--to", "gguf:q6_k"][..], "use `gguf:q8_0`, `gguf:q4_0`, `gguf:q4_k`, `fp8` or `bf16`"),
        (&["--to", "bf16", "--component", "vae"], "use `transformer` or `t5`"),
    ] {
        let error = parse_error(&[&["models", "convert", "a", "b.gguf"][..], options].concat()).to_string();
        assert!(error.contains(reason), "{error}");
    }
}
