//! T5's tokenizer from the pieces of sentencepiece, as transformers' `T5TokenizerFast` builds it from `spiece.model`.

use tokenizers::models::unigram::Unigram;
use tokenizers::normalizers::replace::ReplacePattern;
use tokenizers::normalizers::{NFKC, Nmt, NormalizerWrapper, Precompiled, Replace, Sequence, Strip};
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::{AddedToken, Tokenizer};

use super::{T5_END, T5_PADDING, charsmap};

/// Maximum pieces; T5 has 32,000.
pub(crate) const PIECES_MAX: usize = 1 << 18;

/// Maximum bytes of all pieces; T5's are a quarter of a megabyte. The tree of them takes a hundred times as much.
const TEXT_BYTES_MAX: usize = 4 << 20;

/// Longest rules for characters in bytes; T5's are a quarter of a megabyte.
pub(crate) const CHARSMAP_BYTES_MAX: usize = 4 << 20;

/// T5's own tokens behind the pieces, which stood for what its training left out. Texts are not made of them.
const SENTINELS: usize = 100;

/// What stands for a space in pieces.
const SPACE: char = '\u{2581}';

/// A tokenizer as sentencepiece describes it.
#[derive(Debug, Default)]
pub(crate) struct Vocabulary {
    /// By their ids.
    pub(crate) pieces: Vec<Piece>,
    /// The compiled rules for characters; empty where a file has none.
    pub(crate) charsmap: Vec<u8>,
    /// Whether a text begins with a space.
    pub(crate) adds_space: bool,
    /// Whether several spaces count as one, and those at the end as none.
    pub(crate) removes_spaces: bool,
    /// The id that ends a text, where it is not that of `</s>`.
    pub(crate) end: Option<u32>,
    /// The id that fills a text up, where it is not that of `<pad>`.
    pub(crate) padding: Option<u32>,
}

/// A piece of a text.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Piece {
    pub(crate) text: String,
    /// The logarithm of its probability.
    pub(crate) score: f32,
    pub(crate) kind: PieceKind,
}

/// What a piece is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PieceKind {
    Normal,
    /// Stands for characters that no piece has.
    Unknown,
    /// Ends texts, or fills them up.
    Control,
    /// A token that is found in a text before all others.
    UserDefined,
    /// In no text.
    Unused,
    /// One byte, for characters that no piece has.
    Byte,
}

impl PieceKind {
    /// The kind that sentencepiece, and GGUF after it, gives this number.
    pub(crate) fn of_number(number: u64) -> Option<Self> {
        Some(match number {
            1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => return None,
        })
    }
}

impl Piece {
    /// What the model knows the piece by: a text and a score.
    fn into_entry(self, id: usize) -> (String, f64) {
        match self.kind {
            PieceKind::Normal | PieceKind::Byte => (self.text, f64::from(self.score)),
            // Found as special tokens, so that the score does not matter; 0 is what T5's have.
            PieceKind::Unknown | PieceKind::Control | PieceKind::UserDefined => (self.text, 0.0),
            // No word has this text: a space is at the beginning of a word, if at all.
            PieceKind::Unused => (format!("{SPACE}{SPACE}{id}"), 0.0),
        }
    }

    fn special_token(&self) -> Option<AddedToken> {
        let token = AddedToken::from(self.text.as_str(), true);
        match self.kind {
            PieceKind::Unknown | PieceKind::Control => Some(token),
            // As T5's sentinels: without the spaces around it.
            PieceKind::UserDefined => Some(token.lstrip(true).rstrip(true)),
            PieceKind::Normal | PieceKind::Unused | PieceKind::Byte => None,
        }
    }
}

impl Vocabulary {
    /// Builds the tokenizer, and returns it with the ids that end and fill up a text.
    ///
    /// # Errors
    /// When it is too large, lacks a special token, or has damaged rules for characters.
    pub(super) fn build(mut self) -> Result<(Tokenizer, u32, u32), String> {
        self.check()?;
        let (end, padding) = (self.id_of(self.end, T5_END)?, self.id_of(self.padding, T5_PADDING)?);
        let unknown = self.pieces.iter().position(|piece| piece.kind == PieceKind::Unknown);
        let unknown = unknown.ok_or("no piece of it stands for unknown characters")?;
        let normalizer = self.normalizer()?;
        self.add_sentinels();
        let special_tokens: Vec<AddedToken> = self.pieces.iter().filter_map(Piece::special_token).collect();
        let has_bytes = self.pieces.iter().any(|piece| piece.kind == PieceKind::Byte);
        let entries = self.pieces.into_iter().enumerate().map(|(id, piece)| piece.into_entry(id)).collect();
        let model = Unigram::from(entries, Some(unknown), has_bytes).map_err(|error| error.to_string())?;
        let mut tokenizer = Tokenizer::new(model);
        tokenizer.with_normalizer(Some(normalizer)).map_err(|error| error.to_string())?;
        let scheme = if self.adds_space { PrependScheme::Always } else { PrependScheme::Never };
        tokenizer.with_pre_tokenizer(Some(Metaspace::new(SPACE, scheme, true)));
        tokenizer.add_special_tokens(special_tokens).map_err(|error| error.to_string())?;
        Ok((tokenizer, end, padding))
    }

    fn check(&self) -> Result<(), String> {
        let bytes: usize = self.pieces.iter().map(|piece| piece.text.len()).sum();
        if self.pieces.len() > PIECES_MAX || bytes > TEXT_BYTES_MAX {
            let pieces = self.pieces.len();
            return Err(format!(
                "it has {pieces} pieces of {bytes} bytes, at most {PIECES_MAX} of {TEXT_BYTES_MAX} are supported"
            ));
        }
        match self.pieces.iter().position(|piece| !piece.score.is_finite()) {
            Some(id) => Err(format!("the score of its piece {id} is not a number")),
            None => Ok(()),
        }
    }

    fn id_of(&self, known: Option<u32>, token: &str) -> Result<u32, String> {
        let named = || self.pieces.iter().position(|piece| piece.text == token).map(|id| id as u32);
        known.or_else(named).ok_or_else(|| format!("the token `{token}` is missing"))
    }

    /// Adds T5's sentinels, which sentencepiece does not know, behind the last piece that is used. Unused pieces, which make
    /// the vocabulary as long as the table of embeddings, give way to them.
    fn add_sentinels(&mut self) {
        if self.pieces.iter().any(|piece| piece.text == "<extra_id_0>") {
            return;
        }
        let length = self.pieces.len();
        while self.pieces.pop_if(|piece| piece.kind == PieceKind::Unused).is_some() {}
        let unused = length - self.pieces.len();
        let count = if unused == 0 { SENTINELS } else { SENTINELS.min(unused) };
        let sentinels = (0..count).rev().map(|number| Piece {
            text: format!("<extra_id_{number}>"),
            score: 0.0,
            kind: PieceKind::UserDefined,
        });
        self.pieces.extend(sentinels);
    }

    /// What is done with a text before it is cut into words.
    fn normalizer(&self) -> Result<Sequence, String> {
        let mut steps: Vec<NormalizerWrapper> = if self.charsmap.is_empty() {
            // The rules that T5's were compiled from.
            vec![Nmt.into(), NFKC.into()]
        } else {
            charsmap::check(&self.charsmap)?;
            let rules = Precompiled::from(&self.charsmap).map_err(|error| error.to_string())?;
            vec![rules.into()]
        };
        if self.removes_spaces {
            let pattern = ReplacePattern::Regex(" {2,}".to_owned());
            let spaces = Replace::new(pattern, SPACE.to_string()).map_err(|error| error.to_string())?;
            steps.push(Strip::new(false, true).into());
            steps.push(spaces.into());
        }
        Ok(Sequence::new(steps))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(text: &str, score: f32, kind: PieceKind) -> Piece {
        Piece { text: text.to_owned(), score, kind }
    }

    /// Ten pieces: the special ones, words, and what is unused.
    fn made() -> Vocabulary {
        let pieces = vec![
            piece("<pad>", 0.0, PieceKind::Control),
            piece("</s>", 0.0, PieceKind::Control),
            piece("<unk>", 0.0, PieceKind::Unknown),
            piece("\u{2581}red", -1.0, PieceKind::Normal),
            piece("fox", -5.0, PieceKind::Unused),
            piece("f", -3.0, PieceKind::Normal),
            piece("ox", -3.0, PieceKind::Normal),
            piece("\u{2581}", -2.0, PieceKind::Normal),
            piece("<pad_8>", -10_000.0, PieceKind::Unused),
            piece("<pad_9>", -10_000.0, PieceKind::Unused),
        ];
        Vocabulary { pieces, adds_space: true, removes_spaces: true, ..Vocabulary::default() }
    }

    fn ids(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
        tokenizer.encode_fast(text, false).expect("ids").get_ids().to_vec()
    }

    #[test]
    fn unused_pieces_are_in_no_text_and_give_way_to_sentinels() {
        let (tokenizer, end, padding) = made().build().expect("built");
        assert_eq!((end, padding), (1, 0));
        assert_eq!(ids(&tokenizer, "red  fox "), [3, 7, 5, 6]);
        assert_eq!(ids(&tokenizer, "red<extra_id_1> <pad_8>")[..2], [3, 8], "the first of the two that have room");
        assert_eq!(tokenizer.token_to_id("<extra_id_0>"), Some(9));
        assert_eq!(tokenizer.get_vocab(true).len(), 10);
    }

    #[test]
    fn characters_that_no_piece_has_are_one_unknown_token() {
        let (tokenizer, ..) = made().build().expect("built");
        assert_eq!(ids(&tokenizer, "red\nZZ</s>"), [3, 7, 2, 1]);
    }

    #[test]
    fn a_vocabulary_without_what_texts_need_is_refused() {
        let without = |text: &str| {
            let mut made = made();
            made.pieces.retain(|piece| piece.text != text);
            made.build().expect_err("refused")
        };
        assert_eq!(without("</s>"), "the token `</s>` is missing");
        assert_eq!(without("<pad>"), "the token `<pad>` is missing");
        assert!(without("<unk>").contains("unknown characters"));
        let mut named = made();
        "<end>".clone_into(&mut named.pieces[1].text);
        named.end = Some(1);
        assert_eq!(named.build().expect("built").1, 1);
        let mut endless = made();
        endless.pieces[3].score = f32::NAN;
        assert!(endless.build().expect_err("refused").contains("piece 3"));
        let mut long = made();
        long.pieces[3].text = "x".repeat(TEXT_BYTES_MAX);
        assert!(long.build().expect_err("refused").contains("at most"));
        let damaged = Vocabulary { charsmap: vec![1, 2, 3], ..made() };
        assert!(damaged.build().expect_err("refused").contains("rules for characters"));
    }
}
