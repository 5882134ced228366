//! Names of Kubernetes namespaces.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

/// Longest name: a DNS label (RFC 1123).
pub const NAMESPACE_NAME_CHARS_MAX: usize = 63;

/// A cluster's name for a namespace: a lowercase DNS label, safe in YAML and in a shell without quotes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NamespaceName(String);

/// A text that cannot be a namespace's name. The text is for the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidNamespaceName {
    /// Not a DNS label.
    #[error(
        "must be 1 to {NAMESPACE_NAME_CHARS_MAX} lowercase letters, digits and hyphens, with a letter or digit at both ends"
    )]
    NotALabel,
    /// The word that stands for every namespace.
    #[error("must not be `all`, which stands for every namespace")]
    All,
}

impl NamespaceName {
    /// The name itself.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NamespaceName {
    type Err = InvalidNamespaceName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let bytes = text.as_bytes();
        let is_label = (1..=NAMESPACE_NAME_CHARS_MAX).contains(&bytes.len())
            && bytes.iter().all(|byte| is_alphanumeric(byte) || *byte == b'-')
            && bytes.first().is_some_and(is_alphanumeric)
            && bytes.last().is_some_and(is_alphanumeric);
        match text {
            "all" => Err(InvalidNamespaceName::All),
            _ if is_label => Ok(Self(text.to_owned())),
            _ => Err(InvalidNamespaceName::NotALabel),
        }
    }
}

impl fmt::Display for NamespaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl Serialize for NamespaceName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_dns_label_and_not_all() {
        for name in ["a", "team-a", "0", "a--b", &"x".repeat(63)] {
            assert_eq!(name.parse::<NamespaceName>().expect("a name").as_str(), name);
        }
        let bad = ["", "-a", "a-", "A", "a.b", "a_b", "é", "a b", "a\n", "'", "@NAMESPACE@", &"x".repeat(64)];
        for name in bad {
            assert_eq!(name.parse::<NamespaceName>(), Err(InvalidNamespaceName::NotALabel), "{name:?}");
        }
        assert_eq!("all".parse::<NamespaceName>(), Err(InvalidNamespaceName::All));
    }
}
