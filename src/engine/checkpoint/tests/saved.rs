//! Pipelines as today's transformers and diffusers save them, and tokenizers from wherever they may be.

use serde_json::{Value, json};

use super::made::Linked;
use super::*;

fn open(files: &ModelFiles) -> Checkpoint {
    Checkpoint::open(files).unwrap_or_else(|error| panic!("{error}"))
}

fn problems_of(files: &ModelFiles) -> Vec<String> {
    inspect(files).into_problems().iter().map(ToString::to_string).collect()
}

fn text(path: &str) -> String {
    std::fs::read_to_string(reference(path)).expect("a reference file")
}

fn json_of(path: &str) -> Value {
    serde_json::from_str(&text(path)).expect("JSON")
}

/// Compares the ids of all recorded prompts with those of the reference's own tokenizer files, which are transformers'.
fn assert_same_ids(found: &Checkpoint) {
    let expected = open(&ModelFiles::Directory(reference("FLUX.1-dev")));
    let recorded = json_of("tokens.json");
    let prompts: Vec<&str> =
        recorded["prompts"].as_array().expect("a list").iter().filter_map(|case| case["prompt"].as_str()).collect();
    assert!(prompts.len() > 30, "{}", prompts.len());
    for prompt in prompts {
        let ids = |checkpoint: &Checkpoint| {
            let tokenizers = &checkpoint.tokenizers;
            (tokenizers.clip(prompt).expect("CLIP ids"), tokenizers.t5(prompt, 512).expect("T5 ids"))
        };
        assert_eq!(ids(found), ids(&expected), "{prompt:?}");
    }
}

/// CLIP's `tokenizer.json` from the reference's two files.
fn clip_in_one_file() -> String {
    let merges = text("FLUX.1-dev/tokenizer/merges.txt");
    let merges: Vec<Vec<&str>> =
        merges.lines().filter(|line| !line.starts_with('#')).map(|line| line.split(' ').collect()).collect();
    let model = json!({
        "type": "BPE", "end_of_word_suffix": "</w>", "unk_token": "<|endoftext|>",
        "vocab": json_of("FLUX.1-dev/tokenizer/vocab.json"), "merges": merges,
    });
    json!({ "version": "1.0", "added_tokens": [], "model": model }).to_string()
}

#[test]
fn a_tokenizer_of_clip_in_one_file_gives_the_same_ids() {
    let folder = Linked::new("FLUX.1-dev").without("tokenizer");
    let folder = folder.with("tokenizer/tokenizer.json", &clip_in_one_file());
    assert_same_ids(&open(&folder.files()));
    let folder = folder.with("tokenizer/vocab.json", "{").with("tokenizer/merges.txt", "");
    let problems = problems_of(&folder.files());
    let is_expected = |problem: &String| problem.starts_with("tokenizer/vocab.json: EOF");
    assert!(problems.len() == 1 && is_expected(&problems[0]), "the two files come first: {problems:?}");
}

#[test]
fn a_tokenizer_of_t5_in_the_file_of_sentencepiece_gives_the_same_ids() {
    let folder = Linked::new("FLUX.1-dev").without("tokenizer_2/tokenizer.json");
    assert_same_ids(&open(&folder.files()));
    let folder = folder.with("tokenizer_2/spiece.model", "version https://git-lfs.github.com/spec/v1");
    let problems = problems_of(&folder.files());
    let expected = "tokenizer_2/spiece.model: not a complete sentencepiece model";
    assert!(problems.len() == 1 && problems[0].starts_with(expected), "{problems:?}");
}

#[test]
fn a_gguf_file_of_t5_has_its_own_tokenizer() {
    let folder = Linked::new("quant/FLUX.1-dev-256").without("tokenizer_2");
    let files = |encoder: &str| {
        ModelFiles::Completed(Box::new(CompletedFiles {
            path: folder.path().join("tiny-flux-Q4_K_S.gguf"),
            text_encoders: vec![folder.path().join(encoder)],
            vae: None,
            base: None,
            attachments: crate::domain::model::Attachments::default(),
        }))
    };
    assert_same_ids(&open(&files("t5-v1_1-tiny-encoder-Q4_K_M.gguf")));
    let problems = problems_of(&files("text_encoder_2/model.safetensors"));
    let is_expected = |problem: &String| problem.starts_with("tokenizer_2/tokenizer.json: missing, and so is");
    assert!(problems.len() == 1 && is_expected(&problems[0]), "{problems:?}");
}

#[test]
fn tokens_beyond_the_embedding_are_reported_with_their_file() {
    let mut config = json_of("FLUX.1-dev/text_encoder_2/config.json");
    config["vocab_size"] = json!(400);
    let folder = Linked::new("FLUX.1-dev").without("tokenizer_2/tokenizer.json");
    let folder = folder.with("text_encoder_2/config.json", &config.to_string());
    let problems = problems_of(&folder.files());
    assert!(problems[0].starts_with("tokenizer_2/spiece.model: has the token id 413, but"), "{problems:?}");
}

/// A configuration without some of its fields, and with others.
fn changed(path: &str, without: &[&str], with: Value) -> Value {
    let mut config = json_of(path);
    let fields = config.as_object_mut().expect("an object");
    for field in without {
        fields.remove(*field).expect("it was there");
    }
    let Value::Object(with) = with else { panic!("an object") };
    fields.extend(with);
    config
}

#[test]
fn configurations_of_todays_versions_say_the_same() {
    let of_class = ["torch_dtype", "hidden_act", "layer_norm_eps", "max_position_embeddings"];
    let clip = changed("FLUX.1-dev/text_encoder/config.json", &of_class, json!({ "dtype": "bfloat16" }));
    let clip = json!({ "model_type": "clip", "text_config": clip, "vision_config": { "hidden_size": 1024 } });
    let of_class = [
        "torch_dtype",
        "dropout_rate",
        "initializer_factor",
        "is_encoder_decoder",
        "layer_norm_epsilon",
        "relative_attention_max_distance",
        "relative_attention_num_buckets",
    ];
    let renamed = json!({ "dtype": "bfloat16", "eos_token_id": [1], "pad_token_id": null, "is_decoder": false });
    let t5 = changed("FLUX.1-dev/text_encoder_2/config.json", &of_class, renamed);
    let transformer = json!({ "_diffusers_version": "0.42.1", "out_channels": null });
    let transformer = changed("FLUX.1-dev/transformer/config.json", &["in_channels", "patch_size"], transformer);
    let scheduler = json!({ "shift": 3.0, "use_dynamic_shifting": true, "time_shift_type": "exponential" });
    let folder = Linked::new("FLUX.1-dev")
        .with("text_encoder/config.json", &clip.to_string())
        .with("text_encoder_2/config.json", &t5.to_string())
        .with("transformer/config.json", &transformer.to_string())
        .with("scheduler/scheduler_config.json", &scheduler.to_string());
    let [found, expected] = [folder.files(), ModelFiles::Directory(reference("FLUX.1-dev"))].map(|files| open(&files));
    assert_eq!(format!("{:?}", found.configs), format!("{:?}", expected.configs));
}

#[test]
fn a_field_that_a_file_lacks_has_the_default_of_its_class() {
    let without = |path: &str, field: &str| {
        let config = changed(&format!("FLUX.1-dev/{path}"), &[field], json!({}));
        problems_of(&Linked::new("FLUX.1-dev").with(path, &config.to_string()).files())
    };
    let problems = without("text_encoder_2/config.json", "feed_forward_proj");
    assert_eq!(problems, ["text_encoder_2/config.json: feed_forward_proj must be gated-gelu"], "relu");
    let problems = without("text_encoder/config.json", "hidden_size");
    let rule = "pooled_projection_dim must equal text_encoder/config.json's hidden_size";
    assert!(problems[0].contains(rule), "512: {problems:?}");
}
