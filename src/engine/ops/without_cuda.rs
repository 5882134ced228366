//! Stands in for `cuda.rs` in a build without CUDA: no kernel applies, so that nothing is ever launched.

use candle_core::{Device, Result, Tensor, bail};

use super::segments::Segments;

pub(super) fn is_aligned(_: &Tensor) -> bool {
    false
}

pub(super) fn is_launchable(_: &Segments) -> bool {
    false
}

pub(super) fn capability(_: &Device) -> Option<(i32, i32)> {
    None
}

pub(super) fn unwritten(_: usize, _: usize, _: &Device) -> Result<Tensor> {
    not_built()
}

pub(in crate::engine) fn close_libraries(_: &Device) {}

fn not_built<T>() -> Result<T> {
    bail!("this program was built without CUDA")
}

pub(super) mod attention {
    use candle_core::Device;

    pub(in crate::engine::ops) const HEAD_WIDTHS: [usize; 0] = [];

    pub(in crate::engine::ops) fn has_warpgroups(_: &Device) -> bool {
        false
    }

    pub(in crate::engine::ops) fn spilled_bytes(_: &Device) -> Option<i32> {
        None
    }
}

pub(super) mod convolution {
    use candle_core::Device;

    pub(in crate::engine::ops) fn has_warpgroups(_: &Device) -> bool {
        false
    }
}

pub(super) mod group_norm {
    pub(in crate::engine::ops) fn takes_channels(_: usize) -> bool {
        false
    }
}

pub(super) mod expand {
    use candle_core::{Result, Tensor};

    use crate::engine::ops::expand::packed::PackedRows;

    pub(in crate::engine::ops) fn expanded(_: &[PackedRows], _: usize, _: usize) -> Result<Tensor> {
        super::not_built()
    }
}

pub(super) mod graph {
    use candle_core::{Device, Result};

    /// There is none.
    pub(in crate::engine::ops) enum Graph {}

    impl Graph {
        pub(in crate::engine::ops) fn launch(&self) -> Result<()> {
            match *self {}
        }
    }

    pub(in crate::engine::ops) fn record(_: &Device, _: &dyn Fn() -> Result<()>) -> Result<Graph> {
        super::not_built()
    }
}

pub(super) mod linear {
    use candle_core::{Result, Tensor};

    use crate::engine::ops::quantize::scaling::Scaling;

    pub(in crate::engine::ops) fn linear_into(
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        _: Option<&Tensor>,
        _: bool,
    ) -> Result<bool> {
        super::not_built()
    }

    pub(in crate::engine::ops) fn product_e4m3(_: [&Tensor; 2], _: [&Tensor; 2], _: Scaling) -> Result<Option<Tensor>> {
        super::not_built()
    }
}

pub(super) mod quantize {
    use candle_core::{Result, Tensor};

    use crate::engine::ops::segments::Segments;

    pub(in crate::engine::ops) fn is_narrow(_: usize) -> bool {
        false
    }

    pub(in crate::engine::ops) fn rows(_: &Tensor) -> Result<[Tensor; 2]> {
        super::not_built()
    }

    pub(in crate::engine::ops) fn beside_gelu_tanh(
        _: Option<&Tensor>,
        _: &Tensor,
        _: Option<&Tensor>,
    ) -> Result<[Tensor; 2]> {
        super::not_built()
    }

    pub(in crate::engine::ops) fn modulated_layer_norm(
        _: &Tensor,
        _: [&Tensor; 2],
        _: &Segments,
        _: f32,
    ) -> Result<[Tensor; 2]> {
        super::not_built()
    }
}

pub(super) mod rows {
    pub(in crate::engine::ops) fn is_shareable(_: usize) -> bool {
        false
    }
}

pub(super) mod text {
    pub(in crate::engine::ops) const HEAD_WIDTHS: [usize; 0] = [];
}
