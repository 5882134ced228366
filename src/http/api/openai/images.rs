//! `POST /v1/images/generations`, and the answer of all routes for images: the requested number of images, each as its own
//! job; all or none.

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::try_join_all;
use serde::Serialize;
use serde_json::json;
use tokio::task::spawn_blocking;
use utoipa::ToSchema;

use super::request::{GenerateImages, ImageForm, ValidImages};
use super::{size_of, stream, streaming, submission};
use crate::auth::{Principal, RequestsLeft};
use crate::domain::format::OutputFormat;
use crate::domain::spec::{FieldError, GenerateSpec};
use crate::http::api::inference::{GENERATION_REFUSALS, check_succeeded};
use crate::http::error::{ApiError, ErrorCode};
use crate::http::extract::caller::InferenceCaller;
use crate::http::extract::json::ApiJson;
use crate::http::openapi::{Operation, Tag};
use crate::http::origin::Origin;
use crate::http::quota::Quota;
use crate::http::state::HttpState;
use crate::jobs::{AcceptedJob, Image, JobReport, Submitted};

/// Images.
#[derive(Serialize, ToSchema)]
#[schema(as = OpenAiImages)]
pub(super) struct ImagesView {
    /// Unix seconds.
    created: i64,
    data: Vec<ImageView>,
    output_format: &'static str,
    /// `WIDTHxHEIGHT`, in pixels.
    size: String,
}

/// An image, embedded or as a link.
#[derive(Serialize, ToSchema)]
#[schema(as = OpenAiImage)]
struct ImageView {
    #[serde(skip_serializing_if = "Option::is_none")]
    b64_json: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<String>,
    seed: u64,
    job_id: String,
}

pub(in crate::http) fn generate_operation() -> Operation {
    let example = json!({
        "model": "fluxserve/flux-shapes", "prompt": "a red circle on a blue background", "n": 2, "size": "128x128",
    });
    let operation = Operation::new(Tag::OpenAi, "create_openai_images", "Generate images and wait for them")
        .description(
            "Each image is a job and counts as one request against the key's rate limit. If one of them is refused or \
             fails, if they take longer than the worker's maximum wait, or if the client hangs up, the unfinished \
             ones are canceled. With `stream` there is one image, which is sent as it forms.",
        )
        .body::<GenerateImages>(example)
        .answers::<ImagesView>(StatusCode::OK, "The images, in the order of their seeds.")
        .refuses(GENERATION_REFUSALS);
    stream::describe(operation, streaming::Kind::Generation)
}

// An `Idempotency-Key` is ignored. OpenAI's clients do not send one and need none: a client that retries has received
// an error or has hung up, and both cancel its jobs.
pub(in crate::http) async fn generate(
    State(state): State<HttpState>,
    caller: InferenceCaller,
    origin: Origin,
    ApiJson { value: GenerateImages(request), .. }: ApiJson<GenerateImages>,
) -> Result<Response, ApiError> {
    let card = state.card_of(&request.model)?;
    let main = card.conditioning.main_role();
    if *card.images(main).start() > 0 {
        let reason = format!("needs {main} images: send them to `POST /v1/images/edits`");
        return Err(ApiError::invalid(vec![FieldError::new("model", reason)]));
    }
    let (params, settled) = request.settle(&state, &caller.0.limits).await?;
    let valid = settled.check(GenerateSpec::new(params, card))?;
    respond(&state, &caller, &origin, valid).await
}

/// Generates the images of a request that is valid, and answers with them.
pub(super) async fn respond(
    state: &HttpState,
    caller: &InferenceCaller,
    origin: &Origin,
    valid: ValidImages,
) -> Result<Response, ApiError> {
    let caller = caller.recheck(state).await?;
    valid.loras.check_allowed(&caller.limits)?;
    count(state, &caller, valid.specs.len() as u32, "n")?;
    let left = state.authenticator.requests_left(&caller);
    let mut response = match valid.streaming {
        Some(streaming) => {
            let spec = valid.specs.into_iter().next().expect("at least one image was requested");
            stream::respond(state, submission(&caller, origin, spec, valid.output_format), streaming).await?
        }
        None => waited(state, &caller, origin, valid).await?,
    };
    if let Some(RequestsLeft { limit, left, whole_after_seconds }) = left {
        Quota::of_requests(limit, left).write_for_openai(response.headers_mut(), whole_after_seconds);
    }
    Ok(response)
}

/// The answer with all images, once they are complete.
async fn waited(
    state: &HttpState,
    caller: &Principal,
    origin: &Origin,
    ValidImages { specs, output_format, form, .. }: ValidImages,
) -> Result<Response, ApiError> {
    // An early end of this function, by an error or a client that hangs up, drops the jobs, which cancels them.
    // They differ only in their seeds.
    let size = size_of(specs.first().expect("at least one image was requested"));
    let accepted = accept_all(state, caller, origin, specs, output_format).await?;
    let reports = try_join_all(accepted.iter().map(|job| until_ended(state, job))).await?;
    let response = match form {
        ImageForm::Link => answer(reports.iter().map(|report| linked(report, origin)).collect(), &reports, size)?,
        ImageForm::Base64 => {
            let mut images = Vec::with_capacity(reports.len());
            for JobReport { job, .. } in &reports {
                images.push(state.jobs.image(job.owner, job.id).await?);
            }
            // Megabytes for each image: not on the async threads.
            let encode = move || answer(reports.iter().zip(&images).map(embedded).collect(), &reports, size);
            spawn_blocking(encode).await.map_err(|error| ApiError::new(ErrorCode::Internal).with_cause(&error))??
        }
    };
    accepted.into_iter().for_each(AcceptedJob::keep);
    Ok(response)
}

/// Counts each image as a request; the first one is counted already. Their number is in `field`.
pub(in crate::http) fn count(state: &HttpState, caller: &Principal, images: u32, field: &str) -> Result<(), ApiError> {
    let limits = caller.limits.all(caller.key_id);
    let limits = limits.filter_map(|(holder, _, limits)| Some((limits.requests_per_minute?, holder)));
    if let Some((limit, holder)) = limits.min_by_key(|(limit, _)| *limit).filter(|(limit, _)| images > *limit) {
        let reason = format!(
            "must be at most {limit}: each counts as a request, and the {holder}'s limit is {limit} per minute"
        );
        return Err(ApiError::invalid(vec![FieldError::new(field, reason)]));
    }
    Ok(state.authenticator.count_more(caller, images.saturating_sub(1))?)
}

/// Submits all jobs. If one is refused, the earlier ones are dropped, which cancels them.
pub(in crate::http) async fn accept_all(
    state: &HttpState,
    caller: &Principal,
    origin: &Origin,
    specs: Vec<GenerateSpec>,
    output_format: OutputFormat,
) -> Result<Vec<AcceptedJob>, ApiError> {
    let mut accepted = Vec::with_capacity(specs.len());
    for spec in specs {
        match state.jobs.submit(submission(caller, origin, spec, output_format)).await? {
            Submitted::New(job) => accepted.push(job),
            Submitted::Earlier(_) => unreachable!("without a repeat key no job is an earlier one"),
        }
    }
    Ok(accepted)
}

/// Waits for a job's end; an error if there is no image.
pub(in crate::http) async fn until_ended(state: &HttpState, accepted: &AcceptedJob) -> Result<JobReport, ApiError> {
    let job = &accepted.report().job;
    let wait_max = state.settings.wait_max;
    let report = state.jobs.wait(job.owner, job.id, wait_max).await?;
    if !report.job.status.is_final() {
        let detail = format!("the images were not finished within {} seconds and are canceled", wait_max.as_secs());
        return Err(ApiError::new(ErrorCode::DeadlineExceeded).with_detail(detail));
    }
    check_succeeded(&report.job)?;
    Ok(report)
}

fn linked(report: &JobReport, origin: &Origin) -> ImageView {
    let id = report.job.id;
    ImageView {
        b64_json: None,
        url: Some(origin.result_url(id, &report.link)),
        seed: report.job.request.seed,
        job_id: id.to_string(),
    }
}

fn embedded((report, image): (&JobReport, &Image)) -> ImageView {
    ImageView {
        b64_json: Some(STANDARD.encode(&image.bytes)),
        url: None,
        seed: report.job.request.seed,
        job_id: report.job.id.to_string(),
    }
}

/// The answer with the images of these jobs, which all have this size.
fn answer(data: Vec<ImageView>, reports: &[JobReport], (width, height): (u32, u32)) -> Result<Response, ApiError> {
    let job = &reports.first().expect("at least one image was requested").job;
    let view = ImagesView {
        created: job.created_at.unix_timestamp(),
        data,
        output_format: job.output_format.as_str(),
        size: format!("{width}x{height}"),
    };
    let body = serde_json::to_vec(&view).map_err(|error| ApiError::new(ErrorCode::Internal).with_cause(&error))?;
    Ok(([(CONTENT_TYPE, "application/json")], body).into_response())
}
