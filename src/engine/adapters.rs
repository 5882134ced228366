//! Adapters (LoRA and its relatives) of FLUX.1: from a file of any trainer to the changes that it makes to the model's modules,
//! and a report on what in the file is used.
//!
//! A file is opened by its header: names, shapes and types are checked, and alphas are read. Numbers are read module by module
//! when they are asked for, so memory holds one change at a time. Must not know a device, or how changes get into a step.

mod change;
mod dialect;
mod families;
mod fault;
mod groups;
mod keys;
mod patterns;
mod plan;
mod planned;
mod report;
mod scaling;
mod values;

use std::path::Path;

use super::checkpoint::{AdaptedModules, CheckpointError, Problem, TensorFile, adapted_modules};
use super::models::flux1::config::Configs;
use crate::domain::model::ModelFiles;

pub use change::{Change, LowRank, Magnitude, Matrix, WeightChange};
pub use fault::Fault;
pub use groups::UnusedTensors;
use groups::{Group, Unused, groups};
pub use keys::NotUsed;
use keys::Role;
use planned::Planned;
use report::Parts;
pub use report::{AdaptedComponent, AdapterReport};
use scaling::Settings;

/// Why an adapter cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    /// Its file cannot be read.
    #[error(transparent)]
    File(#[from] Problem),
    /// It is for another family of models.
    #[error("{file}: an adapter for {family}, not for FLUX.1")]
    OtherFamily {
        /// The file's path.
        file: String,
        /// The family.
        family: &'static str,
    },
    /// It is no adapter.
    #[error("{file}: {reason}")]
    OtherKind {
        /// The file's path.
        file: String,
        /// What it is, and what to do.
        reason: String,
    },
    /// Nothing in it changes the model.
    #[error("{file}: nothing in it is a change of FLUX.1{}", reasons(.unused))]
    Nothing {
        /// The file's path.
        file: String,
        /// What it has instead.
        unused: Vec<UnusedTensors>,
    },
    /// Something in it is wrong, so that it could be applied in part only.
    #[error("{file} cannot be used:{}", fault::bullet_list(.faults))]
    Broken {
        /// The file's path.
        file: String,
        /// What is wrong; never empty.
        faults: Vec<Fault>,
    },
    /// The model whose modules it is compared with cannot be read.
    #[error(transparent)]
    Model(#[from] CheckpointError),
}

fn reasons(unused: &[UnusedTensors]) -> String {
    if unused.is_empty() {
        return ": it has no tensors".to_owned();
    }
    unused.iter().flat_map(|unused| ["\n  - ".to_owned(), unused.to_string()]).collect()
}

/// The modules that adapters can change, of a model with given dimensions.
#[derive(Debug)]
pub struct Adaptable(AdaptedModules);

impl Adaptable {
    /// Those of FLUX.1-dev.
    #[must_use]
    pub fn flux_dev() -> Self {
        Self(AdaptedModules::flux_dev())
    }

    /// Those of a model with these configurations.
    pub(crate) fn of_configs(configs: &Configs) -> Self {
        Self(AdaptedModules::of(&configs.transformer, &configs.clip, &configs.t5))
    }

    /// Those of a checkpoint.
    ///
    /// # Errors
    /// When it is incomplete.
    pub fn of(files: &ModelFiles) -> Result<Self, AdapterError> {
        Ok(Self(adapted_modules(files)?))
    }
}

/// What an adapter changes of a module.
#[derive(Debug, Clone, PartialEq)]
pub struct ModuleChanges {
    /// The module's name in the model: that of its authors.
    pub name: String,
    /// Its outputs.
    pub outputs: usize,
    /// Its inputs; `None` where it is a norm.
    pub inputs: Option<usize>,
    /// The changes, each of other outputs.
    pub changes: Vec<Change>,
}

/// An adapter that fits the model, as far as its file's header tells.
#[derive(Debug)]
pub struct Adapter {
    file: TensorFile,
    /// In the order of modules.
    planned: Vec<Planned>,
    report: AdapterReport,
}

impl Adapter {
    /// Opens a file, and compares its names, shapes and types with the model's.
    ///
    /// # Errors
    /// When it cannot be read, is for another family or no adapter, is broken, or changes nothing.
    pub fn open(path: &Path, model: &Adaptable) -> Result<Self, AdapterError> {
        let (file, Adaptable(modules)) = (TensorFile::open(path)?, model);
        let name = file.path().to_owned();
        if let Some(family) = families::other(file.names()) {
            return Err(AdapterError::OtherFamily { file: name, family });
        }
        if let Some(reason) = families::other_kind(&file) {
            return Err(AdapterError::OtherKind { file: name, reason });
        }
        let (mut unused, mut faults) = (Unused::default(), Vec::new());
        let groups = groups(&file, modules, &mut unused, &mut faults);
        let Plans { mut planned, used } = plans(&file, &groups, &mut unused, &mut faults);
        planned.sort_by_key(|planned| (planned.module, planned.rows.start));
        faults.extend(overlaps(&planned, modules));
        if !faults.is_empty() {
            return Err(AdapterError::Broken { file: name, faults });
        }
        let unused = unused.into_list();
        if planned.is_empty() {
            return Err(AdapterError::Nothing { file: name, unused });
        }
        let dialects = used.iter().map(|group| dialect::of(&group.found)).collect();
        let tensors = used.iter().flat_map(|group| &group.tensors);
        let weights = tensors.filter(|(role, _)| !matches!(role, Role::Alpha | Role::Shape));
        let dtypes = weights.map(|(_, tensor)| file.dtype(tensor)).collect();
        let parts = Parts { file: &file, modules, planned: &planned, dialects, dtypes, unused };
        let report = AdapterReport::of(parts);
        drop(used);
        drop(groups);
        Ok(Self { file, planned, report })
    }

    /// What it has.
    #[must_use]
    pub fn report(&self) -> &AdapterReport {
        &self.report
    }

    /// A text of its file's metadata, which is not verified.
    #[must_use]
    pub fn says(&self, key: &str) -> Option<&str> {
        self.file.text(key)
    }

    /// Reads all numbers once, and finds whether they are finite.
    ///
    /// # Errors
    /// When one is not, or the file cannot be read.
    pub fn check(&self) -> Result<(), AdapterError> {
        let faults: Vec<Fault> =
            self.planned.iter().filter_map(|planned| values::read(&self.file, planned).err()).collect();
        if faults.is_empty() { Ok(()) } else { Err(self.broken(faults)) }
    }

    /// Reads what it changes, module by module.
    ///
    /// # Errors
    /// In place of a module, when a number is not finite, or the file cannot be read.
    pub fn modules(&self, model: &Adaptable) -> impl Iterator<Item = Result<ModuleChanges, AdapterError>> {
        self.planned.chunk_by(|one, next| one.module == next.module).map(move |of_module| {
            let module = model.0.module(of_module[0].module);
            let changes = of_module.iter().map(|planned| values::read(&self.file, planned));
            let changes: Result<Vec<Change>, Fault> = changes.collect();
            Ok(ModuleChanges {
                name: module.name.clone(),
                outputs: module.outputs,
                inputs: module.inputs,
                changes: changes.map_err(|fault| self.broken(vec![fault]))?,
            })
        })
    }

    fn broken(&self, faults: Vec<Fault>) -> AdapterError {
        AdapterError::Broken { file: self.file.path().to_owned(), faults }
    }
}

/// The planned changes, and the groups that they are of.
struct Plans<'a> {
    planned: Vec<Planned>,
    used: Vec<&'a Group<'a>>,
}

fn plans<'a>(file: &TensorFile, groups: &'a [Group<'a>], unused: &mut Unused, faults: &mut Vec<Fault>) -> Plans<'a> {
    let mut plans = Plans { planned: Vec::new(), used: Vec::new() };
    let settings = match Settings::read(file) {
        Ok(settings) => settings,
        Err(fault) => {
            faults.push(fault);
            return plans;
        }
    };
    // A model's norms are named as those that a control adapter has.
    let is_weight_of_model = |group: &Group| group.tensors.keys().all(|role| *role == Role::Own);
    let is_model = groups.iter().all(is_weight_of_model);
    for group in groups {
        if is_model {
            for tensor in group.tensors.values() {
                unused.add(NotUsed::OwnWeight, tensor);
            }
            continue;
        }
        match plan::plan(file, group, &settings) {
            Ok(Some(planned)) => {
                plans.planned.push(planned);
                plans.used.push(group);
            }
            Ok(None) => {
                for tensor in group.tensors.values() {
                    unused.add(NotUsed::AlphaAlone, tensor);
                }
            }
            Err(fault) => faults.push(fault),
        }
    }
    plans
}

/// Changes of the same outputs, by two names of them. `planned` is in the order of modules and their outputs.
fn overlaps(planned: &[Planned], modules: &AdaptedModules) -> Vec<Fault> {
    let pairs = planned.windows(2).filter_map(|pair| <&[Planned; 2]>::try_from(pair).ok());
    let twice = pairs.filter(|[one, next]| one.module == next.module && one.rows.end > next.rows.start);
    let fault = |[one, next]: &[Planned; 2]| Fault::Twice {
        module: modules.module(one.module).name.clone(),
        first: one.path.clone(),
        second: next.path.clone(),
    };
    twice.map(fault).collect()
}

#[cfg(test)]
mod tests;
