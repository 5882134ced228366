//! Which tensors a component has in a layout: names and shapes in the files, and how the model's tensors are assembled from
//! them.

use super::layout::Layout;
use super::names::{Kind, Module};

/// A tensor in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
}

/// A tensor as the model asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Expected {
    /// The model's name for it.
    pub(super) name: String,
    /// The model's shape for it.
    pub(super) shape: Vec<usize>,
    /// Its parts, concatenated along the first dimension.
    pub(super) parts: Vec<Part>,
    /// Whether the halves of its only part are in the other order.
    pub(super) swap_halves: bool,
}

/// The tensors of modules, in their order.
pub(super) fn tensors_of(modules: &[Module], layout: Layout) -> Vec<Expected> {
    modules.iter().flat_map(|module| module_tensors(module, layout)).collect()
}

fn module_tensors(module: &Module, layout: Layout) -> Vec<Expected> {
    let tensor = |suffix: &str, ours: &[usize], theirs: &[usize]| {
        let outputs = module.parts.iter().map(|(_, outputs)| outputs).sum();
        let shape = |outputs: usize, rest: &[usize]| [&[outputs], rest].concat();
        let name = format!("{}{suffix}", module.name);
        let part = |(name, outputs): &(String, usize)| Part {
            name: format!("{name}{suffix}"),
            shape: shape(*outputs, theirs),
        };
        let parts = match layout {
            Layout::SingleFile => vec![Part { name: name.clone(), shape: shape(outputs, ours) }],
            Layout::Diffusers => module.parts.iter().map(part).collect(),
        };
        let swap_halves = layout == Layout::Diffusers && matches!(module.kind, Kind::LinearHalvesSwapped { .. });
        Expected { name, shape: shape(outputs, ours), parts, swap_halves }
    };
    let weight = |ours: &[usize], theirs: &[usize]| tensor(".weight", ours, theirs);
    let bias = || tensor(".bias", &[], &[]);
    match module.kind {
        Kind::Linear { inputs } | Kind::LinearHalvesSwapped { inputs } => vec![weight(&[inputs], &[inputs]), bias()],
        Kind::Matrix { inputs } => vec![weight(&[inputs], &[inputs])],
        Kind::Convolution { inputs, side } => vec![weight(&[inputs, side, side], &[inputs, side, side]), bias()],
        Kind::Pointwise { inputs } => vec![weight(&[inputs, 1, 1], &[inputs]), bias()],
        Kind::Norm => vec![weight(&[], &[]), bias()],
        Kind::Vector => vec![tensor("", &[], &[])],
    }
}
