//! The key of a command, given by its prefix or its value, whose secret is never printed.

use std::convert::Infallible;
use std::fmt;

use anyhow::Context as _;
use zeroize::Zeroizing;

use crate::auth::{KEY_PREFIX, PublicId};

/// Public characters of a key, after its fixed beginning.
const PUBLIC_CHARS: usize = 8;

/// A prefix or a key, not parsed yet: clap prints values that it refuses, so it must not refuse any.
#[derive(Clone)]
pub struct KeyArgument(Zeroizing<String>);

impl KeyArgument {
    /// Accepts any text.
    ///
    /// # Errors
    /// None.
    pub fn take(text: &str) -> Result<Self, Infallible> {
        Ok(Self(Zeroizing::new(text.to_owned())))
    }

    /// The public part of the key.
    ///
    /// # Errors
    /// When it is neither a prefix nor a key. The message does not contain it.
    pub(super) fn public_id(&self) -> anyhow::Result<PublicId> {
        PublicId::of_prefix_or_key(self.0.trim()).context(
            "neither a key nor its prefix: a prefix is `rgpu_` and eight characters; `fluxserve keys list` shows them",
        )
    }
}

impl fmt::Debug for KeyArgument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyArgument(…)")
    }
}

/// Shortens each key in `text` to its prefix, for messages that repeat user input.
#[must_use]
pub fn without_secrets(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(KEY_PREFIX) {
        let (before, key) = rest.split_at(start);
        let end = key[KEY_PREFIX.len()..].find(|character: char| !character.is_ascii_alphanumeric());
        let end = end.map_or(key.len(), |end| end + KEY_PREFIX.len());
        let public_end = KEY_PREFIX.len() + PUBLIC_CHARS;
        shown.push_str(before);
        shown.push_str(&key[..end.min(public_end)]);
        if end > public_end {
            shown.push('…');
        }
        rest = &key[end..];
    }
    shown.push_str(rest);
    shown
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::PlainKey;

    #[test]
    fn a_prefix_or_a_key_finds_the_key_and_is_never_printed() {
        let key = PlainKey::generate().expect("random bytes");
        let (prefix, secret) = key.reveal().split_at(13);
        let id = |text: &str| KeyArgument::take(text).expect("any text").public_id();
        for text in [prefix.to_owned(), key.reveal().to_owned(), format!(" {}\n", key.reveal())] {
            assert_eq!(id(&text).expect("a key").to_string(), prefix);
        }
        let mistyped = format!("{}x", key.reveal());
        for text in [mistyped.as_str(), "", "rgpu_", &key.reveal()[..50], "nonsense"] {
            let error = format!("{:#}", id(text).expect_err("no key"));
            assert!(error.contains("keys list") && !error.contains(&secret[..4]), "{error}");
        }
        let argument = KeyArgument::take(key.reveal()).expect("any text");
        assert!(!format!("{argument:?}").contains(&secret[..4]));
    }

    #[test]
    fn a_message_keeps_only_the_prefixes_of_keys() {
        let key = format!("rgpu_{}{}", "Ab3dEf7h", "s".repeat(38));
        let text = format!("unexpected argument '{key}' found, or '{key}é' or rgpu_Ab3dEf7h or rgpu_…: {key}");
        let shown = without_secrets(&text);
        assert_eq!(
            shown,
            "unexpected argument 'rgpu_Ab3dEf7h…' found, or 'rgpu_Ab3dEf7h…é' or rgpu_Ab3dEf7h or rgpu_…: rgpu_Ab3dEf7h…"
        );
        assert_eq!(without_secrets("no key in here"), "no key in here");
    }
}
