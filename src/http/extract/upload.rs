//! The file of a LoRA in a request's body, passed on while it arrives: by itself, or in a form with its name.

use std::time::Duration;

use axum::body::{BodyDataStream, Bytes};
use axum::extract::Request;
use axum::http::HeaderMap;
use axum::http::header::CONTENT_TYPE;
use futures_util::StreamExt as _;

use super::body::announced_bytes;
use super::json::is_encoded;
use super::multipart::{Event, Malformed, Multipart, parameter};
use crate::domain::spec::FieldError;
use crate::http::error::{ApiError, ErrorCode};
use crate::http::state::HttpState;
use crate::loras::{LoraCatalog, NewName, Upload};

/// What a form may add to its file, in bytes.
pub(super) const FORM_BYTES_MAX: u64 = 64 * 1024;
/// Longest value of a field beside the file, in bytes.
const VALUE_BYTES_MAX: usize = 1024;

/// The field of the file.
pub(in crate::http) const FILE: &str = "file";
/// The field of the name.
pub(in crate::http) const NAME: &str = "name";

/// The media type of the file by itself.
const ALONE: [&str; 1] = ["application/octet-stream"];

/// How the body has the file.
pub(super) enum Form {
    Alone,
    Multipart { boundary: String },
}

impl Form {
    /// `alone`: the media types of the file by itself.
    pub(super) fn of(headers: &HeaderMap, alone: &[&str]) -> Result<Self, ApiError> {
        let refuse = |detail: &str| Err(ApiError::new(ErrorCode::UnsupportedMediaType).with_detail(detail));
        if is_encoded(headers) {
            return refuse("Content-Encoding is not supported: send the body unencoded");
        }
        let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        match (essence.as_str(), parameter(content_type, "boundary")) {
            (file, _) if alone.contains(&file) => Ok(Self::Alone),
            ("multipart/form-data", Some(boundary)) if !boundary.is_empty() => Ok(Self::Multipart { boundary }),
            ("multipart/form-data", _) => refuse("multipart/form-data needs a boundary"),
            _ => refuse(&format!(
                "the body must be multipart/form-data, or {} for the file by itself",
                alone.join(" or ")
            )),
        }
    }
}

/// Receives the file of a request. `wanted` is a name from elsewhere in the request.
pub(in crate::http) async fn receive(
    request: Request,
    state: &HttpState,
    wanted: Option<String>,
) -> Result<(Upload, NewName), ApiError> {
    let form = Form::of(request.headers(), &ALONE)?;
    let bytes_max = state.loras.file_bytes_max().saturating_add(FORM_BYTES_MAX);
    if announced_bytes(request.headers()).is_some_and(|bytes| bytes as u64 > bytes_max) {
        return Err(too_large(state));
    }
    let name = NewName { wanted, file: String::new() };
    let mut received = Received { upload: None, name, value: Vec::new(), part: Part::None };
    let mut pieces = request.into_body().into_data_stream();
    let deadline = state.settings.body_deadline;
    match form {
        Form::Alone => {
            received.begin(&state.loras)?;
            while let Some(piece) = next(&mut pieces, deadline).await? {
                received.content(piece).await?;
            }
        }
        Form::Multipart { boundary } => {
            let (mut reader, mut events, mut bytes) = (Multipart::new(&boundary), Vec::new(), 0_u64);
            while let Some(piece) = next(&mut pieces, deadline).await? {
                bytes = bytes.saturating_add(piece.len() as u64);
                if bytes > bytes_max {
                    return Err(too_large(state));
                }
                reader.push(&piece, &mut events).map_err(malformed)?;
                for event in events.drain(..) {
                    received.take(event, &state.loras).await?;
                }
            }
            reader.finish().map_err(malformed)?;
        }
    }
    received.finish()
}

fn too_large(state: &HttpState) -> ApiError {
    let detail = format!("the limit is {} bytes", state.loras.file_bytes_max());
    ApiError::new(ErrorCode::BodyTooLarge).with_detail(detail)
}

/// The next piece of a body, each of which has to arrive in time.
pub(super) async fn next(pieces: &mut BodyDataStream, deadline: Duration) -> Result<Option<Bytes>, ApiError> {
    let piece = tokio::time::timeout(deadline, pieces.next()).await;
    let piece = piece.map_err(|_| ApiError::new(ErrorCode::BodyTimeout))?;
    piece.transpose().map_err(|_| refuse(FILE, "the body is incomplete"))
}

pub(super) fn malformed(error: Malformed) -> ApiError {
    refuse(FILE, &error.to_string())
}

pub(super) fn refuse(field: &str, reason: &str) -> ApiError {
    ApiError::invalid(vec![FieldError::new(field, reason)])
}

/// The part of a form that is arriving.
enum Part {
    None,
    File,
    Name,
}

/// What was received.
struct Received {
    upload: Option<Upload>,
    name: NewName,
    /// The value of the name.
    value: Vec<u8>,
    part: Part,
}

impl Received {
    fn begin(&mut self, loras: &LoraCatalog) -> Result<(), ApiError> {
        if self.upload.is_some() {
            return Err(refuse(FILE, "is given twice"));
        }
        self.upload = Some(loras.begin()?);
        self.part = Part::File;
        Ok(())
    }

    async fn take(&mut self, event: Event, loras: &LoraCatalog) -> Result<(), ApiError> {
        match event {
            Event::Part { name, file_name } if name == FILE => {
                self.begin(loras)?;
                self.name.file = file_name.unwrap_or_default();
                Ok(())
            }
            Event::Part { name, .. } if name == NAME && self.value.is_empty() && self.name.wanted.is_none() => {
                self.part = Part::Name;
                Ok(())
            }
            Event::Part { name, .. } if name == NAME => Err(refuse(NAME, "is given twice")),
            Event::Part { name, .. } => Err(refuse(&name, "is not a known field")),
            Event::Content(bytes) => self.content(bytes).await,
        }
    }

    async fn content(&mut self, bytes: impl AsRef<[u8]> + Send + 'static) -> Result<(), ApiError> {
        match (&self.part, &mut self.upload) {
            (Part::File, Some(upload)) => Ok(upload.write(bytes).await?),
            (Part::Name, _) => {
                self.value.extend_from_slice(bytes.as_ref());
                if self.value.len() > VALUE_BYTES_MAX { Err(refuse(NAME, "is too long")) } else { Ok(()) }
            }
            _ => Ok(()),
        }
    }

    fn finish(self) -> Result<(Upload, NewName), ApiError> {
        let Self { upload, mut name, value, .. } = self;
        let upload = upload.ok_or_else(|| refuse(FILE, "is required"))?;
        if !value.is_empty() {
            name.wanted = Some(String::from_utf8(value).map_err(|_| refuse(NAME, "is not UTF-8"))?);
        }
        Ok((upload, name))
    }
}
