//! Repositories of single files on the hub: which model their files belong to, and what they lack. A list that does not parse
//! is an error of the build, which the tests catch.

use serde::Deserialize;

use super::cards::{Licence, known_model};
use crate::domain::ids::ModelId;
use crate::domain::model::ModelCard;

const REPOSITORIES: &str = include_str!("../../models/repositories.toml");

/// A part of a model, by its folder in the diffusers layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// `transformer`.
    Transformer,
    /// `vae`.
    Vae,
    /// `text_encoder`: CLIP.
    TextEncoder,
    /// `text_encoder_2`: T5.
    #[serde(rename = "text_encoder_2")]
    TextEncoder2,
}

impl Part {
    const ALL: [Self; 4] = [Self::Transformer, Self::Vae, Self::TextEncoder, Self::TextEncoder2];

    fn word(self) -> &'static str {
        match self {
            Self::Transformer => "transformer",
            Self::Vae => "autoencoder",
            Self::TextEncoder => "CLIP",
            Self::TextEncoder2 => "T5",
        }
    }
}

/// A repository of single files.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileRepository {
    /// Owner and name.
    pub id: ModelId,
    /// The model whose card its files use.
    pub like: ModelId,
    /// What its files have.
    has: Vec<Part>,
    /// License of its files.
    pub licence: Licence,
    /// Files that it is known to have.
    pub files: Vec<RepositoryFile>,
}

/// A file of a repository.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RepositoryFile {
    /// Its name.
    pub name: String,
    /// Its size, where it is known.
    pub bytes: Option<u64>,
    /// Its model, where it is not the repository's.
    like: Option<ModelId>,
    /// What it has, where it is not what the others have.
    has: Option<Vec<Part>>,
}

impl FileRepository {
    /// Whether its files are models, and not text encoders alone.
    pub fn is_model(&self) -> bool {
        self.has.contains(&Part::Transformer)
    }

    /// What its files need beside themselves, in words.
    pub fn need(&self) -> String {
        if !self.is_model() {
            return format!("{} alone: for `--text-encoder FILE`", words(&self.has));
        }
        let mut lacks: Vec<&str> =
            Part::ALL.into_iter().filter(|part| !self.has.contains(part)).map(Part::word).collect();
        lacks.push("tokenizers");
        format!("needs `--base {}` ({})", self.like, lacks.join(", "))
    }

    /// The model to which a file belongs.
    pub fn model_of(&self, file: Option<&str>) -> &ModelId {
        let listed = self.files.iter().find(|listed| Some(listed.name.as_str()) == file);
        listed.and_then(|listed| listed.like.as_ref()).unwrap_or(&self.like)
    }

    /// The card of a file, under the repository's name.
    pub(super) fn card(&self, file: Option<&str>) -> Option<ModelCard> {
        let known = known_model(self.model_of(file))?;
        Some(ModelCard { id: self.id.clone(), ..known.card })
    }

    /// The parts beside the transformer that some of its files have.
    fn other_parts(&self) -> Vec<Part> {
        let of_files = self.files.iter().filter_map(|file| file.has.as_ref()).flatten();
        let mut parts: Vec<Part> = self.has.iter().chain(of_files).copied().collect();
        parts.retain(|part| *part != Part::Transformer);
        parts.sort();
        parts.dedup();
        parts
    }
}

fn words(parts: &[Part]) -> String {
    let words: Vec<&str> = parts.iter().map(|part| part.word()).collect();
    words.join(", ")
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    repositories: Vec<FileRepository>,
}

fn read() -> Vec<FileRepository> {
    let list: List = toml::from_str(REPOSITORIES).expect("models/repositories.toml is valid");
    list.repositories
}

/// The known repositories of single files, ordered by id.
pub fn file_repositories() -> Vec<FileRepository> {
    let mut repositories = read();
    repositories.sort_by(|left, right| left.id.cmp(&right.id));
    repositories
}

/// A known repository of single files.
pub fn file_repository(id: &ModelId) -> Option<FileRepository> {
    file_repositories().into_iter().find(|repository| repository.id == *id)
}

/// The repositories without a gate that have text encoders or the autoencoder, with what each has, in words.
pub fn open_parts() -> String {
    let open = file_repositories().into_iter().filter_map(|repository| {
        let parts = repository.other_parts();
        (!parts.is_empty()).then(|| format!("`{}` ({})", repository.id, words(&parts)))
    });
    open.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repository(id: &str) -> FileRepository {
        file_repository(&ModelId::new(id)).expect("known")
    }

    #[test]
    fn every_repository_is_like_a_model_that_works_and_lists_its_files_once() {
        let all = file_repositories();
        assert_eq!(all.len(), 6);
        for repository in all {
            assert!(known_model(&repository.id).is_none(), "{}", repository.id);
            assert!(repository.licence.url.starts_with("https://"), "{}", repository.id);
            assert!(!repository.files.is_empty() && !repository.has.is_empty(), "{}", repository.id);
            for file in &repository.files {
                let known = known_model(repository.model_of(Some(&file.name))).expect("a known model");
                assert_eq!(known.not_yet, None, "{}", file.name);
                let same = repository.files.iter().filter(|other| other.name == file.name);
                assert_eq!(same.count(), 1, "{}", file.name);
                assert!(file.bytes.is_none_or(|bytes| bytes > 1 << 30), "{}", file.name);
            }
        }
    }

    #[test]
    fn a_file_has_the_card_of_its_model_under_the_repositorys_name() {
        let kijai = repository("Kijai/flux-fp8");
        let steps = |file: Option<&str>| {
            let card = kijai.card(file).expect("a card");
            assert_eq!(card.id, kijai.id);
            card.defaults.steps
        };
        assert_eq!(steps(Some("flux1-schnell-fp8-e4m3fn.safetensors")), 4);
        assert_eq!([steps(Some("flux1-dev-fp8.safetensors")), steps(Some("unknown")), steps(None)], [30, 30, 30]);
        let schnell = repository("city96/FLUX.1-schnell-gguf").card(None).expect("a card");
        assert_eq!((schnell.defaults.steps, schnell.sequence_length), (4, 256));
    }

    #[test]
    fn what_a_repository_lacks_is_said() {
        let need = |id: &str| repository(id).need();
        let transformer = "needs `--base black-forest-labs/FLUX.1-dev` (autoencoder, CLIP, T5, tokenizers)";
        assert_eq!(need("city96/FLUX.1-dev-gguf"), transformer);
        assert_eq!(need("Comfy-Org/flux1-dev"), "needs `--base black-forest-labs/FLUX.1-dev` (tokenizers)");
        assert_eq!(need("city96/t5-v1_1-xxl-encoder-gguf"), "T5 alone: for `--text-encoder FILE`");
        assert!(!repository("city96/t5-v1_1-xxl-encoder-gguf").is_model());
    }

    #[test]
    fn the_parts_that_need_no_account_are_named_with_their_repositories() {
        let open = open_parts();
        for expected in [
            "`Comfy-Org/flux1-dev` (autoencoder, CLIP, T5)",
            "`Kijai/flux-fp8` (autoencoder)",
            "`city96/t5-v1_1-xxl-encoder-gguf` (T5)",
        ] {
            assert!(open.contains(expected), "{expected} in {open}");
        }
        assert!(!open.contains("city96/FLUX.1-dev-gguf"), "it has the transformer alone: {open}");
    }
}
