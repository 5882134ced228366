//! A destination that drops everything, for measuring reading alone.

use std::ops::Range;

use candle_core::{Device, Result, Tensor, bail};

use super::Destination;
use crate::engine::checkpoint::recipe::Recipe;

/// Drops everything.
pub(in crate::engine::checkpoint) struct Nowhere;

impl Destination for Nowhere {
    type Buffer = Vec<u8>;
    type Target = ();

    fn is_at(&self, _: &Device) -> bool {
        false
    }

    fn buffer(&self, bytes: usize) -> Result<Vec<u8>> {
        Ok(vec![0; bytes])
    }

    fn target(&self, _: &Recipe) -> Result<()> {
        Ok(())
    }

    fn fill(
        &self,
        buffer: &mut Vec<u8>,
        write: &mut dyn FnMut(&mut [u8]) -> std::result::Result<(), String>,
    ) -> std::result::Result<(), String> {
        write(buffer)
    }

    fn copy(&self, _: &mut Vec<u8>, _: Range<usize>, (): &mut (), _: usize) -> Result<()> {
        Ok(())
    }

    fn tensor(&self, (): (), _: &Recipe) -> Result<Tensor> {
        bail!("this destination drops every tensor")
    }
}
