//! ControlNets that are loaded beside a checkpoint: folders as diffusers writes them, or single files.

use std::path::Path;
use std::sync::Arc;

use super::CheckpointError;
use super::builder::Tensors;
use super::files::{OpenFile, WeightFiles};
use super::formats::safetensors::single_path;
use super::inventory::tensors_of;
use super::layout::Layout;
use super::names::controlnet::modules;
use super::names::spellings::Component;
use super::other_kinds::other_kind;
use super::places::open_at;
use super::problem::Problem;
use super::report::{ComponentReport, Inspection};
use super::shapes;
use super::source::Source;
use super::tensors::CheckedTensors;
use crate::domain::conditioning::ControlNetCard;
use crate::engine::models::flux1::config::TransformerConfig;
use crate::engine::models::flux1::config::controlnet::ControlNetConfig;

/// The name of its part in reports.
const PART: &str = "controlnet";

/// The configuration in its folder.
const CONFIG: &str = "config.json";

/// The stem of the weights' files in its folder, as diffusers names them.
const STEM: &str = "diffusion_pytorch_model";

/// Inputs that ControlNets for repainting have for a mask, beside those for latents.
const MASK_INPUTS: usize = 4;

/// Why those are refused (`extra_condition_channels` of alimama's FLUX.1-dev-Controlnet-Inpainting).
const READS_MASK: &str = "it reads a mask beside the control image, which is not supported: send an input image and a mask \
     without it, or use FLUX.1-Fill-dev";

/// A complete ControlNet. Tensors are read when they are asked for.
pub(crate) struct ControlNetFiles {
    /// The name that requests use.
    pub(crate) name: Arc<str>,
    pub(crate) config: ControlNetConfig,
    pub(super) tensors: CheckedTensors,
}

/// What a ControlNet is loaded from.
pub(crate) struct ControlNetWeights {
    /// The name that requests use.
    pub(crate) name: Arc<str>,
    pub(crate) config: ControlNetConfig,
    pub(crate) tensors: Tensors,
}

/// What requests have to know of a ControlNet. Reads its configuration and the headers of its files.
///
/// # Errors
/// When it is none that can be used, or anything of it is missing, surplus, misshapen or unreadable.
pub fn controlnet_card(name: &str, path: &Path) -> Result<ControlNetCard, CheckpointError> {
    let mut problems = Vec::new();
    let checked = Found::at(name, path, &mut problems).and_then(|found| found.check(name, None, &mut problems));
    match checked {
        Some((config, _)) if problems.is_empty() => Ok(ControlNetCard { name: name.into(), modes: config.modes }),
        _ => Err(CheckpointError { place: path.display().to_string(), problems }),
    }
}

impl ControlNetFiles {
    /// Opens a ControlNet for a model, whose configuration may be missing, and reports to `inspection`. `None` when it cannot be
    /// used.
    pub(super) fn open(
        (name, path): (&Arc<str>, &Path),
        model: Option<&TransformerConfig>,
        inspection: &mut Inspection,
    ) -> Option<Self> {
        let mut problems = Vec::new();
        let found = Found::at(name, path, &mut problems);
        let files = found.as_ref().map(|found| &found.files);
        let mut report = ComponentReport::of(PART, files);
        if let Some(files) = files {
            inspection.add_metadata(files);
        }
        let checked = found.and_then(|found| found.check(name, model, &mut problems));
        let checked = checked.filter(|_| problems.is_empty());
        report.problems = problems;
        inspection.components.push(report);
        checked.map(|(config, tensors)| Self { name: Arc::clone(name), config, tensors })
    }
}

/// The weights of a ControlNet, and its configuration, if there is one, with its path.
struct Found {
    files: WeightFiles,
    config: Option<(String, ControlNetConfig)>,
}

impl Found {
    /// What a folder or a file has.
    fn at(name: &str, path: &Path, problems: &mut Vec<Problem>) -> Option<Self> {
        if path.is_dir() {
            return Self::in_folder(name, Source::other(path), problems);
        }
        let unreadable = || Problem::unreadable(path.display().to_string(), "not a folder or a file that can be read");
        match open_at(path).unwrap_or_else(|| Err(unreadable())) {
            Ok(file) => {
                if report_other_kind(name, &file, problems) {
                    return None;
                }
                let files = WeightFiles::of(&file, Component::Transformer, problems);
                files.map(|files| Self { files, config: None })
            }
            Err(problem) => {
                problems.push(problem);
                None
            }
        }
    }

    fn in_folder(name: &str, source: Source, problems: &mut Vec<Problem>) -> Option<Self> {
        let stem = stem_in(source);
        // The configuration of another kind has another form, which would say less.
        if let Ok(file) = OpenFile::open(source, &single_path(&stem))
            && report_other_kind(name, &file, problems)
        {
            return None;
        }
        let before = problems.len();
        let config = source.text(CONFIG, problems).and_then(|text| match ControlNetConfig::parse(&text) {
            Ok(config) => Some((source.shown(CONFIG), config)),
            Err(error) => {
                problems.push(Problem::unreadable(source.shown(CONFIG), error));
                None
            }
        });
        // Shapes must not stand in for a configuration that is broken.
        if problems.len() > before {
            return None;
        }
        let files = WeightFiles::open(source, &stem, Component::Transformer, problems);
        if files.is_none() && problems.len() == before {
            problems.push(Problem::unreadable(source.shown(STEM), "its index names no files"));
        }
        files.map(|files| Self { files, config })
    }

    /// Compares the weights with the configuration, and that with the model's. Problems go to `problems`.
    fn check(
        self,
        name: &str,
        model: Option<&TransformerConfig>,
        problems: &mut Vec<Problem>,
    ) -> Option<(ControlNetConfig, CheckedTensors)> {
        let Self { files, config } = self;
        if files.is_refused || !files.unread.is_empty() {
            // Both are problems already.
            return None;
        }
        if let Some(reason) = refusal_of(&files) {
            problems.push(Problem::unreadable(files.label.clone(), format!("ControlNet `{name}`: {reason}")));
            return None;
        }
        let (path, config) = config.unwrap_or_else(|| (files.label.clone(), by_shapes(&files, model)));
        let mut reasons = config.broken_rules();
        if reasons.is_empty()
            && let Some(model) = model
        {
            let misfits = config.misfits(model).into_iter();
            reasons = misfits.map(|reason| format!("it is for another model: {reason}")).collect();
        }
        if reasons.is_empty() && reads_mask(&files, &config) {
            reasons.push(READS_MASK.to_owned());
        }
        if !reasons.is_empty() {
            let named = reasons.into_iter().map(|reason| format!("ControlNet `{name}`: {reason}"));
            problems.extend(named.map(|reason| Problem::unreadable(path.clone(), reason)));
            return None;
        }
        let expected = tensors_of(&modules(&config), Layout::Diffusers);
        let tensors = CheckedTensors::check(files, expected, |_| false, problems)?;
        Some((config, tensors))
    }
}

/// The configuration of files that have none. Shapes do not tell the axes of positions: they are the model's.
fn by_shapes(files: &WeightFiles, model: Option<&TransformerConfig>) -> ControlNetConfig {
    let mut config = shapes::controlnet(files);
    if let Some(model) = model {
        config.trunk.axes_dims_rope = model.axes_dims_rope;
    }
    config
}

/// What the weights' files are named in a folder: as diffusers names them, or as the only file is.
fn stem_in(source: Source) -> String {
    if WeightFiles::exist(source, STEM) {
        return STEM.to_owned();
    }
    let names = source.top_level_files();
    let mut stems = names.iter().filter_map(|name| name.strip_suffix(".safetensors"));
    match (stems.next(), stems.next()) {
        (Some(only), None) => only.to_owned(),
        _ => STEM.to_owned(),
    }
}

/// Whether a file is of another kind, which is reported to `problems`.
fn report_other_kind(name: &str, file: &OpenFile, problems: &mut Vec<Problem>) -> bool {
    let Some(reason) = of_another_kind(file.header.tensors.keys().map(String::as_str)) else { return false };
    problems.push(Problem::unreadable(file.blob.path(), format!("ControlNet `{name}`: {reason}")));
    true
}

/// Why tensors of these names are none of a ControlNet.
fn of_another_kind<'a>(names: impl Iterator<Item = &'a str> + Clone) -> Option<String> {
    let is_lora = names.clone().any(|name| name.contains(".lora_"));
    let as_lora = "it is a LoRA: add it with `fluxserve loras add` and name it in `loras`";
    other_kind(names).or_else(|| is_lora.then(|| as_lora.to_owned()))
}

/// Why weights are none of a ControlNet that can be used.
fn refusal_of(files: &WeightFiles) -> Option<String> {
    let names = files.entries.keys().map(String::as_str);
    let is_net = names.clone().any(|name| name.starts_with("controlnet_x_embedder."));
    let reason = "it has no `controlnet_x_embedder`, so it is no ControlNet for FLUX.1 in the names of diffusers";
    of_another_kind(names).or_else(|| (!is_net).then(|| reason.to_owned()))
}

/// Whether a ControlNet has inputs for a mask behind those for the control image's latents.
fn reads_mask(files: &WeightFiles, config: &ControlNetConfig) -> bool {
    let embedder = files.entries.get("controlnet_x_embedder.weight");
    let inputs = embedder.and_then(|entry| entry.info.shape.get(1));
    inputs.is_some_and(|inputs| inputs.checked_sub(MASK_INPUTS) == Some(config.trunk.in_channels))
}

#[cfg(test)]
mod tests;
