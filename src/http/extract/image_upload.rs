//! The file of an image in a request's body, passed on while it arrives: by itself, or in a form.

use std::time::Duration;

use axum::extract::Request;

use super::body::announced_bytes;
use super::multipart::{Event, Multipart};
use super::upload::{FILE, FORM_BYTES_MAX, Form, malformed, next, refuse};
use crate::decode::FILE_BYTES_MAX;
use crate::domain::format::OutputFormat;
use crate::domain::ids::KeyId;
use crate::http::error::{ApiError, ErrorCode};
use crate::uploads::{Arrival, Uploads};

/// The most that a body has.
const BODY_BYTES_MAX: u64 = FILE_BYTES_MAX as u64 + FORM_BYTES_MAX;

/// Receives the file of a request of this owner. Each piece of it has to arrive within `deadline`.
pub(in crate::http) async fn receive_image(
    request: Request,
    uploads: &Uploads,
    owner: KeyId,
    deadline: Duration,
) -> Result<Arrival, ApiError> {
    let form = Form::of(request.headers(), &OutputFormat::ALL.map(OutputFormat::content_type))?;
    if announced_bytes(request.headers()).is_some_and(|bytes| bytes as u64 > BODY_BYTES_MAX) {
        return Err(too_large());
    }
    let mut pieces = request.into_body().into_data_stream();
    let Form::Multipart { boundary } = form else {
        let mut arrival = uploads.begin(owner).await?;
        while let Some(piece) = next(&mut pieces, deadline).await? {
            arrival.write(piece).await?;
        }
        return Ok(arrival);
    };
    let (mut reader, mut events, mut bytes) = (Multipart::new(&boundary), Vec::new(), 0_u64);
    let mut arrival: Option<Arrival> = None;
    while let Some(piece) = next(&mut pieces, deadline).await? {
        bytes = bytes.saturating_add(piece.len() as u64);
        if bytes > BODY_BYTES_MAX {
            return Err(too_large());
        }
        reader.push(&piece, &mut events).map_err(malformed)?;
        for event in events.drain(..) {
            match event {
                Event::Part { name, .. } if name != FILE => return Err(refuse(&name, "is not a known field")),
                Event::Part { .. } if arrival.is_some() => return Err(refuse(FILE, "is given twice")),
                Event::Part { .. } => arrival = Some(uploads.begin(owner).await?),
                Event::Content(content) => {
                    if let Some(arrival) = &mut arrival {
                        arrival.write(content).await?;
                    }
                }
            }
        }
    }
    reader.finish().map_err(malformed)?;
    arrival.ok_or_else(|| refuse(FILE, "is required"))
}

fn too_large() -> ApiError {
    ApiError::new(ErrorCode::BodyTooLarge).with_detail(format!("the limit is {FILE_BYTES_MAX} bytes"))
}
