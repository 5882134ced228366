//! Which layout a checkpoint has, and where each component's weights are.

use super::files::WeightFiles;
use super::source::Source;

/// The two published forms of a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// Folders with a configuration file each, as diffusers writes them.
    Diffusers,
    /// One file per component, as the model's authors publish it.
    SingleFile,
}

/// Both layouts have these.
pub(super) const CLIP_STEM: &str = "text_encoder/model";
pub(super) const T5_STEM: &str = "text_encoder_2/model";

const TRANSFORMER_STEM: &str = "transformer/diffusion_pytorch_model";
const VAE_STEM: &str = "vae/diffusion_pytorch_model";

/// The transformer's layout and stem. The folders win where both layouts are there: they have a configuration.
pub(super) fn find_transformer(source: Source) -> (Layout, String) {
    if WeightFiles::exist(source, TRANSFORMER_STEM) {
        return (Layout::Diffusers, TRANSFORMER_STEM.to_owned());
    }
    let single = source.top_level_files().into_iter().find_map(|name| {
        let stem = name.strip_suffix(".safetensors")?;
        stem.starts_with("flux1-").then(|| stem.to_owned())
    });
    single.map_or((Layout::Diffusers, TRANSFORMER_STEM.to_owned()), |stem| (Layout::SingleFile, stem))
}

/// The autoencoder's layout and stem.
pub(super) fn find_vae(source: Source) -> (Layout, String) {
    if !WeightFiles::exist(source, VAE_STEM) && WeightFiles::exist(source, "ae") {
        return (Layout::SingleFile, "ae".to_owned());
    }
    (Layout::Diffusers, VAE_STEM.to_owned())
}
