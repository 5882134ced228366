//! `/v1/playground/image`: an image for the administrator, without a key.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde_json::json;

use super::wire::job::AnyJobView;
use crate::domain::ids::KeyId;
use crate::domain::limits::KeyLimits;
use crate::http::api::inference::{SubmitImage, ValidImage};
use crate::http::error::{ApiError, ErrorCode};
use crate::http::extract::administrator::Administrator;
use crate::http::extract::json::ApiJson;
use crate::http::extract::preferences::RequestPreferences;
use crate::http::openapi::{Operation, Tag};
use crate::http::origin::ClientsOrigin;
use crate::http::state::HttpState;
use crate::jobs::{Submission, Submitted};

pub(in crate::http) async fn submit(
    State(state): State<HttpState>,
    administrator: Administrator,
    ClientsOrigin(origin): ClientsOrigin,
    ApiJson { value: request, reservation, .. }: ApiJson<SubmitImage>,
) -> Result<(StatusCode, Json<AnyJobView>), ApiError> {
    request.webhook().refuse()?;
    let card = state.card_of(request.model())?;
    let urgency = request.urgency();
    let limits = KeyLimits::default();
    let valid = request.into_spec(&state, card, &limits, (RequestPreferences::JSON, reservation)).await?;
    let ValidImage { spec, output_format, .. } = valid;
    administrator.recheck(&state).await?;
    let submission = Submission {
        owner: KeyId::NONE,
        limits,
        spec,
        output_format,
        priority: urgency.priority,
        deadline: urgency.deadline,
        repeat_key: None,
        webhook: None,
    };
    let view = match state.jobs.submit(submission).await? {
        Submitted::New(accepted) => {
            let view = AnyJobView::new(accepted.report(), &origin);
            accepted.keep();
            view
        }
        Submitted::Earlier(report) => AnyJobView::new(&report, &origin),
    };
    Ok((StatusCode::ACCEPTED, Json(view)))
}

pub(in crate::http) fn submit_operation() -> Operation {
    let example = json!({ "model": "fluxserve/flux-shapes", "prompt": "a red circle on a blue background" });
    Operation::new(Tag::Console, "create_playground_image", "Generate an image without a key")
        .body::<SubmitImage>(example)
        .answers::<AnyJobView>(StatusCode::ACCEPTED, "The job is accepted.")
        .refuses([
            ErrorCode::ContentRefused,
            ErrorCode::ModerationUnavailable,
            ErrorCode::ModelNotFound,
            ErrorCode::LoraNotFound,
            ErrorCode::UploadNotFound,
            ErrorCode::TooManyBodies,
            ErrorCode::QueueFull,
            ErrorCode::ModelUnavailable,
            ErrorCode::Draining,
            ErrorCode::StorageUnavailable,
        ])
}
