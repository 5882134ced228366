//! The answers to `POST /v1/inference/image`: the job, or its image.

use axum::Json;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::domain::job::JobStatus;
use crate::http::api::jobs::{JobView, eta_seconds, image_response};
use crate::http::error::{ApiError, ErrorCode};
use crate::http::extract::preferences::{AnswerForm, RequestPreferences};
use crate::http::origin::Origin;
use crate::http::state::HttpState;
use crate::jobs::{CONTENT_REFUSED, Job, JobError, JobReport, MODERATION_UNAVAILABLE};

const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");

/// The answer for an accepted job.
#[derive(Serialize, ToSchema)]
#[schema(as = AcceptedJob)]
pub(super) struct AcceptedView {
    job_id: String,
    job_type: &'static str,
    #[schema(value_type = String)]
    status: JobStatus,
    status_url: String,
    result_url: String,
    seed: u64,
    queue_position: Option<usize>,
    eta_seconds: Option<f64>,
}

/// The answer after a wait: in the preferred form if the job has ended, else as without a wait.
pub(super) async fn waited_response(
    state: &HttpState,
    report: &JobReport,
    origin: &Origin,
    preferences: RequestPreferences,
) -> Result<Response, ApiError> {
    let mut response = match preferences.form {
        _ if !report.job.status.is_final() => accepted_response(report, origin),
        AnswerForm::Json => Json(JobView::new(report, origin)).into_response(),
        AnswerForm::Image(_) => finished_image(state, report).await?,
    };
    if let Some(seconds) = preferences.wait_seconds {
        let applied = HeaderValue::try_from(format!("wait={seconds}")).expect("digits are visible ASCII");
        response.headers_mut().insert(PREFERENCE_APPLIED, applied);
    }
    Ok(response)
}

pub(super) fn accepted_response(report: &JobReport, origin: &Origin) -> Response {
    let id = report.job.id;
    let status_url = origin.status_url(id);
    let mut headers = HeaderMap::new();
    if let Ok(location) = HeaderValue::try_from(&status_url) {
        headers.insert(header::LOCATION, location);
    }
    let view = AcceptedView {
        job_id: id.to_string(),
        job_type: "image",
        status: report.job.status,
        status_url,
        result_url: origin.result_url(id, &report.link),
        seed: report.job.request.seed,
        queue_position: report.queue_position,
        eta_seconds: report.eta_seconds.map(eta_seconds),
    };
    (StatusCode::ACCEPTED, headers, Json(view)).into_response()
}

/// The image of a job that has ended, or the reason why there is none.
async fn finished_image(state: &HttpState, report: &JobReport) -> Result<Response, ApiError> {
    let job = &report.job;
    check_succeeded(job)?;
    let image = state.jobs.image(job.owner, job.id).await?;
    Ok(image_response(job.id, Some(job.request.seed), image))
}

/// Returns an error if a job that has ended has no image.
pub(in crate::http::api) fn check_succeeded(job: &Job) -> Result<(), ApiError> {
    match (job.status, &job.error) {
        (JobStatus::Canceled, _) => Err(ApiError::new(ErrorCode::JobCanceled)),
        (JobStatus::Failed, Some(error)) => Err(failure(error)),
        _ => Ok(()),
    }
}

fn failure(error: &JobError) -> ApiError {
    match error.code.as_str() {
        CONTENT_REFUSED => ApiError::new(ErrorCode::ContentRefused).with_detail(error.reason.as_str()),
        MODERATION_UNAVAILABLE => ApiError::new(ErrorCode::ModerationUnavailable),
        code => ApiError::new(ErrorCode::JobFailed).with_detail(format!("{code}: {}", error.reason)),
    }
}
