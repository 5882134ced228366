//! A secret that this program shares with another one, such as the operator's moderation service. Never shown.

use std::fmt;
use std::str::FromStr;

use zeroize::Zeroizing;

/// Longest secret, in bytes: what fits in a header.
pub const SHARED_SECRET_BYTES_MAX: usize = 4096;

/// A secret in one word. Cannot be serialized or printed by accident, and is wiped from memory when dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct SharedSecret(Zeroizing<String>);

/// A text that cannot be a secret. The error does not repeat it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a usable secret: use one word of letters, digits and signs, of at most {SHARED_SECRET_BYTES_MAX} bytes")]
pub struct UnfitSecret;

impl SharedSecret {
    /// The secret itself, for the one header that carries it.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl FromStr for SharedSecret {
    type Err = UnfitSecret;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // Templates and shells add line breaks and blanks.
        let word = text.trim();
        let is_word =
            (1..=SHARED_SECRET_BYTES_MAX).contains(&word.len()) && word.bytes().all(|byte| byte.is_ascii_graphic());
        if is_word { Ok(Self(Zeroizing::new(word.to_owned()))) } else { Err(UnfitSecret) }
    }
}

impl fmt::Debug for SharedSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SharedSecret(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_one_word_and_is_not_shown() {
        for unfit in ["", " \n", "two words", "line\nbreak", "ü", &"x".repeat(SHARED_SECRET_BYTES_MAX + 1)] {
            assert_eq!(unfit.parse::<SharedSecret>(), Err(UnfitSecret), "{unfit:?}");
        }
        let secret: SharedSecret = "hush\n".parse().expect("a secret");
        assert_eq!((secret.reveal(), format!("{secret:?}").as_str()), ("hush", "SharedSecret(…)"));
    }
}
