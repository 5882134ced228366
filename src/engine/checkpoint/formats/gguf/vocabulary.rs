//! T5's tokenizer in the metadata, as llama.cpp's converter writes it: the pieces of sentencepiece, and its rules for
//! characters.

use std::collections::BTreeMap;

use super::values::Value;
use crate::engine::checkpoint::source::Blob;
use crate::engine::models::flux1::text::tokens::{CHARSMAP_BYTES_MAX, PIECES_MAX, Piece, PieceKind, Vocabulary};

/// Which family the tokenizer is of, and that of T5.
const MODEL: &str = "tokenizer.ggml.model";
const T5: &str = "t5";

const TOKENS: &str = "tokenizer.ggml.tokens";
const SCORES: &str = "tokenizer.ggml.scores";
const TYPES: &str = "tokenizer.ggml.token_type";
const CHARSMAP: &str = "tokenizer.ggml.precompiled_charsmap";
const ADDS_SPACE: &str = "tokenizer.ggml.add_space_prefix";
const REMOVES_SPACES: &str = "tokenizer.ggml.remove_extra_whitespaces";
const END: &str = "tokenizer.ggml.eos_token_id";
const PADDING: &str = "tokenizer.ggml.padding_token_id";
const UNKNOWN: &str = "tokenizer.ggml.unknown_token_id";

/// The metadata of a file.
struct Entries<'a> {
    by_key: &'a BTreeMap<String, Value>,
    blob: &'a Blob,
}

/// Reads the tokenizer; `None` where there is none, or one of another family.
///
/// # Errors
/// When it is malformed, or the file cannot be read.
pub(super) fn read(metadata: &BTreeMap<String, Value>, blob: &Blob) -> Result<Option<Vocabulary>, String> {
    let entries = Entries { by_key: metadata, blob };
    let is_of_t5 = matches!(metadata.get(MODEL), Some(Value::Text(model)) if model == T5);
    if !is_of_t5 || !metadata.contains_key(TOKENS) {
        return Ok(None);
    }
    let pieces = entries.pieces()?;
    let charsmap = entries.list(CHARSMAP, |value| value.bytes(blob, CHARSMAP_BYTES_MAX))?.unwrap_or_default();
    // What is not said is as in T5.
    let [adds_space, removes_spaces] =
        [ADDS_SPACE, REMOVES_SPACES].map(|key| !matches!(metadata.get(key), Some(Value::Bool(false))));
    let [end, padding] = [END, PADDING].map(|key| entries.id(key, &pieces).map(|id| id as u32));
    Ok(Some(Vocabulary { pieces, charsmap, adds_space, removes_spaces, end, padding }))
}

impl Entries<'_> {
    fn pieces(&self) -> Result<Vec<Piece>, String> {
        let blob = self.blob;
        let texts = self.list(TOKENS, |value| value.texts(blob, PIECES_MAX))?.unwrap_or_default();
        let scores = self.list(SCORES, |value| value.floats(blob, PIECES_MAX))?;
        let scores = scores.ok_or_else(|| format!("metadata `{SCORES}` is missing"))?;
        let types = self.list(TYPES, |value| value.integers(blob, PIECES_MAX))?;
        let types = types.unwrap_or_else(|| vec![1; texts.len()]);
        for (key, count) in [(SCORES, scores.len()), (TYPES, types.len())] {
            if count != texts.len() {
                return Err(format!("metadata `{key}` has {count} elements, `{TOKENS}` has {}", texts.len()));
            }
        }
        let mut pieces = Vec::new();
        for ((text, score), number) in texts.into_iter().zip(scores).zip(types) {
            let kind = u64::try_from(number).ok().and_then(PieceKind::of_number);
            let kind = kind.ok_or_else(|| format!("metadata `{TYPES}`: type {number} is unknown"))?;
            pieces.push(Piece { text, score, kind });
        }
        // Where there are no types, these say which tokens are special.
        for (key, kind) in [(UNKNOWN, PieceKind::Unknown), (END, PieceKind::Control), (PADDING, PieceKind::Control)] {
            if let Some(id) = self.id(key, &pieces).filter(|&id| pieces[id].kind == PieceKind::Normal) {
                pieces[id].kind = kind;
            }
        }
        Ok(pieces)
    }

    /// The id of a piece. The largest number stands for none.
    fn id(&self, key: &str, pieces: &[Piece]) -> Option<usize> {
        let id = usize::try_from(self.by_key.get(key)?.unsigned()?).ok()?;
        (id < pieces.len()).then_some(id)
    }

    /// What `read` makes of a list. `None` where there is none.
    fn list<T>(&self, key: &str, read: impl FnOnce(&Value) -> Result<Option<T>, String>) -> Result<Option<T>, String> {
        let Some(value) = self.by_key.get(key) else { return Ok(None) };
        let list = read(value).map_err(|error| format!("metadata `{key}`: {error}"))?;
        list.map(Some).ok_or_else(|| format!("metadata `{key}` is no list of its kind, or is too long"))
    }
}
