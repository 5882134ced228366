//! fp8 with one scale for each weight: ComfyUI's older and newer files, and those of the model's authors.
//!
//! For a weight `X.weight`: `X.scale_weight` (older) or `X.weight_scale`; `X.scale_input` or `X.input_scale`, which matters
//! only where the layer's input is quantized, too; `X.comfy_quant` (JSON). A file may have the marker `scaled_fp8`.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{Joined, Joining};
use crate::engine::blocks::BlockType;
use crate::engine::checkpoint::numbers::Numbers;

/// The formats of `comfy_quant` that are one scale for each weight.
const FORMATS: [&str; 2] = ["float8_e4m3fn", "float8_e5m2"];

/// How a layer is quantized.
#[derive(Deserialize)]
struct Quantization {
    format: String,
}

/// The metadata that says how each layer of a file is quantized.
#[derive(Deserialize)]
struct Quantizations {
    layers: BTreeMap<String, Quantization>,
}

/// Why a file cannot be used, by what its metadata says of its layers.
pub(in crate::engine::checkpoint) fn unsupported_layer(metadata: &BTreeMap<String, String>) -> Option<String> {
    let text = metadata.get("_quantization_metadata")?;
    let Ok(Quantizations { layers }) = serde_json::from_str(text) else {
        return Some("its metadata `_quantization_metadata` is not what ComfyUI writes".to_owned());
    };
    let (layer, Quantization { format }) =
        layers.iter().find(|(_, layer)| !FORMATS.contains(&layer.format.as_str()))?;
    Some(format!("tensor `{layer}.weight`: {}", unsupported(format)))
}

pub(super) fn join(joining: &mut Joining) {
    joining.take("scaled_fp8");
    for ending in [".scale_input", ".input_scale"] {
        for module in joining.stems(ending) {
            joining.take(&format!("{module}{ending}"));
        }
    }
    // One file has the same format in hundreds of layers: the first is enough.
    let mut refused: Vec<String> = Vec::new();
    for module in joining.stems(".comfy_quant") {
        let name = format!("{module}.comfy_quant");
        let Some(entry) = joining.take(&name) else { continue };
        match joining.json::<Quantization>(&name, &entry) {
            Ok(Quantization { format }) if FORMATS.contains(&format.as_str()) => {}
            Ok(Quantization { format }) if refused.contains(&format) => {}
            Ok(Quantization { format }) => {
                joining.note(entry.file, &format!("{module}.weight"), Err(unsupported(&format)));
                refused.push(format);
            }
            Err(reason) => joining.note(entry.file, &format!("{module}.weight"), Err(reason)),
        }
    }
    if !refused.is_empty() {
        return;
    }
    for ending in [".scale_weight", ".weight_scale"] {
        for module in joining.stems(ending) {
            let weight = format!("{module}.weight");
            let Some(file) = joining.entries.get(&weight).map(|entry| entry.file) else { continue };
            let outcome = scaled(joining, &weight, &format!("{module}{ending}"));
            joining.note(file, &weight, outcome);
        }
    }
}

/// Why a format cannot be used, and what can.
fn unsupported(format: &str) -> String {
    format!("its quantization `{format}` is not supported: use the fp8, GGUF, NF4 or bf16 file of this model")
}

fn scaled(joining: &mut Joining, weight: &str, scale_name: &str) -> Joined {
    let scale = joining.required(scale_name)?;
    let scale = joining.value(scale_name, &scale)?;
    let Some(entry) = joining.entries.get_mut(weight) else { return Ok(()) };
    match entry.numbers {
        Some(Numbers::Blocks(kind @ (BlockType::F8E4M3 | BlockType::F8E5M2))) => {
            entry.numbers = Some(Numbers::Scaled(kind, scale));
            Ok(())
        }
        _ => Err(format!("`{scale_name}` is for a weight in fp8, and this one is not")),
    }
}
