//! Forms (`multipart/form-data`) with texts and a few files, which are kept in memory.

use axum::extract::{FromRequest, Request};
use axum::http::HeaderMap;
use axum::http::header::CONTENT_TYPE;
use serde_json::{Map, Value};

use super::body::{BodyOwner, BodyReservation, Incoming, announced_bytes};
use super::json::{Fields, FromFields, LARGE_BODY_MORE_TIME, is_encoded};
use super::multipart::{Event, Malformed, Multipart, parameter};
use crate::decode::FILE_BYTES_MAX;
use crate::domain::ids::KeyId;
use crate::domain::spec::FieldError;
use crate::http::error::{ApiError, ErrorCode};
use crate::http::state::HttpState;

/// Maximum parts of a form. Each may have a head of some kilobytes, so that they fit into what a body may have beside its files.
const PARTS_MAX: usize = 64;
/// Most memory that a growing part takes beyond its content, in bytes.
const SPARE_BYTES_MAX: usize = 256 * 1024;
/// Maximum characters of a field's name in an answer.
const NAME_CHARS_MAX: usize = 64;

/// A form as `T`.
pub(in crate::http) struct ApiForm<T> {
    pub(in crate::http) value: T,
    /// The memory reserved for the body: to be kept as long as its files.
    pub(in crate::http) reservation: BodyReservation,
}

impl<T: FromFields> FromRequest<HttpState> for ApiForm<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &HttpState) -> Result<Self, ApiError> {
        let boundary = boundary(request.headers())?;
        let announced = announced_bytes(request.headers());
        let mut deadline = state.settings.body_deadline;
        if announced.is_some_and(|bytes| bytes > state.settings.body_bytes_max) {
            deadline += LARGE_BODY_MORE_TIME;
        }
        let owner = request.extensions().get().map_or(KeyId::NONE, |BodyOwner(owner)| *owner);
        let budget = (&state.0.bodies, owner);
        let mut incoming = Incoming::begin(request.into_body(), announced, T::body_bytes_max(state), budget)?;
        let received = receive(&mut incoming, &boundary, state.settings.body_bytes_max);
        let received =
            tokio::time::timeout(deadline, received).await.map_err(|_| ApiError::new(ErrorCode::BodyTimeout))??;
        let Received { texts, files, errors, .. } = received;
        let value = Fields::of_form(texts, files, errors).parse().map_err(ApiError::invalid)?;
        Ok(Self { value, reservation: incoming.into_reservation() })
    }
}

/// The boundary of a form.
fn boundary(headers: &HeaderMap) -> Result<String, ApiError> {
    let refuse = |detail: &str| Err(ApiError::new(ErrorCode::UnsupportedMediaType).with_detail(detail));
    if is_encoded(headers) {
        return refuse("Content-Encoding is not supported: send the body unencoded");
    }
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    if !essence.eq_ignore_ascii_case("multipart/form-data") {
        return refuse("the body must be multipart/form-data");
    }
    match parameter(content_type, "boundary").filter(|boundary| !boundary.is_empty()) {
        Some(boundary) => Ok(boundary),
        None => refuse("multipart/form-data needs a boundary"),
    }
}

/// Reads a form whose texts have at most `text_bytes_max` bytes together.
async fn receive(incoming: &mut Incoming, boundary: &str, text_bytes_max: usize) -> Result<Received, ApiError> {
    let (mut reader, mut events) = (Multipart::new(boundary), Vec::new());
    let mut received = Received { text_bytes_left: text_bytes_max, ..Received::default() };
    while let Some(piece) = incoming.next(ErrorCode::InvalidRequest).await? {
        reader.push(&piece, &mut events).map_err(malformed)?;
        for event in events.drain(..) {
            received.take(event)?;
        }
    }
    reader.finish().map_err(malformed)?;
    received.end_part();
    Ok(received)
}

fn malformed(error: Malformed) -> ApiError {
    ApiError::new(ErrorCode::InvalidRequest).with_detail(format!("the body {error}"))
}

/// A part of a form that is arriving.
struct Part {
    field: String,
    is_file: bool,
    bytes: Vec<u8>,
}

/// What was received of a form.
#[derive(Default)]
struct Received {
    texts: Map<String, Value>,
    files: Vec<(String, Vec<u8>)>,
    errors: Vec<FieldError>,
    part: Option<Part>,
    parts: usize,
    text_bytes_left: usize,
}

impl Received {
    fn take(&mut self, event: Event) -> Result<(), ApiError> {
        match event {
            Event::Part { name, file_name } => {
                self.end_part();
                self.parts += 1;
                if self.parts > PARTS_MAX {
                    let detail = format!("the form has more than {PARTS_MAX} parts");
                    return Err(ApiError::new(ErrorCode::InvalidRequest).with_detail(detail));
                }
                let is_file = file_name.is_some();
                let field = if is_file { field_of_file(&name).to_owned() } else { name };
                self.part = Some(Part { field, is_file, bytes: Vec::new() });
                Ok(())
            }
            Event::Content(bytes) => self.content(&bytes),
        }
    }

    fn content(&mut self, more: &[u8]) -> Result<(), ApiError> {
        let Some(part) = &mut self.part else { return Ok(()) };
        if part.is_file {
            if part.bytes.len() + more.len() > FILE_BYTES_MAX {
                return Err(too_large(&part.field, &format!("must be a file of at most {FILE_BYTES_MAX} bytes")));
            }
        } else {
            match self.text_bytes_left.checked_sub(more.len()) {
                Some(left) => self.text_bytes_left = left,
                None => return Err(too_large(&part.field, "is too long")),
            }
        }
        // A vector that grows by itself may allocate twice what it needs.
        if part.bytes.capacity() - part.bytes.len() < more.len() {
            part.bytes.reserve_exact(more.len().max(part.bytes.len().min(SPARE_BYTES_MAX)));
        }
        part.bytes.extend_from_slice(more);
        Ok(())
    }

    fn end_part(&mut self) {
        let Some(Part { field, is_file, bytes }) = self.part.take() else { return };
        if is_file {
            self.files.push((field, bytes));
        } else if self.texts.contains_key(&field) {
            self.errors.push(FieldError::new(field, "is given twice"));
        } else if let Ok(text) = String::from_utf8(bytes) {
            self.texts.insert(field, text.into());
        } else {
            self.errors.push(FieldError::new(field, "is not UTF-8"));
        }
    }
}

fn too_large(field: &str, reason: &str) -> ApiError {
    let field: String = field.chars().take(NAME_CHARS_MAX).collect();
    ApiError::new(ErrorCode::BodyTooLarge).with_errors(vec![FieldError::new(field, reason)])
}

/// The field of a file of several: clients name them `image`, `image[]` or `image[0]`.
fn field_of_file(name: &str) -> &str {
    let without = || {
        let (field, index) = name.strip_suffix(']')?.rsplit_once('[')?;
        index.bytes().all(|digit| digit.is_ascii_digit()).then_some(field)
    };
    without().unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(name: &str, file_name: Option<&str>) -> Event {
        Event::Part { name: name.to_owned(), file_name: file_name.map(str::to_owned) }
    }

    /// A form with room for this much text, after these events.
    fn received(text_bytes_max: usize, events: Vec<Event>) -> Result<Received, ApiError> {
        let mut received = Received { text_bytes_left: text_bytes_max, ..Received::default() };
        events.into_iter().try_for_each(|event| received.take(event))?;
        received.end_part();
        Ok(received)
    }

    #[test]
    fn texts_and_files_are_kept_apart() {
        let content = |bytes: &[u8]| Event::Content(bytes.to_vec());
        let events = vec![
            part("image[]", Some("a.png")),
            content(b"a"),
            content(b"b"),
            part("prompt", None),
            content(b"fox"),
            part("image[1]", Some("b.png")),
            part("prompt", None),
            part("user", None),
            content(b"\xff"),
        ];
        let form = received(100, events).expect("small enough");
        assert_eq!(form.files, [("image".to_owned(), b"ab".to_vec()), ("image".to_owned(), Vec::new())]);
        assert_eq!(form.texts.get("prompt"), Some(&Value::from("fox")));
        let errors: Vec<(&str, &str)> = form.errors.iter().map(|error| (&*error.field, &*error.reason)).collect();
        assert_eq!(errors, [("prompt", "is given twice"), ("user", "is not UTF-8")]);
    }

    #[test]
    fn parts_are_limited() {
        let code = |outcome: Result<Received, ApiError>| outcome.err().map(|error| error.code());
        let texts = |bytes: usize| vec![part("prompt", None), Event::Content(vec![b'x'; bytes])];
        assert_eq!(code(received(5, texts(5))), None);
        assert_eq!(code(received(5, texts(6))), Some(ErrorCode::BodyTooLarge));
        let file = |bytes: usize| vec![part("image", Some("")), Event::Content(vec![0; bytes])];
        assert_eq!(code(received(5, file(FILE_BYTES_MAX))), None);
        assert_eq!(code(received(5, file(FILE_BYTES_MAX + 1))), Some(ErrorCode::BodyTooLarge));
        let parts = |count: usize| (0..count).map(|_| part("image", Some("a"))).collect::<Vec<_>>();
        assert_eq!(code(received(5, parts(PARTS_MAX))), None);
        assert_eq!(code(received(5, parts(PARTS_MAX + 1))), Some(ErrorCode::InvalidRequest));
    }

    #[test]
    fn files_of_one_field_have_several_names() {
        for (name, field) in [
            ("image", "image"),
            ("image[]", "image"),
            ("image[12]", "image"),
            ("image[a]", "image[a]"),
            ("image]", "image]"),
            ("mask[", "mask["),
        ] {
            assert_eq!(field_of_file(name), field);
        }
    }
}
