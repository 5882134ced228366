//! From an adapter's file to its numbers in the host's memory, in the forms in which they are used.

use std::collections::HashMap;

use candle_core::DType;

use super::form::Form;
use super::loaded::{LoadedAdapter, Norm, RowChange, row};
use crate::domain::adapter::AdapterUse;
use crate::domain::engine::EngineError;
use crate::engine::adapters::{Adaptable, Adapter, AdapterError, AdapterReport, Change, Magnitude, ModuleChanges};
use crate::engine::checkpoint::{BaseWeights, Checkpoint, Component};

/// Why an adapter that fits the model is not applied, or one that does not fit.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    #[error("it is a control adapter, which needs a control image, and this version takes none")]
    Control,
    #[error("it changes `{module}`, a norm: this version applies changes of linear layers only")]
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
        if report.inputs_added > 0 {
            return Err(Refusal::Control);
        }
        let mut loaded = LoadedAdapter { id: lora.id.clone(), is_of_text: is_of_text(report), modules: HashMap::new() };
        let mut bytes = 0;
        for changes in adapter.modules(&self.model) {
            let ModuleChanges { name, inputs, changes, .. } = changes?;
            if inputs.is_none() {
                return Err(Refusal::Norm { module: name });
            }
            let changes = self.row_changes(&name, changes)?;
            bytes += changes.iter().map(RowChange::bytes).sum::<usize>();
            if bytes > self.bytes_max {
                return Err(Refusal::TooLarge { bytes_max: self.bytes_max });
            }
            loaded.modules.insert(name, changes);
        }
        Ok(loaded)
    }

    fn row_changes(&self, module: &str, changes: Vec<Change>) -> Result<Vec<RowChange>, Refusal> {
        let has_norms = changes.iter().any(|change| change.magnitude.is_some());
        let base = if has_norms { self.base.numbers(&format!("{module}.weight"))? } else { Vec::new() };
        let row_change = |change: Change| -> Result<RowChange, Refusal> {
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
            Ok(RowChange { rows, form, norm, bias }.in_dtype(self.dtype)?)
        };
        changes.into_iter().map(row_change).collect()
    }
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
