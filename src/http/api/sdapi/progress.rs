//! `GET /sdapi/v1/progress` and `POST /sdapi/v1/interrupt`: of the calling key's requests that wait for images, not of its other
//! jobs, and of no other key's.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::domain::ids::KeyId;
use crate::domain::spec::FieldError;
use crate::http::error::{ApiError, ErrorCode};
use crate::http::extract::caller::InferenceCaller;
use crate::http::extract::query::Parameters;
use crate::http::openapi::schema::one_of;
use crate::http::openapi::{Operation, Tag};
use crate::http::state::HttpState;
use crate::jobs::{JobReport, JobsError};

const WITHOUT_IMAGE: &str = "skip_current_image";

/// How far the images of the calling key are.
#[derive(Serialize, ToSchema)]
#[schema(as = SdapiProgress)]
pub(in crate::http) struct ProgressView {
    /// The share of all steps that is done; 0 when nothing is waited for.
    progress: f64,
    /// Seconds, likely.
    eta_relative: f64,
    state: StateView,
    /// A preview, PNG in base64.
    current_image: Option<String>,
    textinfo: Option<String>,
}

/// What is being done.
#[derive(Serialize, ToSchema)]
#[schema(as = SdapiState)]
struct StateView {
    skipped: bool,
    interrupted: bool,
    stopping_generation: bool,
    /// Always empty.
    job: String,
    /// Images that are waited for, finished ones included.
    job_count: usize,
    /// Always empty.
    job_timestamp: String,
    /// Images that are finished.
    job_no: usize,
    /// Steps done of the image that is worked on.
    sampling_step: u32,
    /// Steps of that image.
    sampling_steps: u32,
}

pub(in crate::http) async fn show(
    State(state): State<HttpState>,
    InferenceCaller(caller): InferenceCaller,
    mut parameters: Parameters,
) -> Result<Json<ProgressView>, ApiError> {
    let word: Option<String> = parameters.take(WITHOUT_IMAGE, "true or false");
    let wants_image = match word.as_deref().map(str::to_ascii_lowercase).as_deref() {
        Some("true" | "1") => false,
        None | Some("false" | "0") => true,
        Some(_) => return Err(ApiError::invalid(vec![FieldError::new(WITHOUT_IMAGE, "must be true or false")])),
    };
    parameters.finish()?;
    let reports = reports(&state, caller.key_id).await?;
    let current = reports.iter().find(|report| !report.job.status.is_final());
    let current_image = match current {
        Some(report) if wants_image => preview(&state, report).await?,
        _ => None,
    };
    Ok(Json(view(&reports, current, current_image)))
}

/// The jobs that requests of a key wait for.
async fn reports(state: &HttpState, key: KeyId) -> Result<Vec<JobReport>, ApiError> {
    let mut reports = Vec::new();
    for id in state.0.sdapi.jobs_of(key) {
        match state.jobs.get(key, id).await {
            Ok(report) => reports.push(report),
            Err(JobsError::NotFound) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(reports)
}

/// A preview of a job, if there is one now. The first look only asks for one.
async fn preview(state: &HttpState, report: &JobReport) -> Result<Option<String>, ApiError> {
    match state.jobs.preview(report.job.owner, report.job.id).await {
        Ok(image) => Ok(Some(STANDARD.encode(&image.bytes))),
        Err(JobsError::NoPreview | JobsError::NotFound) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn view(reports: &[JobReport], current: Option<&JobReport>, current_image: Option<String>) -> ProgressView {
    let steps: u32 = reports.iter().map(|report| report.job.request.steps_done()).sum();
    let done: u32 = reports.iter().map(|report| report.step).sum();
    let eta = reports.iter().filter_map(|report| report.eta_seconds).fold(0.0, f64::max);
    ProgressView {
        progress: f64::from(done) / f64::from(steps.max(1)),
        eta_relative: eta,
        state: StateView {
            skipped: false,
            interrupted: false,
            stopping_generation: false,
            job: String::new(),
            job_count: reports.len(),
            job_timestamp: String::new(),
            job_no: reports.iter().filter(|report| report.job.status.is_final()).count(),
            sampling_step: current.map_or(0, |report| report.step),
            sampling_steps: current.map_or(0, |report| report.job.request.steps_done()),
        },
        current_image,
        textinfo: None,
    }
}

pub(in crate::http) fn show_operation() -> Operation {
    Operation::new(Tag::Sdapi, "get_sdapi_progress", "How far the calling key's requests are")
        .query(WITHOUT_IMAGE, one_of(["true", "false"]), "true: without a preview.")
        .answers::<ProgressView>(StatusCode::OK, "The progress of all of them together.")
        .refuses([ErrorCode::NotFound, ErrorCode::StorageUnavailable])
}

pub(in crate::http) async fn interrupt(
    State(state): State<HttpState>,
    InferenceCaller(caller): InferenceCaller,
) -> Result<Json<Value>, ApiError> {
    for id in state.0.sdapi.jobs_of(caller.key_id) {
        match state.jobs.cancel(caller.key_id, id).await {
            Ok(()) | Err(JobsError::NotFound) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Json(json!({})))
}

pub(in crate::http) fn interrupt_operation() -> Operation {
    Operation::new(Tag::Sdapi, "interrupt", "Cancel what the calling key's requests wait for")
        .description("Those requests answer `job_canceled`. Other jobs of the key go on.")
        .answers_bytes(StatusCode::OK, "application/json", "An empty object.")
        .refuses([ErrorCode::NotFound, ErrorCode::StorageUnavailable])
}
