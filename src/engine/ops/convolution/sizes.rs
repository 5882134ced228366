//! The sizes of a convolution, channels last.

use candle_core::{Layout, Result, Shape, bail};

/// The sizes of input and output.
#[derive(Debug, Clone, Copy)]
pub(in crate::engine::ops) struct Sizes {
    pub(in crate::engine::ops) height: usize,
    pub(in crate::engine::ops) width: usize,
    pub(in crate::engine::ops) inputs: usize,
    pub(in crate::engine::ops) outputs: usize,
    pub(in crate::engine::ops) is_doubled: bool,
}

impl Sizes {
    pub(super) fn of(x: &Layout, weight: &Layout, bias: &Layout, is_doubled: bool) -> Result<Self> {
        let (batch, height, width, inputs) = x.shape().dims4()?;
        let outputs = bias.shape().dims1()?;
        let expected = if is_doubled { [4, outputs, 4, inputs] } else { [1, outputs, 9, inputs] };
        if batch != 1 || weight.dims() != expected {
            bail!("convolution: {:?} by {:?} and {outputs} biases", x.dims(), weight.dims());
        }
        Ok(Self { height, width, inputs, outputs, is_doubled })
    }

    /// Rows of the output for each of the input, and columns as well.
    pub(super) fn scale(self) -> usize {
        1 + usize::from(self.is_doubled)
    }

    /// `[1, height, width, outputs]` of the output.
    pub(in crate::engine::ops) fn out_shape(self) -> Shape {
        (1, self.scale() * self.height, self.scale() * self.width, self.outputs).into()
    }
}
