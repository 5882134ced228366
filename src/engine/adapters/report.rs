//! What an adapter has, in words for people.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::groups::UnusedTensors;
use super::planned::{Algebra, Planned};
use crate::engine::checkpoint::{AdaptedModules, Component, FileMetadata, TensorFile};

/// Components that adapters change.
const COMPONENTS: [Component; 3] = [Component::Transformer, Component::Clip, Component::T5];

/// What an adapter changes of a component.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdaptedComponent {
    /// The component's folder in the diffusers layout.
    pub name: &'static str,
    /// Matrices of which something is changed.
    pub matrices: usize,
    /// Matrices that the component has.
    pub of: usize,
    /// Norms that are changed.
    pub norms: usize,
}

/// What an adapter has.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterReport {
    /// The file's path.
    pub file: String,
    /// What it changes, by component; those of which it changes nothing are left out.
    pub components: Vec<AdaptedComponent>,
    /// Kinds of changes and their numbers.
    pub kinds: Vec<(&'static str, usize)>,
    /// The least and the greatest rank, if it has any.
    pub ranks: Option<(usize, usize)>,
    /// The least and the greatest factor of its products.
    pub factors: Option<(f32, f32)>,
    /// The types of its numbers.
    pub dtypes: Vec<String>,
    /// The dialects of its names.
    pub dialects: Vec<&'static str>,
    /// Inputs that an image needs for it beside the model's: a control adapter's.
    pub inputs_added: usize,
    /// Tensors in the file.
    pub tensors: usize,
    /// Tensors that are not used.
    pub unused: Vec<UnusedTensors>,
    /// What the file says of itself, which is not verified.
    pub metadata: Option<FileMetadata>,
}

/// What of a file a report is made of.
pub(super) struct Parts<'a> {
    pub(super) file: &'a TensorFile,
    pub(super) modules: &'a AdaptedModules,
    pub(super) planned: &'a [Planned],
    pub(super) dialects: BTreeSet<&'static str>,
    pub(super) dtypes: BTreeSet<String>,
    pub(super) unused: Vec<UnusedTensors>,
}

impl AdapterReport {
    pub(super) fn of(parts: Parts) -> Self {
        let Parts { file, modules, planned, dialects, dtypes, unused } = parts;
        let changed: BTreeSet<usize> = planned.iter().map(|planned| planned.module).collect();
        let component = |component: Component| {
            let changed = changed.iter().map(|number| modules.module(*number));
            let of_component = changed.filter(|module| module.component == component);
            let (norms, matrices): (Vec<_>, Vec<_>) = of_component.partition(|module| module.inputs.is_none());
            let (norms, matrices) = (norms.len(), matrices.len());
            AdaptedComponent { name: component.folder(), matrices, of: modules.matrices(component), norms }
        };
        let components = COMPONENTS.map(component).into_iter();
        let widened = planned.iter().map(|planned| {
            let inputs = modules.module(planned.module).inputs.unwrap_or(planned.columns);
            planned.columns.saturating_sub(inputs)
        });
        Self {
            file: file.path().to_owned(),
            components: components.filter(|component| component.matrices + component.norms > 0).collect(),
            kinds: kinds(planned),
            ranks: range(planned.iter().flat_map(Planned::ranks)),
            factors: range(planned.iter().filter_map(factor)),
            dtypes: dtypes.into_iter().collect(),
            dialects: dialects.into_iter().collect(),
            inputs_added: widened.max().unwrap_or(0),
            tensors: file.names().len(),
            unused,
            metadata: file.metadata(),
        }
    }

    /// How many tensors are not used.
    #[must_use]
    pub fn unused_tensors(&self) -> usize {
        self.unused.iter().map(|unused| unused.count).sum()
    }
}

fn factor(planned: &Planned) -> Option<f32> {
    let weight = planned.weight.as_ref()?;
    let is_product = !matches!(weight.algebra, Algebra::Difference(_) | Algebra::Replacement(_));
    is_product.then_some(weight.factor)
}

/// The least and the greatest.
fn range<T: PartialOrd + Copy>(values: impl Iterator<Item = T>) -> Option<(T, T)> {
    values.fold(None, |range, value| {
        let (least, greatest) = range.unwrap_or((value, value));
        Some((if value < least { value } else { least }, if value > greatest { value } else { greatest }))
    })
}

fn kinds(planned: &[Planned]) -> Vec<(&'static str, usize)> {
    let mut kinds: BTreeMap<&'static str, usize> = BTreeMap::new();
    for planned in planned {
        let kind = match planned.weight.as_ref().map(|weight| &weight.algebra) {
            Some(_) if planned.magnitude.is_some() => Some("DoRA"),
            Some(Algebra::LowRank(_)) => Some("LoRA"),
            Some(Algebra::Hadamard(_)) => Some("LoHa"),
            Some(Algebra::Kronecker(_)) => Some("LoKr"),
            Some(Algebra::Difference(_)) => Some("difference"),
            Some(Algebra::Replacement(_)) => Some("replacement"),
            None => None,
        };
        let bias = (!planned.biases.is_empty()).then_some("bias");
        for kind in kind.into_iter().chain(bias) {
            *kinds.entry(kind).or_default() += 1;
        }
    }
    kinds.into_iter().collect()
}

impl fmt::Display for AdapterReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.file)?;
        for AdaptedComponent { name, matrices, of, norms } in &self.components {
            let norms = if *norms > 0 { format!(", {norms} norms") } else { String::new() };
            writeln!(f, "  {name:<16} {matrices} of {of} linear layers{norms}")?;
        }
        let kinds: Vec<String> = self.kinds.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
        write!(f, "  changes: {}", kinds.join(", "))?;
        if let Some((least, greatest)) = self.ranks {
            write!(f, "; rank {}", span(&least, &greatest))?;
        }
        if let Some((least, greatest)) = self.factors {
            write!(f, "; factor {}", span(&least, &greatest))?;
        }
        writeln!(f, "; {}", self.dtypes.join(", "))?;
        writeln!(f, "  names: {}", self.dialects.join(", "))?;
        if self.inputs_added > 0 {
            writeln!(f, "  needs a control image: it adds {} inputs to the image's layer", self.inputs_added)?;
        }
        for unused in &self.unused {
            writeln!(f, "  not used, {unused}")?;
        }
        write!(f, "  {} of {} tensors are used", self.tensors - self.unused_tensors(), self.tensors)
    }
}

fn span<T: PartialEq + fmt::Display>(least: &T, greatest: &T) -> String {
    if least == greatest { least.to_string() } else { format!("{least} to {greatest}") }
}
