//! The images that jobs start from: how they are kept until their jobs end, and how much all of them may take up.
//!
//! They are kept without loss, so that a job that is drawn again after a crash gives the very same image.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::JobsError;
use crate::decode::decode;
use crate::domain::engine::RgbImage;
use crate::domain::format::OutputFormat;
use crate::domain::spec::GenerateSpec;
use crate::encode::encode;

/// What all of them take up now, in bytes of memory; in the database they take less.
#[derive(Debug, Default)]
pub(super) struct InputImages {
    bytes: AtomicU64,
}

/// What one job takes up of it, until it has ended.
#[derive(Debug)]
pub(super) struct InputImageHold {
    all: Arc<InputImages>,
    bytes: u64,
}

impl InputImages {
    /// Takes in what a job starts from. `None`: then all of them would take up more than `bytes_max`.
    pub(super) fn enter(self: &Arc<Self>, spec: &GenerateSpec, bytes_max: u64) -> Option<InputImageHold> {
        let bytes = spec.input_image().map_or(0, |start| start.image.pixels().len() as u64);
        let fits = |now: u64| now.checked_add(bytes).filter(|sum| bytes == 0 || *sum <= bytes_max);
        self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).ok()?;
        Some(InputImageHold { all: Arc::clone(self), bytes })
    }

    /// Takes in what a job starts from that was accepted in an earlier life.
    pub(super) fn enter_again(self: &Arc<Self>, spec: &GenerateSpec) -> InputImageHold {
        self.enter(spec, u64::MAX).expect("memory has fewer bytes")
    }
}

impl Drop for InputImageHold {
    fn drop(&mut self) {
        self.all.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// What a job starts from, as it is kept.
pub(super) async fn to_keep(spec: &GenerateSpec) -> Result<Option<Vec<u8>>, JobsError> {
    let Some(start) = spec.input_image() else { return Ok(None) };
    let image = Arc::clone(&start.image);
    let encoded = tokio::task::spawn_blocking(move || encode(&image, OutputFormat::Png)).await;
    encoded.map_err(JobsError::storage)?.map(Some).map_err(JobsError::storage)
}

/// An image that was kept. `None`: it cannot be read.
pub(super) async fn from_kept(bytes: Vec<u8>) -> Option<Arc<RgbImage>> {
    let decoded = tokio::task::spawn_blocking(move || decode(&bytes)).await;
    decoded.ok()?.ok().map(Arc::new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::card_or_flux_dev;
    use crate::domain::ids::ModelId;
    use crate::domain::model::ModelCard;
    use crate::domain::spec::GenerateParams;

    fn spec(has_image: bool) -> GenerateSpec {
        let card = ModelCard { input_images_max: 1, ..card_or_flux_dev(&ModelId::new("test")) };
        let pixels = (0..64 * 64 * 3).map(|at: u32| (at * at) as u8).collect();
        let image = Arc::new(RgbImage::new(64, 64, pixels).expect("three bytes per pixel"));
        let input_images = if has_image { vec![image] } else { Vec::new() };
        GenerateSpec::new(GenerateParams { input_images, ..GenerateParams::default() }, &card).expect("valid")
    }

    #[test]
    fn all_of_them_are_bounded_and_what_is_taken_up_is_given_back() {
        let all = Arc::new(InputImages::default());
        let bytes_max = 2 * 64 * 64 * 3;
        let first = all.enter(&spec(true), bytes_max).expect("room");
        let _second = all.enter(&spec(true), bytes_max).expect("room");
        assert!(all.enter(&spec(true), bytes_max).is_none());
        let _plain = all.enter(&spec(false), bytes_max).expect("takes up nothing");
        let again = all.enter_again(&spec(true));
        drop((first, again));
        let _third = all.enter(&spec(true), bytes_max).expect("room again");
    }

    #[tokio::test]
    async fn an_image_is_kept_to_the_last_bit() {
        let spec = spec(true);
        let kept = to_keep(&spec).await.expect("encodes").expect("there is one");
        let read = from_kept(kept).await.expect("decodes");
        assert_eq!(read, spec.input_image().expect("there is one").image);
        assert!(from_kept(b"damaged".to_vec()).await.is_none());
        assert_eq!(to_keep(&super::tests::spec(false)).await.expect("nothing to do"), None);
    }
}
