//! The value of an API key: `rgpu_`, 8 public base62 characters, 32 secret ones, and 6 with the CRC32 of all before them.
//! One unbroken word, so that a double click selects it and secret scanners can match it.
//!
//! The checksum keeps typos and random strings away from the database. It is no protection: anyone can compute it.

use std::fmt;
use std::str::FromStr;

use zeroize::Zeroizing;

/// Prefix of every key. Secret scanners and users' tools match it, so it never changes.
pub const KEY_PREFIX: &str = "rgpu_";

const PUBLIC_ID_CHARS: usize = 8;
const SECRET_CHARS: usize = 32;
const CHECKSUM_CHARS: usize = 6;
const PUBLIC_ID_END: usize = KEY_PREFIX.len() + PUBLIC_ID_CHARS;
const SECRET_END: usize = PUBLIC_ID_END + SECRET_CHARS;
/// Length of a key. All of it is ASCII.
pub const KEY_CHARS: usize = SECRET_END + CHECKSUM_CHARS;

const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
/// Bytes below this are spread evenly over the alphabet (4 × 62); the others are rejected and sampled again.
const UNBIASED_BYTES: u8 = 248;

/// A text without the form of a key's value or prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an API key")]
pub struct MalformedKey;

/// The operating system gave no random bytes.
#[derive(Debug, thiserror::Error)]
#[error("the operating system's random generator failed")]
pub struct NoRandomness(#[from] getrandom::Error);

/// The public part of a key. Shown as its prefix: `rgpu_` and eight characters.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PublicId([u8; PUBLIC_ID_CHARS]);

impl PublicId {
    /// The eight characters without `rgpu_`, as stored.
    #[must_use]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("base62 is ASCII")
    }

    fn from_base62(text: &str) -> Result<Self, MalformedKey> {
        if !is_base62(text) {
            return Err(MalformedKey);
        }
        text.as_bytes().try_into().map(Self).map_err(|_| MalformedKey)
    }

    /// The prefix of a key, given its prefix or its value.
    ///
    /// # Errors
    /// When `text` is neither.
    pub fn of_prefix_or_key(text: &str) -> Result<Self, MalformedKey> {
        text.parse().or_else(|_| PresentedKey::parse(text).map(|key| key.public_id()))
    }

    /// Parses the form of [`PublicId::as_str`].
    ///
    /// # Errors
    /// When `text` is not eight base62 characters.
    pub fn from_stored(text: &str) -> Result<Self, MalformedKey> {
        Self::from_base62(text)
    }
}

impl fmt::Display for PublicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{KEY_PREFIX}{}", self.as_str())
    }
}

impl fmt::Debug for PublicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PublicId {
    type Err = MalformedKey;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::from_base62(text.strip_prefix(KEY_PREFIX).ok_or(MalformedKey)?)
    }
}

/// A new key's value, shown to its owner once. Cannot be copied, serialized or printed by accident, and is wiped from
/// memory when dropped.
pub struct PlainKey(Zeroizing<String>);

impl PlainKey {
    /// A new value from the operating system's generator.
    ///
    /// # Errors
    /// When the system has no random bytes to give.
    pub fn generate() -> Result<Self, NoRandomness> {
        // Full capacity from the start: growing would leave a copy behind.
        let mut value = Zeroizing::new(String::with_capacity(KEY_CHARS));
        value.push_str(KEY_PREFIX);
        push_random_base62(&mut value, PUBLIC_ID_CHARS + SECRET_CHARS)?;
        let checksum = checksum(&value);
        value.push_str(std::str::from_utf8(&checksum).expect("base62 is ASCII"));
        Ok(Self(value))
    }

    /// The value itself, for the one response that sends it to its owner.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// The value as if a client had sent it.
    #[must_use]
    pub fn as_presented(&self) -> PresentedKey<'_> {
        PresentedKey::parse(&self.0).expect("a generated key is well-formed")
    }
}

impl fmt::Debug for PlainKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PlainKey(…)")
    }
}

/// A value from a client that has the form of a key. Whether the key exists is not known yet.
#[derive(Clone, Copy)]
pub struct PresentedKey<'a> {
    value: &'a str,
    public_id: PublicId,
}

impl<'a> PresentedKey<'a> {
    /// Checks form and checksum.
    ///
    /// # Errors
    /// When either is wrong. The client is not told which.
    pub fn parse(value: &'a str) -> Result<Self, MalformedKey> {
        let body = value.strip_prefix(KEY_PREFIX).ok_or(MalformedKey)?;
        // Base62 is ASCII, so from here on bytes are characters.
        if value.len() != KEY_CHARS || !is_base62(body) {
            return Err(MalformedKey);
        }
        let (unsigned, given) = value.split_at(SECRET_END);
        if given.as_bytes() != checksum(unsigned) {
            return Err(MalformedKey);
        }
        let public_id = PublicId::from_base62(&value[KEY_PREFIX.len()..PUBLIC_ID_END])?;
        Ok(Self { value, public_id })
    }

    /// The public part.
    #[must_use]
    pub fn public_id(&self) -> PublicId {
        self.public_id
    }

    /// The complete value, for hashing.
    pub(super) fn value(&self) -> &'a str {
        self.value
    }
}

impl fmt::Debug for PresentedKey<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PresentedKey({}…)", self.public_id)
    }
}

fn is_base62(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

/// Random letters and digits, 5.95 bits each, that are wiped from memory when dropped.
pub(super) fn random_base62(chars: usize) -> Result<Zeroizing<String>, NoRandomness> {
    let mut text = Zeroizing::new(String::with_capacity(chars));
    push_random_base62(&mut text, chars)?;
    Ok(text)
}

fn push_random_base62(value: &mut String, count: usize) -> Result<(), NoRandomness> {
    let end = value.len() + count;
    let mut bytes = Zeroizing::new([0_u8; 64]);
    while value.len() < end {
        getrandom::fill(bytes.as_mut())?;
        let sampled = bytes.iter().filter(|byte| **byte < UNBIASED_BYTES);
        for byte in sampled.take(end - value.len()) {
            value.push(char::from(ALPHABET[usize::from(byte % 62)]));
        }
    }
    Ok(())
}

/// CRC32 (IEEE) of `text` as six base62 digits, the most significant first.
fn checksum(text: &str) -> [u8; CHECKSUM_CHARS] {
    let mut rest = crc32fast::hash(text.as_bytes());
    let mut digits = [ALPHABET[0]; CHECKSUM_CHARS];
    for digit in digits.iter_mut().rev() {
        *digit = ALPHABET[(rest % 62) as usize];
        rest /= 62;
    }
    digits
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    /// A well-formed value with these parts.
    pub(in crate::auth) fn key_with(public_id: &str, secret: &str) -> String {
        let unsigned = format!("{KEY_PREFIX}{public_id}{secret}");
        let digits = checksum(&unsigned);
        format!("{unsigned}{}", std::str::from_utf8(&digits).expect("ASCII"))
    }

    #[test]
    fn a_generated_key_has_the_documented_form() {
        let key = PlainKey::generate().expect("random bytes");
        let value = key.reveal();
        assert_eq!(value.len(), 51);
        assert!(value.starts_with("rgpu_"));
        assert!(value[5..].bytes().all(|byte| byte.is_ascii_alphanumeric()));
        let presented = PresentedKey::parse(value).expect("well-formed");
        assert_eq!(presented.public_id().to_string(), value[..13]);
        assert_eq!(value[..13].parse(), Ok(presented.public_id()));
    }

    #[test]
    fn the_checksum_is_the_crc32_of_the_characters_before_it() {
        // 0xCBF43926 is the published check value of CRC-32/ISO-HDLC over these nine digits, which are read back here with
        // the most significant first.
        let digits = checksum("123456789");
        let number = digits.iter().fold(0_u64, |number, digit| {
            let place = ALPHABET.iter().position(|letter| letter == digit).expect("of the alphabet");
            number * 62 + place as u64
        });
        assert_eq!(number, 0xCBF4_3926);
    }

    #[test]
    fn no_two_keys_are_alike_and_every_letter_occurs() {
        let keys: Vec<PlainKey> = (0..200).map(|_| PlainKey::generate().expect("random bytes")).collect();
        let ids: HashSet<_> = keys.iter().map(|key| key.as_presented().public_id()).collect();
        assert_eq!(ids.len(), keys.len());
        let letters: HashSet<u8> = keys.iter().flat_map(|key| key.reveal()[5..45].bytes()).collect();
        assert_eq!(letters.len(), 62);
    }

    #[test]
    fn any_single_wrong_character_is_detected() {
        let key = PlainKey::generate().expect("random bytes");
        for index in 0..KEY_CHARS {
            let mut bytes = key.reveal().as_bytes().to_vec();
            bytes[index] = if bytes[index] == b'x' { b'y' } else { b'x' };
            let wrong = String::from_utf8(bytes).expect("ASCII");
            assert!(PresentedKey::parse(&wrong).is_err(), "at {index}");
        }
    }

    #[test]
    fn swapped_neighbors_are_detected() {
        let key = PlainKey::generate().expect("random bytes");
        for index in KEY_PREFIX.len()..KEY_CHARS - 1 {
            let mut bytes = key.reveal().as_bytes().to_vec();
            if bytes[index] != bytes[index + 1] {
                bytes.swap(index, index + 1);
                let wrong = String::from_utf8(bytes).expect("ASCII");
                assert!(PresentedKey::parse(&wrong).is_err(), "at {index}");
            }
        }
    }

    #[test]
    fn other_texts_are_not_keys_or_prefixes() {
        let key = PlainKey::generate().expect("random bytes");
        let value = key.reveal();
        let texts = [String::new(), "rgpu_".into(), value[..50].into(), format!("{value}0"), format!(" {value}")];
        for text in texts {
            assert!(PresentedKey::parse(&text).is_err(), "{} characters", text.len());
        }
        for text in ["", "rgpu_", "rgpu_1234567", "rgpu_123456789", "rgpu_1234567é", "sk-12345678", "12345678"] {
            assert_eq!(text.parse::<PublicId>(), Err(MalformedKey), "{text:?}");
        }
    }

    #[test]
    fn debug_shows_no_secret() {
        let key = PlainKey::generate().expect("random bytes");
        let secret = &key.reveal()[PUBLIC_ID_END..SECRET_END];
        let shown = format!("{key:?} {:?} {:?}", key.as_presented(), key.as_presented().public_id());
        assert!(!shown.contains(secret) && !shown.contains(&secret[..4]), "{shown}");
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in "\\PC{0,60}", tail in "[0-9A-Za-z]{46}") {
            let _ = PresentedKey::parse(&text);
            let _ = PresentedKey::parse(&format!("rgpu_{tail}"));
            let _ = text.parse::<PublicId>();
        }
    }
}
