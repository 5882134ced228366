//! The engine against numbers recorded from diffusers (`tests/reference/`), stage by stage, for both layouts and
//! for quantized files.

mod adapters;
mod autoencoder;
mod cases;
mod controlnet;
mod images;
mod layouts;
mod noise;
mod prompts;
mod quantized;
mod replay;
mod step_cache;
mod streamed;
mod support;
