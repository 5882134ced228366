//! How to use files that were downloaded from a repository: what they are, their tensors say.

use std::path::{Path, PathBuf};

use super::file_choice::is_weights;
use super::hub::{is_complete, located};
use crate::catalog::{file_repository, known_model};
use crate::config::Config;
use crate::domain::ids::ModelId;
use crate::domain::model_source::ModelSource;
use crate::engine::{self, FileContents};
use crate::hub::Downloaded;

/// How to use each file that was chosen from a repository: the command that serves it, or the option that names it.
pub fn uses_of(config: &Config, repository: &ModelId, downloaded: &Downloaded) -> Vec<String> {
    let of_file = |path: &PathBuf| {
        let contents = if is_weights(path) { engine::file_contents(path).ok() } else { None };
        match contents {
            Some(contents) if !contents.components.is_empty() => use_of(config, repository, path, &contents),
            _ => format!("the file is `{}`", path.display()),
        }
    };
    downloaded.chosen.iter().map(of_file).collect()
}

fn use_of(config: &Config, repository: &ModelId, path: &Path, contents: &FileContents) -> String {
    let shown = path.display();
    if !contents.has("transformer") {
        let option = if contents.has("vae") { "--vae" } else { "--text-encoder" };
        return format!("use it beside a model's file with `{option} {shown}`");
    }
    let base = base_of(repository, path, contents);
    // The base is there, or comes with the same command.
    let is_here = located(config, &ModelSource::new(base.clone(), None)).as_ref().is_some_and(is_complete);
    let download = if is_here { "" } else { " --download" };
    format!("serve it with `fluxserve serve --model {repository}={shown} --base {base}{download}`")
}

/// The model that has what a transformer's file lacks: as the repository says, or by the file's own tensors.
fn base_of(repository: &ModelId, path: &Path, contents: &FileContents) -> ModelId {
    let name = path.file_name().and_then(std::ffi::OsStr::to_str);
    if let Some(known) = file_repository(repository) {
        return known.model_of(name).clone();
    }
    if known_model(repository).is_some() {
        return repository.clone();
    }
    let family = if contents.has_guidance { "dev" } else { "schnell" };
    ModelId::new(format!("black-forest-labs/FLUX.1-{family}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_belongs_to_the_model_that_its_repository_or_its_tensors_say() {
        let base = |repository: &str, file: &str, has_guidance: bool| {
            let contents = FileContents { components: vec!["transformer"], has_guidance };
            base_of(&ModelId::new(repository), Path::new(file), &contents).as_str().to_owned()
        };
        let schnell = "black-forest-labs/FLUX.1-schnell";
        assert_eq!(base("Kijai/flux-fp8", "/x/flux1-schnell-fp8-e4m3fn.safetensors", true), schnell);
        assert_eq!(base("Kijai/flux-fp8", "/x/flux1-dev-fp8.safetensors", true), "black-forest-labs/FLUX.1-dev");
        assert_eq!(base("my/tune", "/x/tune.gguf", false), schnell);
        assert_eq!(base("my/tune", "/x/tune.gguf", true), "black-forest-labs/FLUX.1-dev");
        let krea = "black-forest-labs/FLUX.1-Krea-dev";
        assert_eq!(base(krea, "/x/flux1-krea-dev.safetensors", true), krea);
    }
}
