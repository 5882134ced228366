//! A model to serve, as the command line writes it: `ID` or `ID=DIR`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::domain::ids::ModelId;

/// A model and, unless the catalog finds it by itself, its checkpoint's folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelSource {
    /// The name clients use.
    pub id: ModelId,
    /// The checkpoint's folder, in either published layout.
    pub directory: Option<PathBuf>,
}

/// A text that names no model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a model: use `ID` or `ID=DIR`, where DIR is the checkpoint's folder")]
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
        Ok(Self { id: ModelId::new(id), directory: directory.map(PathBuf::from) })
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
