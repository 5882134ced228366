//! LoRA files.

use std::path::Path;

use super::*;

fn reference(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference").join(path);
    path.to_str().expect("UTF-8").to_owned()
}

#[tokio::test]
async fn a_lora_says_what_it_changes() {
    let data = tempfile::tempdir().expect("a folder");
    let model = format!("my/flux={}", reference("FLUX.1-dev"));
    let inspect = async |file: &str| {
        let file = reference(&format!("lora/adapters/{file}.safetensors"));
        run_in(data.path(), &["loras", "inspect", &file, "--model", &model]).await
    };
    let (out, _) = inspect("c1_ai_toolkit").await.expect("an adapter");
    assert!(out.contains("linear layers") && out.contains("names: PEFT") && out.contains("tensors are used"), "{out}");
    assert!(out.contains("says of itself, unverified") && out.contains("ss_base_model_version: flux1"), "{out}");
    let error = inspect("j7_nan").await.expect_err("broken").to_string();
    assert!(error.contains("has NaN in it"), "{error}");
}

#[tokio::test]
async fn a_lora_of_other_dimensions_is_refused() {
    let data = tempfile::tempdir().expect("a folder");
    let file = reference("lora/adapters/b1_kohya.safetensors");
    let error = run_in(data.path(), &["loras", "inspect", &file]).await.expect_err("tiny").to_string();
    assert!(error.contains("has shape [4, 64], `double_blocks.0.img_attn.proj` takes [rank, 3072]"), "{error}");
    let parts = ["loras", "inspect", &file, "--base", "a/base"];
    let error = run_in(data.path(), &parts).await.expect_err("no model").to_string();
    assert!(error.contains("are for the model of `--model`"), "{error}");
}

/// Whether bytes have a text in them.
fn has(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

#[tokio::test]
async fn an_image_is_generated_with_loras_and_its_file_names_them() {
    let data = tempfile::tempdir().expect("a folder");
    let (model, output) = (format!("my/flux={}", reference("FLUX.1-dev")), data.path().join("image.png"));
    let path = output.to_str().expect("UTF-8");
    let generate = async |loras: &[&str]| {
        let files = ["generate", "--model", &model, "--prompt", "a fox", "--output", path];
        let size = ["--width", "64", "--height", "64", "--steps", "1", "--seed", "1", "--device", "cpu"];
        run_in(data.path(), &[&files[..], &size, loras].concat())
            .await
            .map(|_| std::fs::read(&output).expect("written"))
    };
    let plain = generate(&[]).await.expect("generates");
    assert!(!has(&plain, "loras"));
    let (style, text) =
        (reference("lora/adapters/b1_kohya.safetensors"), reference("lora/adapters/f2_peft_te.safetensors"));
    let with = generate(&["--lora", &format!("{style}=-0.5"), "--lora", &text]).await.expect("generates");
    assert!(has(&with, "\"scale\":-0.5") && has(&with, "\"scale\":1.0"), "both are named");
    let digest = crate::hub::sha256_of(Path::new(&style)).expect("readable");
    let digest = crate::domain::adapter::AdapterId::of_sha256(digest);
    assert!(has(&with, &format!("\"sha256\":\"{digest}\"")));
    for (lora, reason) in [
        (reference("lora/adapters/j10_sdxl.safetensors"), "an adapter for Stable Diffusion"),
        (reference("lora/adapters/missing.safetensors"), "--lora: reading `"),
        (format!("{style}=11"), "--lora: must be from -10 to 10, not 11"),
    ] {
        let error = generate(&["--lora", &lora]).await.expect_err("refused").to_string();
        let file = lora.split('=').next().unwrap_or_default();
        assert!(error.contains(reason) && (error.contains(file) || error.contains("not 11")), "{error}");
    }
}
