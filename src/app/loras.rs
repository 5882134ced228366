//! `loras inspect`.

use std::io::Write;
use std::path::Path;

use super::models::files_of;
use crate::config::Config;
use crate::domain::model_source::ModelSource;
use crate::engine::{Adaptable, Adapter};

/// Writes what an adapter changes, what in its file is not used and why, and what the file says of itself. It is compared with
/// a model, or with FLUX.1-dev. All of its numbers are read once.
///
/// # Errors
/// When it cannot be used, or the model is incomplete.
pub fn inspect_lora(
    config: &Config,
    file: &Path,
    model: Option<&ModelSource>,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let model = match model {
        None => Adaptable::flux_dev(),
        Some(model) => {
            let is_named = model.directory.is_some() || !model.parts.is_empty();
            let configured = config.models.iter().find(|source| source.id == model.id && !is_named);
            Adaptable::of(&files_of(config, configured.unwrap_or(model))?)?
        }
    };
    let adapter = Adapter::open(file, &model)?;
    let report = adapter.report();
    writeln!(out, "{report}")?;
    if let Some(metadata) = &report.metadata {
        writeln!(out, "{metadata}")?;
    }
    Ok(adapter.check()?)
}
