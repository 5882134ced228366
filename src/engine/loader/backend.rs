//! Checked tensors behind candle's [`VarBuilder`]: puts a tensor together from its parts when it is asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use candle_core::{DType, Device, Error, Result, Shape, Tensor, bail};
use candle_nn::VarBuilder;
use candle_nn::var_builder::SimpleBackend;
use safetensors::Dtype;

use super::inventory::Expected;
use super::report::Problem;
use super::weights::WeightFiles;

/// The tensors of one component, all present and of the right shape.
#[derive(Clone)]
pub(super) struct CheckedTensors(Arc<Inner>);

struct Inner {
    files: WeightFiles,
    expected: BTreeMap<String, Expected>,
}

impl CheckedTensors {
    /// Compares what is there with what is expected. `None` when anything is wrong; what it is goes to `problems`.
    pub(super) fn check(
        files: WeightFiles,
        expected: Vec<Expected>,
        is_ignored: fn(&str) -> bool,
        problems: &mut Vec<Problem>,
    ) -> Option<Self> {
        let before = problems.len();
        let mut known = BTreeSet::new();
        for part in expected.iter().flat_map(|tensor| &tensor.parts) {
            known.insert(part.name.as_str());
            check_part(&files, &part.name, &part.shape, problems);
        }
        for (name, entry) in &files.entries {
            if !known.contains(name.as_str()) && !is_ignored(name) {
                let file = files.path_of(entry).to_owned();
                problems.push(Problem::SurplusTensor { file, tensor: name.clone(), found: entry.shape.clone() });
            }
        }
        let expected = expected.into_iter().map(|tensor| (tensor.name.clone(), tensor)).collect();
        (problems.len() == before).then(|| Self(Arc::new(Inner { files, expected })))
    }

    /// Numbers in all its tensors.
    pub(super) fn elements(&self) -> usize {
        self.0.expected.values().map(|tensor| tensor.shape.iter().product::<usize>()).sum()
    }

    /// candle's way to ask for tensors.
    pub(super) fn builder(&self, dtype: DType, device: &Device) -> VarBuilder<'static> {
        VarBuilder::from_backend(Box::new(self.clone()), dtype, device.clone())
    }
}

fn check_part(files: &WeightFiles, name: &str, shape: &[usize], problems: &mut Vec<Problem>) {
    let Some(entry) = files.entries.get(name) else {
        if files.unread.contains(name) {
            // Its shard is already named as a problem.
            return;
        }
        let (file, tensor) = (files.label.clone(), name.to_owned());
        problems.push(Problem::MissingTensor { file, tensor, expected: shape.to_vec() });
        return;
    };
    let (file, tensor) = (files.path_of(entry).to_owned(), name.to_owned());
    if entry.shape != shape {
        problems.push(Problem::Shape { file, tensor, expected: shape.to_vec(), found: entry.shape.clone() });
    } else if dtype_of(entry.dtype).is_none() {
        problems.push(Problem::Dtype { file, tensor, found: format!("{:?}", entry.dtype) });
    }
}

fn dtype_of(dtype: Dtype) -> Option<DType> {
    match dtype {
        Dtype::BF16 => Some(DType::BF16),
        Dtype::F16 => Some(DType::F16),
        Dtype::F32 => Some(DType::F32),
        _ => None,
    }
}

impl Inner {
    fn part(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        let entry = self.files.entries.get(name).ok_or_else(|| missing(name))?;
        let found = dtype_of(entry.dtype).ok_or_else(|| missing(name))?;
        let bytes = self.files.bytes_of(entry);
        if found == dtype {
            // From the file's pages to the device, without a copy between.
            return Tensor::from_raw_buffer(bytes, found, &entry.shape, device);
        }
        // Converted before it moves, so that the device never holds both.
        let tensor = Tensor::from_raw_buffer(bytes, found, &entry.shape, &Device::Cpu)?;
        tensor.to_dtype(dtype)?.to_device(device)
    }

    fn assemble(&self, expected: &Expected, dtype: DType, device: &Device) -> Result<Tensor> {
        let parts = expected.parts.iter();
        let mut parts = parts.map(|part| self.part(&part.name, dtype, device)).collect::<Result<Vec<_>>>()?;
        if expected.swap_halves {
            let halves = parts[0].chunk(2, 0)?;
            parts = vec![halves[1].clone(), halves[0].clone()];
        }
        let tensor = if parts.len() == 1 { parts.swap_remove(0) } else { Tensor::cat(&parts, 0)? };
        tensor.reshape(expected.shape.as_slice())
    }
}

fn missing(name: &str) -> Error {
    Error::CannotFindTensor { path: name.to_owned() }.bt()
}

impl SimpleBackend for CheckedTensors {
    fn get(&self, shape: Shape, name: &str, _: candle_nn::Init, dtype: DType, device: &Device) -> Result<Tensor> {
        let tensor = self.get_unchecked(name, dtype, device)?;
        if tensor.shape() != &shape {
            bail!("`{name}` has shape {:?}, the model asks for {shape:?}", tensor.shape());
        }
        Ok(tensor)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        let expected = self.0.expected.get(name).ok_or_else(|| missing(name))?;
        self.0.assemble(expected, dtype, device)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.0.expected.contains_key(name)
    }
}
