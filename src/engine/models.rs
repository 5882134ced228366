//! The families of models, one folder each: what diffusers has in one pipeline. They know neither files nor the queue.

pub(crate) mod flux1;
