//! Attention of some queries of one head on the CPU, with the queries in a vector unit's lanes.
//!
//! Scores are then `[keys, lanes]`: their softmax needs nothing from other lanes, and they are the operand of the second product as they
//! are. Keys and values are read where they are in the stream.

use super::super::gemm::panels::{Panel, PanelRef, Panels};
use super::super::gemm::rounded::Form;
use super::super::gemm::{MatrixRef, Threads, VectorUnit};
use super::super::vector::{SUM_LANES, exp, folded, vectorized};

/// Queries of one task: many, because each task reads all keys, but few enough that their scores stay in the cache. A multiple of
/// the widest panels of all units.
pub(super) const QUERY_BLOCK: usize = 192;

/// Keys that are multiplied with all queries of a task before the next.
const KEY_BLOCK: usize = 64;

/// What [`attend`] multiplies: rows of one head.
pub(super) struct Operands<'a> {
    /// `[queries, head width]`, or as wide as that is in `form`.
    pub(super) query: MatrixRef<'a>,
    /// `[keys, head width]`, likewise.
    pub(super) key: MatrixRef<'a>,
    /// `[keys, head width]`, or as high as that is in `form`.
    pub(super) value: MatrixRef<'a>,
    /// What they are rounded to; weights are, too. `None`: all are in f32.
    pub(super) form: Option<Form>,
    pub(super) scale: f32,
    /// The number of the first query, and values as in [`super::biased_attention`] that are added to its scores before they are scaled.
    pub(super) bias: Option<(usize, &'a [f32])>,
}

/// Memory that a thread reuses.
#[derive(Default)]
pub(super) struct Scratch {
    scores: Vec<f32>,
    rounded: Vec<f32>,
    totals: Vec<f32>,
    highest: Vec<f32>,
    sums: Vec<f32>,
}

/// Writes the outputs `[queries, head width]`. With the bits of [`super::packed`]'s other way.
pub(super) fn attend(unit: VectorUnit, operands: &Operands, scratch: &mut Scratch, out: &mut [f32]) {
    let Operands { query, key, value, form, scale, bias } = *operands;
    let (keys, head_width) = (key.rows, value.columns);
    let queries = Panels::of(unit, query, Threads::One);
    let width_of_all: usize = queries.panels().iter().map(|panel| panel.width(unit)).sum();
    scratch.scores.resize(width_of_all * keys, 0.0);
    // All panels before one are full.
    let scores_of = |panel: &Panel| panel.lanes.start * keys..(panel.lanes.start + panel.width(unit)) * keys;
    for first in (0..keys).step_by(KEY_BLOCK) {
        let own = first..(first + KEY_BLOCK).min(keys);
        for panel in queries.panels() {
            let width = panel.width(unit);
            let scores = &mut scratch.scores[scores_of(panel)][own.start * width..own.end * width];
            queries.values(panel).multiply(key.of_rows(&own), scores, false);
        }
    }
    for panel in queries.panels() {
        let width = panel.width(unit);
        let scores = &mut scratch.scores[scores_of(panel)];
        if let Some((first, bias)) = bias {
            add_bias(scores, width, first + panel.lanes.start, bias);
        }
        scratch.highest.clear();
        scratch.highest.resize(width, f32::NEG_INFINITY);
        scratch.sums.clear();
        scratch.sums.resize(width * SUM_LANES, 0.0);
        softmax_numerators(scores, scale, &mut scratch.highest, &mut scratch.sums);
        scratch.totals.resize(head_width * width, 0.0);
        let weights = match form {
            None => scores,
            Some(form) => {
                scratch.rounded.resize(form.width(keys) * width, 0.0);
                form.round_columns(MatrixRef::new(scores, keys, width, width), &mut scratch.rounded);
                scratch.rounded.as_mut_slice()
            }
        };
        PanelRef::new(unit, panel, weights).multiply(value.transposed(), &mut scratch.totals, false);
        let out = &mut out[panel.lanes.start * head_width..panel.lanes.end * head_width];
        for (lane, out) in out.chunks_exact_mut(head_width).enumerate() {
            let sums = std::array::from_fn(|part| scratch.sums[part * width + lane]);
            let inverse = 1.0 / folded(sums);
            for (out, totals) in out.iter_mut().zip(scratch.totals.chunks_exact(width)) {
                *out = totals[lane] * inverse;
            }
        }
    }
}

/// Adds to `scores [keys, width]` of queries from `first` on the bias for how far each key is behind the query.
fn add_bias(scores: &mut [f32], width: usize, first: usize, bias: &[f32]) {
    let keys = scores.len() / width;
    for (key, scores) in scores.chunks_exact_mut(width).enumerate() {
        // Lanes beyond the last query are not used.
        for (lane, score) in scores.iter_mut().enumerate().take(keys - first.min(keys)) {
            *score += bias[keys - 1 + key - (first + lane)];
        }
    }
}

vectorized! {
    /// Replaces `scores [keys, lanes]` with the numerators of each lane's softmax. `highest [lanes]` begins with the lowest number,
    /// `sums [SUM_LANES, lanes]` with zeros: their parts are summed as [`super::super::vector::sum`] does it.
    fn softmax_numerators<'a>(scores: &'a mut [f32], scale: f32, highest: &'a mut [f32], sums: &'a mut [f32]) {
        let width = highest.len();
        for scores in scores.chunks_exact(width) {
            for (highest, &score) in highest.iter_mut().zip(scores) {
                *highest = if score > *highest { score } else { *highest };
            }
        }
        for (key, scores) in scores.chunks_exact_mut(width).enumerate() {
            let sums = &mut sums[key % SUM_LANES * width..][..width];
            for ((score, &highest), sum) in scores.iter_mut().zip(&*highest).zip(sums) {
                *score = exp((*score - highest) * scale);
                *sum += *score;
            }
        }
    }
}
