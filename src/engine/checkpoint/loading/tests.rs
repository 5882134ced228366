use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use candle_core::{Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;

use super::super::stream::slow::Slow;
use super::*;
use crate::domain::model::{Attachments, CompletedFiles, ModelFiles};
use crate::domain::precision::Precision;
use crate::engine::adapted::AdapterSet;
use crate::engine::blocks::BlockType;
use crate::engine::models::flux1::config::TransformerConfig;
use crate::engine::models::flux1::text::TextEncoders;
use crate::engine::models::flux1::transformer::ControlNet;
use crate::engine::models::flux1::{Decoder, Encoder, Sequence, Transformer};
use crate::engine::noise::standard_normal;

/// An observer that adds up what it is told.
#[derive(Default)]
struct Progress(Mutex<(u64, u64)>);

impl LoadObserver for Progress {
    fn planned(&self, bytes: u64) {
        *self.0.lock().expect("no panic") = (bytes, 0);
    }

    fn loaded(&self, bytes: u64) {
        self.0.lock().expect("no panic").1 += bytes;
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/FLUX.1-dev")
}

fn checkpoint() -> Checkpoint {
    Checkpoint::open(&ModelFiles::Directory(folder())).expect("opens")
}

fn options(is_text_streamed: bool) -> LoadOptions {
    LoadOptions { dtype: DType::F32, is_text_streamed, are_stored: false, is_e4m3_kept: false, blocks: None }
}

fn slowly<'a>(checkpoint: &'a Checkpoint, is_text_streamed: bool, progress: &Arc<Progress>) -> Loading<'a> {
    let observer = Arc::clone(progress) as Arc<dyn LoadObserver>;
    Loading::new(checkpoint, &Device::Cpu, options(is_text_streamed), observer)
        .expect("begins")
        .through(|_| Ok(Slow::new(Duration::ZERO)))
}

fn numbers_of(vb: &VarBuilder, name: &str) -> Vec<f32> {
    let tensor = vb.get_unchecked(name).expect("a tensor");
    tensor.flatten_all().and_then(|flat| flat.to_vec1()).expect("numbers")
}

/// Records which tensors are asked for.
struct Recorder {
    weights: VarBuilder<'static>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl SimpleBackend for Recorder {
    fn get(&self, shape: Shape, name: &str, _: candle_nn::Init, dtype: DType, device: &Device) -> Result<Tensor> {
        let tensor = self.get_unchecked(name, dtype, device)?;
        assert_eq!(tensor.shape(), &shape, "{name}");
        Ok(tensor)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        self.asked.lock().expect("no panic").push(name.to_owned());
        self.weights.clone().set_device(device.clone()).get_unchecked_dtype(name, dtype)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.weights.contains_tensor(name)
    }
}

#[test]
fn the_model_asks_in_the_order_of_the_plan_and_all_bytes_are_reported() {
    let (checkpoint, progress) = (checkpoint(), Arc::new(Progress::default()));
    let loading = slowly(&checkpoint, false, &progress);
    let configs = &checkpoint.configs;
    let asked = Arc::new(Mutex::new(Vec::new()));
    let recorded = |weights: VarBuilder<'static>| {
        let (dtype, device) = (weights.dtype(), weights.device().clone());
        VarBuilder::from_backend(Box::new(Recorder { weights, asked: Arc::clone(&asked) }), dtype, device)
    };
    Decoder::load(&configs.vae, &recorded(loading.decoder())).expect("loads");
    Encoder::load(&configs.vae, &recorded(loading.encoder())).expect("loads");
    TextEncoders::load(
        configs,
        recorded(loading.clip()),
        recorded(loading.builder(Part::T5)).into(),
        Precision::Full,
        false,
    )
    .expect("loads");
    let transformer = Tensors::from(recorded(loading.builder(Part::Transformer)));
    Transformer::load(&configs.transformer, &transformer, Precision::Full, None).expect("loads");
    let asked = asked.lock().expect("no panic");
    let planned =
        PARTS.into_iter().flat_map(|part| part.tensors(&checkpoint).names().filter(move |name| part.has(name)));
    let first = planned.zip(asked.iter()).find(|(planned, asked)| planned != asked);
    assert_eq!(first, None, "`names/` has another order than the model: (there, here)");
    assert_eq!(loading.stream.as_ref().expect("streams").restarts(), 0);
    let (planned, loaded) = *progress.0.lock().expect("no panic");
    assert_eq!(planned, loaded);
    let (bytes, _) = loading.finish().expect("finishes");
    let files = crate::engine::inspect(&ModelFiles::Directory(folder()));
    assert_eq!(bytes, files.components.iter().map(|component| component.bytes).sum::<usize>());
    assert_eq!(bytes as u64, loaded);
}

#[test]
fn the_tensors_of_a_controlnet_come_behind_the_checkpoints_in_the_order_of_the_plan() {
    let net = folder().with_file_name("family/controlnet/FLUX.1-dev-ControlNet-Union");
    let attachments = Attachments { controlnets: vec![("union".into(), net)], ..Attachments::default() };
    let (path, text_encoders, vae, base) = (folder(), Vec::new(), None, None);
    let files = CompletedFiles { path, text_encoders, vae, base, attachments };
    let checkpoint = Checkpoint::open(&ModelFiles::Completed(Box::new(files))).expect("opens");
    let (configs, progress) = (&checkpoint.configs, Arc::new(Progress::default()));
    let loading = slowly(&checkpoint, false, &progress);
    Decoder::load(&configs.vae, &loading.decoder()).expect("loads");
    Encoder::load(&configs.vae, &loading.encoder()).expect("loads");
    TextEncoders::load(configs, loading.clip(), loading.t5(), Precision::Full, false).expect("loads");
    Transformer::load(&configs.transformer, &loading.transformer(), Precision::Full, None).expect("loads");
    ControlNet::load(&loading.controlnets()[0], Precision::Full).expect("loads");
    assert_eq!(loading.stream.as_ref().expect("streams").restarts(), 0, "the net asks in another order");
    let (planned, loaded) = *progress.0.lock().expect("no panic");
    assert_eq!(planned, loaded);
}

#[test]
fn both_paths_load_the_same_numbers() {
    let (checkpoint, progress) = (checkpoint(), Arc::new(Progress::default()));
    let by_stream = slowly(&checkpoint, false, &progress);
    let by_host = Loading::new(&checkpoint, &Device::Cpu, options(false), Arc::new(())).expect("begins");
    let mut compared = 0;
    for part in PARTS {
        let (a, b) = (by_stream.builder(part), by_host.builder(part));
        for name in part.tensors(&checkpoint).names().filter(|name| part.has(name)) {
            assert!(numbers_of(&a, name) == numbers_of(&b, name), "{part:?} {name}");
            compared += 1;
        }
    }
    assert!(compared > 300, "{compared}");
}

/// A transformer in e4m3, with the rest from the reference.
fn in_e4m3(name: &str) -> Checkpoint {
    let path = folder().with_file_name("quant/fp8").join(format!("{name}.safetensors"));
    let base = Some(ModelFiles::Directory(folder()));
    let files = CompletedFiles {
        path,
        text_encoders: Vec::new(),
        vae: None,
        base,
        attachments: crate::domain::model::Attachments::default(),
    };
    Checkpoint::open(&ModelFiles::Completed(Box::new(files))).expect("opens")
}

#[test]
fn layers_in_e4m3_are_given_as_their_file_has_them_in_the_order_of_the_plan() {
    for name in ["flux1-dev-fp8-scaled", "flux1-dev-fp8-e4m3fn"] {
        let (checkpoint, progress) = (in_e4m3(name), Arc::new(Progress::default()));
        let configs = &checkpoint.configs;
        let linears: usize = configs.transformer.block_linears().iter().map(|(count, _)| count).sum();
        assert_eq!(checkpoint.block_linears_in_e4m3(), [linears; 2], "{name}");
        let observer = Arc::clone(&progress) as Arc<dyn LoadObserver>;
        let options = LoadOptions { is_e4m3_kept: true, ..options(false) };
        let loading = Loading::new(&checkpoint, &Device::Cpu, options, observer)
            .expect("begins")
            .through(|_| Ok(Slow::new(Duration::ZERO)));
        Decoder::load(&configs.vae, &loading.decoder()).expect("loads");
        Encoder::load(&configs.vae, &loading.encoder()).expect("loads");
        TextEncoders::load(configs, loading.clip(), loading.t5(), Precision::Full, false).expect("loads");
        Transformer::load(&configs.transformer, &loading.transformer(), Precision::Fp8, None).expect("loads");
        assert_eq!(loading.stream.as_ref().expect("streams").restarts(), 0, "{name}: the model asks in another order");
        let (planned, loaded) = *progress.0.lock().expect("no panic");
        assert_eq!(planned, loaded, "{name}");
        // The same through the host's memory, and what the codes stand for.
        let host = Loading::new(&checkpoint, &Device::Cpu, options, Arc::new(())).expect("begins");
        let mut scales_seen = Vec::new();
        for weight in checkpoint.transformer.names().filter(|name| is_block_linear(name)) {
            let shape = checkpoint.transformer.recipe(weight, DType::F32).expect("is there").shape;
            let (module, shape) = (weight.strip_suffix(".weight").expect("a weight"), [shape[0], shape[1]]);
            let given = |loading: &Loading| {
                let matrix = loading.transformer().pp(module).e4m3(shape, "weight").expect("reads").expect("in e4m3");
                (matrix.codes.flatten_all().and_then(|codes| codes.to_vec1::<u8>()).expect("codes"), matrix.scales)
            };
            let (codes, scales) = given(&host);
            assert_eq!(given(&loading), (codes.clone(), scales.clone()), "{weight}");
            let mut numbers = vec![0.0; codes.len()];
            BlockType::F8E4M3.decode(&codes, &mut numbers);
            let full = numbers_of(&host.builder(Part::Transformer), weight);
            let rows = numbers.chunks(shape[1]).zip(full.chunks(shape[1])).zip(&scales);
            for ((numbers, full), scale) in rows {
                assert!(numbers.iter().zip(full).all(|(number, full)| (number * scale).to_bits() == full.to_bits()));
            }
            scales_seen.extend(scales);
        }
        assert_eq!(scales_seen.iter().any(|scale| *scale != 1.0), name.ends_with("scaled"), "{name}");
    }
}

#[test]
fn blocks_of_t5_are_streamed_for_each_prompt() {
    let (checkpoint, progress) = (checkpoint(), Arc::new(Progress::default()));
    let encoders = |loading: &Loading, is_streamed| {
        TextEncoders::load(&checkpoint.configs, loading.clip(), loading.t5(), Precision::Full, is_streamed)
            .expect("loads")
    };
    let host = Loading::new(&checkpoint, &Device::Cpu, options(false), Arc::new(())).expect("begins");
    let mut resident = encoders(&host, false);
    let loading = slowly(&checkpoint, true, &progress);
    let text = Arc::clone(loading.repeated.get(&Reading::ForPrompts).expect("a stream of its own"));
    let mut streamed = encoders(&loading, true);
    let told = progress.0.lock().expect("no panic").1;
    loading.finish().expect("finishes");
    for ids in [[3_u32, 7, 1, 0], [9, 2, 5, 1]] {
        let numbers = |encoders: &mut TextEncoders| -> Vec<Vec<f32>> {
            encoders.sequence(&ids, &AdapterSet::default()).and_then(|sequence| sequence.to_vec2()).expect("encodes")
        };
        assert_eq!(numbers(&mut streamed), numbers(&mut resident));
    }
    assert_eq!(text.restarts(), 0);
    assert_eq!(progress.0.lock().expect("no panic").1, told, "streaming for a prompt is not part of loading");
}

/// The velocity of an image of 2×3 tokens with a prompt of four.
fn velocity(transformer: &Transformer, config: &TransformerConfig) -> Vec<f32> {
    let random = |seed, rows: usize, columns: usize| {
        Tensor::from_vec(standard_normal(seed, 0, rows * columns), (rows, columns), &Device::Cpu).expect("random")
    };
    let none = AdapterSet::default();
    let text = transformer.embed_text(&random(1, 4, config.joint_attention_dim), &none).expect("embeds");
    let condition =
        transformer.embed_condition(&random(2, 1, config.pooled_projection_dim), 3.5, &none).expect("embeds");
    let rotary = transformer.rotary(4, [2, 3], &[]).expect("tables");
    let latents = random(3, 6, config.in_channels);
    let sequence = Sequence {
        latents: &latents,
        joined: None,
        references: None,
        text: &text,
        condition: &condition,
        modulation: None,
        rotary: &rotary,
        sigma: 0.7,
        adapters: &none,
        cache: None,
        residuals: None,
    };
    let velocities = transformer.velocities(&[sequence]).expect("runs");
    velocities[0].flatten_all().and_then(|all| all.to_vec1()).expect("numbers")
}

/// As on CUDA: through buffers that a slow device copies from.
#[test]
fn blocks_and_modulations_are_streamed_for_each_step() {
    let checkpoint = checkpoint();
    let config = &checkpoint.configs.transformer;
    let (double, total) = (config.num_layers, config.num_layers + config.num_single_layers);
    let host = Loading::new(&checkpoint, &Device::Cpu, options(false), Arc::new(())).expect("begins");
    let resident = Transformer::load(config, &host.transformer(), Precision::Full, None).expect("loads");
    let expected = velocity(&resident, config);
    for kept in [0, 2, total] {
        let blocks = Some(StreamedBlocks { resident: kept, double, total });
        let progress = Arc::new(Progress::default());
        let observer = Arc::clone(&progress) as Arc<dyn LoadObserver>;
        let options = LoadOptions { blocks, ..options(true) };
        let loading = Loading::new(&checkpoint, &Device::Cpu, options, observer)
            .expect("begins")
            .through(|_| Ok(Slow::new(Duration::ZERO)));
        let streamed = Transformer::load(config, &loading.transformer(), Precision::Full, blocks).expect("loads");
        let streams: Vec<_> = loading.repeated_of(Part::Transformer).into_values().collect();
        assert_eq!(streams.len(), if kept == total { 1 } else { 2 });
        loading.finish().expect("finishes");
        let told = progress.0.lock().expect("no panic").1;
        for pass in 0..3 {
            assert_eq!(velocity(&streamed, config), expected, "{kept} blocks in memory, pass {pass}");
        }
        assert!(streams.iter().all(|stream| stream.restarts() == 0));
        assert_eq!(progress.0.lock().expect("no panic").1, told, "streaming for a step is not part of loading");
    }
}

#[test]
fn without_pinned_memory_it_is_loaded_through_the_host() {
    let checkpoint = checkpoint();
    let loading = Loading::new(&checkpoint, &Device::Cpu, options(false), Arc::new(()))
        .expect("begins")
        .through(|_| Ok(Slow::new(Duration::ZERO).with_buffers(1)));
    assert!(loading.stream.is_none());
    Transformer::load(&checkpoint.configs.transformer, &loading.transformer(), Precision::Full, None).expect("loads");
}

#[test]
fn reading_alone_reads_all_bytes() {
    let checkpoint = checkpoint();
    let bytes = checkpoint.read_and_drop().expect("reads");
    let tensors = [&checkpoint.vae, &checkpoint.clip, &checkpoint.t5, &checkpoint.transformer];
    let expected: usize = tensors
        .into_iter()
        .flat_map(|tensors| {
            tensors.names().map(move |name| tensors.recipe(name, DType::F32).expect("is there").file_bytes())
        })
        .sum();
    assert_eq!(bytes, expected);
}
