//! Where a bucket of an object store is.

use std::fmt;
use std::str::FromStr;

/// Longest name of a bucket: of those with dots in Google's store.
const NAME_CHARS_MAX: usize = 222;
/// Longest prefix: a name in a store has at most 1024 bytes, and something must follow.
const PREFIX_CHARS_MAX: usize = 512;

/// Kind of an object store, by the protocol that it speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BucketKind {
    /// Amazon's S3, and the many that speak its protocol.
    S3,
    /// Google Cloud Storage.
    Google,
    /// Azure Blob Storage; its buckets are called containers.
    Azure,
}

impl BucketKind {
    const ALL: [Self; 3] = [Self::S3, Self::Google, Self::Azure];

    /// The scheme of its URLs.
    #[must_use]
    pub fn scheme(self) -> &'static str {
        match self {
            Self::S3 => "s3",
            Self::Google => "gs",
            Self::Azure => "az",
        }
    }
}

/// A bucket, and a folder in it: `s3://bucket/prefix`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BucketLocation {
    /// The protocol.
    pub kind: BucketKind,
    /// The bucket's name.
    pub name: String,
    /// The folder in it, without slashes around it; empty: the whole bucket.
    pub prefix: String,
}

/// A text that is no bucket.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a bucket: write it like s3://bucket/prefix, gs://bucket/prefix or az://container/prefix")]
pub struct NotABucket;

impl FromStr for BucketLocation {
    type Err = NotABucket;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (scheme, rest) = text.split_once("://").ok_or(NotABucket)?;
        let kind = BucketKind::ALL.into_iter().find(|kind| kind.scheme() == scheme).ok_or(NotABucket)?;
        let (name, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
        let is_prefix = prefix.is_empty() || prefix.split('/').all(is_word);
        if name.len() > NAME_CHARS_MAX || prefix.len() > PREFIX_CHARS_MAX || !is_word(name) || !is_prefix {
            return Err(NotABucket);
        }
        Ok(Self { kind, name: name.to_owned(), prefix: prefix.to_owned() })
    }
}

/// Characters that every store takes as they are, in a name that is no step to another folder.
fn is_word(text: &str) -> bool {
    let is_fit = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.=".contains(&byte);
    !text.is_empty() && text.bytes().all(is_fit) && text.bytes().any(|byte| byte != b'.')
}

impl fmt::Display for BucketLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.kind.scheme(), self.name)?;
        if self.prefix.is_empty() { Ok(()) } else { write!(f, "/{}", self.prefix) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_round_trip() {
        for (text, kind, name, prefix) in [
            ("s3://pictures", BucketKind::S3, "pictures", ""),
            ("s3://my.pictures/of/worker-1", BucketKind::S3, "my.pictures", "of/worker-1"),
            ("gs://pictures/2026", BucketKind::Google, "pictures", "2026"),
            ("az://container/a=b", BucketKind::Azure, "container", "a=b"),
        ] {
            let bucket: BucketLocation = text.parse().expect("a bucket");
            assert_eq!((bucket.kind, bucket.name.as_str(), bucket.prefix.as_str()), (kind, name, prefix));
            assert_eq!(bucket.to_string(), text);
        }
        let with_slash: BucketLocation = "s3://pictures/all/".parse().expect("a bucket");
        assert_eq!(with_slash.to_string(), "s3://pictures/all");
    }

    #[test]
    fn other_texts_are_refused() {
        let long = format!("s3://{}", "a".repeat(NAME_CHARS_MAX + 1));
        let deep = format!("s3://a/{}", "b".repeat(PREFIX_CHARS_MAX + 1));
        for text in [
            "",
            "pictures",
            "s3:pictures",
            "s3://",
            "s3:///pictures",
            "S3://pictures",
            "http://pictures",
            "s3://a//b",
            "s3://a/../b",
            "s3://a/b//",
            "s3://key:secret@a",
            "s3://a/b?c",
            "s3://a/b%20c",
            "s3://a b",
            &long,
            &deep,
        ] {
            assert_eq!(text.parse::<BucketLocation>(), Err(NotABucket), "{text:?}");
        }
    }
}
