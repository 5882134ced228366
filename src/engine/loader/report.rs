//! What was found in a checkpoint, in words for the person who has to mend it.

use std::fmt;

use super::source::Source;
use super::weights::WeightFiles;

/// One thing that is wrong with a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// A file that must be there is not.
    #[error("{path}: missing{hint}")]
    MissingFile {
        /// Path inside the checkpoint.
        path: String,
        /// More about it, starting with a separator, or empty.
        hint: String,
    },
    /// A file is there, but cannot be read or is not what its name says.
    #[error("{path}: {reason}")]
    UnreadableFile {
        /// Path inside the checkpoint.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A tensor that the configuration calls for is in none of the files.
    #[error("{file}: tensor `{tensor}` is missing, expected shape {expected:?}")]
    MissingTensor {
        /// The file or index that should name it.
        file: String,
        /// Its name there.
        tensor: String,
        /// What the configuration calls for.
        expected: Vec<usize>,
    },
    /// A tensor that the configuration has no use for: the two do not belong together.
    #[error("{file}: tensor `{tensor}` of shape {found:?} is surplus, the configuration has no place for it")]
    SurplusTensor {
        /// The file that holds it.
        file: String,
        /// Its name there.
        tensor: String,
        /// Its shape.
        found: Vec<usize>,
    },
    /// A tensor of another shape than the configuration calls for.
    #[error("{file}: tensor `{tensor}` has shape {found:?}, expected {expected:?}")]
    Shape {
        /// The file that holds it.
        file: String,
        /// Its name there.
        tensor: String,
        /// What the configuration calls for.
        expected: Vec<usize>,
        /// What is there.
        found: Vec<usize>,
    },
    /// A tensor of a type that weights do not have.
    #[error("{file}: tensor `{tensor}` has dtype {found}, expected BF16, F16 or F32")]
    Dtype {
        /// The file that holds it.
        file: String,
        /// Its name there.
        tensor: String,
        /// What is there.
        found: String,
    },
}

impl Problem {
    pub(super) fn missing(path: impl Into<String>) -> Self {
        Self::MissingFile { path: path.into(), hint: String::new() }
    }

    pub(super) fn unreadable(path: impl Into<String>, reason: impl fmt::Display) -> Self {
        Self::UnreadableFile { path: path.into(), reason: reason.to_string() }
    }
}

/// What weights are kept as in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeptAs {
    /// 16 bits, where the hardware multiplies them. The autoencoder stays in 32 all the same.
    Bf16,
    /// 32 bits, as on the CPU.
    F32,
}

/// What was found of one component.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ComponentReport {
    /// Its folder's name in the diffusers layout.
    pub name: &'static str,
    /// The weight files, as paths inside the checkpoint.
    pub files: Vec<String>,
    /// Tensors that are there, right or not.
    pub tensors: usize,
    /// Size of those tensors on disk.
    pub bytes: usize,
    /// Numbers in those tensors.
    pub elements: usize,
    /// What is wrong.
    pub problems: Vec<Problem>,
}

/// What was found of a whole checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspection {
    /// The folder, or "the program itself".
    pub place: String,
    /// Component by component; empty when the configuration could not be read.
    pub components: Vec<ComponentReport>,
    /// What is wrong with the configuration and tokenizer files.
    pub problems: Vec<Problem>,
}

impl ComponentReport {
    /// What is there, in numbers.
    pub(super) fn of(name: &'static str, files: Option<&WeightFiles>) -> Self {
        let mut report = Self { name, files: Vec::new(), tensors: 0, bytes: 0, elements: 0, problems: Vec::new() };
        if let Some(files) = files {
            report.files = files.files.iter().map(|file| file.path().to_owned()).collect();
            report.tensors = files.entries.len();
            for entry in files.entries.values() {
                report.bytes += entry.range.len();
                report.elements += entry.shape.iter().product::<usize>();
            }
        }
        report
    }
}

impl Inspection {
    pub(super) fn of(source: Source) -> Self {
        Self { place: source.place(), components: Vec::new(), problems: Vec::new() }
    }

    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.problems.is_empty() && self.components.iter().all(|component| component.problems.is_empty())
    }

    /// What each component's weights take in memory, in bytes. What is computed with them comes on top.
    #[must_use]
    pub fn weights_bytes(&self, kept_as: KeptAs) -> Vec<(&'static str, usize)> {
        let width = |name| if kept_as == KeptAs::F32 || name == "vae" { size_of::<f32>() } else { size_of::<u16>() };
        self.components.iter().map(|component| (component.name, component.elements * width(component.name))).collect()
    }

    /// Everything that is wrong.
    #[must_use]
    pub fn into_problems(self) -> Vec<Problem> {
        let of_components = self.components.into_iter().flat_map(|component| component.problems);
        self.problems.into_iter().chain(of_components).collect()
    }
}

impl fmt::Display for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.place)?;
        for component in &self.components {
            let mebibytes = component.bytes as f64 / f64::from(1 << 20);
            let (name, tensors) = (component.name, component.tensors);
            writeln!(f, "  {name:<16} {tensors:>5} tensors {mebibytes:>10.1} MiB  {}", component.files.join(", "))?;
            for problem in &component.problems {
                writeln!(f, "    {problem}")?;
            }
        }
        for problem in &self.problems {
            writeln!(f, "  {problem}")?;
        }
        f.write_str(if self.is_sound() { "  complete" } else { "  not usable" })
    }
}

/// Most problems an error message lists; `models check` lists all.
const LISTED_MAX: usize = 12;

pub(super) fn bullet_list(problems: &[Problem]) -> String {
    let mut lines: Vec<String> = problems.iter().take(LISTED_MAX).map(ToString::to_string).collect();
    if problems.len() > LISTED_MAX {
        lines.push(format!("and {} more", problems.len() - LISTED_MAX));
    }
    lines.into_iter().flat_map(|line| ["\n  - ".to_owned(), line]).collect()
}
