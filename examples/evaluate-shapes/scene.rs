//! What a prompt asks for: a line of `models/flux-shapes/held-out.jsonl`, as the training's own code writes it.

use serde::Deserialize;

/// One object that must be seen.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Object {
    /// `circle`, `square`, …: a name of [`crate::outlines::SHAPES`].
    pub(crate) shape: String,
    /// A name of [`crate::analysis::COLOURS`].
    pub(crate) colour: String,
}

/// A prompt and what must be seen in its image.
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
    /// A name of [`crate::analysis::COLOURS`].
    pub(crate) background: String,
    pub(crate) objects: Vec<Object>,
    /// Where the first object is, seen from the second: `left`, `right`, `above`, `below`, or nothing.
    pub(crate) relation: String,
    /// For `placed`: -1, 0 or 1 across and down.
    pub(crate) place: [i32; 2],
}
