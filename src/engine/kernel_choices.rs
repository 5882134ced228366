//! Which kernels an engine uses, and why.

use serde::Serialize;

use super::FluxEngine;
use super::ops;

/// The kernels of the operations that have several.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KernelChoices {
    /// Attention.
    pub attention: ChosenKernel,
    /// Convolutions.
    pub convolutions: ChosenKernel,
}

/// The kernel of an operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ChosenKernel {
    /// `portable`, `hopper`, or `cpu`.
    pub kernel: &'static str,
    /// Why this one.
    pub reason: String,
}

impl FluxEngine {
    /// The kernels that the engine uses, and why.
    pub fn kernels(&self) -> KernelChoices {
        let of = |choice: &ops::kernel::Choice| {
            let (kernel, reason) = choice.explained(&self.device);
            ChosenKernel { kernel, reason }
        };
        KernelChoices { attention: of(&ops::attention::KERNELS), convolutions: of(&ops::convolution::KERNELS) }
    }
}
