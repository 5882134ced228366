//! Names of repositories and revisions, held to what can stand in an address and in the name of a folder.

use std::fmt;
use std::str::FromStr;

use super::HubError;

/// Longest name that the hub gives a repository or its owner.
const NAME_CHARS_MAX: usize = 96;
/// Longest name of a branch or tag that is believed.
const REVISION_CHARS_MAX: usize = 200;
/// Digits of a commit's name.
const COMMIT_DIGITS: usize = 40;

/// A repository on the hub: `black-forest-labs/FLUX.1-dev`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepositoryId {
    owner: String,
    name: String,
}

impl RepositoryId {
    /// The name of its folder in the cache.
    pub(super) fn folder_name(&self) -> String {
        format!("models--{}--{}", self.owner, self.name)
    }

    /// Owner and name.
    pub(super) fn segments(&self) -> [&str; 2] {
        [&self.owner, &self.name]
    }
}

fn is_name(text: &str) -> bool {
    let is_known = |letter: char| letter.is_ascii_alphanumeric() || "._-".contains(letter);
    let is_edge = |letter: char| letter == '.' || letter == '-';
    // Two hyphens separate owner and name in the cache.
    (1..=NAME_CHARS_MAX).contains(&text.len())
        && text.chars().all(is_known)
        && !text.starts_with(is_edge)
        && !text.ends_with(is_edge)
        && !text.contains("--")
        && !text.contains("..")
}

impl FromStr for RepositoryId {
    type Err = HubError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('/') {
            Some((owner, name)) if is_name(owner) && is_name(name) => {
                Ok(Self { owner: owner.to_owned(), name: name.to_owned() })
            }
            _ => Err(HubError::NotARepository(text.to_owned())),
        }
    }
}

impl fmt::Display for RepositoryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.owner, self.name)
    }
}

/// A branch, a tag or a commit of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revision(String);

impl Revision {
    /// Whether it is a commit, and so always the same files.
    pub(super) fn is_commit(&self) -> bool {
        self.0.len() == COMMIT_DIGITS && self.0.bytes().all(|digit| digit.is_ascii_hexdigit())
    }

    /// The name itself.
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Revision {
    fn default() -> Self {
        Self("main".to_owned())
    }
}

impl FromStr for Revision {
    type Err = HubError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_part = |part: &str| {
            !part.is_empty()
                && !part.starts_with('.')
                && part.chars().all(|letter| letter.is_ascii_alphanumeric() || "._-+".contains(letter))
        };
        if text.len() <= REVISION_CHARS_MAX && text.split('/').all(is_part) {
            Ok(Self(text.to_owned()))
        } else {
            Err(HubError::NotARevision(text.to_owned()))
        }
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        let id: RepositoryId = "black-forest-labs/FLUX.1-dev".parse().expect("a name");
        assert_eq!(id.folder_name(), "models--black-forest-labs--FLUX.1-dev");
        for text in ["", "FLUX.1-dev", "a/b/c", "../etc", "a/..", "a/b--c", "-a/b", "a b/c", "a/b?x", "/a", "a/"] {
            assert!(text.parse::<RepositoryId>().is_err(), "{text:?}");
        }
        for text in ["main", "v1.0", "refs/pr/7", &"a1".repeat(20)] {
            assert_eq!(text.parse::<Revision>().expect("a revision").as_str(), text);
        }
        for text in ["", "/main", "a/../b", ".git", "a b", "main?", "a//b"] {
            assert!(text.parse::<Revision>().is_err(), "{text:?}");
        }
    }
}
