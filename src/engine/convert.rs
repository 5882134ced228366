//! A component's weights in another form: from any checkpoint that can be read, tensor by tensor, to one new file.
//!
//! What stays as it is, and why, is in `plan.rs`; where each tensor is in the new file, in `layout.rs`. At most one tensor is
//! in memory, as f32 and as it is written. Must not know devices, layers, or where the file is.

mod encode;
mod layout;
mod plan;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use super::checkpoint::{CheckpointError, ComponentWeights, WeightTensor};
use super::ops::quantize::with_one_scale;
use crate::domain::conversion::{ConvertedComponent, WeightFormat};
use crate::domain::engine::LoadObserver;
use crate::domain::model::ModelFiles;

use layout::Layout;
use plan::{Choice, Stored};

/// What ComfyUI reads of a matrix in e4m3 with one scale.
const SCALED_E4M3: &[u8] = br#"{"format": "float8_e4m3fn"}"#;

/// Weights that could not be converted.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// A file that has them could not be read.
    #[error(transparent)]
    Weights(#[from] candle_core::Error),
    /// A tensor has numbers that no quantized form has.
    #[error(
        "tensor `{0}` has numbers that are not finite, which no quantized form can express: convert to `bf16`, or use another file"
    )]
    NotFinite(String),
    /// The new file could not be written.
    #[error(transparent)]
    Write(#[from] io::Error),
}

/// How many tensors are stored in which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StoredCounts {
    /// Those in the form that was asked for, if it is a quantized one.
    pub quantized: usize,
    /// All others: BF16, F16 or F32.
    pub kept: usize,
    /// Matrices among the latter whose rows do not consist of the form's blocks.
    pub uneven: usize,
}

/// A new file whose content is known to the byte, before any weight is read.
pub struct Conversion {
    items: Vec<Item>,
    /// The files that have the weights.
    files: Vec<String>,
    counts: StoredCounts,
    layout: Layout,
}

/// A tensor, and how it is stored in the new file.
struct Item {
    tensor: WeightTensor,
    stored: Stored,
    /// Its row in the layout. In e4m3 the two next rows are its scale, and what says that it has one.
    row: usize,
}

impl Conversion {
    /// Plans the file of a component: reads the headers of the files that have it, and no weights.
    ///
    /// # Errors
    /// When the component is incomplete, or in no form that can be read.
    pub fn new(
        files: &ModelFiles,
        component: ConvertedComponent,
        format: WeightFormat,
    ) -> Result<Self, CheckpointError> {
        let ComponentWeights { tensors, files } = ComponentWeights::open(files, component)?;
        let (mut items, mut rows, mut counts) = (Vec::new(), Vec::new(), StoredCounts::default());
        for tensor in tensors {
            let Choice { stored, is_uneven } = plan::choose(format, tensor.name(), tensor.shape(), tensor.plain());
            counts.quantized += usize::from(stored.is_quantized());
            counts.kept += usize::from(!stored.is_quantized());
            counts.uneven += usize::from(is_uneven);
            let row = rows.len();
            let name = if plan::is_gguf(format) { tensor.name_in_gguf() } else { tensor.name().to_owned() };
            rows.extend(layout::rows(name, tensor.shape(), stored, SCALED_E4M3.len()));
            items.push(Item { tensor, stored, row });
        }
        Ok(Self { items, files, counts, layout: Layout::new(component, format, &rows) })
    }

    /// The size of the new file.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.layout.bytes
    }

    /// The files that are read, as paths inside the checkpoint.
    #[must_use]
    pub fn files(&self) -> &[String] {
        &self.files
    }

    /// How many tensors are stored in which way.
    #[must_use]
    pub fn counts(&self) -> StoredCounts {
        self.counts
    }

    /// Reads the weights and writes the new file into an empty one. `observer` is told the progress of reading.
    ///
    /// # Errors
    /// When a file cannot be read or written, or a number cannot be expressed.
    pub fn write(&self, file: &File, observer: &dyn LoadObserver) -> Result<(), ConvertError> {
        let bytes = self.items.iter().map(|item| item.tensor.file_bytes() as u64).sum();
        observer.planned(bytes);
        // What lies between two tensors is never written, and zero.
        file.set_len(self.layout.bytes)?;
        file.write_all_at(&self.layout.header, 0)?;
        for item in &self.items {
            self.write_item(item, file)?;
            observer.loaded(item.tensor.file_bytes() as u64);
        }
        Ok(())
    }

    fn write_item(&self, Item { tensor, stored, row }: &Item, file: &File) -> Result<(), ConvertError> {
        let places = &self.layout.places[*row..];
        let bytes = match *stored {
            Stored::Plain(dtype) => tensor.bytes_as(dtype)?,
            Stored::Blocks(kind) => encode::blocks(&finite_numbers(tensor)?, kind)?,
            Stored::E4m3 => {
                let (scale, codes) = with_one_scale(&finite_numbers(tensor)?);
                file.write_all_at(&scale.to_le_bytes(), places[1])?;
                file.write_all_at(SCALED_E4M3, places[2])?;
                codes
            }
        };
        Ok(file.write_all_at(&bytes, places[0])?)
    }
}

fn finite_numbers(tensor: &WeightTensor) -> Result<Vec<f32>, ConvertError> {
    let numbers = tensor.numbers()?;
    if encode::are_finite(&numbers) { Ok(numbers) } else { Err(ConvertError::NotFinite(tensor.name().to_owned())) }
}

#[cfg(test)]
mod tests;
