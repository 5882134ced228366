//! The input images of a request: decoded from base64 to pixels in the output size, off the async threads.

mod look;

use std::sync::Arc;

use super::fair_semaphore::FairSemaphore;
use crate::decode::{self, FILE_BYTES_MAX};
use crate::domain::conditioning::GivenImage;
use crate::domain::image::RgbImage;
use crate::domain::model::ModelCard;
use crate::domain::spec::{FieldError, GenerateParams, GenerateSpec, INPUT_IMAGES};
use crate::http::error::{ApiError, ErrorCode};
use crate::http::extract::body::BodyReservation;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// Requests whose images are decoded at one time, at most one for each key: each may take hundreds of megabytes.
const DECODINGS_MAX: usize = 2;
/// Maximum waiting requests of one key.
const KEY_WAITING_MAX: usize = 32;
/// Maximum waiting requests in total.
const WAITING_MAX: usize = 256;

/// The most that the images of one request add to its body, in bytes.
pub(in crate::http) fn body_bytes(images_max: usize) -> usize {
    // Quotation marks and a comma.
    images_max * (base64::encoded_len(FILE_BYTES_MAX, true).unwrap_or(usize::MAX) + 3)
}

/// Decodes images, a few at a time.
#[derive(Debug)]
pub(in crate::http) struct ImageDecoder {
    permits: Arc<FairSemaphore>,
}

impl Default for ImageDecoder {
    fn default() -> Self {
        Self { permits: Arc::new(FairSemaphore::new(DECODINGS_MAX, KEY_WAITING_MAX, WAITING_MAX)) }
    }
}

impl ImageDecoder {
    /// The valid request from `params` with these images, or all violated rules. `reservation` covers the body, which
    /// contains the images.
    ///
    /// # Errors
    /// If too many requests are waiting, or on an internal error.
    pub(in crate::http) async fn spec(
        &self,
        images: Vec<String>,
        params: GenerateParams,
        card: &Arc<ModelCard>,
        reservation: BodyReservation,
    ) -> Result<Result<GenerateSpec, Vec<FieldError>>, ApiError> {
        if images.is_empty() {
            return Ok(GenerateSpec::new(params, card));
        }
        if images.len() > card.input_images_max {
            return Ok(Err(refuse(Vec::new(), images.len(), params, card)));
        }
        let internal = |error: &dyn std::fmt::Display| ApiError::new(ErrorCode::Internal).with_cause(error);
        let Some(permit) = self.permits.acquire(reservation.owner()).await else {
            return Err(ApiError::too_many_bodies("too many images are waiting to be decoded"));
        };
        let card = Arc::clone(card);
        let spec = tokio::task::spawn_blocking(move || {
            // Held by the work itself, which continues if the client hangs up.
            let _permit = (permit, reservation);
            decoded_spec(&images, params, &card)
        });
        spec.await.map_err(|error| internal(&error))
    }
}

fn decoded_spec(images: &[String], params: GenerateParams, card: &ModelCard) -> Result<GenerateSpec, Vec<FieldError>> {
    let (mut given, mut errors) = (Vec::with_capacity(images.len()), Vec::new());
    for (index, image) in images.iter().enumerate() {
        let field = field_of(index);
        match decoded(image) {
            Ok(image) => given.push(GivenImage::new(field, card.conditioning.main_role(), Arc::new(image))),
            Err(reason) => errors.push(FieldError::new(field, reason)),
        }
    }
    if !errors.is_empty() {
        return Err(refuse(errors, images.len(), params, card));
    }
    GenerateSpec::new(decode::prepare(GenerateParams { images: given, ..params }, card), card)
}

fn field_of(index: usize) -> String {
    format!("{INPUT_IMAGES}[{index}]")
}

/// The errors of the images and of all other fields.
fn refuse(mut errors: Vec<FieldError>, images: usize, params: GenerateParams, card: &ModelCard) -> Vec<FieldError> {
    // Images stand in for those that cannot be read: how many there are is a rule of its own.
    let blank = Arc::new(RgbImage::new(1, 1, vec![0; 3]).expect("three bytes"));
    let stand_in = |index| GivenImage::new(field_of(index), card.conditioning.main_role(), Arc::clone(&blank));
    let params = GenerateParams {
        width: params.width.or(Some(card.defaults.width)),
        height: params.height.or(Some(card.defaults.height)),
        images: (0..images).map(stand_in).collect(),
        ..params
    };
    let others = GenerateSpec::new(params, card).err().unwrap_or_default();
    errors.extend(others.into_iter().filter(|error| !(0..images).any(|index| error.field == field_of(index))));
    errors
}

fn decoded(base64: &str) -> Result<RgbImage, String> {
    if base64.starts_with("data:") {
        return Err("must be base64 only, without `data:` up to the comma".to_owned());
    }
    let bytes = STANDARD.decode(base64).map_err(|_| "is not base64 with padding and without line breaks".to_owned())?;
    decode::decode(&bytes).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_image_fits_the_limit_of_the_body() {
        let longest = STANDARD.encode(vec![0; FILE_BYTES_MAX]).len();
        assert_eq!(body_bytes(2), 2 * (longest + "\"\",".len()));
        assert_eq!(body_bytes(0), 0);
    }
}
