//! Where a checkpoint's parts are: in the folder or file that is served, in files that are named for a part, or in the
//! checkpoint that has what the others lack. A file's parts are known by its tensors, never by its name.

use std::cell::OnceCell;
use std::path::Path;

use serde::Deserialize;

use super::files::{OpenFile, WeightFiles};
use super::names::spellings::Component;
use super::problem::Problem;
use super::source::Source;
use crate::domain::model::{CompletedFiles, ModelFiles};

/// Maximum files at the top of a folder whose headers are read.
const LOOSE_FILES_MAX: usize = 64;

/// Endings of weight files.
const ENDINGS: [&str; 3] = [".safetensors", ".sft", ".gguf"];

/// Files that the transformer is looked for in first: the names under which the model's authors publish it.
const FIRST: &str = "flux1-";

/// Where everything may be.
pub(super) struct Places<'a> {
    /// What is served, in words.
    pub(super) name: String,
    main: Folder<'a>,
    /// The file in `main` that is served, where it is not the folder.
    file: Option<String>,
    text_encoders: Vec<&'a Path>,
    vae: Option<&'a Path>,
    base: Option<Folder<'a>>,
}

/// A folder, and the headers of the weight files at its top.
struct Folder<'a> {
    source: Source<'a>,
    loose: OnceCell<Loose>,
}

/// The files at the top of a folder: those that were read, and what is wrong with the others.
#[derive(Default)]
struct Loose {
    files: Vec<OpenFile>,
    problems: Vec<Problem>,
}

/// A component's weights, and where its configuration is.
pub(super) struct Found<'a> {
    pub(super) files: WeightFiles,
    /// The folder and the path of the configuration that belongs to these weights. `None` for a file without one.
    pub(super) config: Option<(Source<'a>, String)>,
}

impl Found<'_> {
    /// Refuses weights that are quantized in a way which is not supported, as their configuration says.
    pub(super) fn check_method(&mut self, problems: &mut Vec<Problem>) {
        let Some((source, path)) = &self.config else { return };
        if let Some(reason) = unsupported_method(*source, path) {
            problems.push(Problem::unreadable(source.shown(path), reason));
            self.files.is_refused = true;
        }
    }
}

/// Why weights cannot be used, by what their configuration says of them.
fn unsupported_method(source: Source, path: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Quantized {
        quantization_config: Method,
    }
    #[derive(Deserialize)]
    struct Method {
        quant_method: String,
    }
    let text = source.text(path, &mut Vec::new())?;
    let Quantized { quantization_config: Method { quant_method } } = serde_json::from_str(&text).ok()?;
    (quant_method != "bitsandbytes").then(|| {
        format!(
            "quant_method `{quant_method}` is not supported: use the bf16, bitsandbytes (NF4, int8), fp8 or GGUF files of this \
             model"
        )
    })
}

impl<'a> Places<'a> {
    pub(super) fn new(files: &'a ModelFiles) -> Self {
        match files {
            ModelFiles::Embedded(files) => Self::of("the program itself".to_owned(), Source::embedded(files), None),
            ModelFiles::Directory(path) => Self::at(path),
            ModelFiles::Completed(files) => {
                let CompletedFiles { path, text_encoders, vae, base, attachments: _ } = &**files;
                let base = base.as_ref().and_then(|base| match base {
                    ModelFiles::Embedded(files) => Some(Source::embedded(files)),
                    other => other.path().map(Source::other),
                });
                let text_encoders = text_encoders.iter().map(std::path::PathBuf::as_path).collect();
                Self { text_encoders, vae: vae.as_deref(), base: base.map(Folder::new), ..Self::at(path) }
            }
        }
    }

    fn at(path: &'a Path) -> Self {
        let name = path.display().to_string();
        match folder_and_file(path) {
            Some((folder, file)) if path.is_file() => Self::of(name, Source::main(folder), Some(file.to_owned())),
            _ => Self::of(name, Source::main(path), None),
        }
    }

    fn of(name: String, source: Source<'a>, file: Option<String>) -> Self {
        Self { name, main: Folder::new(source), file, text_encoders: Vec::new(), vae: None, base: None }
    }

    /// What is wrong where what is served cannot be listed.
    pub(super) fn absence(&self) -> Option<Problem> {
        let reason = "not a folder or a file that can be read";
        (!self.main.source.is_there()).then(|| Problem::unreadable(self.name.clone(), reason))
    }

    /// Whether a file is served, and no folder.
    pub(super) fn is_file(&self) -> bool {
        self.file.is_some()
    }

    /// The folders that may have configurations and tokenizers, in the order of precedence. What lies beside a file may belong
    /// to another model, so that a base that was named comes first.
    pub(super) fn folders(&self) -> impl Iterator<Item = Source<'a>> {
        self.searched().map(|folder| folder.source)
    }

    fn searched(&self) -> impl Iterator<Item = &Folder<'a>> {
        let (main, base) = (Some(&self.main), self.base.as_ref());
        let both = if self.file.is_some() && base.is_some() { [base, main] } else { [main, base] };
        both.into_iter().flatten()
    }

    /// A text file of the first folder that has it.
    pub(super) fn text(&self, path: &str, problems: &mut Vec<Problem>) -> Option<String> {
        self.folders().find(|source| source.contains(path)).and_then(|source| source.text(path, problems))
    }

    /// A text file whose absence is a problem.
    pub(super) fn required_text(&self, path: &str, problems: &mut Vec<Problem>) -> Option<String> {
        let before = problems.len();
        let text = self.text(path, problems);
        if text.is_none() && problems.len() == before {
            problems.push(Problem::MissingFile { path: path.to_owned(), hint: self.base_hint() });
        }
        text
    }

    /// Opens a component's weights.
    pub(super) fn open(&self, component: Component, problems: &mut Vec<Problem>) -> Option<Found<'a>> {
        for path in self.named(component) {
            if let Some(found) = open_named(path, component, problems) {
                return Some(found);
            }
        }
        if let Some(file) = &self.file {
            match OpenFile::open(self.main.source, file) {
                Ok(file) if file.components().contains(&component) => return found_in(&file, component, problems),
                Ok(_) if component != Component::Transformer => {}
                Ok(_) => problems.push(Problem::unreadable(file, "it is no FLUX transformer")),
                // Once is enough.
                Err(problem) if component == Component::Transformer => problems.push(problem),
                Err(_) => {}
            }
            if component == Component::Transformer {
                return None;
            }
        }
        let mut unreadable = Vec::new();
        for folder in self.searched() {
            if let Some(found) = folder.open(component, problems) {
                // One of these may be it, and must not be replaced silently.
                problems.extend(unreadable);
                return found;
            }
            unreadable.extend_from_slice(&folder.loose().problems);
        }
        self.report_missing(component, unreadable, problems);
        None
    }

    /// Opens a component's weights where no other component is needed: a file must have them itself, unless another is named.
    pub(super) fn open_alone(&self, component: Component, problems: &mut Vec<Problem>) -> Option<Found<'a>> {
        let file = self.file.as_ref().filter(|_| self.named(component).is_empty());
        let Some(path) = file else { return self.open(component, problems) };
        match OpenFile::open(self.main.source, path) {
            Ok(file) if file.components().contains(&component) => return found_in(&file, component, problems),
            Ok(_) if component == Component::T5 => problems.push(Problem::unreadable(path, "it is no T5 text encoder")),
            Ok(_) => problems.push(Problem::unreadable(path, "it is no FLUX transformer")),
            Err(problem) => problems.push(problem),
        }
        None
    }

    /// Files that were named for a component that they do not have.
    pub(super) fn useless(&self) -> Vec<Problem> {
        // Problems of reading are reported where a file is used.
        let lacks = |path: &Path, components: &[Component]| {
            let file = open_at(path).and_then(Result::ok);
            file.is_some_and(|file| !components.iter().any(|component| file.components().contains(component)))
        };
        let encoders = self.text_encoders.iter().map(|path| (*path, &[Component::Clip, Component::T5][..]));
        let named = encoders.chain(self.vae.map(|path| (path, &[Component::Vae][..])));
        let useless = named.filter(|(path, components)| lacks(path, components));
        let problem = |(path, components): (&Path, &[Component])| {
            let reason = if components.len() == 1 { "it is no autoencoder" } else { "it is neither CLIP nor T5" };
            Problem::unreadable(path.display().to_string(), reason)
        };
        useless.map(problem).collect()
    }

    fn named(&self, component: Component) -> Vec<&'a Path> {
        match component {
            Component::Transformer => Vec::new(),
            Component::Vae => self.vae.into_iter().collect(),
            Component::Clip | Component::T5 => self.text_encoders.clone(),
        }
    }

    /// `unreadable`: files that could not be read, of which one may have the component.
    fn report_missing(&self, component: Component, unreadable: Vec<Problem>, problems: &mut Vec<Problem>) {
        let is_explained = self.file.is_none() && !unreadable.is_empty();
        problems.extend(unreadable);
        if is_explained {
            return;
        }
        let stem = stem_of(component);
        let index = super::formats::safetensors::index_path(&stem);
        let hint = match component {
            _ if self.file.is_none() && self.base.is_none() => format!(", and so is {index}"),
            Component::Transformer => String::new(),
            Component::Vae => {
                ": name the autoencoder with `--vae PATH` (ae.safetensors)".to_owned() + &self.base_hint()
            }
            Component::Clip => {
                ": name CLIP's text encoder with `--text-encoder PATH` (clip_l.safetensors)".to_owned()
                    + &self.base_hint()
            }
            Component::T5 => {
                ": name T5's text encoder with `--text-encoder PATH` (t5xxl_fp16.safetensors)".to_owned()
                    + &self.base_hint()
            }
        };
        problems.push(Problem::MissingFile { path: super::formats::safetensors::single_path(&stem), hint });
    }

    /// How a file without a folder is completed.
    pub(super) fn base_hint(&self) -> String {
        if self.file.is_some() && self.base.is_none() {
            ", or a checkpoint that has it with `--base ID` or `--base DIR`".to_owned()
        } else {
            String::new()
        }
    }
}

impl<'a> Folder<'a> {
    fn new(source: Source<'a>) -> Self {
        Self { source, loose: OnceCell::new() }
    }

    /// A component in its folder of the diffusers layout, or in a file at the top; `None` where there is none, `Some(None)` where
    /// it cannot be read.
    #[expect(
        clippy::option_option,
        reason = "a component that is missing is looked for elsewhere, a broken one is not"
    )]
    fn open(&self, component: Component, problems: &mut Vec<Problem>) -> Option<Option<Found<'a>>> {
        let (stem, config) = (stem_of(component), format!("{}/config.json", component.folder()));
        if WeightFiles::exist(self.source, &stem) {
            let files = WeightFiles::open(self.source, &stem, component, problems);
            return Some(files.map(|files| Found { files, config: Some((self.source, config)) }));
        }
        if let Some(reason) = unsupported_method(self.source, &config) {
            // Its weights are in files that are not looked for.
            problems.push(Problem::unreadable(self.source.shown(&config), reason));
            return Some(None);
        }
        let file = self.loose().files.iter().find(|file| file.components().contains(&component))?;
        Some(found_in(file, component, problems))
    }

    fn loose(&self) -> &Loose {
        self.loose.get_or_init(|| {
            let mut names = self.source.top_level_files();
            names.retain(|name| ENDINGS.iter().any(|ending| name.ends_with(ending)));
            names.sort_by_key(|name| (!name.starts_with(FIRST), name.clone()));
            let mut loose = Loose::default();
            for name in names.iter().take(LOOSE_FILES_MAX) {
                match OpenFile::open(self.source, name) {
                    Ok(file) => loose.files.push(file),
                    Err(problem) => loose.problems.push(problem),
                }
            }
            loose
        })
    }
}

/// The stem of a component's files in the diffusers layout.
fn stem_of(component: Component) -> String {
    let name = match component {
        Component::Transformer | Component::Vae => "diffusion_pytorch_model",
        Component::Clip | Component::T5 => "model",
    };
    format!("{}/{name}", component.folder())
}

fn found_in<'a>(file: &OpenFile, component: Component, problems: &mut Vec<Problem>) -> Option<Found<'a>> {
    WeightFiles::of(file, component, problems).map(|files| Found { files, config: None })
}

/// What was named for a component, if it has it: a file, or a folder with a configuration.
fn open_named<'a>(path: &'a Path, component: Component, problems: &mut Vec<Problem>) -> Option<Found<'a>> {
    if path.is_dir() {
        let source = Source::other(path);
        let stem = ["model", "diffusion_pytorch_model"].into_iter().find(|stem| WeightFiles::exist(source, stem));
        let stem = stem?;
        let files = WeightFiles::open(source, stem, component, &mut Vec::new())?;
        if !files.is_of(component) {
            return None;
        }
        let files = WeightFiles::open(source, stem, component, problems)?;
        return Some(Found { files, config: Some((source, "config.json".to_owned())) });
    }
    match open_at(path)? {
        Ok(file) if file.components().contains(&component) => found_in(&file, component, problems),
        Ok(_) => None,
        Err(problem) => {
            // Each of the text encoders is looked for in it.
            if component != Component::T5 {
                problems.push(problem);
            }
            None
        }
    }
}

/// Opens a file by its path; `None` for a path without a file's name.
pub(super) fn open_at(path: &Path) -> Option<Result<OpenFile, Problem>> {
    if path.is_dir() {
        return None;
    }
    let (folder, name) = folder_and_file(path)?;
    Some(OpenFile::open(Source::other(folder), name))
}

/// A path's folder, and the name in it.
fn folder_and_file(path: &Path) -> Option<(&Path, &str)> {
    let (folder, name) = (path.parent()?, path.file_name()?.to_str()?);
    Some((if folder.as_os_str().is_empty() { Path::new(".") } else { folder }, name))
}
