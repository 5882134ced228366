//! The engine against numbers recorded from diffusers (`tests/reference/`), stage by stage, for both layouts and
//! for quantized files.

mod adapters;
mod autoencoder;
mod cases;
mod conditioned;
mod control_adapters;
mod controlnet;
mod every_kind;
mod family;
mod images;
mod layouts;
mod masks;
mod merged;
mod mixed;
mod noise;
mod prompts;
mod quantized;
mod redux;
mod replay;
mod step_cache;
mod streamed;
mod support;
