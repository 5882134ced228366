//! What a weight file has by itself, whatever its name.

use std::path::Path;

use super::names::spellings::Component;
use super::places::open_at;
use super::problem::Problem;

/// What a file has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileContents {
    /// Components, by their folders in the diffusers layout.
    pub components: Vec<&'static str>,
    /// Whether its transformer takes guidance.
    pub has_guidance: bool,
}

impl FileContents {
    /// Whether it has a component.
    #[must_use]
    pub fn has(&self, component: &str) -> bool {
        self.components.contains(&component)
    }
}

/// Reads a weight file's header.
///
/// # Errors
/// When it cannot be read, or is malformed.
pub fn file_contents(path: &Path) -> Result<FileContents, Problem> {
    let no_file = || Problem::unreadable(path.display().to_string(), "not a file that can be read");
    let file = open_at(path).ok_or_else(no_file)??;
    let guidance = ["guidance_in.", "guidance_embedder."];
    let has_guidance = file.header.tensors.keys().any(|name| guidance.iter().any(|part| name.contains(part)));
    let components = file.components().into_iter().map(Component::folder).collect();
    Ok(FileContents { components, has_guidance })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(path: &str) -> FileContents {
        let quant = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/quant");
        file_contents(&quant.join(path)).expect("a weight file")
    }

    #[test]
    fn a_file_says_its_components_and_its_guidance() {
        let transformer = of("FLUX.1-dev-256/tiny-flux-Q2_K.gguf");
        assert_eq!(transformer, FileContents { components: vec!["transformer"], has_guidance: true });
        assert_eq!(of("FLUX.1-dev-256/t5-v1_1-tiny-encoder-Q4_K_M.gguf").components, ["text_encoder_2"]);
        assert_eq!(of("fp8/clip_l.safetensors").components, ["text_encoder"]);
        let all = of("fp8/flux1-dev-fp8-aio.safetensors");
        assert!(["transformer", "vae", "text_encoder", "text_encoder_2"].iter().all(|part| all.has(part)), "{all:?}");
    }

    #[test]
    fn what_is_no_weight_file_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let page = folder.path().join("page.gguf");
        std::fs::write(&page, "<html>").expect("written");
        assert!(file_contents(&page).expect_err("a page").to_string().contains("a web page"));
        let none = folder.path().join("none.gguf");
        for path in [folder.path(), none.as_path()] {
            assert!(file_contents(path).is_err(), "{}", path.display());
        }
    }
}
