//! The autoencoder, both ways.

use candle_core::{Device, Tensor};

use super::cases::Cases;
use super::support::{IMAGE, LATENTS, MOMENTS, assert_close, diffusers_folders, engine, json, single_files, tensors};
use crate::engine::models::flux1::{TokenGrid, pixels_of, to_rgb_bytes};
use crate::engine::noise;

#[test]
fn decoding_equals_diffusers() {
    let engine = engine(&diffusers_folders());
    let reference = tensors("vae_only.safetensors");
    for index in 0..3 {
        let latents = &reference[&format!("decode.{index}.latent")];
        let pixels = engine.model.decoder.decode(latents).expect("decodes");
        assert_close("decode", &pixels, &reference[&format!("decode.{index}.raw")], 2.0 * IMAGE);
    }
}

#[test]
fn encoding_equals_diffusers() {
    for files in [diffusers_folders(), single_files()] {
        let engine = engine(&files);
        let reference = tensors("vae_only.safetensors");
        for index in 0..3 {
            let expected = |kind: &str| &reference[&format!("encode.{index}.{kind}")];
            let moments = engine.model.encoder.encode(expected("image")).expect("encodes");
            assert_close("mean", &moments.mean, expected("mean"), MOMENTS);
            assert_close("variance", &moments.log_variance, expected("logvar"), MOMENTS);
        }
    }
}

#[test]
fn an_input_image_becomes_the_first_latents_of_diffusers() {
    let engine = engine(&diffusers_folders());
    let cases = json::<Cases>("cases.json").cases;
    let case = cases.iter().find(|case| case.strength.is_some()).expect("there is one");
    let recorded = tensors(&case.file);
    let pixels = pixels_of(&case.input_images()[0].image, &Device::Cpu).expect("pixels");
    assert_close("pixels", &pixels, &recorded["init_image_m11"], 0.0);
    let moments = engine.model.encoder.encode(&pixels).expect("encodes");
    assert_close("mean", &moments.mean, &recorded["vae_mean"], MOMENTS);
    assert_close("variance", &moments.log_variance, &recorded["vae_logvar"], MOMENTS);
    let grid = TokenGrid::of(&case.specs()[0], engine.model.configs.vae.latent_channels);
    let normal = |skipped| {
        let noise = noise::standard_normal(case.seed, skipped, grid.elements());
        grid.latents(noise, &Device::Cpu).expect("latents")
    };
    assert_close("the noise of the encoder's sample comes first", &normal(0), &recorded["vae_sample_eps"], 0.0);
    assert_close("the noise of the image second", &normal(grid.elements()), &recorded["noise"], 0.0);
    let sample = engine.model.encoder.sample(&moments, &normal(0)).expect("samples");
    assert_close("sample", &sample, &recorded["image_latents"], LATENTS);
}

#[test]
fn an_image_that_is_not_finite_is_rejected() {
    let nan = Tensor::new(&[[[[f32::NAN]], [[0.0]], [[0.0]]]], &Device::Cpu).expect("a pixel");
    assert_eq!(to_rgb_bytes(&nan).expect("reads"), None);
}
