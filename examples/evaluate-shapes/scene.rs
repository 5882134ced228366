//! What a prompt asks for: a line of `models/flux-shapes/held-out.jsonl`, as the training code writes it.

use serde::Deserialize;

/// One requested object.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Object {
    /// `circle`, `square`, …: a name of [`crate::outlines::SHAPES`].
    pub(crate) shape: String,
    /// A name of [`crate::analysis::COLORS`].
    #[serde(rename = "colour")]
    pub(crate) color: String,
}

/// A prompt and what its image must show.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Scene {
    /// `alone`, `placed`, `relation`, `pair` or `count`.
    pub(crate) kind: String,
    pub(crate) prompt: String,
    pub(crate) seed: u64,
    /// Pixels.
    pub(crate) width: u32,
    /// Pixels.
    pub(crate) height: u32,
    /// A name of [`crate::analysis::COLORS`].
    pub(crate) background: String,
    pub(crate) objects: Vec<Object>,
    /// Where the first object is relative to the second: `left`, `right`, `above`, `below`, or empty.
    pub(crate) relation: String,
    /// For `placed`: -1, 0 or 1 across and down.
    pub(crate) place: [i32; 2],
}
