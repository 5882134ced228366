//! Names of repositories and revisions, restricted to what is safe in an address and in the name of a folder.

use std::fmt;
use std::str::FromStr;

use hf_hub::{Repo, RepoType};

use super::HubError;

/// Longest name that the hub gives a repository or its owner.
const NAME_CHARS_MAX: usize = 96;
/// Longest accepted name of a branch or tag.
const REVISION_CHARS_MAX: usize = 200;
/// Digits of a commit's name.
const COMMIT_DIGITS: usize = 40;

/// A repository on the hub: `black-forest-labs/FLUX.1-dev`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepositoryId(String);

impl RepositoryId {
    /// The repository at a revision, in upstream's terms.
    pub(super) fn at(&self, revision: &Revision) -> Repo {
        Repo::with_revision(self.0.clone(), RepoType::Model, revision.to_string())
    }

    /// Owner and name.
    pub(super) fn segments(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }
}

fn is_name(text: &str) -> bool {
    let is_known = |letter: char| letter.is_ascii_alphanumeric() || "._-".contains(letter);
    let is_edge = |letter: char| letter == '.' || letter == '-';
    // The cache separates owner and name with two hyphens.
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
            Some((owner, name)) if is_name(owner) && is_name(name) => Ok(Self(text.to_owned())),
            _ => Err(HubError::NotARepository(text.to_owned())),
        }
    }
}

impl fmt::Display for RepositoryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A branch, a tag or a commit of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revision(String);

impl Revision {
    /// Whether this is a commit, whose files never change.
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
    fn names_that_are_unsafe_in_a_path_are_refused() {
        let id: RepositoryId = "black-forest-labs/FLUX.1-dev".parse().expect("a name");
        assert_eq!(id.at(&Revision::default()).folder_name(), "models--black-forest-labs--FLUX.1-dev");
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
