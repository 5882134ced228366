//! The tensors of a model beside the checkpoint: compared with what its configuration requires, before anything is loaded.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{DType, Device, Error, Result, Tensor};
use candle_nn::LayerNorm;

use crate::engine::checkpoint::{Problem, TensorFile};
use crate::engine::linear::Linear;

/// Largest width, and largest number of layers, of which a configuration may speak. A wrong number must not fill the memory with
/// names of tensors.
pub(super) const WIDTH_MAX: usize = 1 << 16;
pub(super) const LAYERS_MAX: usize = 1000;

/// A tensor that a model requires.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    /// The name by which the model asks for it.
    name: String,
    /// Its tensors in the file, one below the other along the first dimension, all of the same shape.
    parts: Vec<String>,
    shape: Vec<usize>,
}

impl Wanted {
    /// A tensor of one part.
    pub(super) fn tensor(name: impl Into<String>, part: impl Into<String>, shape: &[usize]) -> Self {
        Self { name: name.into(), parts: vec![part.into()], shape: shape.to_vec() }
    }

    /// The weight and the bias of a module, which `parts` have below each other. The bias has the weight's first dimension.
    pub(super) fn module(name: &str, parts: &[String], shape: &[usize]) -> [Self; 2] {
        let of = |tensor: &str, shape: &[usize]| Self {
            name: format!("{name}.{tensor}"),
            parts: parts.iter().map(|part| format!("{part}.{tensor}")).collect(),
            shape: shape.to_vec(),
        };
        [of("weight", shape), of("bias", &shape[..1])]
    }

    /// The shape of each part.
    fn part_shape(&self) -> Vec<usize> {
        let mut shape = self.shape.clone();
        if let Some(rows) = shape.first_mut() {
            *rows /= self.parts.len().max(1);
        }
        shape
    }

    fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

#[cfg(test)]
impl Wanted {
    /// The name by which the model asks for it, and the shape of all its parts together.
    pub(super) fn whole(&self) -> (&str, &[usize]) {
        (&self.name, &self.shape)
    }

    /// The names of its tensors in a file, and the shape of each.
    pub(super) fn in_file(&self) -> (&[String], Vec<usize>) {
        (&self.parts, self.part_shape())
    }
}

/// A file that has every tensor which a model requires. Others in it are not used.
#[derive(Debug)]
pub(super) struct Weights {
    file: TensorFile,
    wanted: BTreeMap<String, Wanted>,
}

impl Weights {
    /// Compares a file with what is required. `None` when something is missing or of another shape, which goes to `problems`.
    pub(super) fn check(file: TensorFile, wanted: Vec<Wanted>, problems: &mut Vec<Problem>) -> Option<Self> {
        let before = problems.len();
        let names: BTreeSet<&str> = file.names().collect();
        for tensor in &wanted {
            let expected = tensor.part_shape();
            for part in &tensor.parts {
                problems.extend(problem_of(&file, &names, part, &expected));
            }
        }
        drop(names);
        let wanted = wanted.into_iter().map(|tensor| (tensor.name.clone(), tensor)).collect();
        (problems.len() == before).then_some(Self { file, wanted })
    }

    /// Numbers in the tensors that are used.
    pub(super) fn elements(&self) -> usize {
        self.wanted.values().map(Wanted::elements).sum()
    }

    /// Reads them onto a device, in `dtype`.
    pub(super) fn onto<'a>(&'a self, device: &'a Device, dtype: DType) -> Reader<'a> {
        Reader { weights: self, device, dtype }
    }
}

fn problem_of(file: &TensorFile, names: &BTreeSet<&str>, tensor: &str, expected: &[usize]) -> Option<Problem> {
    let (path, tensor_name) = (file.path().to_owned(), tensor.to_owned());
    if !names.contains(tensor) {
        return Some(Problem::MissingTensor { file: path, tensor: tensor_name, expected: expected.to_vec() });
    }
    let found = file.shape(tensor);
    if found != expected {
        let (expected, found) = (expected.to_vec(), found.to_vec());
        return Some(Problem::Shape { file: path, tensor: tensor_name, expected, found });
    }
    let is_readable = file.has_weights(tensor);
    (!is_readable).then(|| Problem::Dtype { file: path, tensor: tensor_name, found: file.dtype(tensor) })
}

/// Reads tensors onto a device.
#[derive(Clone, Copy)]
pub(super) struct Reader<'a> {
    weights: &'a Weights,
    device: &'a Device,
    dtype: DType,
}

impl Reader<'_> {
    /// A tensor by the model's name for it.
    ///
    /// # Errors
    /// When it is not among those that were required, the file cannot be read, or the device is out of memory.
    pub(super) fn tensor(&self, name: &str) -> Result<Tensor> {
        let missing = || Error::CannotFindTensor { path: name.to_owned() }.bt();
        let wanted = self.weights.wanted.get(name).ok_or_else(missing)?;
        let mut values = Vec::with_capacity(wanted.elements());
        for part in &wanted.parts {
            values.extend(self.weights.file.weights(part).map_err(Error::msg)?);
        }
        let tensor = Tensor::from_vec(values, wanted.shape.as_slice(), &Device::Cpu)?;
        tensor.to_dtype(self.dtype)?.to_device(self.device)
    }

    /// The weight, as a matrix of its first dimension's rows, and the bias of a module.
    ///
    /// # Errors
    /// As [`Self::tensor`].
    pub(super) fn linear(&self, module: &str) -> Result<Linear> {
        let weight = self.tensor(&format!("{module}.weight"))?;
        let weight = weight.flatten_from(1)?;
        Ok(Linear::new(weight, Some(self.tensor(&format!("{module}.bias"))?)))
    }

    /// The layer norm of a module.
    ///
    /// # Errors
    /// As [`Self::tensor`].
    pub(super) fn norm(&self, module: &str, epsilon: f64) -> Result<LayerNorm> {
        let (weight, bias) = (self.tensor(&format!("{module}.weight"))?, self.tensor(&format!("{module}.bias"))?);
        Ok(LayerNorm::new(weight, bias, epsilon))
    }
}
