//! Which key a command means: its prefix, or all of it, of which the secret is never repeated.

use std::convert::Infallible;
use std::fmt;

use anyhow::Context as _;
use zeroize::Zeroizing;

use crate::auth::{KEY_PREFIX, PublicId};

/// Characters of a key that anyone may see, its beginning not counted.
const PUBLIC_CHARS: usize = 8;

/// A prefix or a whole key, not looked at yet: clap repeats what it refuses, so it gets nothing to refuse.
#[derive(Clone)]
pub struct KeyArgument(Zeroizing<String>);

impl KeyArgument {
    /// Takes any text.
    ///
    /// # Errors
    /// None.
    pub fn take(text: &str) -> Result<Self, Infallible> {
        Ok(Self(Zeroizing::new(text.to_owned())))
    }

    /// The part of the key that anyone may see.
    ///
    /// # Errors
    /// When it is neither a prefix nor a key. Does not say what it is.
    pub(super) fn public_id(&self) -> anyhow::Result<PublicId> {
        PublicId::of_prefix_or_key(self.0.trim()).context(
            "neither the prefix of a key nor a whole one: a prefix is `rgpu_` and eight characters; `fluxserve keys list` \
             shows them",
        )
    }
}

impl fmt::Debug for KeyArgument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyArgument(…)")
    }
}

/// `text` with all of each key left out but its prefix: for messages that repeat what was typed, wherever it was typed.
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
    fn a_prefix_or_a_whole_key_means_that_key_and_nothing_repeats_it() {
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
    fn a_message_keeps_the_prefixes_of_keys_alone() {
        let key = format!("rgpu_{}{}", "Ab3dEf7h", "s".repeat(38));
        let text = format!("unexpected argument '{key}' found, or '{key}é' or rgpu_Ab3dEf7h or rgpu_…: {key}");
        let shown = without_secrets(&text);
        assert_eq!(
            shown,
            "unexpected argument 'rgpu_Ab3dEf7h…' found, or 'rgpu_Ab3dEf7h…é' or rgpu_Ab3dEf7h or rgpu_…: rgpu_Ab3dEf7h…"
        );
        assert_eq!(without_secrets("nothing of the kind"), "nothing of the kind");
    }
}
