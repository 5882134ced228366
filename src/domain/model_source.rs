//! A model to serve, as the command line writes it: `ID` or `ID=PATH`; and where its parts come from.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::domain::ids::ModelId;
use crate::domain::model::{Attachments, CompletedFiles, ModelFiles};

/// A model and, unless the catalog finds it by itself, its checkpoint's folder or file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelSource {
    /// The name clients use.
    pub id: ModelId,
    /// The checkpoint's folder, in either published layout, or a file with at least the transformer.
    pub directory: Option<PathBuf>,
    /// Where the rest comes from.
    pub parts: ModelParts,
}

/// Where the parts come from that a folder or a file lacks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ModelParts {
    /// A complete checkpoint: its folder, or the id of a downloaded model.
    pub base: Option<PathBuf>,
    /// Files or folders of text encoders.
    pub text_encoders: Vec<PathBuf>,
    /// The autoencoder's file or folder.
    pub vae: Option<PathBuf>,
    /// What is loaded beside the model.
    pub attachments: Attachments,
}

impl ModelParts {
    /// Whether none is named.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl ModelSource {
    /// A model that is complete at one place.
    #[must_use]
    pub fn new(id: ModelId, directory: Option<PathBuf>) -> Self {
        Self { id, directory, parts: ModelParts::default() }
    }

    /// The files, if it is known where they are. A base must be a folder by now.
    #[must_use]
    pub fn files(&self) -> Option<ModelFiles> {
        let path = self.directory.clone()?;
        if self.parts.is_empty() {
            return Some(ModelFiles::Directory(path));
        }
        let ModelParts { base, text_encoders, vae, attachments } = self.parts.clone();
        let base = base.map(ModelFiles::Directory);
        Some(ModelFiles::Completed(Box::new(CompletedFiles { path, text_encoders, vae, base, attachments })))
    }
}

/// A text that names no model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a model: use `ID` or `ID=PATH`, where PATH is the checkpoint's folder or file")]
pub struct InvalidModelSource;

impl FromStr for ModelSource {
    type Err = InvalidModelSource;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (id, directory) = match text.split_once('=') {
            Some((id, directory)) => (id, Some(directory)),
            None => (text, None),
        };
        // A model's name goes into logs and responses; white space in it is a shell mistake.
        let id_is_name = !id.is_empty() && !id.chars().any(|letter| letter.is_whitespace() || letter.is_control());
        if !id_is_name || directory == Some("") {
            return Err(InvalidModelSource);
        }
        Ok(Self::new(ModelId::new(id), directory.map(PathBuf::from)))
    }
}

impl fmt::Display for ModelSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.directory {
            Some(directory) => write!(f, "{}={}", self.id, directory.display()),
            None => self.id.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_alone_or_with_its_folder() {
        let alone: ModelSource = "fluxserve/flux-shapes".parse().expect("a model");
        assert_eq!((alone.id.as_str(), &alone.directory), ("fluxserve/flux-shapes", &None));
        let with: ModelSource = "black-forest-labs/FLUX.1-dev=/weights/a=b".parse().expect("a model");
        assert_eq!(with.directory, Some(PathBuf::from("/weights/a=b")));
        assert_eq!(with.to_string(), "black-forest-labs/FLUX.1-dev=/weights/a=b");
        for text in ["", "=", "=/weights", "id=", "two words", "a\nb"] {
            assert_eq!(text.parse::<ModelSource>(), Err(InvalidModelSource), "{text:?}");
        }
    }
}
