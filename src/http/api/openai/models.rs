//! `/v1/models`: the models that this worker serves. Models that it only knows are left out, since clients offer this
//! list to their users. Needs no key, like the catalog.

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

use crate::catalog::Availability;
use crate::domain::ids::ModelId;
use crate::domain::precision::Precision;
use crate::http::error::{ApiError, ErrorCode};
use crate::http::openapi::{Operation, Tag};
use crate::http::state::HttpState;

/// The models that this worker serves.
#[derive(Serialize, ToSchema)]
#[schema(as = OpenAiModelList)]
pub(in crate::http) struct ModelListView {
    object: &'static str,
    data: Vec<ModelView>,
}

/// A model.
#[derive(Serialize, ToSchema)]
#[schema(as = OpenAiModel)]
pub(in crate::http) struct ModelView {
    #[schema(value_type = String)]
    id: ModelId,
    object: &'static str,
    /// Unix seconds: when this worker started.
    created: i64,
    /// The part of its id before the slash.
    owned_by: String,
    /// `bf16` or `fp8`: the model runs in it, which is lossy. Absent: it runs in full precision.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    precision: Option<Precision>,
}

impl ModelView {
    fn new(id: &ModelId, state: &HttpState) -> Self {
        let owner = id.as_str().split_once('/').map_or("fluxserve", |(owner, _)| owner);
        Self {
            id: id.clone(),
            object: "model",
            created: state.0.started_at.unix_timestamp(),
            owned_by: owner.to_owned(),
            precision: state.catalog.precision().if_lossy(),
        }
    }
}

fn is_served(state: &HttpState, id: &ModelId) -> bool {
    state.catalog.availability(id) != Availability::NotServed
}

pub(in crate::http) async fn list(State(state): State<HttpState>) -> Json<ModelListView> {
    let ids = state.catalog.cards().into_iter().map(|card| &card.id).filter(|id| is_served(&state, id));
    let data = ids.map(|id| ModelView::new(id, &state)).collect();
    Json(ModelListView { object: "list", data })
}

pub(in crate::http) fn list_operation() -> Operation {
    Operation::new(Tag::OpenAi, "list_openai_models", "The models that this worker serves")
        .answers::<ModelListView>(StatusCode::OK, "The served models, also while they are loading.")
}

/// One model. Clients may encode the slash in its id as `%2F`.
pub(in crate::http) async fn show(
    State(state): State<HttpState>,
    path: Result<Path<String>, PathRejection>,
) -> Result<Json<ModelView>, ApiError> {
    let id = path.ok().map(|Path(id)| ModelId::new(id)).filter(|id| is_served(&state, id));
    let id = id.ok_or_else(|| ApiError::new(ErrorCode::ModelNotFound))?;
    Ok(Json(ModelView::new(&id, &state)))
}

pub(in crate::http) fn show_operation() -> Operation {
    Operation::new(Tag::OpenAi, "get_openai_model", "One of the models that this worker serves")
        .answers::<ModelView>(StatusCode::OK, "The model.")
}
