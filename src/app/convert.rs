//! `models convert`: a component's weights in another form, in a new file.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use super::fetching::size;
use super::generate::refuse_without_folder;
use super::models::files_of;
use super::part_file::{PartFile, folder_of, refuse_existing};
use crate::config::Config;
use crate::domain::conversion::{ConvertedComponent, WeightFormat};
use crate::domain::engine::LoadObserver;
use crate::domain::model::ModelFiles;
use crate::domain::model_source::ModelSource;
use crate::engine::{Conversion, ConvertError, StoredCounts};

/// A file to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConvertRequest {
    /// A folder, a file, or the id of a downloaded model.
    pub input: PathBuf,
    /// What of it to convert.
    pub component: ConvertedComponent,
    /// To which form.
    pub format: WeightFormat,
    /// The new file.
    pub output: PathBuf,
    /// Whether it replaces a file of its name.
    pub replaces: bool,
}

/// Converts a component, and writes to `notes` what becomes of it. `observer` is told the progress of reading.
///
/// # Errors
/// When the weights are incomplete or cannot be read, or the new file cannot be written. Then there is none.
pub fn convert_model(
    config: &Config,
    request: &ConvertRequest,
    observer: &dyn LoadObserver,
    notes: &mut dyn Write,
) -> anyhow::Result<()> {
    let ConvertRequest { component, format, output, .. } = request;
    check_output(request)?;
    let files = files_in(config, &request.input)?;
    let conversion = Conversion::new(&files, *component, *format)?;
    let folder = folder_of(output);
    let free = fs4::available_space(folder)
        .with_context(|| format!("looking at the file system of `{}`", folder.display()))?;
    check_space(output, conversion.bytes(), free)?;
    let (from, to) = (conversion.files().join(", "), output.display());
    writeln!(notes, "{component} of {from} to {format} in `{to}`, {}", size(conversion.bytes()))?;
    writeln!(notes, "{}", tensors(conversion.counts()))?;
    let part = PartFile::create(output)?;
    conversion.write(&part.file, observer).map_err(|error| match error {
        ConvertError::Write(error) => anyhow::Error::new(error).context(format!("writing `{to}`")),
        other => other.into(),
    })?;
    part.finish(request.replaces)
}

fn check_output(request: &ConvertRequest) -> anyhow::Result<()> {
    let (output, ending) = (&request.output, request.format.ending());
    if output.extension().is_none_or(|extension| !extension.eq_ignore_ascii_case(ending)) {
        bail!("`{}`: the name of a file in {} must end in .{ending}", output.display(), request.format);
    }
    refuse_without_folder(output)?;
    if output.is_dir() {
        bail!("`{}` is a folder: name a file", output.display());
    }
    if request.replaces { Ok(()) } else { refuse_existing(output) }
}

/// The files at a path, or else those of a model, `ID` or `ID=PATH`.
fn files_in(config: &Config, input: &Path) -> anyhow::Result<ModelFiles> {
    if input.exists() {
        return Ok(ModelFiles::Directory(input.to_owned()));
    }
    let text = input.to_string_lossy();
    let source = text.parse::<ModelSource>().map_err(anyhow::Error::new);
    let files = source.and_then(|source| {
        let is_configured = |model: &&ModelSource| model.id == source.id && source.directory.is_none();
        files_of(config, config.models.iter().find(is_configured).unwrap_or(&source))
    });
    files.with_context(|| format!("`{text}` is neither a folder nor a file"))
}

fn check_space(output: &Path, needed: u64, free: u64) -> anyhow::Result<()> {
    if needed > free {
        let (output, needed, free) = (output.display(), size(needed), size(free));
        bail!("`{output}` takes {needed}, and its file system has {free}: free some, or name a file elsewhere");
    }
    Ok(())
}

/// How the tensors are stored, in words.
fn tensors(StoredCounts { quantized, kept, uneven }: StoredCounts) -> String {
    if quantized == 0 && uneven == 0 {
        return format!("{kept} tensors, none quantized");
    }
    let text = format!("{quantized} tensors are quantized, {kept} keep 16 or 32 bits");
    match uneven {
        0 => text,
        _ => format!("{text}, {uneven} of them because their rows do not consist of whole blocks"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_does_not_fit_is_refused_with_both_sizes() {
        let output = Path::new("/disk/model.gguf");
        check_space(output, 5, 5).expect("it fits");
        let refused = check_space(output, 12_714_452_256, 3 << 30).expect_err("too large").to_string();
        let expected = "`/disk/model.gguf` takes 11.8 GiB, and its file system has 3.0 GiB";
        assert!(refused.starts_with(expected), "{refused}");
    }

    #[test]
    fn the_tensors_are_said_in_words() {
        let said = |quantized, kept, uneven| tensors(StoredCounts { quantized, kept, uneven });
        assert_eq!(said(0, 780, 0), "780 tensors, none quantized");
        let usual = "304 tensors are quantized, 476 keep 16 or 32 bits";
        assert_eq!(said(304, 476, 0), usual);
        let uneven = ", 7 of them because their rows do not consist of whole blocks";
        assert_eq!(said(304, 476, 7), format!("{usual}{uneven}"));
    }

    #[test]
    fn an_input_is_a_path_where_there_is_one_or_else_a_model() {
        let models = vec!["my/flux=/weights".parse().expect("a model")];
        let config = Config { models, ..Config::default() };
        let files = |input: &str| files_in(&config, Path::new(input));
        let path = |input: &str| files(input).expect("files").path().map(Path::to_owned);
        assert_eq!(path("/"), Some("/".into()));
        assert_eq!(path("my/flux"), Some("/weights".into()));
        assert_eq!(path("my/flux=/others"), Some("/others".into()));
        assert!(matches!(files("fluxserve/flux-shapes"), Ok(ModelFiles::Embedded(_))));
        for (input, reason) in [("no such file", "not a model"), ("missing.gguf", "is not known")] {
            let refused = format!("{:#}", files(input).expect_err("neither"));
            assert!(refused.starts_with(&format!("`{input}` is neither a folder nor a file: ")), "{refused}");
            assert!(refused.contains(reason), "{refused}");
        }
    }
}
