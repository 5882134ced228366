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
