//! The normalization of queries and keys, head by head. An adapter may replace its scales for its image's rows.

use std::ops::Range;

use candle_core::{Result, Tensor};

use super::super::config::TransformerConfig;
use crate::engine::adapted::Changes;
use crate::engine::checkpoint::Tensors;
use crate::engine::ops::matrix_product::MatrixProduct;
use crate::engine::ops::rope::{Rotary, normalize_and_rotate, normalize_and_rotate_into};
use crate::engine::ops::{Places, Segments};

const QUERY: &str = "query_norm.scale";
const KEY: &str = "key_norm.scale";

/// Scales of the query and key normalization, `[head width]` each.
pub(super) struct HeadNorm {
    query: Tensor,
    key: Tensor,
    /// The names by which adapters know them.
    names: [String; 2],
}

/// Rows in their order, and the scales of queries and keys that are used for them.
type Piece<'a> = (Range<usize>, [&'a Tensor; 2]);

impl HeadNorm {
    pub(super) fn load(config: &TransformerConfig, vb: &Tensors) -> Result<Self> {
        let width = config.attention_head_dim;
        let names = [QUERY, KEY].map(|name| format!("{}.{name}", vb.prefix()));
        Ok(Self { query: vb.get(width, QUERY)?, key: vb.get(width, KEY)?, names })
    }

    /// Queries, keys and values of some rows, normalized and rotated.
    ///
    /// # Errors
    /// When shapes do not fit, or the device fails.
    pub(super) fn apply(&self, qkv: &MatrixProduct, rotary: Option<&Rotary>, changes: &Changes) -> Result<Tensor> {
        let Some(pieces) = self.pieces(qkv.rows()?, changes) else {
            return normalize_and_rotate(qkv, &self.query, &self.key, rotary);
        };
        let each = pieces.into_iter().map(|(rows, [query, key])| {
            let rotary = rotary.map(|rotary| rotary.of_rows(&rows)).transpose()?;
            normalize_and_rotate(&qkv.of_rows(&rows)?, query, key, rotary.as_ref())
        });
        Tensor::cat(&each.collect::<Result<Vec<_>>>()?, 0)
    }

    /// [`Self::apply`] into the rows of a joint stream, at the places of the sequences.
    ///
    /// # Errors
    /// When shapes do not fit, or the device fails.
    pub(super) fn apply_into(
        &self,
        joint: &Tensor,
        (places, changes): (&Places, &Changes),
        qkv: &MatrixProduct,
        rotary: Option<&Rotary>,
    ) -> Result<()> {
        let Some(pieces) = self.pieces(qkv.rows()?, changes) else {
            return normalize_and_rotate_into(joint, places, qkv, [&self.query, &self.key], rotary);
        };
        for (rows, scales) in pieces {
            // An adapter's rows are those of whole sequences.
            let (sources, starts): (Vec<_>, Vec<_>) = places
                .pairs()
                .filter(|(source, _)| !source.is_empty() && rows.start <= source.start && source.end <= rows.end)
                .unzip();
            let places = Places::new(&Segments::from_lengths(sources.iter().map(ExactSizeIterator::len)), starts);
            let rotary = rotary.map(|rotary| rotary.of_rows(&rows)).transpose()?;
            normalize_and_rotate_into(joint, &places, &qkv.of_rows(&rows)?, scales, rotary.as_ref())?;
        }
        Ok(())
    }

    /// So many rows, cut where the scales change. `None` where none are replaced.
    fn pieces<'a>(&'a self, count: usize, changes: &Changes<'a>) -> Option<Vec<Piece<'a>>> {
        let [query, key] = &self.names;
        let replaced = changes.of_norms([query, key]);
        if replaced.is_empty() {
            return None;
        }
        let own = [&self.query, &self.key];
        let (mut pieces, mut end) = (Vec::with_capacity(2 * replaced.len() + 1), 0);
        for (rows, [query, key]) in replaced {
            pieces.push((end..rows.start, own));
            end = rows.end;
            pieces.push((rows, [query.unwrap_or(own[0]), key.unwrap_or(own[1])]));
        }
        pieces.push((end..count, own));
        pieces.retain(|(rows, _)| !rows.is_empty());
        Some(pieces)
    }
}
