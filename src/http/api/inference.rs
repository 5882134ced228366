//! `POST /v1/inference/image`: an image, now or as a job.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::json;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ArrayBuilder, Schema};
use utoipa::{PartialSchema, ToSchema};

use super::input_images::body_bytes;
use super::jobs::{JobView, eta_seconds, image_response};
use crate::domain::format::OutputFormat;
use crate::domain::ids::ModelId;
use crate::domain::job::JobStatus;
use crate::domain::model::ModelCard;
use crate::domain::priority::Priority;
use crate::domain::spec::{FieldError, GenerateParams, GenerateSpec, INPUT_IMAGES, SEED_MAX, random_seed};
use crate::http::HttpState;
use crate::http::error::{ApiError, ErrorCode};
use crate::http::extract::body::BodyHold;
use crate::http::extract::caller::InferenceCaller;
use crate::http::extract::idempotency::IdempotencyWord;
use crate::http::extract::json::{ApiJson, Fields, FromFields};
use crate::http::extract::preferences::{AnswerForm, RequestPreferences};
use crate::http::openapi::schema::{ObjectSchema, number, one_of, text, whole};
use crate::http::openapi::{Operation, Tag};
use crate::http::origin::Origin;
use crate::jobs::{Job, JobReport, RepeatKey, Submission, Submitted};

/// The longest deadline: beyond a day nobody waits.
const DEADLINE_SECONDS_MAX: u64 = 24 * 60 * 60;

const IMAGES: &str = "Input images, as many as the model takes: one, or none. A PNG, JPEG or WebP file of at most 16 MiB and \
    32 million pixels, and of at most 16,384 pixels a side, as base64 without a `data:` in front. It is brought to `width` and `height`, which are its own where they are left \
    out, as far as the model's limits let them; transparency is dropped. Kept until the job ends, and never shown.";

const STRENGTH: &str = "How far to go away from the input image: the share of the steps that are done, and 1 leaves nothing of it. \
    0.6 when nothing is said. Not without an image.";

/// What may keep somebody who waits for an image from having it.
pub(in crate::http) const DRAWING_REFUSALS: [ErrorCode; 11] = [
    ErrorCode::ModelNotFound,
    ErrorCode::JobCanceled,
    ErrorCode::ImageGone,
    ErrorCode::TooManyBodies,
    ErrorCode::ConcurrentJobsLimit,
    ErrorCode::DailyLimit,
    ErrorCode::QueueFull,
    ErrorCode::JobFailed,
    ErrorCode::ModelUnavailable,
    ErrorCode::Draining,
    ErrorCode::StorageUnavailable,
];

const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");

/// The request as it comes.
pub(in crate::http) struct SubmitImage {
    model: ModelId,
    /// Without its images.
    params: GenerateParams,
    images: Vec<String>,
    seed: Option<u64>,
    output_format: Option<OutputFormat>,
    urgency: Urgency,
}

/// How urgent an image is to the client.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::http) struct Urgency {
    pub(in crate::http) priority: Priority,
    pub(in crate::http) deadline: Option<Duration>,
}

impl FromFields for SubmitImage {
    fn from_fields(fields: &mut Fields) -> Option<Self> {
        let prompt = fields.required_text("prompt");
        if prompt.as_ref().is_some_and(String::is_empty) {
            fields.refuse("prompt", "must not be empty");
        }
        let model = fields.required_text("model");
        let params = GenerateParams {
            prompt: String::new(),
            negative_prompt: fields.text("negative_prompt"),
            width: fields.small_number("width"),
            height: fields.small_number("height"),
            steps: fields.small_number("steps"),
            guidance: fields.number("guidance"),
            strength: fields.number("strength"),
            ..GenerateParams::default()
        };
        let images = fields.texts(INPUT_IMAGES).unwrap_or_default();
        let seed = fields.whole_number("seed");
        let output_format = fields.word("output_format");
        let priority = fields.word("priority");
        let deadline_seconds = fields.whole_number("deadline_seconds").filter(|seconds| {
            let is_allowed = (1..=DEADLINE_SECONDS_MAX).contains(seconds);
            if !is_allowed {
                fields.refuse("deadline_seconds", format!("must be from 1 to {DEADLINE_SECONDS_MAX}, not {seconds}"));
            }
            is_allowed
        });
        let urgency =
            Urgency { priority: priority.unwrap_or_default(), deadline: deadline_seconds.map(Duration::from_secs) };
        let params = GenerateParams { prompt: prompt?, ..params };
        Some(Self { model: ModelId::new(model?), params, images, seed, output_format, urgency })
    }

    fn body_bytes_max(state: &HttpState) -> usize {
        state.settings.body_bytes_max.saturating_add(body_bytes(state.catalog.input_images_max()))
    }
}

impl ToSchema for SubmitImage {}

impl PartialSchema for SubmitImage {
    fn schema() -> RefOr<Schema> {
        let images = ArrayBuilder::new().items(text().content_encoding("base64")).description(Some(IMAGES));
        ObjectSchema::new("An image to draw. What a field may be, the model's `parameter_limits` say; what counts where it is left out, its `parameter_defaults`.")
            .required("prompt", text().min_length(Some(1)).description(Some("What to draw.")))
            .required("model", text().description(Some("Which model draws it.")))
            .optional("negative_prompt", text().description(Some("What to steer away from. Each step then takes two passes.")))
            .optional("width", whole(1).description(Some("Pixels.")))
            .optional("height", whole(1).description(Some("Pixels.")))
            .optional("steps", whole(1).description(Some("Denoising steps.")))
            .optional("guidance", number().description(Some("How closely to follow the prompt.")))
            .optional("seed", whole(0).maximum(Some(SEED_MAX)).description(Some("The same seed gives the same image. Drawn and told when it is left out.")))
            .optional(INPUT_IMAGES, images)
            .optional("strength", number().exclusive_minimum(Some(0)).maximum(Some(1)).description(Some(STRENGTH)))
            .optional("output_format", one_of(OutputFormat::ALL.map(OutputFormat::as_str)).description(Some("The file's format; png when nothing is said.")))
            .optional("priority", one_of(Priority::ALL.map(Priority::as_str)).description(Some("Its place among the jobs of the same key; normal when nothing is said.")))
            .optional("deadline_seconds", whole(1).maximum(Some(DEADLINE_SECONDS_MAX)).description(Some("For how long the image is wanted: after that the job fails with `deadline_passed`.")))
            .into()
    }
}

impl SubmitImage {
    /// How urgent it is.
    pub(in crate::http) fn urgency(&self) -> Urgency {
        self.urgency
    }

    /// The model it asks for.
    pub(in crate::http) fn model(&self) -> &ModelId {
        &self.model
    }

    /// The valid request, and the format of its image. Its images lie in the body that the hold is for.
    pub(in crate::http) async fn into_spec(
        self,
        state: &HttpState,
        card: &Arc<ModelCard>,
        (form, hold): (AnswerForm, BodyHold),
    ) -> Result<(GenerateSpec, OutputFormat), ApiError> {
        let mut errors = Vec::new();
        let wanted = if let AnswerForm::Image(wanted) = form { wanted } else { None };
        if let (Some(wanted), Some(format)) = (wanted, self.output_format)
            && wanted != format
        {
            let reason = format!("is {format}, and the Accept header asks for {wanted}");
            errors.push(FieldError::new("output_format", reason));
        }
        let format = self.output_format.or(wanted).unwrap_or_default();
        let seed = match self.seed {
            Some(seed) => seed,
            None => random_seed().map_err(|error| ApiError::new(ErrorCode::Internal).with_cause(&error))?,
        };
        let params = GenerateParams { seed, ..self.params };
        match state.0.images.spec(self.images, params, card, hold).await? {
            Ok(spec) if errors.is_empty() => Ok((spec, format)),
            Ok(_) => Err(ApiError::invalid(errors)),
            Err(broken) => {
                errors.extend(broken);
                Err(ApiError::invalid(errors))
            }
        }
    }
}

/// The answer to a job that was accepted.
#[derive(Serialize, ToSchema)]
#[schema(as = AcceptedJob)]
struct AcceptedView {
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

pub(in crate::http) fn submit_operation() -> Operation {
    let example = json!({ "model": "fluxserve/flux-shapes", "prompt": "a red circle on a blue background" });
    Operation::new(Tag::Images, "create_image", "Draw an image")
        .says(
            "Answers at once, with 202 and where to look; or waits: `Prefer: wait=SECONDS` for the job's end, an `Accept` \
             of `image/png`, `image/jpeg` or `image/webp` for the image itself. Who hangs up while waiting cancels the job.",
        )
        .header("Prefer", "`wait=SECONDS`: answer when the job has ended, or with 202 when that time is over.")
        .header("Idempotency-Key", "The same word and body within a day give the same job.")
        .body::<SubmitImage>(example)
        .answers::<JobView>(StatusCode::OK, "The job has ended within the wait, or its image.")
        .answers_image(StatusCode::OK, "The job has ended within the wait, or its image.")
        .answers::<AcceptedView>(StatusCode::ACCEPTED, "The job is accepted and will be drawn.")
        .refuses([ErrorCode::NotAcceptable, ErrorCode::IdempotencyConflict])
        .refuses(DRAWING_REFUSALS)
}

pub(in crate::http) async fn submit(
    State(state): State<HttpState>,
    caller: InferenceCaller,
    (preferences, IdempotencyWord(word)): (RequestPreferences, IdempotencyWord),
    origin: Origin,
    ApiJson { value: request, digest, hold }: ApiJson<SubmitImage>,
) -> Result<Response, ApiError> {
    let card = state.card_of(&request.model)?;
    let urgency = request.urgency();
    let (spec, output_format) = request.into_spec(&state, card, (preferences.form, hold)).await?;
    let caller = caller.again(&state).await?;
    let repeat_key = word.map(|word| RepeatKey { word, body_digest: digest });
    let submission = Submission {
        owner: caller.key_id,
        limits: caller.limits,
        spec,
        output_format,
        priority: urgency.priority,
        deadline: urgency.deadline,
        repeat_key,
    };
    // A client that hangs up has this handler dropped, and a job that is not kept with it.
    let (accepted, report) = match state.jobs.submit(submission).await? {
        Submitted::New(accepted) => {
            let report = accepted.report().clone();
            (Some(accepted), report)
        }
        Submitted::Earlier(report) => (None, report),
    };
    if let AnswerForm::Image(Some(wanted)) = preferences.form
        && wanted != report.job.output_format
    {
        let detail = format!("the job of this Idempotency-Key draws {}", report.job.output_format.content_type());
        return Err(ApiError::new(ErrorCode::NotAcceptable).with_detail(detail));
    }
    let response = match preferences.wait(state.settings.wait_max) {
        None => accepted_response(&report, &origin),
        Some(wait) => {
            let report = state.jobs.wait(caller.key_id, report.job.id, wait).await?;
            waited_response(&state, &report, &origin, preferences).await?
        }
    };
    if let Some(accepted) = accepted {
        accepted.keep();
    }
    Ok(response)
}

/// The answer to who has waited: as wished when the job has ended, else as if there had been no wait.
async fn waited_response(
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

fn accepted_response(report: &JobReport, origin: &Origin) -> Response {
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

/// The image of a job that has ended, or why there is none.
async fn finished_image(state: &HttpState, report: &JobReport) -> Result<Response, ApiError> {
    let job = &report.job;
    check_succeeded(job)?;
    let image = state.jobs.image(job.owner, job.id).await?;
    Ok(image_response(job.id, Some(job.request.seed), image))
}

/// Why a job that has ended has no image.
pub(super) fn check_succeeded(job: &Job) -> Result<(), ApiError> {
    match (job.status, &job.error) {
        (JobStatus::Canceled, _) => Err(ApiError::new(ErrorCode::JobCanceled)),
        (JobStatus::Failed, Some(error)) => {
            Err(ApiError::new(ErrorCode::JobFailed).with_detail(format!("{}: {}", error.code, error.reason)))
        }
        _ => Ok(()),
    }
}
