//! `x Wᵀ + b`: the one type that layers are made of. Knows what comes before and after the matrix product, and what adapters add to
//! it; leaves the product to [`Stored`].

use std::ops::Range;

use candle_core::{Device, Result, Tensor};

use super::adapted::{Base, Changes, LayerChange, PlacedModule};
use super::checkpoint::{Matrix, Tensors};
use super::ops::activation::gelu_tanh;
use super::ops::low_rank::LowRankPart;
use super::ops::matrix_product::MatrixProduct;
use super::storage::{Dense, Input, Stored};
use crate::domain::precision::Precision;

/// A linear layer.
pub(crate) struct Linear {
    /// `[outputs, inputs]`
    weight: Stored,
    /// `[outputs]`, in full precision.
    bias: Option<Tensor>,
    /// The modules that adapters know it by.
    modules: Vec<PlacedModule>,
}

impl Linear {
    /// From `weight [outputs, inputs]` and `bias [outputs]`, in full precision. No adapter changes it.
    pub(crate) fn new(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { weight: Stored::Dense(Dense::new(weight)), bias, modules: Vec::new() }
    }

    /// From the weights `[outputs, inputs]` of modules, one below the other, as they were given, and `bias [outputs]` in full
    /// precision, on a device. `modules` has names and outputs.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub(crate) fn of(
        weight: Matrix,
        bias: Option<Tensor>,
        modules: impl IntoIterator<Item = (String, usize)>,
        device: &Device,
    ) -> Result<Self> {
        Ok(Self { weight: Stored::of(weight, device)?, bias, modules: placed(modules) })
    }

    /// `weight` and `bias` of a component, as it is kept.
    ///
    /// # Errors
    /// When they cannot be read, or the device is out of memory.
    pub(crate) fn load(inputs: usize, outputs: usize, tensors: &Tensors) -> Result<Self> {
        Self::load_in(Precision::Full, inputs, outputs, tensors)
    }

    /// [`Self::load`], with the weight in `precision`.
    ///
    /// # Errors
    /// As [`Self::load`], or when the device cannot quantize.
    pub(crate) fn load_in(precision: Precision, inputs: usize, outputs: usize, tensors: &Tensors) -> Result<Self> {
        let weight = Stored::load([outputs, inputs], precision, tensors)?;
        let modules = placed([(tensors.prefix(), outputs)]);
        Ok(Self { weight, bias: Some(tensors.get(outputs, "bias")?), modules })
    }

    /// The `weight`s `[outputs, inputs]` of several modules of a component, one below the other, without a bias. In full precision where
    /// `precision` quantizes.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub(crate) fn load_joined_in(
        precision: Precision,
        names: &[&str],
        [outputs, inputs]: [usize; 2],
        tensors: &Tensors,
    ) -> Result<Self> {
        let parts: Vec<Tensors> = names.iter().map(|name| tensors.pp(name)).collect();
        let weights = parts.iter().map(|part| part.matrix([outputs, inputs], "weight")).collect::<Result<_>>()?;
        let modules = placed(parts.iter().map(|part| (part.prefix(), outputs)));
        let weight = Stored::in_precision(precision, Matrix::joined(weights)?, tensors.device())?;
        Ok(Self { weight, bias: None, modules })
    }

    /// The layer of some of the outputs, from `start` on, with the same weights. `None` where they are not dense.
    ///
    /// # Errors
    /// When there are not so many.
    pub(crate) fn part(&self, start: usize, outputs: usize) -> Result<Option<Self>> {
        let Some(dense) = self.weight.dense() else { return Ok(None) };
        let bias = self.bias.as_ref().map(|bias| bias.narrow(0, start, outputs)).transpose()?;
        let modules = self.modules.iter().filter_map(|module| module.part(start, outputs)).collect();
        Ok(Some(Self { weight: Stored::Dense(dense.part(start, outputs)?), bias, modules }))
    }

    /// Whether GELU can be part of the matrix product: the weight is dense.
    pub(crate) fn has_gelu_epilogue(&self) -> bool {
        self.weight.dense().is_some()
    }

    /// `[rows, inputs]` -> `[rows, outputs]`.
    ///
    /// # Errors
    /// When shapes or devices do not fit, or the device fails.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self.weight.dense() {
            Some(dense) => dense.forward(x, self.bias.as_ref()),
            None => self.weight.product(&Input::Rows(x), self.bias.as_ref())?.biased(),
        }
    }

    /// [`Self::forward`], with what adapters change.
    ///
    /// # Errors
    /// When shapes or devices do not fit, or the device fails.
    pub(crate) fn changed(&self, x: &Tensor, changes: &Changes) -> Result<Tensor> {
        if changes.change(&self.modules) { self.product(&Input::Rows(x), changes)?.biased() } else { self.forward(x) }
    }

    /// [`Self::changed`] of an input for an operation that adds the bias itself.
    ///
    /// # Errors
    /// When shapes or devices do not fit, or the device fails.
    pub(crate) fn product(&self, input: &Input, changes: &Changes) -> Result<MatrixProduct<'_>> {
        let changes = changes.of_layer(&self.modules);
        if changes.is_empty() {
            return self.weight.product(input, self.bias.as_ref());
        }
        let x = input.computed()?;
        let product = self.weight.product_of_computed(input, &x, self.bias.as_ref())?;
        self.add(&changes, &x, &product)?;
        Ok(product)
    }

    /// GELU of [`Self::changed`] of an input.
    ///
    /// # Errors
    /// When shapes or devices do not fit, or the device fails.
    pub(crate) fn gelu(&self, input: &Input, changes: &Changes) -> Result<Tensor> {
        match self.weight.dense() {
            Some(dense) if !changes.change(&self.modules) => dense.gelu(input.computed()?.as_ref(), self.bias.as_ref()),
            _ => gelu_tanh(&self.product(input, changes)?),
        }
    }

    /// [`Self::gelu`] of `x` into the columns of `wide` from `start` on.
    ///
    /// # Errors
    /// When shapes or devices do not fit, or the device fails.
    pub(crate) fn gelu_into(&self, wide: &Tensor, start: usize, x: &Tensor, changes: &Changes) -> Result<()> {
        match self.weight.dense() {
            Some(dense) if !changes.change(&self.modules) => dense.gelu_into(wide, start, x, self.bias.as_ref()),
            _ => wide.slice_set(&gelu_tanh(&self.product(&Input::Rows(x), changes)?)?, 1, start),
        }
    }

    /// Adds what adapters change to the layer's product with `x`: those of low rank all at once, others rows by rows.
    fn add(&self, changes: &[LayerChange], x: &Tensor, product: &MatrixProduct) -> Result<()> {
        let added = |change: &LayerChange| {
            let rows = &change.rows;
            change.added(&x.narrow(0, rows.start, rows.len())?, &OwnProduct { layer: self, product, rows })
        };
        let (relative, others): (Vec<_>, Vec<_>) = changes.iter().partition(|change| change.is_relative());
        // Relative to the weights of the model: before anything is added.
        let relative: Vec<_> =
            relative.into_iter().map(|change| Ok((change, added(change)?))).collect::<Result<_>>()?;
        let mut of_low_rank = Vec::new();
        let mut others_left = Vec::new();
        for change in others {
            match change.low_rank()? {
                Some(matrices) => of_low_rank.push((change, matrices)),
                None => others_left.push(change),
            }
        }
        let parts: Vec<LowRankPart> = of_low_rank.iter().map(|(change, matrices)| change.part(matrices)).collect();
        product.add_low_rank(x, &parts)?;
        let add = |change: &LayerChange, added: &Tensor| product.add((change.rows.start, change.outputs.start), added);
        for change in others_left {
            add(change, &added(change)?)?;
        }
        for (change, added) in relative {
            add(change, &added)?;
        }
        Ok(())
    }
}

/// Modules whose outputs are one below the other.
fn placed(modules: impl IntoIterator<Item = (String, usize)>) -> Vec<PlacedModule> {
    let mut start = 0;
    let place = |(name, outputs): (String, usize)| {
        let module = PlacedModule { name: name.into(), outputs: 0..outputs, start };
        start += outputs;
        module
    };
    modules.into_iter().map(place).collect()
}

/// A layer's product of some rows, to which nothing has been added.
struct OwnProduct<'a> {
    layer: &'a Linear,
    product: &'a MatrixProduct<'a>,
    rows: &'a Range<usize>,
}

impl Base for OwnProduct<'_> {
    fn outputs(&self, outputs: &Range<usize>) -> Result<Tensor> {
        self.product.unbiased((self.rows, outputs), self.layer.bias.as_ref())
    }

    fn outputs_of(&self, input: &Tensor, outputs: &Range<usize>) -> Result<Tensor> {
        let product = self.layer.weight.product(&Input::Rows(input), None)?.biased()?;
        product.narrow(1, outputs.start, outputs.len())
    }
}
