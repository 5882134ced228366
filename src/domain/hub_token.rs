//! Access token of a model hub. Never shown.

use std::fmt;
use std::str::FromStr;

use zeroize::Zeroizing;

/// Longest token, in bytes: anything longer is not a token file.
pub const HUB_TOKEN_BYTES_MAX: usize = 4096;

/// An access token. Cannot be serialized or printed by accident, and is wiped from memory when dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct HubToken(Zeroizing<String>);

/// A text that cannot be a token. The error does not repeat it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an access token: use one word of letters, digits and signs")]
pub struct UnfitToken;

impl HubToken {
    /// The token itself, for the one header that carries it.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl FromStr for HubToken {
    type Err = UnfitToken;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // A file ends in a line break, and a shell adds blanks.
        let word = text.trim();
        let is_word =
            (1..=HUB_TOKEN_BYTES_MAX).contains(&word.len()) && word.bytes().all(|byte| byte.is_ascii_graphic());
        if is_word { Ok(Self(Zeroizing::new(word.to_owned()))) } else { Err(UnfitToken) }
    }
}

impl fmt::Debug for HubToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HubToken(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_one_word_and_is_not_shown() {
        for unfit in ["", " \n", "two words", "line\nbreak", "ü", &"x".repeat(HUB_TOKEN_BYTES_MAX + 1)] {
            assert_eq!(unfit.parse::<HubToken>(), Err(UnfitToken), "{unfit:?}");
        }
        let token: HubToken = "hf_secret\n".parse().expect("a token");
        assert_eq!((token.reveal(), format!("{token:?}").as_str()), ("hf_secret", "HubToken(…)"));
    }
}
