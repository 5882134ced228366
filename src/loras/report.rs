//! What a LoRA changes, and what its file says of itself, as stored with its row.

use serde::{Deserialize, Serialize};

/// What a LoRA changes of a component.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangedComponent {
    /// The component's folder in the diffusers layout.
    pub name: String,
    /// Linear layers of which something is changed.
    pub layers: usize,
    /// Linear layers that the component has.
    pub of: usize,
    /// Norms that are changed.
    pub norms: usize,
}

/// What a LoRA changes, and what its file says of itself, which is not verified.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoraReport {
    /// The family of models that it is for.
    pub base: String,
    /// What it changes, by component.
    pub components: Vec<ChangedComponent>,
    /// Kinds of changes and their numbers.
    pub kinds: Vec<(String, usize)>,
    /// The least and the greatest rank, if it has any.
    pub ranks: Option<(usize, usize)>,
    /// The types of its numbers.
    pub dtypes: Vec<String>,
    /// The dialects of its names.
    pub dialects: Vec<String>,
    /// Tensors in the file.
    pub tensors: usize,
    /// Tensors that are not used, by reason, in words.
    pub unused: Vec<String>,
    /// Whether it needs a control image.
    pub needs_control_image: bool,
    /// The title that the file gives itself.
    pub title: Option<String>,
    /// The words that trigger it, as the file says.
    pub trigger_words: Vec<String>,
    /// The license that the file names.
    pub license: Option<String>,
}
