//! Which of the two published layouts a component's tensors are named in.

use super::files::WeightFiles;
use super::names::spellings::Component;

/// The two published forms of a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// Folders with a configuration file each, as diffusers writes them.
    Diffusers,
    /// One file per component, as the model's authors publish it.
    SingleFile,
}

impl Layout {
    /// The layout by the names of the tensors. Where no name says it, that of the folders.
    pub(super) fn of(files: &WeightFiles, component: Component) -> Self {
        let beginnings: &[&str] = match component {
            Component::Transformer => &["double_blocks.", "single_blocks.", "img_in.", "txt_in.", "final_layer."],
            Component::Vae => &["encoder.down.", "encoder.mid.", "decoder.up.", "decoder.mid."],
            // Both layouts name them alike.
            Component::Clip | Component::T5 => return Self::SingleFile,
        };
        let is_single = files.entries.keys().any(|name| beginnings.iter().any(|beginning| name.starts_with(beginning)));
        if is_single { Self::SingleFile } else { Self::Diffusers }
    }
}
