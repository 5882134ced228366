//! `/v1/inference/uploads`: images that a key sends once, and names in later requests.

use axum::Json;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use serde::Serialize;
use time::OffsetDateTime;
use time::serde::rfc3339;
use utoipa::ToSchema;

use crate::http::error::{ApiError, ErrorCode};
use crate::http::extract::caller::InferenceCaller;
use crate::http::extract::image_upload::receive_image;
use crate::http::extract::path::UploadPath;
use crate::http::extract::upload::FILE;
use crate::http::openapi::schema::{ObjectSchema, text};
use crate::http::openapi::{Operation, Tag};
use crate::http::state::HttpState;
use crate::uploads::Upload;

/// An upload of the calling key.
#[derive(Serialize, ToSchema)]
#[schema(as = Upload)]
pub(in crate::http) struct UploadView {
    /// The SHA-256 of its file. No other key can use it.
    upload_id: String,
    /// The size of its file.
    bytes: u64,
    /// Pixels, once its orientation is applied.
    width: u32,
    /// Pixels, once its orientation is applied.
    height: u32,
    /// `png`, `jpeg` or `webp`.
    #[schema(value_type = String)]
    format: &'static str,
    /// It is removed then, unless the same file is uploaded again.
    #[serde(with = "rfc3339")]
    expires_at: OffsetDateTime,
}

impl From<Upload> for UploadView {
    fn from(Upload { id, bytes, width, height, format, expires_at }: Upload) -> Self {
        Self { upload_id: id.to_string(), bytes, width, height, format: format.as_str(), expires_at }
    }
}

/// All uploads of the calling key.
#[derive(Serialize, ToSchema)]
#[schema(as = UploadList)]
pub(in crate::http) struct UploadListView {
    data: Vec<UploadView>,
}

pub(in crate::http) async fn add(
    State(state): State<HttpState>,
    caller: InferenceCaller,
    request: Request,
) -> Result<(StatusCode, Json<UploadView>), ApiError> {
    let arrival = receive_image(request, &state.uploads, caller.0.key_id, state.settings.body_deadline).await?;
    // It may have been revoked while the file arrived.
    caller.recheck(&state).await?;
    let upload = state.uploads.add(arrival).await?;
    Ok((StatusCode::CREATED, Json(upload.into())))
}

pub(in crate::http) fn add_operation() -> Operation {
    let file = text().content_media_type("application/octet-stream").description(Some("The file: PNG, JPEG or WebP."));
    let form = ObjectSchema::new("An image to upload.").required(FILE, file);
    Operation::new(Tag::Images, "add_upload", "Upload an image for later requests")
        .description(
            "The body is the file, at most 16 MiB, or a form with it. `images` of later requests name it by its \
             `upload_id`. It is kept for a day; the same file of the same key keeps its id, and its day begins again. A \
             job has a copy of what it uses.",
        )
        .image_body(form)
        .answers::<UploadView>(StatusCode::CREATED, "The upload. It is stored when this answers.")
        .refuses([ErrorCode::TooManyUploads, ErrorCode::StorageUnavailable])
}

pub(in crate::http) async fn list(
    State(state): State<HttpState>,
    InferenceCaller(caller): InferenceCaller,
) -> Result<Json<UploadListView>, ApiError> {
    let uploads = state.uploads.list(caller.key_id).await?;
    Ok(Json(UploadListView { data: uploads.into_iter().map(UploadView::from).collect() }))
}

pub(in crate::http) fn list_operation() -> Operation {
    Operation::new(Tag::Images, "list_uploads", "The calling key's uploads, the newest first")
        .answers::<UploadListView>(StatusCode::OK, "All of them.")
        .refuses([ErrorCode::StorageUnavailable])
}

pub(in crate::http) async fn remove(
    State(state): State<HttpState>,
    InferenceCaller(caller): InferenceCaller,
    UploadPath(id): UploadPath,
) -> Result<StatusCode, ApiError> {
    state.uploads.remove(caller.key_id, id).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(in crate::http) fn remove_operation() -> Operation {
    Operation::new(Tag::Images, "remove_upload", "Remove an upload")
        .description("Jobs that were accepted with it have their copy.")
        .answers_nothing(StatusCode::NO_CONTENT, "It is removed.")
        .refuses([ErrorCode::StorageUnavailable])
}
