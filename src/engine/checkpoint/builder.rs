//! A component's tensors as a model asks for them: candle's [`VarBuilder`] over a checkpoint, which reads a tensor in the
//! precision of the computation when it is asked for, and [`Tensors`], which also gives matrices as their files store them.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use candle_core::{DType, Device, Result, Shape, Tensor, bail};
use candle_nn::VarBuilder;
use candle_nn::var_builder::SimpleBackend;

use super::recipe::Recipe;
use super::repeated::{Reading, Repeated};
use super::stored::StoredMatrix;
use super::stream::TensorStream;
use super::tensors::CheckedTensors;
use crate::domain::engine::LoadObserver;

/// A component's tensors: from a stream if it has them in the type that is asked for, else through the host's memory.
pub(super) struct Weights {
    pub(super) observed: Observed,
    pub(super) streamed: Streamed,
}

/// Tensors, and who is told that they are read.
#[derive(Clone)]
pub(super) struct Observed {
    pub(super) tensors: CheckedTensors,
    /// Is told how many bytes were read.
    pub(super) observer: Arc<dyn LoadObserver>,
    /// Except of tensors that are read repeatedly.
    pub(super) repeated: Repeated,
}

/// A component's tensors below a prefix.
#[derive(Clone)]
pub(crate) struct Tensors {
    full: VarBuilder<'static>,
    /// For matrices as they are stored, where the component is kept so.
    stored: Option<Observed>,
    /// The streams of what is read repeatedly.
    repeated: Vec<Arc<dyn TensorStream>>,
    /// For matrices that are stored in e4m3, where they are kept so.
    coded: Option<CheckedTensors>,
}

/// A weight matrix.
#[derive(Debug)]
pub(crate) enum Matrix {
    /// `[rows, columns]`, in the precision of the computation.
    Full(Tensor),
    Stored(StoredMatrix),
}

/// A weight matrix in e4m3 as its file stores it: element (i, j) is `codes[i, j] × scales[i]`.
#[derive(Debug)]
pub(crate) struct E4m3Matrix {
    /// `[rows, columns]`, u8.
    pub(crate) codes: Tensor,
    /// One for each row. The file has one for all rows of a tensor.
    pub(crate) scales: Vec<f32>,
}

impl From<VarBuilder<'static>> for Tensors {
    fn from(full: VarBuilder<'static>) -> Self {
        Self { full, stored: None, repeated: Vec::new(), coded: None }
    }
}

impl Tensors {
    /// With `stored`, matrices are given as they are stored; with `coded`, those in e4m3 are.
    pub(super) fn new(
        full: VarBuilder<'static>,
        stored: Option<Observed>,
        repeated: Vec<Arc<dyn TensorStream>>,
        coded: Option<CheckedTensors>,
    ) -> Self {
        Self { full, stored, repeated, coded }
    }

    /// The tensors whose names go on with `name` and a dot.
    pub(crate) fn pp(&self, name: impl ToString) -> Self {
        Self { full: self.full.pp(name), ..self.clone() }
    }

    /// The same in the host's memory.
    pub(crate) fn on_host(&self) -> Self {
        Self { full: self.full.clone().set_device(Device::Cpu), ..self.clone() }
    }

    /// What the names of these tensors begin with, without a dot: a module's name.
    pub(crate) fn prefix(&self) -> String {
        self.full.prefix()
    }

    /// Whether matrices are given as they are stored.
    pub(crate) fn are_stored(&self) -> bool {
        self.stored.is_some()
    }

    /// Lets tensors that are read repeatedly be dropped: what is copied into their memory waits for the device's work so far.
    ///
    /// # Errors
    /// When the device fails.
    pub(crate) fn release(&self) -> Result<()> {
        self.repeated.iter().try_for_each(|stream| stream.release())
    }

    /// The builder of full tensors.
    #[cfg(test)]
    pub(crate) fn full(&self) -> &VarBuilder<'static> {
        &self.full
    }

    /// The device of full tensors.
    pub(crate) fn device(&self) -> &Device {
        self.full.device()
    }

    /// The type of full tensors.
    pub(crate) fn dtype(&self) -> DType {
        self.full.dtype()
    }

    /// A tensor in the precision of the computation.
    ///
    /// # Errors
    /// When there is none of that name and shape, or it cannot be read.
    pub(crate) fn get(&self, shape: impl Into<Shape>, name: &str) -> Result<Tensor> {
        self.full.get(shape, name)
    }

    /// A matrix `[rows, columns]`, as the component is kept.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub(crate) fn matrix(&self, [rows, columns]: [usize; 2], name: &str) -> Result<Matrix> {
        let Some(observed) = &self.stored else { return self.get((rows, columns), name).map(Matrix::Full) };
        let name = format!("{}.{name}", self.full.prefix());
        let recipe = observed.tensors.recipe(&name, DType::F32)?;
        if recipe.shape != [rows, columns] {
            bail!("`{name}` has shape {:?}, the model asks for {rows}x{columns}", recipe.shape);
        }
        let matrix = StoredMatrix::read(&recipe)?;
        observed.has_read(&name, &recipe);
        Ok(Matrix::Stored(matrix))
    }
}

impl Tensors {
    /// A matrix `[rows, columns]` of a block's linear layer in e4m3, as its file stores it. `None` where it is stored otherwise, or
    /// is not to be kept so.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub(crate) fn e4m3(&self, [rows, columns]: [usize; 2], name: &str) -> Result<Option<E4m3Matrix>> {
        let Some(tensors) = &self.coded else { return Ok(None) };
        let recipe = tensors.recipe(&format!("{}.{name}", self.full.prefix()), DType::U8)?;
        let Some(scales) = recipe.e4m3_scales() else { return Ok(None) };
        let codes = self.full.get_with_hints_dtype((rows, columns), name, candle_nn::Init::default(), DType::U8)?;
        Ok(Some(E4m3Matrix { codes, scales }))
    }
}

impl Observed {
    fn has_read(&self, name: &str, recipe: &Recipe) {
        if self.repeated.reading(name) == Reading::Once {
            self.observer.loaded(recipe.file_bytes() as u64);
        }
    }
}

impl Matrix {
    /// The rows of several matrices, one below the other.
    ///
    /// # Errors
    /// When they are not equally wide, or not kept in the same way.
    pub(crate) fn joined(parts: Vec<Self>) -> Result<Self> {
        let (mut full, mut stored) = (Vec::new(), Vec::new());
        for part in parts {
            match part {
                Self::Full(tensor) => full.push(tensor),
                Self::Stored(matrix) => stored.push(matrix),
            }
        }
        match (full.is_empty(), stored.is_empty()) {
            (_, true) => Tensor::cat(&full, 0).map(Self::Full),
            (true, false) => StoredMatrix::joined(stored).map(Self::Stored),
            (false, false) => bail!("matrices in full precision and as they are stored in one layer"),
        }
    }
}

/// Which tensors of a component come through which stream, by name.
pub(super) struct Streamed {
    /// Not kept by those who hold tensors: it ends when all is loaded.
    pub(super) once: Option<Weak<dyn TensorStream>>,
    pub(super) repeated: BTreeMap<Reading, Arc<dyn TensorStream>>,
    pub(super) numbers: BTreeMap<String, Streaming>,
}

/// A tensor in a stream.
#[derive(Debug, Clone, Copy)]
pub(super) struct Streaming {
    pub(super) reading: Reading,
    /// Its number in the stream.
    pub(super) number: usize,
    pub(super) dtype: DType,
}

impl Streamed {
    /// `None` where no stream has such a tensor.
    fn tensor(&self, name: &str, dtype: DType, device: &Device) -> Option<Result<Tensor>> {
        let streaming = self.numbers.get(name).filter(|streaming| streaming.dtype == dtype)?;
        let stream = match streaming.reading {
            Reading::Once => self.once.as_ref().and_then(Weak::upgrade)?,
            reading => Arc::clone(self.repeated.get(&reading)?),
        };
        stream.leads_to(device).then(|| stream.tensor(streaming.number))
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
        let recipe = self.observed.tensors.recipe(name, dtype)?;
        let tensor = match self.streamed.tensor(name, dtype, device) {
            Some(tensor) => tensor?,
            None => recipe.read_to_host()?.to_device(device)?,
        };
        self.observed.has_read(name, &recipe);
        Ok(tensor)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.observed.tensors.has(name)
    }
}
