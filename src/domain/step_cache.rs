//! A cache between the steps of an image: lossy, and only on request.

use std::fmt;
use std::str::FromStr;

/// The field of a request.
pub const CACHE: &str = "cache";

/// The field of its threshold.
pub const CACHE_THRESHOLD: &str = "cache_threshold";

/// Default threshold.
pub const THRESHOLD_DEFAULT: f64 = 0.08;

/// Largest threshold.
pub const THRESHOLD_MAX: f64 = 1.0;

/// First-block cache: where the first block of the transformer changes an image's tokens nearly as it did at the last step that
/// ran them all, the other blocks are left out, and their change of that step is used again. Source: "FBCache" of
/// chengzeyi/ParaAttention, `FirstBlockCacheConfig` of diffusers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepCache {
    /// How much the first block's change may differ from the earlier one, relative to it, above 0: mean of absolute values.
    pub threshold: f64,
}

/// The kinds of caches by their names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheKind {
    /// [`StepCache`].
    FirstBlock,
}

impl CacheKind {
    /// All of them.
    pub const ALL: [Self; 1] = [Self::FirstBlock];

    /// Its name on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::FirstBlock => "first_block",
        }
    }
}

impl fmt::Display for CacheKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A text that names no cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be first_block")]
pub struct UnknownCache;

impl FromStr for CacheKind {
    type Err = UnknownCache;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text).ok_or(UnknownCache)
    }
}
