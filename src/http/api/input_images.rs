//! The images of a request: from base64, files or uploads to pixels in the sizes of their roles, off the async threads.

mod look;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::fair_semaphore::FairSemaphore;
use crate::decode::{self, DecodeError, FILE_BYTES_MAX, PIXELS_MAX};
use crate::domain::conditioning::{GivenImage, ImageOptions, ImageRole};
use crate::domain::ids::KeyId;
use crate::domain::image::RgbImage;
use crate::domain::model::ModelCard;
use crate::domain::spec::{
    FieldError, GenerateParams, GenerateSpec, PIXELS_PER_TOKEN_SIDE, image_count_errors, size_errors,
};
use crate::http::error::{ApiError, ErrorCode};
use crate::http::extract::body::BodyReservation;
use crate::uploads::{UploadError, UploadFile, Uploads};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// Requests whose images are decoded at one time, at most one for each key: each may take hundreds of megabytes.
const DECODINGS_MAX: usize = 2;
/// Maximum waiting requests of one key.
const KEY_WAITING_MAX: usize = 32;
/// Maximum waiting requests in total.
const WAITING_MAX: usize = 256;
/// Maximum pixels of all images of a request, before they are resized: they are in memory together.
const REQUEST_PIXELS_MAX: u64 = 4 * PIXELS_MAX;
/// Maximum time for reading the uploads of a request from a bucket: other requests wait meanwhile.
const READING_MAX: Duration = Duration::from_secs(20);

/// The most that the images of one request add to its body, in bytes.
pub(in crate::http) fn body_bytes(images_max: usize) -> usize {
    // Quotation marks and a comma.
    images_max * (base64::encoded_len(FILE_BYTES_MAX, true).unwrap_or(usize::MAX) + 3)
}

/// Where an image of a request comes from.
pub(in crate::http) enum ImageSource {
    /// A file as text.
    Base64(String),
    /// A file.
    File(Vec<u8>),
    /// A file as text, of which the negative is meant.
    Inverted(String),
    /// A file whose transparency is a mask.
    AlphaMask(Vec<u8>),
    /// An upload of the same key, by its id.
    Upload(String),
}

/// An image that a request asks for.
pub(in crate::http) struct WantedImage {
    /// The field that names it, for errors: `images[0]`.
    pub(in crate::http) field: String,
    /// What it does.
    pub(in crate::http) role: ImageRole,
    /// Where it comes from.
    pub(in crate::http) source: ImageSource,
    /// What else is said of it.
    pub(in crate::http) options: ImageOptions,
}

/// Decodes images, a few at a time.
#[derive(Debug)]
pub(in crate::http) struct ImageDecoder {
    permits: Arc<FairSemaphore>,
    uploads: Uploads,
}

impl ImageDecoder {
    /// A decoder for requests that may name these uploads.
    pub(in crate::http) fn new(uploads: Uploads) -> Self {
        Self { permits: Arc::new(FairSemaphore::new(DECODINGS_MAX, KEY_WAITING_MAX, WAITING_MAX)), uploads }
    }

    /// The valid request from `params` with these images, or all violated rules. `reservation` covers the body, which
    /// contains the images; its owner is the key whose uploads they may be.
    ///
    /// # Errors
    /// If uploads are missing and nothing else is wrong, if too many requests are waiting, or on an internal error.
    pub(in crate::http) async fn spec(
        &self,
        images: Vec<WantedImage>,
        params: GenerateParams,
        card: &Arc<ModelCard>,
        reservation: BodyReservation,
    ) -> Result<Result<GenerateSpec, Vec<FieldError>>, ApiError> {
        if images.is_empty() {
            return Ok(GenerateSpec::new(params, card));
        }
        let counted = GenerateParams { images: stand_ins(&images), ..params.clone() };
        if !image_count_errors(&counted, card).is_empty() {
            // None of them is decoded.
            return Ok(Err(broken_rules(counted, card)));
        }
        let owner = reservation.owner();
        let files = self.files_of(&images, owner).await?;
        let Some(permit) = self.permits.acquire(owner).await else {
            return Err(ApiError::too_many_bodies("too many images are waiting to be decoded"));
        };
        let card = Arc::clone(card);
        let spec = tokio::task::spawn_blocking(move || {
            // Held by the work itself, which continues if the client hangs up.
            let _permit = (permit, reservation);
            decoded_spec(images, &files, params, &card)
        });
        spec.await.map_err(|error| ApiError::new(ErrorCode::Internal).with_cause(&error))?
    }

    /// The files of the uploads among these images, as far as they are there.
    async fn files_of(&self, images: &[WantedImage], owner: KeyId) -> Result<HashMap<String, UploadFile>, ApiError> {
        let mut files = HashMap::new();
        for image in images {
            let ImageSource::Upload(id) = &image.source else { continue };
            if let Some(file) = self.uploads.file(owner, id).await? {
                files.insert(id.clone(), file);
            }
        }
        Ok(files)
    }
}

fn decoded_spec(
    images: Vec<WantedImage>,
    files: &HashMap<String, UploadFile>,
    params: GenerateParams,
    card: &ModelCard,
) -> Result<Result<GenerateSpec, Vec<FieldError>>, ApiError> {
    let stand_ins = stand_ins(&images);
    let mut decoded = Decoded::default();
    for image in images {
        decoded.add(image, files)?;
    }
    let Decoded { given, mut errors, missing, .. } = decoded;
    if errors.is_empty() && missing.is_empty() {
        return Ok(GenerateSpec::new(decode::prepare(GenerateParams { images: given, ..params }, card), card));
    }
    errors.extend(broken_rules(GenerateParams { images: stand_ins, ..params }, card));
    if errors.is_empty() {
        return Err(ApiError::new(ErrorCode::UploadNotFound).with_errors(missing));
    }
    errors.extend(missing);
    Ok(Err(errors))
}

/// Images of one pixel in place of those of a request.
fn stand_ins(images: &[WantedImage]) -> Vec<GivenImage> {
    let blank = blank((1, 1));
    let stand_in = |image: &WantedImage| GivenImage {
        options: image.options.clone(),
        ..GivenImage::new(image.field.clone(), image.role, Arc::clone(&blank))
    };
    images.iter().map(stand_in).collect()
}

/// What is wrong with a request that has stand-ins for its images. How many there are, and their options, are rules of their own.
fn broken_rules(mut params: GenerateParams, card: &ModelCard) -> Vec<FieldError> {
    let size = (params.width.unwrap_or(card.defaults.width), params.height.unwrap_or(card.defaults.height));
    (params.width, params.height) = (Some(size.0), Some(size.1));
    // With another size than that of its role, each would be refused for that.
    let output = if size_errors(size, &card.limits).is_empty() { size } else { (1, 1) };
    let (output, style) = (blank(output), card.attached.style.map_or(1, |style| style.side));
    for given in &mut params.images {
        given.image = match given.role {
            ImageRole::Input | ImageRole::Mask | ImageRole::Control => Arc::clone(&output),
            ImageRole::Reference => blank((PIXELS_PER_TOKEN_SIDE, PIXELS_PER_TOKEN_SIDE)),
            ImageRole::Style => blank((style, style)),
        };
    }
    GenerateSpec::new(params, card).err().unwrap_or_default()
}

/// A white image: as a mask it selects all.
fn blank((width, height): (u32, u32)) -> Arc<RgbImage> {
    let pixels = vec![u8::MAX; width as usize * height as usize * 3];
    Arc::new(RgbImage::new(width, height, pixels).expect("three bytes per pixel"))
}

/// The images of a request as far as they are decoded.
#[derive(Default)]
struct Decoded {
    given: Vec<GivenImage>,
    /// Pixels of all of them.
    pixels: u64,
    errors: Vec<FieldError>,
    /// Uploads that are not there.
    missing: Vec<FieldError>,
    /// How long reading uploads has taken.
    reading: Duration,
}

/// Why an image cannot be used.
enum Unusable {
    /// In words for the client.
    Refused(String),
    /// The upload is not there.
    Missing,
    /// It cannot be read now.
    Unread(UploadError),
}

impl From<DecodeError> for Unusable {
    fn from(error: DecodeError) -> Self {
        Self::Refused(error.to_string())
    }
}

impl Decoded {
    fn add(&mut self, wanted: WantedImage, files: &HashMap<String, UploadFile>) -> Result<(), ApiError> {
        let WantedImage { field, role, source, options } = wanted;
        match self.decode(source, files) {
            Ok(image) => self.given.push(GivenImage { options, ..GivenImage::new(field, role, Arc::new(image)) }),
            Err(Unusable::Refused(reason)) => self.errors.push(FieldError::new(field, reason)),
            Err(Unusable::Missing) => {
                let reason = "the key has no such upload, or it has expired";
                self.missing.push(FieldError::new(format!("{field}.upload_id"), reason));
            }
            Err(Unusable::Unread(error)) => return Err(error.into()),
        }
        Ok(())
    }

    fn decode(&mut self, source: ImageSource, files: &HashMap<String, UploadFile>) -> Result<RgbImage, Unusable> {
        let is_mask = matches!(source, ImageSource::AlphaMask(_));
        let is_inverted = matches!(source, ImageSource::Inverted(_));
        let bytes = match source {
            ImageSource::Base64(text) | ImageSource::Inverted(text) => of_base64(&text)?,
            ImageSource::File(bytes) | ImageSource::AlphaMask(bytes) => bytes,
            ImageSource::Upload(id) => self.read(files.get(&id).ok_or(Unusable::Missing)?)?,
        };
        let header = decode::inspect(&bytes)?;
        self.pixels += u64::from(header.width) * u64::from(header.height);
        if self.pixels > REQUEST_PIXELS_MAX {
            let reason = format!("all images of a request together must have at most {REQUEST_PIXELS_MAX} pixels");
            return Err(Unusable::Refused(reason));
        }
        let image = if is_mask { decode::decode_mask_of_alpha(&bytes)? } else { decode::decode(&bytes)? };
        Ok(if is_inverted { image.inverted() } else { image })
    }

    /// Reads an upload, in the time that is left.
    fn read(&mut self, file: &UploadFile) -> Result<Vec<u8>, Unusable> {
        let begun = Instant::now();
        let read = file.read(READING_MAX.saturating_sub(self.reading));
        self.reading += begun.elapsed();
        read.map_err(Unusable::Unread)?.ok_or(Unusable::Missing)
    }
}

fn of_base64(text: &str) -> Result<Vec<u8>, Unusable> {
    let refused = |reason: &str| Unusable::Refused(reason.to_owned());
    if text.starts_with("data:") {
        return Err(refused("must be base64 only, without `data:` up to the comma"));
    }
    STANDARD.decode(text).map_err(|_| refused("is not base64 with padding and without line breaks"))
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

    #[test]
    fn the_pixels_of_all_images_are_bounded_before_they_are_decoded() {
        // Only a head: decoding it would report a truncated file.
        let image = RgbImage::new(1, 1, vec![7; 3]).expect("three bytes per pixel");
        let mut large = crate::encode::encode(&image, crate::domain::format::OutputFormat::Png).expect("encodes");
        large[16..24].copy_from_slice(&[0, 0, 0x10, 0, 0, 0, 0x10, 0]);
        let sum = crc32fast::hash(&large[12..29]).to_be_bytes();
        large[29..33].copy_from_slice(&sum);
        let mut decoded = Decoded { pixels: REQUEST_PIXELS_MAX - 4096 * 4096 + 1, ..Decoded::default() };
        let refused = decoded.decode(ImageSource::File(large), &HashMap::new());
        assert!(matches!(refused, Err(Unusable::Refused(reason)) if reason.contains("together")));
    }
}
