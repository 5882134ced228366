//! From an adapter's file to its numbers in the host's memory, in the forms in which they are used.

use std::cmp::Ordering;
use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};

use super::background::Pace;
use super::form::Form;
use super::loaded::{LoadedAdapter, Norm, PIECE_BYTES, RowChange, row};
use crate::domain::adapter::AdapterUse;
use crate::domain::engine::EngineError;
use crate::engine::adapters::{
    Adaptable, Adapter, AdapterError, AdapterReport, Change, Magnitude, ModuleChanges, WeightChange,
};
use crate::engine::checkpoint::{BaseWeights, Checkpoint, Component};

/// How the names of the transformer's norms end: those of queries and keys.
const HEAD_NORM: &str = "_norm.scale";

/// Why an adapter that fits the model is not applied, or one that does not fit.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    #[error(
        "it changes `{module}` for another number of inputs by norms (DoRA) or in whole, which this version does not apply"
    )]
    OtherInputs { module: String },
    #[error("it changes `{module}`, a norm: this version replaces norms of the transformer, and changes no others")]
    Norm { module: String },
    #[error("it replaces the weights of `{module}`: this version applies only what is added to them")]
    Replacement { module: String },
    #[error("its numbers take more than the {} MiB that are for adapters", .bytes_max >> 20)]
    TooLarge { bytes_max: usize },
    #[error("{0}")]
    Numbers(#[from] candle_core::Error),
}

/// What loading an adapter needs of the model.
pub(crate) struct Loader {
    model: Adaptable,
    /// The model's weights: DoRA depends on them.
    base: BaseWeights,
    /// The type of numbers on the device.
    dtype: DType,
    /// Maximum bytes of all adapters on the device.
    pub(super) bytes_max: usize,
}

impl Loader {
    /// For a checkpoint that a device computes with in `dtype`, where adapters take at most `bytes_max`.
    pub(crate) fn new(checkpoint: &Checkpoint, dtype: DType, bytes_max: usize) -> Self {
        let (model, base) = (Adaptable::of_configs(&checkpoint.configs), checkpoint.base_weights());
        Self { model, base, dtype, bytes_max }
    }

    /// Reads an adapter. Its numbers are in the host's memory.
    ///
    /// # Errors
    /// [`EngineError::Request`], for the clients who ask for it: without the file's path.
    pub(super) fn load(&self, lora: &AdapterUse) -> Result<LoadedAdapter, EngineError> {
        self.read(lora).map_err(|refusal| {
            let reason = refusal.to_string().replace(&lora.file.display().to_string(), "its file");
            EngineError::Request(format!("the adapter `{}`: {reason}", lora.id))
        })
    }

    fn read(&self, lora: &AdapterUse) -> Result<LoadedAdapter, Refusal> {
        let adapter = Adapter::open(&lora.file, &self.model)?;
        let report = adapter.report();
        tracing::info!(id = %lora.id, %report, "an adapter is loaded");
        let mut loaded = LoadedAdapter {
            id: lora.id.clone(),
            is_of_text: is_of_text(report),
            inputs_joined: report.inputs_added,
            modules: HashMap::new(),
            norms: HashMap::new(),
        };
        let (mut bytes, mut pace) = (0, Pace::new());
        for changes in adapter.modules(&self.model) {
            pace.keep();
            let ModuleChanges { name, outputs, inputs, changes } = changes?;
            let Some(inputs) = inputs else {
                let norm = replaced_norm(&changes, outputs).filter(|_| name.ends_with(HEAD_NORM));
                let norm = norm.ok_or_else(|| Refusal::Norm { module: name.clone() })?;
                loaded.norms.insert(name, norm?.to_dtype(self.dtype)?);
                continue;
            };
            let (own, joined) = parted(&name, changes, inputs)?;
            for (name, changes) in [(name.clone(), own), (joined_inputs_of(&name), joined)] {
                if changes.is_empty() {
                    continue;
                }
                let changes = self.row_changes(&name, changes)?;
                bytes += changes.iter().map(RowChange::bytes).sum::<usize>();
                if bytes > self.bytes_max {
                    return Err(Refusal::TooLarge { bytes_max: self.bytes_max });
                }
                loaded.modules.insert(name, changes);
            }
        }
        Ok(loaded)
    }

    fn row_changes(&self, module: &str, changes: Vec<Change>) -> Result<Vec<RowChange>, Refusal> {
        let has_norms = changes.iter().any(|change| change.magnitude.is_some());
        let base = if has_norms { self.base.numbers(&format!("{module}.weight"))? } else { Vec::new() };
        let row_changes = |change: Change| -> Result<Vec<RowChange>, Refusal> {
            let norm = norm_of(&change, &base)?;
            let Change { rows, columns, weight, bias, .. } = change;
            let form = match weight {
                None => None,
                Some(weight) => {
                    let form = Form::of(weight, [rows.len(), columns])?;
                    Some(form.ok_or_else(|| Refusal::Replacement { module: module.to_owned() })?)
                }
            };
            let bias = bias.map(row).transpose()?;
            Ok(RowChange { rows, form, norm, bias }.in_dtype(self.dtype)?.in_pieces(PIECE_BYTES)?)
        };
        let pieces = changes.into_iter().map(row_changes).collect::<Result<Vec<_>, Refusal>>()?;
        Ok(pieces.into_iter().flatten().collect())
    }
}

/// The name under which an adapter has its changes for inputs that are joined to those of a module.
pub(crate) fn joined_inputs_of(module: &str) -> String {
    format!("{module}.joined")
}

/// What takes the place of a whole norm of so many numbers. `None` where the changes are others.
fn replaced_norm(changes: &[Change], outputs: usize) -> Option<candle_core::Result<Tensor>> {
    match changes {
        [Change { rows, weight: Some(WeightChange::Replacement(numbers)), magnitude: None, bias: None, .. }]
            if *rows == (0..outputs) =>
        {
            Some(Tensor::from_slice(numbers, outputs, &Device::Cpu))
        }
        _ => None,
    }
}

/// The changes for a module's own inputs, and those for inputs that are joined to them. What an adapter of another model lacks is
/// not changed.
fn parted(module: &str, changes: Vec<Change>, inputs: usize) -> Result<(Vec<Change>, Vec<Change>), Refusal> {
    let (mut own, mut joined) = (Vec::new(), Vec::new());
    for change in changes {
        let refused = || Refusal::OtherInputs { module: module.to_owned() };
        match change.columns.cmp(&inputs) {
            Ordering::Equal => own.push(change),
            Ordering::Less => own.push(change.padded(inputs).ok_or_else(refused)?),
            Ordering::Greater => {
                let [of_own, of_joined] = change.split(inputs).ok_or_else(refused)?;
                own.push(of_own);
                joined.push(of_joined);
            }
        }
    }
    Ok((own, joined))
}

/// DoRA: the factors that give the changed weights their norms. `base` has the module's weights.
fn norm_of(change: &Change, base: &[f32]) -> candle_core::Result<Option<Norm>> {
    let weight = || &base[change.rows.start * change.columns..change.rows.end * change.columns];
    match &change.magnitude {
        None => Ok(None),
        Some(Magnitude::Rows(_)) => change.scales(weight()).map(Norm::rows).transpose(),
        Some(Magnitude::Columns(_)) => change.scales(weight()).map(Norm::columns).transpose(),
    }
}

/// Whether an adapter changes a text encoder.
fn is_of_text(report: &AdapterReport) -> bool {
    let folders = [Component::Clip, Component::T5].map(Component::folder);
    report.components.iter().any(|component| folders.contains(&component.name))
}
