//! The jobs of the calling key: their state, their images, their cancellation.

use std::time::Duration;

use axum::Json;
use axum::extract::{FromRequestParts, Request, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, LOCATION};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use time::OffsetDateTime;
use time::serde::rfc3339;
use utoipa::ToSchema;

use crate::auth::{KeyError, KeyState};
use crate::domain::conditioning::Preprocess;
use crate::domain::ids::{JobId, KeyId, ModelId};
use crate::domain::job::JobStatus;
use crate::domain::step_cache::CacheKind;
use crate::http::error::{ApiError, ErrorCode};
use crate::http::extract::caller::{InferenceCaller, has_credential};
use crate::http::extract::path::JobPath;
use crate::http::extract::query::Parameters;
use crate::http::openapi::schema::{one_of, text};
use crate::http::openapi::{Operation, Tag};
use crate::http::origin::Origin;
use crate::http::state::HttpState;
use crate::jobs::{
    Image, JobReport, JobsError, ListQuery, LoraText, PAGE_JOBS_MAX, RequestedImage, RequestedLora, ResultLink,
};

/// A canceled job leaves the queue at once and a batch within a step; the client sees it unless steps are slow.
pub(in crate::http) const CANCEL_WAIT: Duration = Duration::from_secs(2);
const JOB_ID: HeaderName = HeaderName::from_static("x-job-id");
const SEED: HeaderName = HeaderName::from_static("x-seed");

/// A job as its owner sees it.
#[derive(Serialize, ToSchema)]
#[schema(as = Job)]
pub(in crate::http) struct JobView {
    job_id: String,
    job_type: &'static str,
    #[schema(value_type = String)]
    status: JobStatus,
    status_url: String,
    result_url: String,
    seed: u64,
    queue_position: Option<usize>,
    eta_seconds: Option<f64>,
    progress: ProgressView,
    parameters: ParametersView,
    #[schema(value_type = String)]
    priority: &'static str,
    #[serde(with = "rfc3339::option")]
    deadline_at: Option<OffsetDateTime>,
    #[serde(with = "rfc3339")]
    created_at: OffsetDateTime,
    #[serde(with = "rfc3339::option")]
    started_at: Option<OffsetDateTime>,
    #[serde(with = "rfc3339::option")]
    finished_at: Option<OffsetDateTime>,
    error: Option<JobErrorView>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = JobProgress)]
struct ProgressView {
    step: u32,
    /// All steps to run: with an input image fewer than requested.
    steps: u32,
}

#[derive(Serialize, ToSchema)]
#[schema(as = JobParameters)]
struct ParametersView {
    #[schema(value_type = String)]
    model: ModelId,
    prompt: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    negative_prompt: Option<String>,
    width: u32,
    height: u32,
    steps: u32,
    guidance: f64,
    seed: u64,
    /// The number of images of the request, of all roles.
    #[serde(skip_serializing_if = "Option::is_none")]
    input_images: Option<usize>,
    /// Those images, without their pixels.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    images: Vec<ImageUseView>,
    /// Pixels around the mask, if only that region is generated.
    #[serde(skip_serializing_if = "Option::is_none")]
    mask_padding: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    strength: Option<f64>,
    /// The lossy cache between its steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    cache: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cache_threshold: Option<f64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    loras: Vec<LoraUseView>,
    output_format: &'static str,
}

/// An image of a job's request.
#[derive(Serialize, ToSchema)]
#[schema(as = JobImage)]
struct ImageUseView {
    /// `input`, `mask`, `control`, `reference` or `style`.
    #[schema(value_type = String)]
    role: &'static str,
    /// The name of its ControlNet.
    #[serde(skip_serializing_if = "Option::is_none")]
    controlnet: Option<String>,
    /// The kind of control map, as a word or a number.
    #[serde(skip_serializing_if = "Option::is_none")]
    mode: Option<String>,
    /// How a control map is made of it on the device.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    preprocess: Option<&'static str>,
    /// How strongly it acts.
    #[serde(skip_serializing_if = "Option::is_none")]
    scale: Option<f64>,
    /// The share of the steps before it acts.
    #[serde(skip_serializing_if = "Option::is_none")]
    start: Option<f64>,
    /// The share of the steps until which it acts.
    #[serde(skip_serializing_if = "Option::is_none")]
    end: Option<f64>,
}

/// A LoRA of a job.
#[derive(Serialize, ToSchema)]
#[schema(as = JobLora)]
struct LoraUseView {
    /// The SHA-256 of its file.
    id: String,
    /// Its strength.
    scale: f64,
}

#[derive(Serialize, ToSchema)]
#[schema(as = JobError)]
struct JobErrorView {
    code: String,
    reason: String,
}

/// One page of jobs.
#[derive(Serialize, ToSchema)]
#[schema(as = JobList)]
pub(in crate::http) struct JobListView {
    data: Vec<JobView>,
    next_cursor: Option<String>,
}

impl JobView {
    pub(in crate::http) fn new(report: &JobReport, origin: &Origin) -> Self {
        let job = &report.job;
        let request = &job.request;
        Self {
            job_id: job.id.to_string(),
            job_type: "image",
            status: job.status,
            status_url: origin.status_url(job.id),
            result_url: origin.result_url(job.id, &report.link),
            seed: request.seed,
            queue_position: report.queue_position,
            eta_seconds: report.eta_seconds.map(eta_seconds),
            progress: ProgressView { step: report.step, steps: request.steps_done() },
            parameters: ParametersView {
                model: request.model.clone(),
                prompt: request.prompt.clone(),
                negative_prompt: request.negative_prompt.clone(),
                width: request.width,
                height: request.height,
                steps: request.steps,
                guidance: request.guidance.0,
                seed: request.seed,
                input_images: Some(request.images_count()).filter(|count| *count > 0),
                images: request.images.iter().map(ImageUseView::from).collect(),
                mask_padding: request.mask_padding,
                strength: request.strength.map(|strength| strength.0),
                cache: request.cache_threshold.map(|_| CacheKind::FirstBlock.as_str()),
                cache_threshold: request.cache_threshold.map(|threshold| threshold.0),
                loras: request.loras.iter().map(LoraUseView::from).collect(),
                output_format: job.output_format.as_str(),
            },
            priority: job.terms.priority.as_str(),
            deadline_at: job.terms.deadline_at,
            created_at: job.created_at,
            started_at: job.started_at,
            finished_at: job.finished_at,
            error: job
                .error
                .as_ref()
                .map(|error| JobErrorView { code: error.code.clone(), reason: error.reason.clone() }),
        }
    }
}

impl From<&RequestedImage> for ImageUseView {
    fn from(image: &RequestedImage) -> Self {
        Self {
            role: image.role.as_str(),
            controlnet: image.controlnet.clone(),
            mode: image.mode.map(|mode| mode.to_string()),
            preprocess: image.preprocess.map(Preprocess::as_str),
            scale: image.scale.map(|number| number.0),
            start: image.start.map(|number| number.0),
            end: image.end.map(|number| number.0),
        }
    }
}

impl From<&RequestedLora> for LoraUseView {
    fn from(RequestedLora { id: LoraText(id), scale }: &RequestedLora) -> Self {
        Self { id: id.to_string(), scale: scale.0 }
    }
}

/// An estimate, without spurious digits.
pub(super) fn eta_seconds(seconds: f64) -> f64 {
    (seconds * 10.0).ceil() / 10.0
}

pub(in crate::http) async fn show(
    State(state): State<HttpState>,
    InferenceCaller(caller): InferenceCaller,
    JobPath(id): JobPath,
    origin: Origin,
) -> Result<Json<JobView>, ApiError> {
    let report = state.jobs.get(caller.key_id, id).await?;
    Ok(Json(JobView::new(&report, &origin)))
}

pub(in crate::http) fn show_operation() -> Operation {
    Operation::new(Tag::Jobs, "get_job", "State of a job")
        .answers::<JobView>(StatusCode::OK, "The job.")
        .refuses([ErrorCode::StorageUnavailable])
}

pub(in crate::http) async fn list(
    State(state): State<HttpState>,
    InferenceCaller(caller): InferenceCaller,
    origin: Origin,
    mut parameters: Parameters,
) -> Result<Json<JobListView>, ApiError> {
    let query = take_list_query(&mut parameters);
    parameters.finish()?;
    let page = state.jobs.list(caller.key_id, query).await?;
    let data = page.jobs.iter().map(|report| JobView::new(report, &origin)).collect();
    Ok(Json(JobListView { data, next_cursor: page.next.map(|id| id.to_string()) }))
}

/// The filter and page of a list of jobs.
pub(in crate::http) fn take_list_query(parameters: &mut Parameters) -> ListQuery {
    let before = parameters.take("cursor", "the `next_cursor` of an earlier page");
    let status = parameters.take("status", "queued, running, succeeded, failed or canceled");
    ListQuery { before, status, jobs_max: parameters.take_limit(PAGE_JOBS_MAX) }
}

pub(in crate::http) fn list_operation() -> Operation {
    let states = JobStatus::ALL.map(JobStatus::as_str);
    Operation::new(Tag::Jobs, "list_jobs", "The calling key's jobs, the newest first")
        .query("status", one_of(states), "Only jobs in this state.")
        .pages(PAGE_JOBS_MAX)
        .answers::<JobListView>(StatusCode::OK, "One page of jobs.")
        .refuses([ErrorCode::StorageUnavailable])
}

pub(in crate::http) async fn cancel(
    State(state): State<HttpState>,
    InferenceCaller(caller): InferenceCaller,
    JobPath(id): JobPath,
    origin: Origin,
) -> Result<Json<JobView>, ApiError> {
    state.jobs.cancel(caller.key_id, id).await?;
    let report = state.jobs.wait(caller.key_id, id, CANCEL_WAIT).await?;
    Ok(Json(JobView::new(&report, &origin)))
}

pub(in crate::http) fn cancel_operation() -> Operation {
    Operation::new(Tag::Jobs, "cancel_job", "Cancel a job")
        .description(
            "A queued job is canceled at once, a running one at the next step. A job that has ended is not changed.",
        )
        .answers::<JobView>(StatusCode::OK, "The job.")
        .refuses([ErrorCode::StorageUnavailable])
}

/// The query parameters of a signed link.
const LINK_PARAMETERS: [&str; 2] = ["expires", "signature"];

/// The image: for the job's owner, or for anyone with a signed link.
pub(in crate::http) async fn result(
    State(state): State<HttpState>,
    JobPath(id): JobPath,
    mut parameters: Parameters,
    request: Request,
) -> Result<Response, ApiError> {
    let image = if LINK_PARAMETERS.iter().any(|name| parameters.has(name)) {
        // Mail clients, chats and trackers append their own parameters to links.
        parameters.retain(&LINK_PARAMETERS);
        let expires = parameters.take("expires", "a whole number").unwrap_or_default();
        let signature = parameters.take("signature", "a string").unwrap_or_default();
        parameters.finish()?;
        let owner = state.jobs.owner_by_link(id, &ResultLink { expires, signature }).await?;
        refuse_unless_active(&state, owner).await?;
        // What the bucket is asked is signed, too: no HEAD.
        let may_lead_on = request.method() == Method::GET && !has_credential(request.headers());
        if may_lead_on && let Some(url) = state.jobs.image_link(owner, id).await? {
            return Ok(to_bucket(id, &url));
        }
        state.jobs.image(owner, id).await?
    } else {
        let (mut parts, _) = request.into_parts();
        let InferenceCaller(caller) = InferenceCaller::from_request_parts(&mut parts, &state).await?;
        parameters.finish()?;
        state.jobs.image(caller.key_id, id).await?
    };
    Ok(image_response(id, None, image))
}

/// Leads the holder of a link to the bucket. Never one who sends a key, also not beside a link: clients send their headers along to
/// where they are led.
fn to_bucket(id: JobId, url: &str) -> Response {
    let headers = [
        (LOCATION, HeaderValue::try_from(url).expect("a URL is visible ASCII")),
        (CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (JOB_ID, HeaderValue::try_from(id.to_string()).expect("an id is visible ASCII")),
    ];
    (StatusCode::TEMPORARY_REDIRECT, headers).into_response()
}

/// A link is valid only as long as its key is.
async fn refuse_unless_active(state: &HttpState, owner: KeyId) -> Result<(), ApiError> {
    // The console's images belong to no key.
    if owner == KeyId::NONE {
        return Ok(());
    }
    match state.keys.get(owner).await {
        Ok(key) if key.state == KeyState::Active => Ok(()),
        Ok(_) | Err(KeyError::NotFound(_)) => Err(JobsError::LinkRefused.into()),
        Err(error) => Err(error.into()),
    }
}

pub(in crate::http) fn result_operation() -> Operation {
    Operation::new(Tag::Jobs, "get_job_result", "A job's image")
        .description(
            "For the job's key, or for anyone with its `result_url`. This link needs no key, expires after \
             `results.link_seconds` (each response with the job has a fresh one), and ends with the key. Other query \
             parameters of a link are ignored. Where `results.links` is `redirect`, a link leads on to the image in its \
             bucket, by a URL that works for a minute at most.",
        )
        .query("expires", text(), "From the `result_url`.")
        .query("signature", text(), "From the `result_url`.")
        .answers_image(StatusCode::OK, "The image.")
        .answers_nothing(StatusCode::TEMPORARY_REDIRECT, "The image is at `Location`, in its bucket. For links only.")
        .refuses([ErrorCode::LinkRefused, ErrorCode::NoImage, ErrorCode::ImageGone, ErrorCode::StorageUnavailable])
}

/// An image as an answer, with the seed if the client may not know it yet.
pub(in crate::http) fn image_response(id: JobId, seed: Option<u64>, image: Image) -> Response {
    let Image { bytes, format } = image;
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static(format.content_type())),
        // It never changes, but a browser's copy would outlive the key's revocation, and the job.
        (CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (JOB_ID, HeaderValue::try_from(id.to_string()).expect("an id is visible ASCII")),
    ];
    let mut response = (headers, bytes).into_response();
    if let Some(seed) = seed {
        response.headers_mut().insert(SEED, seed.into());
    }
    response
}
