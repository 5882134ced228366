//! The weights of a model as numbers, for what is computed from them beside the model.

use candle_core::{DType, Error, Result};

use super::Checkpoint;
use super::tensors::CheckedTensors;

/// The components that adapters change. Tensors are read from their files when they are asked for.
#[derive(Clone)]
pub(crate) struct BaseWeights([CheckedTensors; 3]);

impl Checkpoint {
    /// The weights that adapters change.
    pub(crate) fn base_weights(&self) -> BaseWeights {
        BaseWeights([self.transformer.clone(), self.clip.clone(), self.t5.clone()])
    }
}

impl BaseWeights {
    /// Reads a tensor.
    ///
    /// # Errors
    /// When there is none of that name, or its file cannot be read.
    pub(crate) fn numbers(&self, name: &str) -> Result<Vec<f32>> {
        let component = self.0.iter().find(|component| component.has(name));
        let component = component.ok_or_else(|| Error::CannotFindTensor { path: name.to_owned() })?;
        component.recipe(name, DType::F32)?.read_to_host()?.flatten_all()?.to_vec1()
    }
}
