use std::collections::BTreeMap;
use std::path::PathBuf;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use tempfile::TempDir;

use super::*;
use crate::domain::model::{Attachments, CompletedFiles, ModelFiles};
use crate::engine::checkpoint::{Checkpoint, inspect};

fn reference(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference").join(path)
}

const UNION: &str = "family/controlnet/FLUX.1-dev-ControlNet-Union";

/// The tensors of a weight file.
type Stored = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn stored(path: &str) -> Stored {
    let bytes = std::fs::read(reference(path)).expect("readable");
    let tensors = SafeTensors::deserialize(&bytes).expect("a weight file").tensors().into_iter();
    tensors.map(|(name, view)| (name, (view.dtype(), view.shape().to_vec(), view.data().to_vec()))).collect()
}

fn union() -> Stored {
    stored(&format!("{UNION}/diffusion_pytorch_model.safetensors"))
}

fn write<'a>(tensors: impl IntoIterator<Item = (&'a String, &'a (Dtype, Vec<usize>, Vec<u8>))>, path: &Path) {
    let views = tensors.into_iter().map(|(name, (dtype, shape, bytes))| {
        (name.clone(), TensorView::new(*dtype, shape.clone(), bytes).expect("a tensor"))
    });
    safetensors::serialize_to_file(views, None, path).expect("written");
}

/// A folder with these tensors in one file, and with the union's configuration changed in one place, if it has one.
fn folder(tensors: &Stored, changed: Option<(&str, &str)>) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    write(tensors, &folder.path().join("diffusion_pytorch_model.safetensors"));
    if let Some((from, to)) = changed {
        let config = std::fs::read_to_string(reference(UNION).join(CONFIG)).expect("readable");
        assert!(config.contains(from), "{config}");
        std::fs::write(folder.path().join(CONFIG), config.replace(from, to)).expect("written");
    }
    folder
}

/// The reference checkpoint with a net beside it.
fn beside(path: &Path) -> ModelFiles {
    let attachments = Attachments { controlnets: vec![("edges".into(), path.to_owned())], ..Attachments::default() };
    ModelFiles::Completed(Box::new(CompletedFiles {
        path: reference("FLUX.1-dev"),
        text_encoders: Vec::new(),
        vae: None,
        base: None,
        attachments,
    }))
}

/// Why the checkpoint with this net cannot be used.
fn refusal(path: &Path) -> String {
    Checkpoint::open(&beside(path)).err().expect("refused").to_string()
}

#[test]
fn a_net_is_opened_with_its_checkpoint_and_counted() {
    let (path, plain) = (reference(UNION), ModelFiles::Directory(reference("FLUX.1-dev")));
    let checkpoint = Checkpoint::open(&beside(&path)).expect("opens");
    let without = Checkpoint::open(&plain).expect("opens").weight_bytes(candle_core::DType::F32);
    let with = checkpoint.weight_bytes(candle_core::DType::F32);
    let bytes: usize = union().values().map(|(_, _, bytes)| 2 * bytes.len()).sum();
    // Two blocks with two streams, and one with a joint stream.
    assert_eq!((with.attached, with.residuals, without.attached, without.residuals), (bytes, 3, 0, 0));
    let report = inspect(&beside(&path));
    let part = report.components.last().expect("components");
    assert!(report.is_sound() && (part.name, part.tensors) == (PART, union().len()), "{report}");
}

#[test]
fn folders_shards_and_single_files_are_the_same_net() {
    let config = |path: &Path| {
        let checkpoint = Checkpoint::open(&beside(path)).unwrap_or_else(|error| panic!("{error}"));
        checkpoint.controlnets[0].config.clone()
    };
    let (tensors, expected) = (union(), config(&reference(UNION)));
    assert_eq!((expected.blocks(), expected.modes), ([2, 1], Some(7)));
    // A file of any name, and a folder without a configuration.
    let without = folder(&tensors, None);
    assert_eq!(config(without.path()), expected);
    assert_eq!(config(&without.path().join("diffusion_pytorch_model.safetensors")), expected);
    let other = without.path().join("any.safetensors");
    std::fs::rename(without.path().join("diffusion_pytorch_model.safetensors"), &other).expect("renamed");
    assert_eq!(config(without.path()), expected);
    assert_eq!(config(&other), expected);
    // Two shards with an index.
    let shards = folder(&Stored::new(), Some(("\"num_mode\"", "\"num_mode\"")));
    std::fs::remove_file(shards.path().join("diffusion_pytorch_model.safetensors")).expect("removed");
    let mut map = serde_json::Map::new();
    for (file, is_first) in [("a.safetensors", true), ("b.safetensors", false)] {
        let own =
            tensors.iter().enumerate().filter(|(index, _)| (index % 2 == 0) == is_first).map(|(_, tensor)| tensor);
        map.extend(own.clone().map(|(name, _)| (name.clone(), file.into())));
        write(own, &shards.path().join(file));
    }
    let index = serde_json::json!({ "metadata": {}, "weight_map": map }).to_string();
    std::fs::write(shards.path().join("diffusion_pytorch_model.safetensors.index.json"), index).expect("written");
    assert_eq!(config(shards.path()), expected);
    // Nets without single blocks or modes do not get FLUX.1's.
    let plain = config(&reference("family/controlnet/FLUX.1-dev-Controlnet-Canny/diffusion_pytorch_model.safetensors"));
    assert_eq!((plain.blocks(), plain.modes, plain.trunk.guidance_embeds), ([1, 0], None, false));
}

#[test]
fn what_is_wrong_with_a_net_is_named() {
    let without = |name: &str| {
        let mut tensors = union();
        assert!(tensors.remove(name).is_some());
        tensors
    };
    let same = Some(("\"num_mode\"", "\"num_mode\""));
    for (net, reason) in [
        (folder(&without("controlnet_blocks.1.bias"), same), "tensor `controlnet_blocks.1.bias` is missing"),
        (folder(&without("controlnet_mode_embedder.weight"), same), "`controlnet_mode_embedder.weight` is missing"),
        (
            folder(&union(), Some(("\"num_mode\": 7", "\"num_mode\": null"))),
            "`controlnet_mode_embedder.weight` of shape",
        ),
        (
            folder(&union(), Some(("\"num_layers\": 2", "\"num_layers\": 3"))),
            "`transformer_blocks.2.norm1.linear.weight` is missing",
        ),
        (
            folder(&union(), Some(("\"num_attention_heads\": 4", "\"num_attention_heads\": 8"))),
            "ControlNet `edges`: it is for another model: num_attention_heads is 8, the model's is 4",
        ),
        (folder(&union(), Some(("\"num_layers\": 2", "\"num_layers\": \"two\""))), "config.json: invalid type"),
    ] {
        let error = refusal(net.path());
        assert!(error.contains(reason), "{reason}: {error}");
    }
    let model = reference("FLUX.1-dev/transformer");
    assert!(refusal(&model).contains("ControlNet `edges`: it has no `controlnet_x_embedder`"), "{}", refusal(&model));
    let nowhere = refusal(Path::new("/nowhere/net.safetensors"));
    assert!(nowhere.contains("/nowhere/net.safetensors: missing"), "{nowhere}");
    let empty = tempfile::tempdir().expect("a folder");
    assert!(refusal(empty.path()).contains("diffusion_pytorch_model.safetensors: missing"));
}

#[test]
fn a_card_is_refused_for_the_same_reasons() {
    let card = |path: &Path| controlnet_card("edges", path).map(|card| (card.name.to_string(), card.modes));
    assert_eq!(card(&reference(UNION)).expect("a card"), ("edges".to_owned(), Some(7)));
    let mut xlabs = union();
    let bias = xlabs["controlnet_blocks.0.bias"].clone();
    xlabs.insert("input_hint_block.0.bias".to_owned(), bias);
    let error = card(folder(&xlabs, None).path()).expect_err("another kind").to_string();
    assert!(error.contains("ControlNet `edges`: it is one of XLabs' ControlNets, which read pixels"), "{error}");
    assert!(card(Path::new("/nowhere")).is_err());
}

/// One number under each name: what a file is, its header tells.
fn named(names: &[&str]) -> Stored {
    names.iter().map(|name| ((*name).to_owned(), (Dtype::F32, vec![1], vec![0; 4]))).collect()
}

#[test]
fn files_of_other_kinds_are_refused_by_name_with_what_to_do() {
    let (other_net, redux) = ("has `controlnet_x_embedder`, as those of InstantX", "load FLUX.1-Redux with `--redux`");
    let cases: [(&[&str], &str, &str); 12] = [
        (
            &["controlnet_blocks.0.weight", "double_blocks.0.img_attn.proj.weight", "input_hint_block.0.weight"],
            "one of XLabs' ControlNets",
            other_net,
        ),
        (&["controlnet_blocks.0.linear.weight", "input_hint_block.0.weight"], "MistoLine", other_net),
        (
            &["lllite_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.down.0.weight"],
            "a ControlNet-LLLite",
            other_net,
        ),
        (
            &["double_blocks.0.processor.ip_adapter_double_stream_k_proj.weight", "ip_adapter_proj_model.proj.weight"],
            "an IP-Adapter",
            redux,
        ),
        (&["image_proj.proj.0.weight"], "an IP-Adapter", redux),
        (&["redux_up.weight", "redux_down.weight"], "FLUX.1-Redux", "load it with `--redux`"),
        (&["controlnet_cond_embedding.conv_in.weight", "control_add_embedding.linear_1.weight"], "a union", other_net),
        (&["controlnet_cond_embedding.conv_in.bias", "controlnet_down_blocks.0.bias"], "a ControlNet of", other_net),
        (&["control_model.input_hint_block.0.weight"], "a ControlNet of Stable Diffusion:", other_net),
        (
            &["pos_embed_input.proj.weight", "controlnet_blocks.0.weight"],
            "a ControlNet of Stable Diffusion 3",
            other_net,
        ),
        (
            &["controlnet_x_embedder.weight", "transformer_blocks.0.img_mod.1.weight"],
            "a ControlNet of Qwen-Image",
            other_net,
        ),
        (&["transformer.x_embedder.lora_A.weight"], "a LoRA", "add it with `fluxserve loras add`"),
    ];
    for (names, what, advice) in cases {
        let net = folder(&named(names), None);
        // A configuration of any form says less than the weights do.
        std::fs::write(net.path().join(CONFIG), r#"{"num_attention_heads": null}"#).expect("written");
        for path in [net.path().to_owned(), net.path().join("diffusion_pytorch_model.safetensors")] {
            let error = controlnet_card("edges", &path).expect_err(what).to_string();
            assert!(error.contains(&format!("ControlNet `edges`: it is {what}")), "{names:?}: {error}");
            assert!(error.contains(advice) && error.matches("\n  - ").count() == 1, "{names:?}: {error}");
            assert!(refusal(&path).contains(what));
        }
    }
}

#[test]
fn a_net_that_reads_a_mask_is_refused_by_name() {
    let mut tensors = union();
    let (dtype, shape, bytes) = tensors.remove("controlnet_x_embedder.weight").expect("a net has it");
    let wide = vec![shape[0], shape[1] + MASK_INPUTS];
    let row = bytes.len() / shape[0];
    let widened = bytes.chunks_exact(row).flat_map(|one| [one, &vec![0; MASK_INPUTS * row / shape[1]][..]].concat());
    tensors.insert("controlnet_x_embedder.weight".to_owned(), (dtype, wide, widened.collect()));
    for net in [folder(&tensors, None), folder(&tensors, Some(("\"num_mode\"", "\"num_mode\"")))] {
        let error = refusal(net.path());
        assert!(error.contains("it reads a mask beside the control image"), "{error}");
        assert!(error.contains("use FLUX.1-Fill-dev"), "{error}");
    }
}
