//! What the CPU holds, counted, beside what the plan says.

use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;

use super::config::controlnet::ControlNetConfig;
use super::config::{TransformerConfig, VaeConfig};
use super::text::TextEncoders;
use super::transformer::{ControlNet, Sequence};
use super::{Decoder, Encoder, Transformer};
use crate::domain::model::ModelFiles;
use crate::domain::precision::Precision;
use crate::engine::adapted::AdapterSet;
use crate::engine::checkpoint::{Checkpoint, ControlNetWeights, LoadOptions, Tensors, WeightBytes};
use crate::engine::counted_heap::{most_held, on_one_thread, still_held};
use crate::engine::memory::{HostDecoding, token_bytes};
use crate::engine::storage::{LinearCount, bytes_saved};

/// Fails where the two differ by more than a tenth.
fn assert_near(what: &str, held: usize, planned: usize) {
    let ratio = held as f64 / planned as f64;
    assert!((0.9..=1.1).contains(&ratio), "{what}: {held} bytes are held, {planned} are planned");
}

#[test]
fn each_component_takes_what_the_plan_says() {
    for precision in [Precision::Full, Precision::Bf16] {
        check_components(precision);
    }
}

fn check_components(precision: Precision) {
    on_one_thread(|| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/flux-shapes");
        let checkpoint = Checkpoint::open(&ModelFiles::Directory(folder)).expect("opens");
        let WeightBytes { transformer, vae, clip, t5, .. } = checkpoint.weight_bytes(DType::F32);
        let options = LoadOptions {
            dtype: DType::F32,
            is_text_streamed: false,
            are_stored: false,
            is_e4m3_kept: false,
            blocks: None,
        };
        let loading = checkpoint.load_onto(&Device::Cpu, options, Arc::new(())).expect("begins");
        let configs = &checkpoint.configs;
        let (_autoencoder, held) = still_held(|| {
            let decoder = Decoder::load(&configs.vae, &loading.decoder()).expect("loads");
            (decoder, Encoder::load(&configs.vae, &loading.encoder()).expect("loads"))
        });
        assert_near("autoencoder", held, vae);
        let (_text, held) =
            still_held(|| TextEncoders::load(configs, loading.clip(), loading.t5(), precision, false).expect("loads"));
        let saved = |linears: &[LinearCount]| bytes_saved(linears.iter().copied(), DType::F32, precision);
        assert_near("text encoders", held, clip + t5 - saved(&configs.t5.block_linears()));
        let (_transformer, held) = still_held(|| {
            Transformer::load(&configs.transformer, &loading.transformer(), precision, None).expect("loads")
        });
        assert_near("transformer", held, transformer - saved(&configs.transformer.block_linears()));
    });
}

/// Of random numbers, so wide that what is no tensor counts for little.
#[test]
fn a_controlnet_takes_what_the_plan_says() {
    let config = serde_json::json!({
        "in_channels": 64, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 64, "num_attention_heads": 4,
        "joint_attention_dim": 64, "pooled_projection_dim": 64, "guidance_embeds": true, "axes_dims_rope": [8, 28, 28]
    });
    let config = ControlNetConfig::parse(&config.to_string()).expect("a configuration");
    on_one_thread(|| {
        let held = |precision| {
            let tensors = Tensors::from(VarBuilder::zeros(DType::F32, &Device::Cpu));
            let weights = ControlNetWeights { name: "edges".into(), config: config.clone(), tensors };
            still_held(|| ControlNet::load(&weights, precision).expect("loads")).1
        };
        let saved = bytes_saved(config.linears(), DType::F32, Precision::Bf16);
        let (full, bf16) = (held(Precision::Full), held(Precision::Bf16));
        assert!(saved > full / 4, "{saved} of {full} bytes");
        assert_near("a ControlNet in bf16", bf16, full - saved);
        assert_eq!(held(Precision::Fp8), full);
    });
}

#[test]
fn decoding_takes_what_the_plan_says() {
    let vae = VaeConfig {
        in_channels: 3,
        out_channels: 3,
        latent_channels: 16,
        block_out_channels: vec![32, 64, 128, 128],
        layers_per_block: 2,
        norm_num_groups: 32,
        scaling_factor: 0.3611,
        shift_factor: 0.1159,
        mid_block_add_attention: true,
        use_quant_conv: false,
        use_post_quant_conv: false,
    };
    on_one_thread(|| {
        let decoder = Decoder::load(&vae, &VarBuilder::zeros(DType::F32, &Device::Cpu)).expect("loads");
        let latents = Tensor::zeros((1, 16, 40, 44), DType::F32, &Device::Cpu).expect("latents");
        let HostDecoding { whole, strips } = HostDecoding::of(&vae, 320, 352);
        let (pixels, held) = most_held(|| decoder.decode(&latents).expect("decodes"));
        assert_eq!(pixels.dims(), [1, 3, 320, 352]);
        assert_near("as a whole", held, whole);
        let decoder = decoder.with_whole_pixels_max(0);
        let (pixels, held) = most_held(|| decoder.decode(&latents).expect("decodes"));
        assert_eq!(pixels.dims(), [1, 3, 320, 352]);
        assert_near("in strips", held, strips);
    });
}

#[test]
fn a_step_takes_what_the_plan_says() {
    for precision in [Precision::Full, Precision::Bf16] {
        check_step(precision);
    }
}

fn check_step(precision: Precision) {
    let config = serde_json::json!({
        "in_channels": 64, "num_layers": 1, "num_single_layers": 2, "attention_head_dim": 128,
        "num_attention_heads": 4, "joint_attention_dim": 64, "pooled_projection_dim": 64, "guidance_embeds": true,
        "axes_dims_rope": [16, 56, 56]
    });
    let config: TransformerConfig = serde_json::from_value(config).expect("a configuration");
    on_one_thread(|| {
        let tensors = Tensors::from(VarBuilder::zeros(DType::F32, &Device::Cpu));
        let transformer = Transformer::load(&config, &tensors, precision, None).expect("loads");
        let zeros = |rows: usize, columns: usize| Tensor::zeros((rows, columns), DType::F32, &Device::Cpu);
        let (text, side) = (64, 32);
        let sequence = Sequence {
            latents: &zeros(side * side, 64).expect("latents"),
            joined: None,
            references: None,
            text: &zeros(text, config.hidden_size()).expect("text"),
            condition: &zeros(1, config.hidden_size()).expect("a condition"),
            modulation: None,
            rotary: &transformer.rotary(text, [side, side], &[]).expect("tables"),
            sigma: 0.5,
            adapters: &AdapterSet::default(),
            cache: None,
            residuals: None,
        };
        let (velocities, held) = most_held(|| transformer.velocities(&[sequence]).expect("steps"));
        assert_eq!(velocities[0].dims(), [side * side, 64]);
        assert_near("a step", held, (text + side * side) * token_bytes(&config, DType::F32));
    });
}
