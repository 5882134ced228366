//! The engine against numbers recorded from diffusers (`tests/reference/`), stage by stage, for both layouts.

mod autoencoder;
mod cases;
mod images;
mod layouts;
mod noise;
mod prompts;
mod support;
