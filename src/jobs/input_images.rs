//! Input images of unfinished jobs: how they are stored, and how much memory they may take.
//!
//! They are stored losslessly, so that a job that is retried after a crash gives the same image.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::JobsError;
use crate::decode::decode;
use crate::domain::format::OutputFormat;
use crate::domain::image::RgbImage;
use crate::domain::spec::GenerateSpec;
use crate::encode::encode;

/// Memory of all input images, in bytes; in the database they take less.
#[derive(Debug, Default)]
pub(super) struct InputImages {
    bytes: AtomicU64,
}

/// One job's part of it, until it ends.
#[derive(Debug)]
pub(super) struct InputImageHold {
    all: Arc<InputImages>,
    bytes: u64,
}

impl InputImages {
    /// Counts a job's input image. `None` if all of them would take more than `bytes_max`.
    pub(super) fn enter(self: &Arc<Self>, spec: &GenerateSpec, bytes_max: u64) -> Option<InputImageHold> {
        let bytes = spec.input_image().map_or(0, |start| start.image.pixels().len() as u64);
        let fits = |now: u64| now.checked_add(bytes).filter(|sum| bytes == 0 || *sum <= bytes_max);
        self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).ok()?;
        Some(InputImageHold { all: Arc::clone(self), bytes })
    }

    /// Counts the input image of a job accepted before a restart.
    pub(super) fn enter_again(self: &Arc<Self>, spec: &GenerateSpec) -> InputImageHold {
        self.enter(spec, u64::MAX).expect("memory has fewer bytes")
    }
}

impl Drop for InputImageHold {
    fn drop(&mut self) {
        self.all.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// A job's input image, encoded for storage.
pub(super) async fn encode_for_storage(spec: &GenerateSpec) -> Result<Option<Vec<u8>>, JobsError> {
    let Some(start) = spec.input_image() else { return Ok(None) };
    let image = Arc::clone(&start.image);
    let encoded = tokio::task::spawn_blocking(move || encode(&image, OutputFormat::Png)).await;
    encoded.map_err(JobsError::storage)?.map(Some).map_err(JobsError::storage)
}

/// Decodes a stored input image. `None` if it cannot be read.
pub(super) async fn decode_stored(bytes: Vec<u8>) -> Option<Arc<RgbImage>> {
    let decoded = tokio::task::spawn_blocking(move || decode(&bytes)).await;
    decoded.ok()?.ok().map(Arc::new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::card_or_flux_dev;
    use crate::domain::conditioning::{GivenImage, ImageRole};
    use crate::domain::ids::ModelId;
    use crate::domain::model::ModelCard;
    use crate::domain::spec::GenerateParams;

    fn spec(has_image: bool) -> GenerateSpec {
        let card = ModelCard { input_images_max: 1, ..card_or_flux_dev(&ModelId::new("test")) };
        let pixels = (0..64 * 64 * 3).map(|at: u32| (at * at) as u8).collect();
        let image = Arc::new(RgbImage::new(64, 64, pixels).expect("three bytes per pixel"));
        let given = GivenImage::new("images[0]", ImageRole::Input, image);
        let images = if has_image { vec![given] } else { Vec::new() };
        GenerateSpec::new(GenerateParams { images, ..GenerateParams::default() }, &card).expect("valid")
    }

    #[test]
    fn the_total_is_bounded_and_memory_is_given_back() {
        let all = Arc::new(InputImages::default());
        let bytes_max = 2 * 64 * 64 * 3;
        let first = all.enter(&spec(true), bytes_max).expect("room");
        let _second = all.enter(&spec(true), bytes_max).expect("room");
        assert!(all.enter(&spec(true), bytes_max).is_none());
        let _plain = all.enter(&spec(false), bytes_max).expect("takes no memory");
        let again = all.enter_again(&spec(true));
        drop((first, again));
        let _third = all.enter(&spec(true), bytes_max).expect("room again");
    }

    #[tokio::test]
    async fn an_input_image_is_stored_bit_for_bit() {
        let spec = spec(true);
        let kept = encode_for_storage(&spec).await.expect("encodes").expect("there is one");
        let read = decode_stored(kept).await.expect("decodes");
        assert_eq!(read, spec.input_image().expect("there is one").image);
        assert!(decode_stored(b"damaged".to_vec()).await.is_none());
        assert_eq!(encode_for_storage(&super::tests::spec(false)).await.expect("nothing to do"), None);
    }
}
