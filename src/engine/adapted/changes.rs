//! Whose rows are changed by what: the adapters of each image of a step, and what they change of a layer.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Result, Tensor};

use super::loaded::{Base, LoadedAdapter, LowRankMatrices, RowChange};
use crate::domain::adapter::AdapterId;
use crate::engine::ops::low_rank::LowRankPart;

/// The adapters of an image, each with its strength. They stay in memory for as long as this does.
#[derive(Debug, Clone, Default)]
pub(crate) struct AdapterSet(pub(super) Vec<(Arc<LoadedAdapter>, f64)>);

impl AdapterSet {
    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The one that joins inputs to those of the image's layer, if there is one, and how many.
    pub(crate) fn joining(&self) -> Option<(&AdapterId, usize)> {
        let joining = self.0.iter().find(|(adapter, _)| adapter.inputs_joined > 0);
        joining.map(|(adapter, _)| (&adapter.id, adapter.inputs_joined))
    }

    /// What takes the place of a norm: of several adapters that replace it, what the last one has.
    fn norm(&self, name: &str) -> Option<&Tensor> {
        self.0.iter().rev().find_map(|(adapter, _)| adapter.norms.get(name))
    }

    /// Those that change a text encoder, with the bits of their strengths.
    pub(crate) fn of_text(&self) -> Vec<(AdapterId, u64)> {
        let of_text = self.0.iter().filter(|(adapter, _)| adapter.is_of_text);
        of_text.map(|(adapter, strength)| (adapter.id.clone(), strength.to_bits())).collect()
    }
}

/// A module whose outputs, or some of them, are outputs of a layer.
#[derive(Debug, Clone)]
pub(crate) struct PlacedModule {
    pub(crate) name: Arc<str>,
    /// Which of the module's outputs.
    pub(crate) outputs: Range<usize>,
    /// The first of them in the layer.
    pub(crate) start: usize,
}

impl PlacedModule {
    /// The outputs of the layer from `start` on, where they are of this module.
    pub(crate) fn part(&self, start: usize, outputs: usize) -> Option<Self> {
        let end = (self.start + self.outputs.len()).min(start + outputs);
        let first = self.start.max(start);
        (first < end).then(|| {
            let skipped = self.outputs.start + first - self.start;
            Self { name: Arc::clone(&self.name), outputs: skipped..skipped + end - first, start: first - start }
        })
    }

    /// What of a change of the module is in the layer: its part, and the layer's outputs.
    fn overlap(&self, rows: &Range<usize>) -> Option<(Range<usize>, Range<usize>)> {
        let (start, end) = (self.outputs.start.max(rows.start), self.outputs.end.min(rows.end));
        let first = (self.start + start).saturating_sub(self.outputs.start);
        (start < end).then(|| (start - rows.start..end - rows.start, first..first + end - start))
    }
}

/// The rows of a layer's input that adapters change, image by image.
#[derive(Debug, Default)]
pub(crate) struct Changes<'a>(Vec<(Range<usize>, &'a AdapterSet)>);

/// What a change adds to some outputs of a layer, for some rows of its input.
#[derive(Debug)]
pub(crate) struct LayerChange<'a> {
    /// The rows.
    pub(crate) rows: Range<usize>,
    /// The layer's outputs.
    pub(crate) outputs: Range<usize>,
    change: &'a RowChange,
    /// Which of the change's outputs these are.
    part: Range<usize>,
    strength: f64,
}

impl<'a> Changes<'a> {
    /// Of rows in their order. Neighbors of one image are changed together.
    pub(crate) fn of(rows: impl IntoIterator<Item = (Range<usize>, &'a AdapterSet)>) -> Self {
        let mut changes: Vec<(Range<usize>, &AdapterSet)> = Vec::new();
        for (rows, set) in rows.into_iter().filter(|(rows, set)| !rows.is_empty() && !set.0.is_empty()) {
            match changes.last_mut() {
                Some((before, last)) if before.end == rows.start && std::ptr::eq(*last, set) => before.end = rows.end,
                _ => changes.push((rows, set)),
            }
        }
        Self(changes)
    }

    /// What is changed of a layer with these modules: rows in their order, and of each its adapters in theirs.
    pub(crate) fn of_layer(&self, modules: &[PlacedModule]) -> Vec<LayerChange<'a>> {
        let mut changes = Vec::new();
        for (rows, set) in &self.0 {
            for (adapter, strength) in &set.0 {
                for module in modules {
                    let of_module = adapter.modules.get(&*module.name).into_iter().flatten();
                    changes.extend(of_module.filter_map(|change| {
                        let (part, outputs) = module.overlap(&change.rows)?;
                        Some(LayerChange { rows: rows.clone(), outputs, change, part, strength: *strength })
                    }));
                }
            }
        }
        changes
    }

    /// The rows in which one of two norms is replaced, and what takes their places.
    pub(crate) fn of_norms(&self, names: [&str; 2]) -> Vec<(Range<usize>, [Option<&'a Tensor>; 2])> {
        let replaced = self.0.iter().map(|(rows, set)| (rows.clone(), names.map(|name| set.norm(name))));
        replaced.filter(|(_, norms)| norms.iter().any(Option::is_some)).collect()
    }

    /// Whether anything is changed of a layer with these modules.
    pub(crate) fn change(&self, modules: &[PlacedModule]) -> bool {
        !self.of_layer(modules).is_empty()
    }
}

impl LayerChange<'_> {
    /// Whether what it adds depends on the layer's own product.
    pub(crate) fn is_relative(&self) -> bool {
        self.change.is_relative()
    }

    /// Its matrices of low rank for the layer's outputs, and their factor. `None` where it is of another kind.
    ///
    /// # Errors
    /// When the device fails.
    pub(crate) fn low_rank(&self) -> Result<Option<LowRankMatrices>> {
        self.change.low_rank(&self.part, self.strength)
    }

    /// The same as a part of an operation.
    pub(crate) fn part<'m>(&self, LowRankMatrices { down, up, scale }: &'m LowRankMatrices) -> LowRankPart<'m> {
        LowRankPart { rows: self.rows.clone(), columns: self.outputs.clone(), down, up, scale: *scale }
    }

    /// What is added, where `x` is the layer's input in these rows: `[rows, outputs]`.
    ///
    /// # Errors
    /// When shapes or devices do not fit, or the device fails.
    pub(crate) fn added(&self, x: &Tensor, base: &dyn Base) -> Result<Tensor> {
        self.change.added((&self.part, &self.outputs), x, base, self.strength)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn set(names: &[(&str, Range<usize>)]) -> AdapterSet {
        let change = |rows: &Range<usize>| RowChange { rows: rows.clone(), form: None, norm: None, bias: None };
        let modules: HashMap<_, _> =
            names.iter().map(|(name, rows)| ((*name).to_owned(), vec![change(rows)])).collect();
        let id = AdapterId::of_sha256([1; 32]);
        let norms = HashMap::new();
        AdapterSet(vec![(Arc::new(LoadedAdapter { id, is_of_text: false, inputs_joined: 0, modules, norms }), 0.5)])
    }

    fn module(name: &str, outputs: Range<usize>, start: usize) -> PlacedModule {
        PlacedModule { name: name.into(), outputs, start }
    }

    #[test]
    fn a_layer_has_the_changes_of_its_modules_where_their_outputs_are() {
        let set = set(&[("a", 0..10), ("b", 4..8), ("c", 0..10)]);
        let changes = Changes::of([(3..5, &set)]);
        let places = |modules: &[PlacedModule]| -> Vec<_> {
            let changes = changes.of_layer(modules).into_iter();
            changes.map(|change| (change.rows, change.outputs, change.part)).collect()
        };
        assert_eq!(places(&[module("a", 0..10, 0)]), [(3..5, 0..10, 0..10)]);
        // Two modules in one layer, and parts of modules.
        assert_eq!(
            places(&[module("a", 0..10, 0), module("b", 0..10, 10)]),
            [(3..5, 0..10, 0..10), (3..5, 14..18, 0..4)]
        );
        assert_eq!(places(&[module("b", 6..20, 0)]), [(3..5, 0..2, 2..4)]);
        assert!(places(&[module("b", 8..20, 0), module("d", 0..9, 12)]).is_empty());
        assert!(!changes.change(&[module("d", 0..9, 0)]) && changes.change(&[module("c", 0..9, 0)]));
    }

    #[test]
    fn a_part_of_a_layer_has_parts_of_its_modules() {
        let whole = module("a", 5..15, 20);
        let found = |start, outputs| whole.part(start, outputs).map(|part| (part.outputs, part.start));
        assert_eq!(found(20, 10), Some((5..15, 0)));
        assert_eq!(found(18, 4), Some((5..7, 2)));
        assert_eq!(found(24, 100), Some((9..15, 0)));
        assert_eq!([found(0, 20), found(30, 9)], [None, None]);
    }

    #[test]
    fn neighbors_of_one_image_are_one_range_and_images_without_adapters_none() {
        let (one, other, none) = (set(&[]), set(&[]), AdapterSet::default());
        let changes =
            Changes::of([(0..2, &one), (2..5, &one), (5..7, &other), (7..9, &none), (9..9, &one), (9..12, &one)]);
        let ranges: Vec<_> = changes.0.iter().map(|(rows, _)| rows.clone()).collect();
        assert_eq!(ranges, [0..5, 5..7, 9..12]);
    }
}
