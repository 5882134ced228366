//! bitsandbytes: four bits with the scales of blocks, which may be quantized, too; and int8 with the scales of rows.
//!
//! For a weight `W`: the bytes themselves, `W.absmax`, `W.quant_map`, `W.quant_state.bitsandbytes__nf4` or `__fp4` (JSON), and
//! `W.nested_absmax`, `W.nested_quant_map` where scales are quantized. For int8 `X.weight`: `X.SCB`, and `X.weight_format`.

use std::sync::Arc;

use serde::Deserialize;

use super::{Joined, Joining, is_of};
use crate::engine::checkpoint::entry::Entry;
use crate::engine::checkpoint::numbers::{BlockScales, FourBits, Int8, NestedScales, Numbers};

/// Largest block of numbers with one scale; published files have 64, and 256 for scales.
const BLOCK_MAX: usize = 1 << 16;

/// What a weight of four bits was.
#[derive(Deserialize)]
struct State {
    shape: Vec<usize>,
    blocksize: usize,
    nested_blocksize: Option<usize>,
    nested_offset: Option<f32>,
}

pub(super) fn join(joining: &mut Joining) {
    for weight in joining.stems(".quant_map") {
        let Some(file) = joining.entries.get(&weight).map(|entry| entry.file) else { continue };
        let outcome = four_bits(joining, &weight);
        joining.note(file, &weight, outcome);
    }
    for module in joining.stems(".SCB") {
        let weight = format!("{module}.weight");
        let Some(file) = joining.entries.get(&weight).map(|entry| entry.file) else { continue };
        let outcome = int8(joining, &module, &weight);
        joining.note(file, &weight, outcome);
    }
}

fn four_bits(joining: &mut Joining, weight: &str) -> Joined {
    let companion = |name: &str| format!("{weight}.{name}");
    let kinds = ["nf4", "fp4"].map(|kind| companion(&format!("quant_state.bitsandbytes__{kind}")));
    let state = kinds.into_iter().find_map(|name| Some((joining.take(&name)?, name)));
    let (map, absmax) = (joining.required(&companion("quant_map"))?, joining.required(&companion("absmax"))?);
    let nested = [companion("nested_absmax"), companion("nested_quant_map")].map(|name| (joining.take(&name), name));
    let (state, name) = state.ok_or_else(|| format!("`{}` is missing", companion("quant_state.bitsandbytes__nf4")))?;
    let state: State = joining.json(&name, &state)?;
    let count = elements(&state.shape).ok_or("its shape is too large")?;
    check_block(state.blocksize)?;
    let entry = &joining.entries[weight];
    if !is_of(entry, "U8") || entry.info.range.len() != count.div_ceil(2) {
        return Err(format!("it has not the bytes of {count} numbers of four bits"));
    }
    let levels = table(&joining.values(&companion("quant_map"), &map)?, "quant_map")?;
    let blocks = count.div_ceil(state.blocksize);
    let scales = if is_of(&absmax, "U8") {
        BlockScales::Nested(nested_scales(joining, &absmax, nested, &state, blocks)?)
    } else {
        let is_f32 = absmax.numbers.as_ref().and_then(Numbers::plain) == Some(candle_core::DType::F32);
        if !is_f32 || absmax.info.elements() != blocks {
            return Err(format!("`absmax` must have {blocks} numbers, F32 or U8"));
        }
        BlockScales::Plain(joining.file(&absmax), absmax.info.range.start)
    };
    let packed = FourBits { levels, block: state.blocksize, scales };
    set(joining, weight, state.shape, Numbers::FourBits(Arc::new(packed)));
    Ok(())
}

/// `nested`: the scales' scales and their levels, with their names.
fn nested_scales(
    joining: &Joining,
    absmax: &Entry,
    nested: [(Option<Entry>, String); 2],
    state: &State,
    blocks: usize,
) -> Result<NestedScales, String> {
    let (Some(block), Some(offset)) = (state.nested_blocksize, state.nested_offset) else {
        return Err("its state does not say how `absmax` is quantized".to_owned());
    };
    check_block(block)?;
    let [scales, levels] = nested.map(|(entry, name)| match entry {
        Some(entry) => joining.values(&name, &entry),
        None => Err(format!("`{name}` is missing")),
    });
    let (scales, levels) = (scales?, levels?);
    if absmax.info.range.len() != blocks || scales.len() != blocks.div_ceil(block) {
        return Err(format!("`absmax` and `nested_absmax` are not the scales of {blocks} blocks"));
    }
    let levels = Box::new(table(&levels, "nested_quant_map")?);
    Ok(NestedScales { file: joining.file(absmax), start: absmax.info.range.start, levels, block, scales, offset })
}

fn int8(joining: &mut Joining, module: &str, weight: &str) -> Joined {
    let scales = joining.required(&format!("{module}.SCB"))?;
    joining.take(&format!("{module}.weight_format"));
    let entry = &joining.entries[weight];
    let &[rows, columns] = entry.info.shape.as_slice() else {
        return Err("it is no matrix".to_owned());
    };
    if !is_of(entry, "I8") || columns == 0 {
        return Err("it has not the type I8".to_owned());
    }
    let scales = joining.values("SCB", &scales)?;
    if scales.len() != rows {
        return Err(format!("`SCB` must have {rows} numbers, and has {}", scales.len()));
    }
    let shape = entry.info.shape.clone();
    set(joining, weight, shape, Numbers::Int8(Arc::new(Int8 { columns, scales })));
    Ok(())
}

fn set(joining: &mut Joining, weight: &str, shape: Vec<usize>, numbers: Numbers) {
    if let Some(entry) = joining.entries.get_mut(weight) {
        entry.info.shape = shape;
        entry.numbers = Some(numbers);
    }
}

fn table<const LEVELS: usize>(values: &[f32], name: &str) -> Result<[f32; LEVELS], String> {
    values.try_into().map_err(|_| format!("`{name}` must have {LEVELS} numbers, and has {}", values.len()))
}

fn check_block(numbers: usize) -> Joined {
    // Two numbers share a byte, so that a scale's block must not end between them.
    let is_possible = numbers.is_multiple_of(2) && (2..=BLOCK_MAX).contains(&numbers);
    if is_possible { Ok(()) } else { Err(format!("a block of {numbers} numbers is not supported")) }
}

fn elements(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1_usize, |product, &size| product.checked_mul(size))
}
