//! The table of module names: what the model calls each module with weights, and what diffusers calls its parts.
//!
//! The model's own names are those of the single files (`flux1-dev.safetensors`, `ae.safetensors`). The diffusers folders cut
//! some of these modules into parts, and have the halves of the final modulation in the other order.
//!
//! Modules are listed in the order in which the model loads them, which is the order of reading ahead.

pub(super) mod adapted;
pub(super) mod autoencoder;
pub(super) mod controlnet;
pub(super) mod spellings;
pub(super) mod text_encoders;
pub(super) mod transformer;

/// A module with weights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Module {
    /// The model's name for it.
    pub(super) name: String,
    /// Diffusers' names for its parts, with the outputs of each, in the order of the outputs.
    pub(super) parts: Vec<(String, usize)>,
    pub(super) kind: Kind,
}

/// Which tensors a module has. Their names are the module's, and `.weight` and `.bias`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// `weight [outputs, inputs]` and `bias [outputs]`.
    Linear { inputs: usize },
    /// The same, with the halves of the outputs in the other order in diffusers.
    LinearHalvesSwapped { inputs: usize },
    /// `weight [outputs, inputs]` alone.
    Matrix { inputs: usize },
    /// `weight [outputs, inputs, side, side]` and `bias [outputs]`.
    Convolution { inputs: usize, side: usize },
    /// `weight [outputs, inputs, 1, 1]`, which diffusers has as `[outputs, inputs]`, and `bias [outputs]`.
    Pointwise { inputs: usize },
    /// `weight [outputs]` and `bias [outputs]`.
    Norm,
    /// One tensor `[outputs]`, whose name is the module's.
    Vector,
}

impl Module {
    /// A module that diffusers has in one part.
    fn new(name: impl Into<String>, diffusers: impl Into<String>, outputs: usize, kind: Kind) -> Self {
        Self { name: name.into(), parts: vec![(diffusers.into(), outputs)], kind }
    }

    /// A module that both layouts name alike.
    fn same(name: impl Into<String>, outputs: usize, kind: Kind) -> Self {
        let name = name.into();
        Self { parts: vec![(name.clone(), outputs)], name, kind }
    }
}
