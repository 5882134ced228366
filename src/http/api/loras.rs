//! `GET /v1/inference/loras`: the LoRAs that the calling key may use.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

use crate::http::error::{ApiError, ErrorCode};
use crate::http::extract::caller::InferenceCaller;
use crate::http::openapi::{Operation, Tag};
use crate::http::state::HttpState;
use crate::loras::Lora;

/// The LoRAs that a key may use.
#[derive(Serialize, ToSchema)]
#[schema(as = UsableLoraList)]
pub(in crate::http) struct UsableLoraListView {
    loras: Vec<UsableLoraView>,
}

/// A LoRA for requests.
#[derive(Serialize, ToSchema)]
#[schema(as = UsableLora)]
struct UsableLoraView {
    /// The SHA-256 of its file.
    id: String,
    /// A name that can stand for the id. It may come to mean another LoRA.
    name: String,
    /// The family of models that it is for.
    base: String,
    /// The words that trigger it, as its file says.
    trigger_words: Vec<String>,
    /// The license that its file names.
    license: Option<String>,
}

impl From<Lora> for UsableLoraView {
    fn from(Lora { id, name, report, .. }: Lora) -> Self {
        let (base, trigger_words, license) = (report.base, report.trigger_words, report.license);
        Self { id: id.to_string(), name, base, trigger_words, license }
    }
}

pub(in crate::http) async fn list(
    State(state): State<HttpState>,
    InferenceCaller(caller): InferenceCaller,
) -> Result<Json<UsableLoraListView>, ApiError> {
    let mut loras = state.loras.list().await?;
    loras.retain(|lora| caller.limits.allows_lora(&lora.id, &lora.name));
    Ok(Json(UsableLoraListView { loras: loras.into_iter().map(UsableLoraView::from).collect() }))
}

pub(in crate::http) fn list_operation() -> Operation {
    Operation::new(Tag::Images, "list_usable_loras", "The LoRAs that the calling key may use, by name")
        .answers::<UsableLoraListView>(StatusCode::OK, "The LoRAs.")
        .refuses([ErrorCode::StorageUnavailable])
}
