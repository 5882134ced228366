//! The tokenizers of a checkpoint: from their files, or from the metadata of T5's weights.

mod sentencepiece;

use super::formats::read_vocabulary;
use super::places::{Found, Places};
use super::problem::Problem;
use crate::engine::models::flux1::config::Configs;
use crate::engine::models::flux1::text::tokens::{self, ClipFiles, T5Files, TokenizerFiles, Tokenizers};

/// Builds the tokenizers, and checks that the text encoders know every id they can give. `weights` are T5's.
pub(super) fn read(
    places: &Places,
    configs: Option<&Configs>,
    weights: Option<&Found>,
    problems: &mut Vec<Problem>,
) -> Option<Tokenizers> {
    let (clip, t5) = (clip_files(places, problems), t5_files(places, weights, problems));
    let files = TokenizerFiles { clip: clip?, t5: t5? };
    let configs = configs?;
    let tokenizers = match Tokenizers::new(files, configs.clip.max_position_embeddings) {
        Ok(tokenizers) => tokenizers,
        Err(error) => {
            problems.push(Problem::unreadable(error.file, error.reason));
            return None;
        }
    };
    let sizes = [configs.clip.vocab_size, configs.t5.vocab_size];
    for ((file, id), vocabulary) in tokenizers.largest_ids().into_iter().zip(sizes) {
        if id as usize >= vocabulary {
            let reason =
                format!("has the token id {id}, but the text encoder's config.json says vocab_size {vocabulary}");
            problems.push(Problem::unreadable(file, reason));
        }
    }
    Some(tokenizers)
}

/// CLIP's two files, or else its one, of the first folder that has them.
fn clip_files(places: &Places, problems: &mut Vec<Problem>) -> Option<ClipFiles> {
    for source in places.folders() {
        if source.contains(tokens::CLIP_VOCABULARY) && source.contains(tokens::CLIP_MERGES) {
            let vocabulary = source.text(tokens::CLIP_VOCABULARY, problems);
            let merges = source.text(tokens::CLIP_MERGES, problems);
            return Some(ClipFiles::Pairs { vocabulary: vocabulary?, merges: merges? });
        }
        if source.contains(tokens::CLIP) {
            return source.text(tokens::CLIP, problems).map(ClipFiles::Complete);
        }
    }
    let has_vocabulary = places.folders().any(|source| source.contains(tokens::CLIP_VOCABULARY));
    let missing = if has_vocabulary { tokens::CLIP_MERGES } else { tokens::CLIP_VOCABULARY };
    let hint = format!(
        ", and so is {}: put vocab.json and merges.txt, or tokenizer.json, of openai/clip-vit-large-patch14 into \
         tokenizer/ (that repository needs no access token){}",
        tokens::CLIP,
        places.base_hint()
    );
    problems.push(Problem::MissingFile { path: missing.to_owned(), hint });
    None
}

/// T5's tokenizer of the first folder that has it; else what it is made from; else that of its weights.
fn t5_files(places: &Places, weights: Option<&Found>, problems: &mut Vec<Problem>) -> Option<T5Files> {
    if let Some(source) = places.folders().find(|source| source.contains(tokens::T5)) {
        return source.text(tokens::T5, problems).map(T5Files::Complete);
    }
    if let Some(source) = places.folders().find(|source| source.contains(tokens::T5_PIECES)) {
        let bytes = source.bytes(tokens::T5_PIECES, problems)?;
        return pieces(source.shown(tokens::T5_PIECES), sentencepiece::read(&bytes), problems);
    }
    for file in weights.into_iter().flat_map(|found| &found.files.files) {
        match read_vocabulary(file) {
            Ok(None) => {}
            Ok(Some(vocabulary)) => return pieces(file.path().to_owned(), Ok(vocabulary), problems),
            Err(reason) => return pieces(file.path().to_owned(), Err(reason), problems),
        }
    }
    let hint = format!(
        ", and so is {}: put spiece.model of google/t5-v1_1-xxl into tokenizer_2/ (that repository needs no access \
         token), or use a GGUF file of T5, which has a tokenizer of its own{}",
        tokens::T5_PIECES,
        places.base_hint()
    );
    problems.push(Problem::MissingFile { path: tokens::T5.to_owned(), hint });
    None
}

fn pieces(file: String, read: Result<tokens::Vocabulary, String>, problems: &mut Vec<Problem>) -> Option<T5Files> {
    match read {
        Ok(vocabulary) => Some(T5Files::Pieces { file, vocabulary }),
        Err(reason) => {
            problems.push(Problem::unreadable(file, reason));
            None
        }
    }
}
