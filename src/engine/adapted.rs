//! Adapters in the forms in which they change a step: what each adds to a layer's outputs, row by row, beside the product that all
//! rows share. On a device, in a cache.
//!
//! Must not know which layer asks, or what a model computes.

mod background;
mod cache;
mod changes;
mod form;
mod loaded;
mod loader;

pub(crate) use cache::AdapterCache;
pub(crate) use changes::{AdapterSet, Changes, LayerChange, PlacedModule};
pub(crate) use loaded::Base;
pub(crate) use loader::{Loader, joined_inputs_of};
