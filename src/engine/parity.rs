//! The engine against numbers recorded from diffusers (`tests/reference/`), stage by stage, for both layouts and
//! for quantized files.

mod adapters;
mod autoencoder;
mod cases;
mod images;
mod layouts;
mod noise;
mod prompts;
mod quantized;
mod redux;
mod replay;
mod streamed;
mod support;
