//! Prompts to token ids, as transformers' `CLIPTokenizerFast` and `T5TokenizerFast` do.

mod charsmap;
mod clip;
mod unigram;

use tokenizers::Tokenizer;

pub(crate) use unigram::{CHARSMAP_BYTES_MAX, PIECES_MAX, Piece, PieceKind, Vocabulary};

/// CLIP's tokens and their ids.
pub(crate) const CLIP_VOCABULARY: &str = "tokenizer/vocab.json";

/// CLIP's byte pairs, in the order of their merging.
pub(crate) const CLIP_MERGES: &str = "tokenizer/merges.txt";

/// Both of them in one file.
pub(crate) const CLIP: &str = "tokenizer/tokenizer.json";

/// T5's tokenizer.
pub(crate) const T5: &str = "tokenizer_2/tokenizer.json";

/// The file of sentencepiece that T5's tokenizer is made from.
pub(crate) const T5_PIECES: &str = "tokenizer_2/spiece.model";

/// The token that ends T5's texts.
const T5_END: &str = "</s>";

/// The token that fills T5's texts up.
const T5_PADDING: &str = "<pad>";

/// A malformed tokenizer file, or text that a tokenizer rejects.
#[derive(Debug, thiserror::Error)]
#[error("{file}: {reason}")]
pub(crate) struct TokenizerError {
    /// Path inside the checkpoint.
    pub(crate) file: String,
    /// What is wrong with it.
    pub(crate) reason: String,
}

impl TokenizerError {
    fn new(file: &str, reason: impl std::fmt::Display) -> Self {
        Self { file: file.to_owned(), reason: reason.to_string() }
    }
}

/// What CLIP's tokenizer is built from.
pub(crate) enum ClipFiles {
    /// The texts of [`CLIP_VOCABULARY`] and [`CLIP_MERGES`].
    Pairs { vocabulary: String, merges: String },
    /// The text of [`CLIP`].
    Complete(String),
}

/// What T5's tokenizer is built from.
pub(crate) enum T5Files {
    /// The text of [`T5`].
    Complete(String),
    /// Pieces of sentencepiece, and the file that has them.
    Pieces { file: String, vocabulary: Vocabulary },
}

/// What both tokenizers are built from.
pub(crate) struct TokenizerFiles {
    pub(crate) clip: ClipFiles,
    pub(crate) t5: T5Files,
}

/// A tokenizer, and the file that it comes from.
struct Loaded {
    tokenizer: Tokenizer,
    file: String,
}

/// Both tokenizers.
pub(crate) struct Tokenizers {
    clip: Loaded,
    clip_start: u32,
    clip_end: u32,
    clip_length: usize,
    t5: Loaded,
    t5_end: u32,
    t5_pad: u32,
}

impl Tokenizers {
    /// Builds both; `clip_length` is CLIP's number of positions.
    ///
    /// # Errors
    /// When a file is malformed or lacks a special token.
    pub(crate) fn new(files: TokenizerFiles, clip_length: usize) -> Result<Self, TokenizerError> {
        let clip = clip::tokenizer(files.clip)?;
        let (clip_start, clip_end) = (clip.special(clip::START_OF_TEXT)?, clip.special(clip::END_OF_TEXT)?);
        let (t5, t5_end, t5_pad) = t5_tokenizer(files.t5)?;
        Ok(Self { clip, clip_start, clip_end, clip_length, t5, t5_end, t5_pad })
    }

    /// The id that ends CLIP's text.
    pub(crate) fn clip_end(&self) -> u32 {
        self.clip_end
    }

    /// The largest id of CLIP's and of T5's tokenizer, with the file that each comes from.
    pub(crate) fn largest_ids(&self) -> [(&str, u32); 2] {
        [&self.clip, &self.t5].map(|loaded| (loaded.file.as_str(), loaded.largest_id()))
    }

    /// Start, the prompt, truncated to fit, and end. Without the padding, which repeats the end.
    ///
    /// # Errors
    /// When the tokenizer cannot read the text.
    pub(crate) fn clip(&self, prompt: &str) -> Result<Vec<u32>, TokenizerError> {
        let words = self.clip.ids(prompt)?;
        let kept = words.len().min(self.clip_length - 2);
        Ok([&[self.clip_start], &words[..kept], &[self.clip_end]].concat())
    }

    /// The prompt, truncated to fit, end, and padding: exactly `length` ids.
    ///
    /// # Errors
    /// When the tokenizer cannot read the text.
    pub(crate) fn t5(&self, prompt: &str, length: usize) -> Result<Vec<u32>, TokenizerError> {
        let words = self.t5.ids(prompt)?;
        let kept = words.len().min(length - 1);
        let mut ids = [&words[..kept], &[self.t5_end]].concat();
        ids.resize(length, self.t5_pad);
        Ok(ids)
    }
}

impl Loaded {
    /// The id of a token that every text needs.
    fn special(&self, token: &str) -> Result<u32, TokenizerError> {
        let id = self.tokenizer.token_to_id(token);
        id.ok_or_else(|| TokenizerError::new(&self.file, format!("the token `{token}` is missing")))
    }

    fn ids(&self, prompt: &str) -> Result<Vec<u32>, TokenizerError> {
        let encoding = self.tokenizer.encode_fast(prompt, false);
        let encoding = encoding.map_err(|error| TokenizerError::new(&self.file, error))?;
        Ok(encoding.get_ids().to_vec())
    }

    fn largest_id(&self) -> u32 {
        self.tokenizer.get_vocab(true).into_values().max().unwrap_or(0)
    }
}

/// T5's tokenizer, and the ids that end and fill up its texts.
fn t5_tokenizer(files: T5Files) -> Result<(Loaded, u32, u32), TokenizerError> {
    match files {
        T5Files::Complete(text) => {
            let invalid = |error: tokenizers::Error| TokenizerError::new(T5, error);
            let mut tokenizer: Tokenizer = text.parse().map_err(invalid)?;
            tokenizer.with_truncation(None).map_err(invalid)?.with_padding(None);
            let t5 = Loaded { tokenizer, file: T5.to_owned() };
            let (end, padding) = (t5.special(T5_END)?, t5.special(T5_PADDING)?);
            Ok((t5, end, padding))
        }
        T5Files::Pieces { file, vocabulary } => match vocabulary.build() {
            Ok((tokenizer, end, padding)) => Ok((Loaded { tokenizer, file }, end, padding)),
            Err(reason) => Err(TokenizerError { file, reason }),
        },
    }
}
