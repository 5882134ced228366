//! Prompts to token ids, as transformers' `CLIPTokenizerFast` and `T5TokenizerFast` do.

use std::collections::HashMap;

use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::{Lowercase, NFC, Replace, Sequence as NormalizerSequence, replace::ReplacePattern};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizerSequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior, Tokenizer};

/// CLIP's tokens and their ids.
pub(crate) const CLIP_VOCABULARY: &str = "tokenizer/vocab.json";

/// CLIP's byte pairs, in the order of their merging.
pub(crate) const CLIP_MERGES: &str = "tokenizer/merges.txt";

/// T5's tokenizer.
pub(crate) const T5: &str = "tokenizer_2/tokenizer.json";

const START_OF_TEXT: &str = "<|startoftext|>";
const END_OF_TEXT: &str = "<|endoftext|>";

/// What CLIP takes for one word: contractions, runs of letters, single digits, runs of other characters.
const CLIP_WORDS: &str = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// A malformed tokenizer file, or text that a tokenizer rejects.
#[derive(Debug, thiserror::Error)]
#[error("{file}: {reason}")]
pub(crate) struct TokenizerError {
    /// Path inside the checkpoint.
    pub(crate) file: &'static str,
    /// What is wrong with it.
    pub(crate) reason: String,
}

impl TokenizerError {
    fn new(file: &'static str, reason: impl std::fmt::Display) -> Self {
        Self { file, reason: reason.to_string() }
    }
}

/// The texts of the tokenizer files.
pub(crate) struct TokenizerFiles {
    /// Of [`CLIP_VOCABULARY`].
    pub(crate) clip_vocabulary: String,
    /// Of [`CLIP_MERGES`].
    pub(crate) clip_merges: String,
    /// Of [`T5`].
    pub(crate) t5: String,
}

/// Both tokenizers.
pub(crate) struct Tokenizers {
    clip: Tokenizer,
    clip_start: u32,
    clip_end: u32,
    clip_length: usize,
    t5: Tokenizer,
    t5_end: u32,
    t5_pad: u32,
}

impl Tokenizers {
    /// Builds both; `clip_length` is CLIP's number of positions.
    ///
    /// # Errors
    /// When a file is malformed or lacks a special token.
    pub(crate) fn new(files: &TokenizerFiles, clip_length: usize) -> Result<Self, TokenizerError> {
        let clip = clip_tokenizer(files)?;
        let clip_start = special(&clip, START_OF_TEXT, CLIP_VOCABULARY)?;
        let clip_end = special(&clip, END_OF_TEXT, CLIP_VOCABULARY)?;
        let mut t5: Tokenizer = files.t5.parse().map_err(|error| TokenizerError::new(T5, error))?;
        t5.with_truncation(None).map_err(|error| TokenizerError::new(T5, error))?.with_padding(None);
        let t5_end = special(&t5, "</s>", T5)?;
        let t5_pad = special(&t5, "<pad>", T5)?;
        Ok(Self { clip, clip_start, clip_end, clip_length, t5, t5_end, t5_pad })
    }

    /// The id that ends CLIP's text.
    pub(crate) fn clip_end(&self) -> u32 {
        self.clip_end
    }

    /// The largest id of CLIP's and of T5's tokenizer.
    pub(crate) fn largest_ids(&self) -> [u32; 2] {
        [&self.clip, &self.t5].map(|tokenizer| tokenizer.get_vocab(true).into_values().max().unwrap_or(0))
    }

    /// Start, the prompt, truncated to fit, and end. Without the padding, which repeats the end.
    ///
    /// # Errors
    /// When the tokenizer cannot read the text.
    pub(crate) fn clip(&self, prompt: &str) -> Result<Vec<u32>, TokenizerError> {
        let encoding =
            self.clip.encode_fast(prompt, false).map_err(|error| TokenizerError::new(CLIP_VOCABULARY, error))?;
        let words = encoding.get_ids();
        let kept = words.len().min(self.clip_length - 2);
        Ok([&[self.clip_start], &words[..kept], &[self.clip_end]].concat())
    }

    /// The prompt, truncated to fit, end, and padding: exactly `length` ids.
    ///
    /// # Errors
    /// When the tokenizer cannot read the text.
    pub(crate) fn t5(&self, prompt: &str, length: usize) -> Result<Vec<u32>, TokenizerError> {
        let encoding = self.t5.encode_fast(prompt, false).map_err(|error| TokenizerError::new(T5, error))?;
        let words = encoding.get_ids();
        let kept = words.len().min(length - 1);
        let mut ids = [&words[..kept], &[self.t5_end]].concat();
        ids.resize(length, self.t5_pad);
        Ok(ids)
    }
}

fn special(tokenizer: &Tokenizer, token: &str, file: &'static str) -> Result<u32, TokenizerError> {
    tokenizer.token_to_id(token).ok_or_else(|| TokenizerError::new(file, format!("the token `{token}` is missing")))
}

fn clip_tokenizer(files: &TokenizerFiles) -> Result<Tokenizer, TokenizerError> {
    let vocabulary: HashMap<String, u32> =
        serde_json::from_str(&files.clip_vocabulary).map_err(|error| TokenizerError::new(CLIP_VOCABULARY, error))?;
    let mut merges = Vec::new();
    for line in files.clip_merges.lines().filter(|line| !line.starts_with("#version") && !line.is_empty()) {
        let (left, right) =
            line.split_once(' ').ok_or_else(|| TokenizerError::new(CLIP_MERGES, format!("not a pair: `{line}`")))?;
        merges.push((left.to_owned(), right.to_owned()));
    }
    let model = BPE::builder()
        .vocab_and_merges(vocabulary.into_iter().collect::<tokenizers::models::bpe::Vocab>(), merges)
        .unk_token(END_OF_TEXT.to_owned())
        .continuing_subword_prefix(String::new())
        .end_of_word_suffix("</w>".to_owned())
        .build()
        .map_err(|error| TokenizerError::new(CLIP_MERGES, error))?;
    let mut tokenizer = Tokenizer::new(model);
    let invalid = |error: tokenizers::Error| TokenizerError::new(CLIP_VOCABULARY, error);
    let spaces = Replace::new(ReplacePattern::Regex(r"\s+".to_owned()), " ").map_err(invalid)?;
    let normalizer = NormalizerSequence::new(vec![NFC.into(), spaces.into(), Lowercase.into()]);
    tokenizer.with_normalizer(Some(normalizer)).map_err(invalid)?;
    let pattern = SplitPattern::Regex(CLIP_WORDS.to_owned());
    let words = Split::new(pattern, SplitDelimiterBehavior::Removed, true).map_err(invalid)?;
    let bytes = ByteLevel::new(false, true, false);
    tokenizer.with_pre_tokenizer(Some(PreTokenizerSequence::new(vec![words.into(), bytes.into()])));
    let special_tokens = [START_OF_TEXT, END_OF_TEXT].map(|token| AddedToken::from(token, true).normalized(true));
    tokenizer.add_special_tokens(special_tokens).map_err(invalid)?;
    Ok(tokenizer)
}
