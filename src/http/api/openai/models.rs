//! `/v1/models`: the models that this worker serves. Those it merely knows are left out, since clients offer to their
//! users what stands here. Needs no key, like the catalog.

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

use crate::catalog::Availability;
use crate::domain::ids::ModelId;
use crate::domain::precision::Precision;
use crate::http::HttpState;
use crate::http::error::{ApiError, ErrorCode};
use crate::http::openapi::{Operation, Tag};

/// The models that can be asked for.
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
    /// Unix seconds: since when this worker has it.
    created: i64,
    /// What stands before the slash in its id.
    owned_by: String,
    /// `fp8`: the model draws in eight bits, which is lossy. Not there: it draws in full.
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
        .answers::<ModelListView>(StatusCode::OK, "Those that can be asked for, also while they are being loaded.")
}

/// One model. Clients write the slash in its id as `%2F`, or as it is.
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
