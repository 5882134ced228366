//! `/v1/jobs`: the jobs of every key, for the administrator.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;

use super::wire::job::{AnyJobListView, AnyJobView};
use crate::domain::ids::KeyId;
use crate::domain::job::JobStatus;
use crate::http::api::events::{describe, event_stream};
use crate::http::api::jobs::{CANCEL_WAIT, image_response, take_list_query};
use crate::http::error::{ApiError, ErrorCode};
use crate::http::extract::administrator::Administrator;
use crate::http::extract::path::JobPath;
use crate::http::extract::query::Parameters;
use crate::http::extract::watching::Watching;
use crate::http::openapi::schema::{one_of, text};
use crate::http::openapi::{Operation, Tag};
use crate::http::origin::ClientsOrigin;
use crate::http::state::HttpState;
use crate::jobs::{PAGE_JOBS_MAX, Visibility};

/// The query value for jobs without a key.
const PLAYGROUND: &str = "playground";

pub(in crate::http) async fn list(
    State(state): State<HttpState>,
    _: Administrator,
    ClientsOrigin(origin): ClientsOrigin,
    mut parameters: Parameters,
) -> Result<Json<AnyJobListView>, ApiError> {
    let query = take_list_query(&mut parameters);
    let owner = parameters.take("key_id", "a key's id, or playground");
    parameters.finish()?;
    let visibility = owner.map_or(Visibility::All, |Owner(id)| Visibility::Of(id));
    let page = state.jobs.list(visibility, query).await?;
    let data = page.jobs.iter().map(|report| AnyJobView::new(report, &origin)).collect();
    Ok(Json(AnyJobListView { data, next_cursor: page.next.map(|id| id.to_string()) }))
}

/// The owner of the listed jobs.
struct Owner(KeyId);

impl std::str::FromStr for Owner {
    type Err = crate::domain::ids::InvalidId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == PLAYGROUND { Ok(Self(KeyId::NONE)) } else { text.parse().map(Self) }
    }
}

pub(in crate::http) fn list_operation() -> Operation {
    let states = JobStatus::ALL.map(JobStatus::as_str);
    Operation::new(Tag::Console, "list_all_jobs", "The jobs of every key, the newest first")
        .query("status", one_of(states), "Only jobs in this state.")
        .query("key_id", text(), "Only jobs of this key; `playground` for jobs of the console.")
        .pages(PAGE_JOBS_MAX)
        .answers::<AnyJobListView>(StatusCode::OK, "One page of jobs.")
        .refuses([ErrorCode::StorageUnavailable])
}

pub(in crate::http) async fn show(
    State(state): State<HttpState>,
    _: Administrator,
    JobPath(id): JobPath,
    ClientsOrigin(origin): ClientsOrigin,
) -> Result<Json<AnyJobView>, ApiError> {
    let report = state.jobs.get(Visibility::All, id).await?;
    Ok(Json(AnyJobView::new(&report, &origin)))
}

pub(in crate::http) fn show_operation() -> Operation {
    Operation::new(Tag::Console, "get_any_job", "State of any key's job")
        .answers::<AnyJobView>(StatusCode::OK, "The job.")
        .refuses([ErrorCode::StorageUnavailable])
}

pub(in crate::http) async fn cancel(
    State(state): State<HttpState>,
    _: Administrator,
    JobPath(id): JobPath,
    ClientsOrigin(origin): ClientsOrigin,
) -> Result<Json<AnyJobView>, ApiError> {
    state.jobs.cancel(Visibility::All, id).await?;
    let report = state.jobs.wait(Visibility::All, id, CANCEL_WAIT).await?;
    Ok(Json(AnyJobView::new(&report, &origin)))
}

pub(in crate::http) fn cancel_operation() -> Operation {
    Operation::new(Tag::Console, "cancel_any_job", "Cancel any key's job")
        .answers::<AnyJobView>(StatusCode::OK, "The job.")
        .refuses([ErrorCode::StorageUnavailable])
}

pub(in crate::http) async fn follow(
    State(state): State<HttpState>,
    _: Administrator,
    JobPath(id): JobPath,
    Watching(preferences): Watching,
    ClientsOrigin(origin): ClientsOrigin,
) -> Result<Response, ApiError> {
    let watch = state.jobs.watch(Visibility::All, id, preferences).await?;
    Ok(event_stream(&state, watch, move |report| AnyJobView::new(report, &origin)))
}

pub(in crate::http) fn follow_operation() -> Operation {
    describe(Operation::new(Tag::Console, "follow_any_job", "Follow the progress of any key's job"))
}

/// A rough preview of a running job.
pub(in crate::http) async fn preview(
    State(state): State<HttpState>,
    _: Administrator,
    JobPath(id): JobPath,
) -> Result<Response, ApiError> {
    let image = state.jobs.preview(Visibility::All, id).await?;
    Ok(image_response(id, None, image))
}

pub(in crate::http) fn preview_operation() -> Operation {
    Operation::new(Tag::Console, "get_any_job_preview", "Preview of any key's running job")
        .description("Small and rough. The first request only starts the previews.")
        .answers_image(StatusCode::OK, "The preview, PNG.")
        .refuses([ErrorCode::NoPreview, ErrorCode::StorageUnavailable])
}

pub(in crate::http) async fn result(
    State(state): State<HttpState>,
    _: Administrator,
    JobPath(id): JobPath,
) -> Result<Response, ApiError> {
    let image = state.jobs.image(Visibility::All, id).await?;
    Ok(image_response(id, None, image))
}

pub(in crate::http) fn result_operation() -> Operation {
    Operation::new(Tag::Console, "get_any_job_result", "The image of any key's job")
        .answers_image(StatusCode::OK, "The image.")
        .refuses([ErrorCode::NoImage, ErrorCode::ImageGone, ErrorCode::StorageUnavailable])
}
