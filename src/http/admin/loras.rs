//! `/v1/loras`: the LoRAs that requests may use.

use axum::Json;
use axum::extract::{FromRequest, Request, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use serde_json::json;
use tracing::Instrument as _;

use super::wire::lora::{FetchLora, LoraListView, LoraView, upload_schema};
use crate::domain::format::OutputFormat;
use crate::http::error::{ApiError, ErrorCode};
use crate::http::extract::administrator::Administrator;
use crate::http::extract::json::{ApiJson, is_json};
use crate::http::extract::path::LoraPath;
use crate::http::extract::query::Parameters;
use crate::http::extract::upload::{NAME, receive};
use crate::http::openapi::schema::text;
use crate::http::openapi::{Operation, Tag};
use crate::http::state::HttpState;
use crate::loras::{Added, HubFile, LoraError, NewName, Upload};

/// The path of uploads, which may take longer than other requests.
pub(in crate::http) const UPLOAD_PATH: &str = "/v1/loras";

pub(in crate::http) async fn list(
    State(state): State<HttpState>,
    _: Administrator,
) -> Result<Json<LoraListView>, ApiError> {
    let loras = state.loras.list().await?;
    Ok(Json(LoraListView { data: loras.into_iter().map(LoraView::from).collect() }))
}

pub(in crate::http) fn list_operation() -> Operation {
    Operation::new(Tag::Loras, "list_loras", "All LoRAs, by name")
        .answers::<LoraListView>(StatusCode::OK, "All LoRAs.")
        .refuses([ErrorCode::StorageUnavailable])
}

/// Where a LoRA comes from.
enum Source {
    Hub { file: HubFile, name: Option<String> },
    Upload { upload: Upload, name: NewName },
}

pub(in crate::http) async fn add(
    State(state): State<HttpState>,
    administrator: Administrator,
    mut parameters: Parameters,
    request: Request,
) -> Result<(StatusCode, Json<LoraView>), ApiError> {
    let wanted = parameters.take(NAME, "a name");
    parameters.finish()?;
    let source = if is_json(request.headers()) {
        let read = <ApiJson<FetchLora> as FromRequest<HttpState>>::from_request(request, &state).await?;
        let FetchLora { file, name } = read.value;
        Source::Hub { file, name: name.or(wanted) }
    } else {
        let (upload, name) = receive(request, &state, wanted).await?;
        Source::Upload { upload, name }
    };
    let administrator = administrator.recheck(&state).await?;
    let (loras, actor) = (state.loras.clone(), administrator.actor());
    let adding = async move {
        match source {
            Source::Hub { file, name } => loras.add_from_hub(file, name, &actor).await,
            Source::Upload { upload, name } => loras.add(upload, name, &actor).await,
        }
    };
    let Added { lora, is_new } = in_full(adding).await?;
    Ok((if is_new { StatusCode::CREATED } else { StatusCode::OK }, Json(lora.into())))
}

/// Changes the catalog in a task of its own: a client that hangs up must not stop it between the file and its row.
async fn in_full<T: Send + 'static>(
    change: impl Future<Output = Result<T, LoraError>> + Send + 'static,
) -> Result<T, ApiError> {
    let changed = tokio::spawn(change.in_current_span()).await;
    Ok(changed.map_err(|error| ApiError::new(ErrorCode::Internal).with_cause(&error))??)
}

pub(in crate::http) fn add_operation() -> Operation {
    Operation::new(Tag::Loras, "add_lora", "Add a LoRA")
        .description(
            "The body is the file, a form with it, or JSON that names a file of the hub. The file is checked, and refused \
             if it is broken, for another family of models, or changes nothing. It is stored when this answers. A file \
             that is there already is not added again.",
        )
        .query(NAME, text(), "Its name, unless the form has it. By default that of its file.")
        .file_body(upload_schema())
        .or_body::<FetchLora>(json!({ "repository": "owner/style", "file": "style.safetensors" }))
        .answers::<LoraView>(StatusCode::CREATED, "The new LoRA, and what it changes.")
        .answers::<LoraView>(StatusCode::OK, "The LoRA with this file, which was there already.")
        .refuses([ErrorCode::LoraRejected, ErrorCode::LoraExists, ErrorCode::StorageUnavailable])
}

pub(in crate::http) async fn show(
    State(state): State<HttpState>,
    _: Administrator,
    LoraPath(wanted): LoraPath,
) -> Result<Json<LoraView>, ApiError> {
    Ok(Json(state.loras.get(&wanted).await?.into()))
}

pub(in crate::http) fn show_operation() -> Operation {
    Operation::new(Tag::Loras, "get_lora", "Get a LoRA")
        .answers::<LoraView>(StatusCode::OK, "The LoRA, and what it changes.")
        .refuses([ErrorCode::StorageUnavailable])
}

pub(in crate::http) async fn thumbnail(
    State(state): State<HttpState>,
    _: Administrator,
    LoraPath(wanted): LoraPath,
) -> Result<Response, ApiError> {
    let image = state.loras.thumbnail(&wanted).await?;
    Ok(([(CONTENT_TYPE, OutputFormat::Jpeg.content_type())], image).into_response())
}

pub(in crate::http) fn thumbnail_operation() -> Operation {
    Operation::new(Tag::Loras, "get_lora_thumbnail", "The thumbnail of a LoRA")
        .description("Made from the one in its file. Not every file has one.")
        .answers_bytes(StatusCode::OK, OutputFormat::Jpeg.content_type(), "The thumbnail.")
        .refuses([ErrorCode::StorageUnavailable])
}

pub(in crate::http) async fn remove(
    State(state): State<HttpState>,
    administrator: Administrator,
    LoraPath(wanted): LoraPath,
) -> Result<StatusCode, ApiError> {
    let (loras, actor) = (state.loras.clone(), administrator.actor());
    in_full(async move { loras.remove(&wanted, &actor).await }).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(in crate::http) fn remove_operation() -> Operation {
    Operation::new(Tag::Loras, "remove_lora", "Remove a LoRA and its file")
        .description("Refused as long as an unfinished job uses it.")
        .answers_nothing(StatusCode::NO_CONTENT, "It is removed.")
        .refuses([ErrorCode::LoraInUse, ErrorCode::StorageUnavailable])
}
