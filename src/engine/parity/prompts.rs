//! Token ids and embeddings.

use serde::Deserialize;

use super::support::{diffusers_folders, json};
use crate::engine::checkpoint::Checkpoint;

#[derive(Deserialize)]
struct TokenCases {
    prompts: Vec<TokenCase>,
}

#[derive(Deserialize)]
struct TokenCase {
    prompt: String,
    clip_77: Vec<u32>,
    clip_variants: Option<ClipVariants>,
    t5_512: Vec<u32>,
    t5_256: Vec<u32>,
}

/// Where transformers' two CLIP tokenizers differ, ours is the fast one, the only one of transformers 5.
#[derive(Deserialize)]
struct ClipVariants {
    fast: Vec<u32>,
}

#[test]
fn token_ids_equal_transformers() {
    let checkpoint = Checkpoint::open(&diffusers_folders()).expect("opens");
    let tokenizers = &checkpoint.tokenizers;
    for case in json::<TokenCases>("tokens.json").prompts {
        let expected = case.clip_variants.as_ref().map_or(&case.clip_77, |variants| &variants.fast);
        let mut clip = tokenizers.clip(&case.prompt).expect("CLIP ids");
        clip.resize(77, tokenizers.clip_end());
        assert_eq!(&clip, expected, "CLIP: {:?}", case.prompt);
        for (length, expected) in [(512, &case.t5_512), (256, &case.t5_256)] {
            let mut expected = expected.clone();
            expected.resize(length, 0);
            assert_eq!(tokenizers.t5(&case.prompt, length).expect("T5 ids"), expected, "T5: {:?}", case.prompt);
        }
    }
}
