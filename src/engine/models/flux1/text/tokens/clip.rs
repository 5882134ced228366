//! CLIP's tokenizer from its tokens and byte pairs, which are in two files or in one.
//!
//! Of `tokenizer.json` only these count. What is done with a text before is CLIP's, whatever the file says, as in transformers 5.

use std::collections::HashMap;

use serde::Deserialize;
use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::{Lowercase, NFC, Replace, Sequence as NormalizerSequence, replace::ReplacePattern};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizerSequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior, Tokenizer};

use super::{CLIP, CLIP_MERGES, CLIP_VOCABULARY, ClipFiles, Loaded, TokenizerError};

pub(super) const START_OF_TEXT: &str = "<|startoftext|>";
pub(super) const END_OF_TEXT: &str = "<|endoftext|>";

/// What a token has behind it that ends a word.
const END_OF_WORD: &str = "</w>";

/// What CLIP takes for one word: contractions, runs of letters, single digits, runs of other characters.
const WORDS: &str = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// Tokens and byte pairs.
struct Pairs {
    vocabulary: HashMap<String, u32>,
    merges: Vec<(String, String)>,
    /// The files that have them.
    vocabulary_file: &'static str,
    merges_file: &'static str,
}

/// `tokenizer.json`, as far as it matters.
#[derive(Deserialize)]
struct Complete {
    model: Model,
    #[serde(default)]
    added_tokens: Vec<Added>,
}

#[derive(Deserialize)]
struct Model {
    vocab: HashMap<String, u32>,
    merges: Vec<Merge>,
    #[serde(default)]
    end_of_word_suffix: Option<String>,
}

/// A byte pair; older files have it in one text.
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Pair(String, String),
    Text(String),
}

#[derive(Deserialize)]
struct Added {
    id: u32,
    content: String,
}

pub(super) fn tokenizer(files: ClipFiles) -> Result<Loaded, TokenizerError> {
    let pairs = match files {
        ClipFiles::Pairs { vocabulary, merges } => Pairs::of_two(&vocabulary, &merges),
        ClipFiles::Complete(text) => Pairs::of_one(&text),
    };
    pairs?.tokenizer()
}

impl Pairs {
    fn of_two(vocabulary: &str, merges: &str) -> Result<Self, TokenizerError> {
        let vocabulary =
            serde_json::from_str(vocabulary).map_err(|error| TokenizerError::new(CLIP_VOCABULARY, error))?;
        let lines = merges.lines().filter(|line| !line.starts_with("#version") && !line.is_empty());
        let merges = lines.map(|line| pair(line, CLIP_MERGES)).collect::<Result<_, _>>()?;
        Ok(Self { vocabulary, merges, vocabulary_file: CLIP_VOCABULARY, merges_file: CLIP_MERGES })
    }

    fn of_one(text: &str) -> Result<Self, TokenizerError> {
        let complete: Complete = serde_json::from_str(text).map_err(|error| TokenizerError::new(CLIP, error))?;
        let Complete { model: Model { vocab: mut vocabulary, merges, end_of_word_suffix }, added_tokens } = complete;
        if end_of_word_suffix.as_deref() != Some(END_OF_WORD) {
            let reason = format!("it is not CLIP's: its tokens do not end words with `{END_OF_WORD}`");
            return Err(TokenizerError::new(CLIP, reason));
        }
        for Added { id, content } in added_tokens {
            vocabulary.entry(content).or_insert(id);
        }
        let merges = merges.into_iter().map(|merge| match merge {
            Merge::Pair(left, right) => Ok((left, right)),
            Merge::Text(text) => pair(&text, CLIP),
        });
        let merges = merges.collect::<Result<_, _>>()?;
        Ok(Self { vocabulary, merges, vocabulary_file: CLIP, merges_file: CLIP })
    }

    fn tokenizer(self) -> Result<Loaded, TokenizerError> {
        let model = BPE::builder()
            .vocab_and_merges(self.vocabulary.into_iter().collect::<tokenizers::models::bpe::Vocab>(), self.merges)
            .unk_token(END_OF_TEXT.to_owned())
            .continuing_subword_prefix(String::new())
            .end_of_word_suffix(END_OF_WORD.to_owned())
            .build()
            .map_err(|error| TokenizerError::new(self.merges_file, error))?;
        let mut tokenizer = Tokenizer::new(model);
        let invalid = |error: tokenizers::Error| TokenizerError::new(self.vocabulary_file, error);
        let spaces = Replace::new(ReplacePattern::Regex(r"\s+".to_owned()), " ").map_err(invalid)?;
        let normalizer = NormalizerSequence::new(vec![NFC.into(), spaces.into(), Lowercase.into()]);
        tokenizer.with_normalizer(Some(normalizer)).map_err(invalid)?;
        let pattern = SplitPattern::Regex(WORDS.to_owned());
        let words = Split::new(pattern, SplitDelimiterBehavior::Removed, true).map_err(invalid)?;
        let bytes = ByteLevel::new(false, true, false);
        tokenizer.with_pre_tokenizer(Some(PreTokenizerSequence::new(vec![words.into(), bytes.into()])));
        let special_tokens = [START_OF_TEXT, END_OF_TEXT].map(|token| AddedToken::from(token, true).normalized(true));
        tokenizer.add_special_tokens(special_tokens).map_err(invalid)?;
        Ok(Loaded { tokenizer, file: self.vocabulary_file.to_owned() })
    }
}

fn pair(text: &str, file: &str) -> Result<(String, String), TokenizerError> {
    let (left, right) =
        text.split_once(' ').ok_or_else(|| TokenizerError::new(file, format!("not a pair: `{text}`")))?;
    Ok((left.to_owned(), right.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::{Value, json};

    use super::*;

    fn reference(path: &str) -> String {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference").join(path);
        std::fs::read_to_string(path).expect("a reference file")
    }

    fn of_two() -> Loaded {
        let [vocabulary, merges] =
            ["vocab.json", "merges.txt"].map(|name| reference(&format!("FLUX.1-dev/tokenizer/{name}")));
        tokenizer(ClipFiles::Pairs { vocabulary, merges }).expect("built")
    }

    fn of_one(file: &Value) -> Result<Loaded, TokenizerError> {
        tokenizer(ClipFiles::Complete(file.to_string()))
    }

    /// `tokenizer.json` as the library writes it.
    fn written() -> Value {
        let mut tokenizer = of_two().tokenizer;
        let truncation = tokenizers::TruncationParams { max_length: 4, ..tokenizers::TruncationParams::default() };
        tokenizer.with_truncation(Some(truncation)).expect("set");
        serde_json::from_str(&tokenizer.to_string(false).expect("written")).expect("JSON")
    }

    fn assert_same_ids(file: &Value) {
        let (expected, found) = (of_two(), of_one(file).expect("built"));
        assert_eq!(found.file, CLIP);
        assert_eq!(found.largest_id(), expected.largest_id());
        let recorded: Value = serde_json::from_str(&reference("tokens.json")).expect("JSON");
        for case in recorded["prompts"].as_array().expect("a list") {
            let prompt = case["prompt"].as_str().expect("a prompt");
            assert_eq!(found.ids(prompt).expect("ids"), expected.ids(prompt).expect("ids"), "{prompt:?}");
        }
    }

    #[test]
    fn one_file_gives_the_ids_of_two() {
        assert_same_ids(&written());
    }

    #[test]
    fn pairs_may_be_texts_and_special_tokens_only_added() {
        let mut file = written();
        let merges = file["model"]["merges"].as_array().expect("a list");
        let line = |pair: &Value| json!(format!("{} {}", text(&pair[0]), text(&pair[1])));
        let merges: Vec<Value> = merges.iter().map(line).collect();
        file["model"]["merges"] = Value::Array(merges);
        let vocabulary = file["model"]["vocab"].as_object_mut().expect("an object");
        for token in [START_OF_TEXT, END_OF_TEXT] {
            vocabulary.remove(token).expect("it was there");
        }
        assert_eq!(file["added_tokens"].as_array().map(Vec::len), Some(2));
        assert_same_ids(&file);
    }

    fn text(value: &Value) -> &str {
        value.as_str().expect("a text")
    }

    #[test]
    fn a_tokenizer_of_another_kind_is_refused() {
        let changed = |field: &str, value: Value| {
            let mut file = written();
            file["model"][field] = value;
            let Err(error) = of_one(&file) else { panic!("{field} was accepted") };
            error.to_string()
        };
        assert!(changed("end_of_word_suffix", Value::Null).starts_with("tokenizer/tokenizer.json: it is not CLIP's"));
        assert!(changed("vocab", json!([["a", 0.0]])).starts_with("tokenizer/tokenizer.json: invalid type"));
        assert!(changed("merges", json!(["ab"])).starts_with("tokenizer/tokenizer.json: not a pair: `ab`"));
    }
}
