//! `spiece.model`, sentencepiece's file of a tokenizer: a message of protocol buffers with the pieces and the rules for
//! characters.
//!
//! Nothing in it is trusted: every length is compared with the bytes that are left, and a message is read two levels deep.

use crate::engine::models::flux1::text::tokens::{CHARSMAP_BYTES_MAX, PIECES_MAX, Piece, PieceKind, Vocabulary};

/// The only kind of model that T5 has, by its number.
const UNIGRAM: u64 = 1;

/// Longest number in bytes: 64 bits in groups of seven.
const NUMBER_BYTES_MAX: usize = 10;

/// Reads a tokenizer.
///
/// # Errors
/// When the file is another one, malformed, or too large.
pub(super) fn read(file: &[u8]) -> Result<Vocabulary, String> {
    read_model(file).map_err(|error| format!("not a complete sentencepiece model: {error}"))
}

fn read_model(file: &[u8]) -> Result<Vocabulary, String> {
    let mut vocabulary = Vocabulary { adds_space: true, removes_spaces: true, ..Vocabulary::default() };
    for field in Fields(file) {
        match field? {
            (1, Value::Bytes(bytes)) if vocabulary.pieces.len() < PIECES_MAX => vocabulary.pieces.push(piece(bytes)?),
            (1, _) => return Err(format!("it has more than {PIECES_MAX} pieces, or one that is none")),
            (2, Value::Bytes(bytes)) => check_trainer(bytes)?,
            (3, Value::Bytes(bytes)) => read_normalizer(bytes, &mut vocabulary)?,
            _ => {}
        }
    }
    if vocabulary.pieces.is_empty() { Err("it has no pieces".to_owned()) } else { Ok(vocabulary) }
}

fn piece(bytes: &[u8]) -> Result<Piece, String> {
    let mut piece = Piece { text: String::new(), score: 0.0, kind: PieceKind::Normal };
    for field in Fields(bytes) {
        match field? {
            (1, Value::Bytes(text)) => {
                let text = std::str::from_utf8(text).map_err(|_| "a piece is not UTF-8")?;
                text.clone_into(&mut piece.text);
            }
            (2, Value::Four(bytes)) => piece.score = f32::from_le_bytes(bytes),
            (3, Value::Number(number)) => {
                let kind = PieceKind::of_number(number);
                piece.kind = kind.ok_or_else(|| format!("a piece has the type {number}, which is unknown"))?;
            }
            _ => {}
        }
    }
    Ok(piece)
}

fn check_trainer(bytes: &[u8]) -> Result<(), String> {
    for field in Fields(bytes) {
        if let (3, Value::Number(number)) = field?
            && number != UNIGRAM
        {
            return Err(format!("it is of kind {number}, and T5's is of kind {UNIGRAM} (unigram)"));
        }
    }
    Ok(())
}

fn read_normalizer(bytes: &[u8], vocabulary: &mut Vocabulary) -> Result<(), String> {
    for field in Fields(bytes) {
        match field? {
            (2, Value::Bytes(rules)) if rules.len() <= CHARSMAP_BYTES_MAX => vocabulary.charsmap = rules.to_vec(),
            (2, _) => return Err("its rules for characters are too long".to_owned()),
            (3, Value::Number(number)) => vocabulary.adds_space = number != 0,
            (4, Value::Number(number)) => vocabulary.removes_spaces = number != 0,
            _ => {}
        }
    }
    Ok(())
}

/// The value of a field.
enum Value<'a> {
    Number(u64),
    Four([u8; 4]),
    Eight,
    Bytes(&'a [u8]),
}

/// The fields of a message, each with its number, from what is left of its bytes.
struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Value<'a>), String>;

    fn next(&mut self) -> Option<Self::Item> {
        (!self.0.is_empty()).then(|| self.field())
    }
}

impl<'a> Fields<'a> {
    fn field(&mut self) -> Result<(u64, Value<'a>), String> {
        let key = self.number()?;
        let value = match key & 7 {
            0 => Value::Number(self.number()?),
            1 => {
                self.take(size_of::<u64>())?;
                Value::Eight
            }
            2 => {
                let length = usize::try_from(self.number()?).map_err(|_| too_short())?;
                Value::Bytes(self.take(length)?)
            }
            5 => {
                let (bytes, rest) = self.0.split_first_chunk::<4>().ok_or_else(too_short)?;
                self.0 = rest;
                Value::Four(*bytes)
            }
            other => return Err(format!("a field has the type {other}, which is unknown")),
        };
        Ok((key >> 3, value))
    }

    fn number(&mut self) -> Result<u64, String> {
        let mut number = 0;
        for group in 0..NUMBER_BYTES_MAX {
            let (&byte, rest) = self.0.split_first().ok_or_else(too_short)?;
            self.0 = rest;
            // Bits beyond the sixty-fourth are dropped, as the format says.
            number |= u64::from(byte & 0x7f) << (7 * group);
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err("a number has no end".to_owned())
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], String> {
        let (bytes, rest) = self.0.split_at_checked(length).ok_or_else(too_short)?;
        self.0 = rest;
        Ok(bytes)
    }
}

fn too_short() -> String {
    "it ends before its last field does".to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// A field of bytes.
    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        assert!(bytes.len() < 128, "a length of one byte");
        [&[(number << 3) | 2, bytes.len() as u8][..], bytes].concat()
    }

    fn piece_of(text: &[u8], score: f32, kind: u8) -> Vec<u8> {
        field(1, &[&field(1, text)[..], &[(2 << 3) | 5], &score.to_le_bytes(), &[3 << 3, kind]].concat())
    }

    fn sound() -> Vec<u8> {
        let normalizer = [&field(1, b"nmt_nfkc")[..], &field(2, b"rules"), &[3 << 3, 0], &[4 << 3, 1]].concat();
        // A field with a long key and eight bytes, which means nothing here.
        let trainer = [3 << 3, 1, 0xc1, 0x02, 0, 0, 0, 0, 0, 0, 0, 0];
        [piece_of(b"<unk>", 0.0, 2), piece_of(b"a", -1.5, 1), field(2, &trainer), field(3, &normalizer)].concat()
    }

    #[test]
    fn pieces_and_rules_are_read() {
        let vocabulary = read(&sound()).expect("sound");
        let piece = |text: &str, score, kind| Piece { text: text.to_owned(), score, kind };
        let expected = [piece("<unk>", 0.0, PieceKind::Unknown), piece("a", -1.5, PieceKind::Normal)];
        assert_eq!(vocabulary.pieces, expected);
        assert_eq!(vocabulary.charsmap, b"rules");
        assert!(!vocabulary.adds_space && vocabulary.removes_spaces);
    }

    #[test]
    fn what_is_no_model_of_t5_is_refused_with_its_reason() {
        let error = |bytes: &[u8]| read(bytes).expect_err("refused");
        for (bytes, reason) in [
            (vec![], "it has no pieces"),
            (b"version https://git-lfs.github.com/spec/v1".to_vec(), "which is unknown"),
            (sound()[..9].to_vec(), "it ends before"),
            ([sound(), vec![0x08]].concat(), "it ends before"),
            ([sound(), vec![0x80; 11]].concat(), "a number has no end"),
            ([sound(), field(2, &[3 << 3, 2])].concat(), "it is of kind 2"),
            (piece_of(b"a", 0.0, 9), "the type 9"),
            (piece_of(&[0xff], 0.0, 1), "not UTF-8"),
            (vec![1 << 3, 7], "one that is none"),
        ] {
            let error = error(&bytes);
            assert!(error.contains(reason) && error.starts_with("not a complete sentencepiece model"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_or_have_room_for_their_pieces(
            bytes in vec(any::<u8>(), 0..200),
            at in any::<proptest::sample::Index>(),
        ) {
            let sound = sound();
            let at = at.index(sound.len());
            for bytes in [bytes.clone(), [&sound[..at], &bytes].concat()] {
                if let Ok(vocabulary) = read(&bytes) {
                    prop_assert!(vocabulary.pieces.len() <= bytes.len() / 2);
                }
            }
        }
    }
}
