//! A matrix product whose bias is still to be added. On CUDA the next operation adds it at no cost, where a pass of its own
//! would read and write the memory once more.

use std::borrow::Cow;

use candle_core::{Result, Tensor};

use super::is_on_cuda;

/// A matrix product, and the bias that the next operation has to add.
pub(crate) struct MatrixProduct<'a> {
    /// `[rows, columns]`
    pub(super) values: Tensor,
    /// `[columns]`; `None` where there is none, or it has been added.
    pub(super) bias: Option<Cow<'a, Tensor>>,
}

impl From<Tensor> for MatrixProduct<'_> {
    fn from(values: Tensor) -> Self {
        Self { values, bias: None }
    }
}

impl MatrixProduct<'_> {
    /// `width` columns from `start` on.
    ///
    /// # Errors
    /// When there are fewer.
    pub(crate) fn narrow(&self, start: usize, width: usize) -> Result<Self> {
        let bias = self.bias.as_ref().map(|bias| bias.narrow(0, start, width)).transpose()?;
        Ok(Self { values: self.values.narrow(1, start, width)?, bias: bias.map(Cow::Owned) })
    }

    /// The values, with the bias added.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub(crate) fn biased(&self) -> Result<Tensor> {
        match &self.bias {
            Some(bias) => self.values.broadcast_add(bias),
            None => Ok(self.values.clone()),
        }
    }

    /// The bias.
    pub(super) fn bias(&self) -> Option<&Tensor> {
        self.bias.as_deref()
    }

    /// Whether the CUDA kernels apply to it.
    pub(super) fn is_on_cuda(&self) -> bool {
        is_on_cuda(&[&self.values]) && self.bias().is_none_or(|bias| is_on_cuda(&[bias]))
    }
}
