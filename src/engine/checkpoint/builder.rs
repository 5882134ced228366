//! candle's [`VarBuilder`] over a checkpoint: reads a tensor when the model asks for it.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Device, Result, Shape, Tensor, bail};
use candle_nn::VarBuilder;
use candle_nn::var_builder::SimpleBackend;

use super::stream::TensorStream;
use super::tensors::CheckedTensors;
use crate::domain::engine::LoadObserver;

/// A component's tensors: from a stream if it has them in the type that is asked for, else through the host's memory.
pub(super) struct Weights {
    pub(super) tensors: CheckedTensors,
    pub(super) streamed: Option<Streamed>,
    /// Is told how many bytes were read.
    pub(super) observer: Arc<dyn LoadObserver>,
    /// Except for tensors whose names begin so: those that are read anew for each prompt.
    pub(super) unobserved: Option<&'static str>,
}

/// The tensors of a component in a stream: their numbers and types there, by name.
pub(super) struct Streamed {
    pub(super) stream: Arc<dyn TensorStream>,
    pub(super) numbers: BTreeMap<String, (usize, DType)>,
}

impl Streamed {
    /// `None` where the stream has no such tensor.
    fn tensor(&self, name: &str, dtype: DType, device: &Device) -> Option<Result<Tensor>> {
        let &(number, kept) = self.numbers.get(name)?;
        (kept == dtype && self.stream.leads_to(device)).then(|| self.stream.tensor(number))
    }
}

impl Weights {
    pub(super) fn builder(self, dtype: DType, device: &Device) -> VarBuilder<'static> {
        VarBuilder::from_backend(Box::new(self), dtype, device.clone())
    }
}

impl SimpleBackend for Weights {
    fn get(&self, shape: Shape, name: &str, _: candle_nn::Init, dtype: DType, device: &Device) -> Result<Tensor> {
        let tensor = self.get_unchecked(name, dtype, device)?;
        if tensor.shape() != &shape {
            bail!("`{name}` has shape {:?}, the model asks for {shape:?}", tensor.shape());
        }
        Ok(tensor)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        let recipe = self.tensors.recipe(name, dtype)?;
        let tensor = match &self.streamed {
            Some(streamed) => streamed.tensor(name, dtype, device).transpose()?,
            None => None,
        };
        let tensor = match tensor {
            Some(tensor) => tensor,
            None => recipe.read_to_host()?.to_device(device)?,
        };
        if !self.unobserved.is_some_and(|prefix| name.starts_with(prefix)) {
            self.observer.loaded(recipe.file_bytes() as u64);
        }
        Ok(tensor)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.tensors.has(name)
    }
}
