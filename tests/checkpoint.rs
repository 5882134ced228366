//! Incomplete checkpoints: each problem names file, tensor, expected and found shape.

mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use fluxserve::catalog::card_or_flux_dev;
use fluxserve::domain::device::DeviceChoice;
use fluxserve::domain::engine::StepEngine as _;
use fluxserve::domain::ids::ModelId;
use fluxserve::domain::model::ModelFiles;
use fluxserve::domain::spec::{GenerateParams, GenerateSpec};
use fluxserve::engine::{FluxEngine, Inspection, KeptAs, Problem, inspect};
use support::copy_folder;

const SHARD: &str = "transformer/diffusion_pytorch_model-00002-of-00003.safetensors";

fn reference() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/FLUX.1-dev")
}

/// A copy of the reference checkpoint that a test may damage.
struct Damaged(tempfile::TempDir);

impl Damaged {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        copy_folder(&reference(), directory.path());
        Self(directory)
    }

    fn path(&self, file: &str) -> PathBuf {
        self.0.path().join(file)
    }

    fn inspect(&self) -> Inspection {
        inspect(&ModelFiles::Directory(self.0.path().to_owned()))
    }

    fn problems(&self) -> Vec<Problem> {
        self.inspect().into_problems()
    }

    /// Replaces text in a file, which must have it.
    fn edit(&self, file: &str, from: &str, to: &str) {
        let text = std::fs::read_to_string(self.path(file)).expect("readable");
        assert!(text.contains(from), "{file}: {from}");
        std::fs::write(self.path(file), text.replace(from, to)).expect("written");
    }

    /// The pixels of an image by a model of this name.
    fn generate(&self, id: &str, guidance: Option<f64>) -> Vec<u8> {
        let files = ModelFiles::Directory(self.0.path().to_owned());
        let mut engine = FluxEngine::load(&files, DeviceChoice::Cpu).expect("it loads");
        let params =
            GenerateParams { prompt: "a fox".into(), width: Some(64), height: Some(64), ..GenerateParams::default() };
        let params = GenerateParams { steps: Some(4), sequence_length: Some(256), guidance, seed: 1, ..params };
        let spec = GenerateSpec::new(params, &card_or_flux_dev(&ModelId::new(id))).expect("a valid request");
        let slot = engine.admit(&spec).expect("admits");
        for _ in 0..spec.steps() {
            engine.step(&[slot]).expect("steps");
        }
        engine.finish(slot).expect("finishes").pixels().to_vec()
    }

    /// Rewrites a weight file with other tensors.
    fn rewrite(
        &self,
        file: &str,
        change: impl FnOnce(&mut BTreeMap<String, (safetensors::Dtype, Vec<usize>, Vec<u8>)>),
    ) {
        let bytes = std::fs::read(self.path(file)).expect("readable");
        let tensors = safetensors::SafeTensors::deserialize(&bytes).expect("a weight file");
        let mut owned = BTreeMap::new();
        for (name, view) in tensors.tensors() {
            owned.insert(name, (view.dtype(), view.shape().to_vec(), view.data().to_vec()));
        }
        change(&mut owned);
        let views = owned.iter().map(|(name, (dtype, shape, data))| {
            let view = safetensors::tensor::TensorView::new(*dtype, shape.clone(), data).expect("a tensor");
            (name.clone(), view)
        });
        safetensors::serialize_to_file(views, None, &self.path(file)).expect("written");
    }
}

#[test]
fn a_complete_checkpoint_is_sound_in_both_layouts() {
    let checkpoint = Damaged::new();
    let inspection = checkpoint.inspect();
    assert!(inspection.is_sound(), "{inspection}");
    assert!(inspection.components[0].files[0].starts_with("transformer/"));
    std::fs::remove_dir_all(checkpoint.path("transformer")).expect("removed");
    std::fs::create_dir(checkpoint.path("transformer")).expect("made");
    std::fs::copy(reference().join("transformer/config.json"), checkpoint.path("transformer/config.json"))
        .expect("copied");
    std::fs::remove_file(checkpoint.path("vae/diffusion_pytorch_model.safetensors")).expect("removed");
    let inspection = checkpoint.inspect();
    assert!(inspection.is_sound(), "{inspection}");
    assert_eq!(inspection.components[0].files, ["flux1-dev.safetensors"]);
    assert_eq!(inspection.components[1].files, ["ae.safetensors"]);
}

#[test]
fn a_missing_shard_is_reported_once_and_the_rest_is_still_counted() {
    let checkpoint = Damaged::new();
    std::fs::remove_file(checkpoint.path(SHARD)).expect("removed");
    let inspection = checkpoint.inspect();
    assert!(inspection.components[0].tensors > 0, "the other shards are there");
    assert_eq!(inspection.into_problems(), [Problem::MissingFile { path: SHARD.into(), hint: String::new() }]);
}

#[test]
fn a_token_that_no_text_encoder_knows_is_reported() {
    let checkpoint = Damaged::new();
    for (file, from, to) in [
        ("tokenizer/vocab.json", "\"z</w>\": ", "\"z</w>\": 999"),
        ("text_encoder_2/config.json", "\"vocab_size\": 448", "\"vocab_size\": 400"),
    ] {
        let text = std::fs::read_to_string(checkpoint.path(file)).expect("readable");
        assert!(text.contains(from), "{file}");
        std::fs::write(checkpoint.path(file), text.replace(from, to)).expect("written");
    }
    let texts: Vec<String> = checkpoint.problems().iter().map(ToString::to_string).collect();
    assert!(texts[0].starts_with("tokenizer/vocab.json: has the token id 999"), "{texts:?}");
    assert!(texts[1].starts_with("tokenizer_2/tokenizer.json: has the token id"), "{texts:?}");
}

#[test]
fn impossible_numbers_are_rejected_before_use() {
    for (file, from, to, rule) in [
        ("transformer/config.json", "\"num_layers\": 2", "\"num_layers\": 1000000000", "at most 1000 layers"),
        ("vae/config.json", "\"scaling_factor\": 0.3611", "\"scaling_factor\": 0", "scaling_factor must be"),
        (
            "scheduler/scheduler_config.json",
            "\"max_image_seq_len\": 4096",
            "\"max_image_seq_len\": 256",
            "must be above",
        ),
        ("text_encoder/config.json", "\"num_attention_heads\": 4", "\"num_attention_heads\": 0", "every width"),
    ] {
        let checkpoint = Damaged::new();
        let text = std::fs::read_to_string(checkpoint.path(file)).expect("readable");
        assert!(text.contains(from), "{file}: {from}");
        std::fs::write(checkpoint.path(file), text.replace(from, to)).expect("written");
        let text = checkpoint.problems()[0].to_string();
        assert!(text.starts_with(file) && text.contains(rule), "{text}");
    }
}

#[test]
fn a_truncated_file_is_reported() {
    let checkpoint = Damaged::new();
    let file = std::fs::OpenOptions::new().write(true).open(checkpoint.path("text_encoder/model.safetensors"));
    file.expect("opens").set_len(50_000).expect("cut");
    let problems = checkpoint.problems();
    let text = problems[0].to_string();
    assert!(text.starts_with("text_encoder/model.safetensors: not a complete safetensors file"), "{text}");
}

#[test]
fn missing_surplus_and_misshapen_tensors_are_reported() {
    let checkpoint = Damaged::new();
    checkpoint.rewrite("vae/diffusion_pytorch_model.safetensors", |tensors| {
        let taken = tensors.remove("decoder.conv_in.bias").expect("there");
        tensors.insert("decoder.conv_in.biased".into(), taken);
        tensors.get_mut("decoder.conv_out.bias").expect("there").1 = vec![3, 1];
    });
    let file = || "vae/diffusion_pytorch_model.safetensors".to_owned();
    let problems = checkpoint.problems();
    let expected = [
        Problem::MissingTensor { file: file(), tensor: "decoder.conv_in.bias".into(), expected: vec![64] },
        Problem::Shape { file: file(), tensor: "decoder.conv_out.bias".into(), expected: vec![3], found: vec![3, 1] },
        Problem::SurplusTensor { file: file(), tensor: "decoder.conv_in.biased".into(), found: vec![64] },
    ];
    assert_eq!(problems, expected);
}

#[test]
fn an_unsupported_dtype_is_reported() {
    let checkpoint = Damaged::new();
    checkpoint.rewrite("text_encoder/model.safetensors", |tensors| {
        let tensor = tensors.get_mut("text_model.final_layer_norm.bias").expect("there");
        *tensor = (safetensors::Dtype::I16, tensor.1.clone(), tensor.2.clone());
    });
    let problems = checkpoint.problems();
    assert!(matches!(&problems[..], [Problem::Dtype { tensor, .. }] if tensor == "text_model.final_layer_norm.bias"));
}

#[test]
fn a_checkpoint_like_schnells_generates_and_takes_no_guidance() {
    let (dev, schnell) = ("black-forest-labs/FLUX.1-dev", "black-forest-labs/FLUX.1-schnell");
    let checkpoint = Damaged::new();
    checkpoint.edit("transformer/config.json", "\"guidance_embeds\": true", "\"guidance_embeds\": false");
    let surplus = checkpoint.problems();
    let is_guidance = |problem: &Problem| matches!(problem, Problem::SurplusTensor { tensor, .. } if tensor.contains("guidance_embedder"));
    assert!(surplus.len() == 4 && surplus.iter().all(is_guidance), "{surplus:?}");
    for number in 1..=3 {
        checkpoint.rewrite(
            &format!("transformer/diffusion_pytorch_model-0000{number}-of-00003.safetensors"),
            |tensors| {
                tensors.retain(|name, _| !name.contains("guidance_embedder"));
            },
        );
    }
    assert!(checkpoint.inspect().is_sound(), "{}", checkpoint.inspect());
    let shifted = checkpoint.generate(dev, Some(1.0));
    assert_eq!(checkpoint.generate(dev, Some(3.5)), shifted, "there is no guidance embedder");
    checkpoint.edit(
        "scheduler/scheduler_config.json",
        "\"use_dynamic_shifting\": true",
        "\"use_dynamic_shifting\": false",
    );
    checkpoint.edit("scheduler/scheduler_config.json", "\"shift\": 3.0", "\"shift\": 1.0");
    let image = checkpoint.generate(schnell, None);
    assert_ne!(image, shifted, "the schedule is the checkpoint's own");
    assert_eq!(checkpoint.generate(schnell, Some(0.0)), image, "its card's default is no guidance");
}

#[test]
fn the_memory_of_weights_depends_on_their_type() {
    let inspection = Damaged::new().inspect();
    let sums = |precision| inspection.weights_bytes(precision).into_iter().collect::<BTreeMap<_, _>>();
    let (wide, narrow) = (sums(KeptAs::F32), sums(KeptAs::Bf16));
    for component in &inspection.components {
        assert_eq!(wide[component.name], 4 * component.elements);
        assert_eq!(narrow[component.name], wide[component.name] / 2, "{}", component.name);
    }
    assert_eq!(narrow["transformer"], inspection.components[0].bytes);
}

#[test]
fn two_swapped_tensors_of_different_shapes_are_both_reported() {
    let checkpoint = Damaged::new();
    let names = ["decoder.conv_in.bias", "decoder.conv_out.bias"];
    let shard = "vae/diffusion_pytorch_model.safetensors";
    checkpoint.rewrite(shard, |tensors| {
        let [left, right] = names.map(|name| tensors.remove(name).expect("there"));
        tensors.insert(names[0].into(), right);
        tensors.insert(names[1].into(), left);
    });
    let problems = checkpoint.problems();
    let named: Vec<&str> = problems
        .iter()
        .filter_map(|problem| match problem {
            Problem::Shape { file, tensor, expected, found } if file == shard && expected != found => {
                Some(tensor.as_str())
            }
            _ => None,
        })
        .collect();
    assert_eq!(named, names);
    assert_eq!(problems.len(), 2, "and nothing else");
}

#[test]
fn configurations_that_contradict_each_other_are_reported() {
    let checkpoint = Damaged::new();
    let path = checkpoint.path("text_encoder/config.json");
    let text = std::fs::read_to_string(&path).expect("readable").replace("\"hidden_size\": 32", "\"hidden_size\": 64");
    std::fs::write(path, text).expect("written");
    let text = checkpoint.inspect().to_string();
    assert!(text.contains("pooled_projection_dim must equal text_encoder/config.json's hidden_size"), "{text}");
}

#[test]
fn a_missing_configuration_is_reported() {
    let (checkpoint, file) = (Damaged::new(), "text_encoder_2/config.json");
    std::fs::remove_file(checkpoint.path(file)).expect("removed");
    assert_eq!(checkpoint.problems(), [Problem::MissingFile { path: file.into(), hint: String::new() }]);
}

#[test]
fn a_missing_tokenizer_is_reported_with_its_files_and_where_they_are() {
    for (removed, words) in [
        (&["tokenizer/vocab.json"][..], "tokenizer/vocab.json: missing, and so is tokenizer/tokenizer.json"),
        (&["tokenizer/merges.txt"], "tokenizer/merges.txt: missing, and so is tokenizer/tokenizer.json"),
        (
            &["tokenizer_2/tokenizer.json", "tokenizer_2/spiece.model"],
            "tokenizer_2/tokenizer.json: missing, and so is tokenizer_2/spiece.model",
        ),
    ] {
        let checkpoint = Damaged::new();
        for file in removed {
            std::fs::remove_file(checkpoint.path(file)).expect("removed");
        }
        let problems = checkpoint.problems();
        let text = problems[0].to_string();
        assert!(problems.len() == 1 && text.starts_with(words), "{problems:?}");
        assert!(text.contains("needs no access token") && !text.contains("--base"), "{text}");
    }
}

#[test]
fn a_folder_that_is_not_there_is_not_usable() {
    let problems = inspect(&ModelFiles::Directory("/nonexistent/checkpoint".into())).into_problems();
    assert_eq!(problems.len(), 1);
    assert_eq!(problems[0].to_string(), "/nonexistent/checkpoint: not a folder or a file that can be read");
}
