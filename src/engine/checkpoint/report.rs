//! The contents of a checkpoint, in words for the person who has to fix it.

use std::fmt;

use super::files::WeightFiles;
use super::metadata::FileMetadata;
use super::names::spellings::Component;
use super::places::Places;
use super::problem::Problem;

/// Components whose matrices can stay as they are stored.
const KEPT_AS_STORED: [Component; 2] = [Component::Transformer, Component::T5];

/// The type of weights in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeptAs {
    /// bf16, where the hardware multiplies it.
    Bf16,
    /// f32, where the CPU multiplies expanded weights.
    F32,
    /// As their file stores them, in the parts that the CPU multiplies so: the transformer and T5. The others in f32.
    AsStored,
}

/// What a checkpoint has of one component.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ComponentReport {
    /// Its folder's name in the diffusers layout.
    pub name: &'static str,
    /// The weight files, as paths inside the checkpoint.
    pub files: Vec<String>,
    /// Tensors that are there, valid or not.
    pub tensors: usize,
    /// Size of those tensors on disk.
    pub bytes: usize,
    /// Numbers in those tensors.
    pub elements: usize,
    /// The problems.
    pub problems: Vec<Problem>,
}

/// What a checkpoint has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspection {
    /// The folder, the file, or "the program itself".
    pub place: String,
    /// Component by component; empty when the configuration could not be read.
    pub components: Vec<ComponentReport>,
    /// The problems of the configuration and tokenizer files.
    pub problems: Vec<Problem>,
    /// What the weight files say of themselves, which is not verified.
    pub metadata: Vec<FileMetadata>,
}

impl ComponentReport {
    /// Counts files and tensors.
    pub(super) fn of(name: &'static str, files: Option<&WeightFiles>) -> Self {
        let mut report = Self { name, files: Vec::new(), tensors: 0, bytes: 0, elements: 0, problems: Vec::new() };
        if let Some(files) = files {
            report.files = files.files.iter().map(|file| file.path().to_owned()).collect();
            (report.tensors, report.bytes) = (files.tensors, files.bytes);
            report.elements = files.entries.values().map(|entry| entry.info.elements()).sum();
        }
        report
    }
}

impl Inspection {
    pub(super) fn of(places: &Places) -> Self {
        Self { place: places.name.clone(), components: Vec::new(), problems: Vec::new(), metadata: Vec::new() }
    }

    /// Adds what files say of themselves; a file with several components says it once.
    pub(super) fn add_metadata(&mut self, files: &WeightFiles) {
        for metadata in &files.metadata {
            if !self.metadata.contains(metadata) {
                self.metadata.push(metadata.clone());
            }
        }
    }

    /// Drops problems of files that are reported already: a file may have several components.
    pub(super) fn drop_known(&self, problems: &mut Vec<Problem>) {
        let is_of_file = |problem: &&Problem| matches!(problem, Problem::UnreadableFile { .. });
        let of_components = self.components.iter().flat_map(|component| &component.problems);
        let known: Vec<&Problem> = self.problems.iter().chain(of_components).filter(is_of_file).collect();
        problems.retain(|problem| !known.contains(&problem));
    }

    /// Whether there are no problems.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.problems.is_empty() && self.components.iter().all(|component| component.problems.is_empty())
    }

    /// The size of each component's weights in memory, in bytes, without activations.
    #[must_use]
    pub fn weights_bytes(&self, kept_as: KeptAs) -> Vec<(&'static str, usize)> {
        let bytes = |component: &ComponentReport| match kept_as {
            KeptAs::Bf16 => component.elements * size_of::<u16>(),
            KeptAs::AsStored if KEPT_AS_STORED.map(Component::folder).contains(&component.name) => {
                component.bytes.min(component.elements * size_of::<f32>())
            }
            KeptAs::F32 | KeptAs::AsStored => component.elements * size_of::<f32>(),
        };
        self.components.iter().map(|component| (component.name, bytes(component))).collect()
    }

    /// All problems.
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
