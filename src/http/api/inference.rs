//! `POST /v1/inference/image`: an image, now or as a job.

mod answer;

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::json;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::Schema;
use utoipa::{PartialSchema, ToSchema};

use answer::{AcceptedView, accepted_response, waited_response};

use super::input_images::{WantedImage, body_bytes};
use super::jobs::JobView;
use super::wanted_cache;
use super::wanted_images;
use super::wanted_loras::{FoundLoras, WantedLoras};
use super::webhooks::{WEBHOOK_EVENTS, WEBHOOK_URL, WantedWebhook};
use crate::domain::adapter::LORAS;
use crate::domain::conditioning::IMAGES;
use crate::domain::format::OutputFormat;
use crate::domain::ids::ModelId;
use crate::domain::limits::KeyLimits;
use crate::domain::model::ModelCard;
use crate::domain::priority::Priority;
use crate::domain::spec::{
    FieldError, GenerateParams, GenerateSpec, INPUT_IMAGES, MASK_PADDING, MASK_PADDING_MAX, SEED_MAX, random_seed,
};
use crate::domain::step_cache::{CACHE, CACHE_THRESHOLD};
use crate::http::error::{ApiError, ErrorCode};
use crate::http::extract::body::BodyReservation;
use crate::http::extract::caller::InferenceCaller;
use crate::http::extract::idempotency::IdempotencyKey;
use crate::http::extract::json::{ApiJson, Fields, FromFields};
use crate::http::extract::preferences::RequestPreferences;
use crate::http::openapi::schema::{ObjectSchema, integer, number, one_of, text};
use crate::http::openapi::{Operation, Tag};
use crate::http::origin::Origin;
use crate::http::settings::HttpSettings;
use crate::http::state::HttpState;
use crate::jobs::{JobReport, RepeatKey, Submission, Submitted};

pub(super) use answer::check_succeeded;

/// The longest deadline: a day.
const DEADLINE_SECONDS_MAX: u64 = 24 * 60 * 60;

const ABOUT: &str = "An image to generate. The model's `parameter_limits` have the limits of the fields, its \
                     `parameter_defaults` their defaults.";
const SEED: &str = "The same seed gives the same image. Random by default, and returned.";
const FORMAT: &str = "The file's format. Defaults to png.";
const PRIORITY: &str = "The priority among the jobs of the same key. Defaults to normal.";
const DEADLINE: &str = "The time after which an unfinished job fails with `deadline_passed`.";

const PADDING: &str = "Generates only the region around the mask, with this many pixels around it, in the output size, and \
                       puts it back into the input image. Requires a mask.";

const STRENGTH: &str = "How much the result may differ from the input image: the share of the steps that are run; 1 \
                        ignores it. Defaults to 0.6, for FLUX.1-Fill to 1. Requires an input image.";

/// Errors of a request that waits for an image.
pub(in crate::http) const GENERATION_REFUSALS: [ErrorCode; 16] = [
    ErrorCode::ContentRefused,
    ErrorCode::LoraForbidden,
    ErrorCode::ModelNotFound,
    ErrorCode::LoraNotFound,
    ErrorCode::JobCanceled,
    ErrorCode::ImageGone,
    ErrorCode::TooManyBodies,
    ErrorCode::ConcurrentJobsLimit,
    ErrorCode::DailyLimit,
    ErrorCode::BudgetExhausted,
    ErrorCode::QueueFull,
    ErrorCode::JobFailed,
    ErrorCode::ModelUnavailable,
    ErrorCode::ModerationUnavailable,
    ErrorCode::Draining,
    ErrorCode::StorageUnavailable,
];

/// The parsed request.
pub(in crate::http) struct SubmitImage {
    model: ModelId,
    /// Without its images.
    params: GenerateParams,
    /// Those in the model's main role, as base64.
    input_images: Vec<String>,
    /// Those with a role.
    images: Vec<WantedImage>,
    loras: WantedLoras,
    seed: Option<u64>,
    output_format: Option<OutputFormat>,
    urgency: Urgency,
    webhook: WantedWebhook,
}

/// A request whose fields are all valid.
pub(in crate::http) struct ValidImage {
    pub(in crate::http) spec: GenerateSpec,
    pub(in crate::http) output_format: OutputFormat,
    /// Its LoRAs. The key's limits may have changed since they were found.
    pub(in crate::http) loras: FoundLoras,
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
            step_cache: wanted_cache::read(fields),
            mask_padding: fields.small_number(MASK_PADDING),
            ..GenerateParams::default()
        };
        let (input_images, images) = (fields.texts(INPUT_IMAGES).unwrap_or_default(), wanted_images::read(fields));
        let loras = WantedLoras::read(fields);
        let seed = fields.whole_number("seed");
        let output_format = fields.word("output_format");
        let webhook = WantedWebhook::read(fields);
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
        Some(Self {
            model: ModelId::new(model?),
            params,
            input_images,
            images,
            loras,
            seed,
            output_format,
            urgency,
            webhook,
        })
    }

    fn body_bytes_max(state: &HttpState) -> usize {
        let HttpSettings { body_bytes_max, bodies_bytes_max, .. } = state.settings;
        // More would never fit beside other bodies. An image of any size that is allowed does.
        let of_images = body_bytes(state.catalog.images_max()).min(bodies_bytes_max.max(body_bytes(1)));
        body_bytes_max.saturating_add(of_images)
    }
}

impl ToSchema for SubmitImage {}

impl PartialSchema for SubmitImage {
    fn schema() -> RefOr<Schema> {
        ObjectSchema::new(ABOUT)
            .required("prompt", text().min_length(Some(1)).description(Some("What to generate.")))
            .required("model", text().description(Some("The model's id.")))
            .optional("negative_prompt", text().description(Some("What to avoid. Each step then takes two passes.")))
            .optional("width", integer(1).description(Some("Pixels.")))
            .optional("height", integer(1).description(Some("Pixels.")))
            .optional("steps", integer(1).description(Some("Denoising steps.")))
            .optional("guidance", number().description(Some("How closely to follow the prompt.")))
            .optional("seed", integer(0).maximum(Some(SEED_MAX)).description(Some(SEED)))
            .optional(INPUT_IMAGES, wanted_images::input_schema())
            .optional(IMAGES, wanted_images::schema())
            .optional(MASK_PADDING, integer(0).maximum(Some(MASK_PADDING_MAX)).description(Some(PADDING)))
            .optional(LORAS, WantedLoras::schema())
            .optional("strength", number().exclusive_minimum(Some(0)).maximum(Some(1)).description(Some(STRENGTH)))
            .optional(CACHE, wanted_cache::schema())
            .optional(CACHE_THRESHOLD, wanted_cache::threshold_schema())
            .optional("output_format", one_of(OutputFormat::ALL.map(OutputFormat::as_str)).description(Some(FORMAT)))
            .optional("priority", one_of(Priority::ALL.map(Priority::as_str)).description(Some(PRIORITY)))
            .optional("deadline_seconds", integer(1).maximum(Some(DEADLINE_SECONDS_MAX)).description(Some(DEADLINE)))
            .optional(WEBHOOK_URL, WantedWebhook::url_schema())
            .optional(WEBHOOK_EVENTS, WantedWebhook::events_schema())
            .into()
    }
}

impl SubmitImage {
    /// How urgent it is.
    pub(in crate::http) fn urgency(&self) -> Urgency {
        self.urgency
    }

    /// What it says of its job's webhook.
    pub(in crate::http) fn webhook(&self) -> &WantedWebhook {
        &self.webhook
    }

    /// The model it asks for.
    pub(in crate::http) fn model(&self) -> &ModelId {
        &self.model
    }

    /// The valid request of a caller with these limits. `reservation` covers the body, which contains the input images.
    pub(in crate::http) async fn into_spec(
        self,
        state: &HttpState,
        card: &Arc<ModelCard>,
        limits: &KeyLimits,
        (preferences, reservation): (RequestPreferences, BodyReservation),
    ) -> Result<ValidImage, ApiError> {
        let (mut errors, mut loras) = (Vec::new(), self.loras);
        let wanted = preferences.wanted_format();
        if let (Some(wanted), Some(format)) = (wanted, self.output_format)
            && !preferences.accepts(format)
        {
            let reason = format!("is {format}, and the Accept header asks for {wanted}");
            errors.push(FieldError::new("output_format", reason));
        }
        errors.extend(wanted_cache::refusal(self.params.step_cache, &state.settings));
        let output_format = self.output_format.or(wanted).unwrap_or_default();
        let seed = match self.seed {
            Some(seed) => seed,
            None => random_seed().map_err(|error| ApiError::new(ErrorCode::Internal).with_cause(&error))?,
        };
        let mut params = GenerateParams { seed, ..self.params };
        loras.read_prompt(state, &mut params.prompt, &mut errors);
        let loras = loras.find(state, limits).await?;
        params.loras = loras.uses();
        let images = wanted_images::in_main_role(self.input_images, card).chain(self.images).collect();
        let outcome = state.0.images.spec(images, params, card, reservation).await?;
        let spec = loras.settle(outcome, errors)?;
        Ok(ValidImage { spec, output_format, loras })
    }
}

pub(in crate::http) fn submit_operation() -> Operation {
    let example = json!({ "model": "fluxserve/flux-shapes", "prompt": "a red circle on a blue background" });
    Operation::new(Tag::Images, "create_image", "Generate an image")
        .description(
            "Answers at once with 202 and the job's URLs, or waits: for the job's end with `Prefer: wait=SECONDS`, \
             for the image itself with an `Accept` of `image/png`, `image/jpeg` or `image/webp`. A client that hangs \
             up while waiting cancels the job.",
        )
        .header("Prefer", "`wait=SECONDS`: answer when the job has ended, or with 202 after that time.")
        .header("Idempotency-Key", "The same key and body within a day return the same job.")
        .body::<SubmitImage>(example)
        .answers::<JobView>(StatusCode::OK, "The job that has ended within the wait, or its image.")
        .answers_image(StatusCode::OK, "The job that has ended within the wait, or its image.")
        .answers::<AcceptedView>(StatusCode::ACCEPTED, "The job is accepted.")
        .refuses([ErrorCode::NotAcceptable, ErrorCode::IdempotencyConflict, ErrorCode::UploadNotFound])
        .refuses(GENERATION_REFUSALS)
}

pub(in crate::http) async fn submit(
    State(state): State<HttpState>,
    caller: InferenceCaller,
    (preferences, IdempotencyKey(word)): (RequestPreferences, IdempotencyKey),
    origin: Origin,
    ApiJson { value: request, digest, reservation }: ApiJson<SubmitImage>,
) -> Result<Response, ApiError> {
    let card = state.card_of(&request.model)?;
    let repeat_key = word.map(|word| RepeatKey { word, body_digest: digest });
    let submitted = if let Some(report) = earlier(&state, &caller, repeat_key.as_ref()).await? {
        Submitted::Earlier(report)
    } else {
        let urgency = request.urgency();
        let webhook = request.webhook().checked(&state, caller.0.key_id, &origin).await?;
        let valid = request.into_spec(&state, card, &caller.0.limits, (preferences, reservation)).await?;
        let ValidImage { spec, output_format, loras } = valid;
        let caller = caller.recheck(&state).await?;
        loras.check_allowed(&caller.limits)?;
        let submission = Submission {
            owner: caller.key_id,
            limits: caller.limits,
            spec,
            output_format,
            priority: urgency.priority,
            deadline: urgency.deadline,
            repeat_key,
            webhook: Some(webhook),
        };
        state.jobs.submit(submission).await?
    };
    // If the client hangs up, this handler is dropped, and with it a job that is not kept.
    let (accepted, report) = match submitted {
        Submitted::New(accepted) => {
            let report = accepted.report().clone();
            (Some(accepted), report)
        }
        Submitted::Earlier(report) => (None, report),
    };
    if !preferences.accepts(report.job.output_format) {
        let detail = format!("the job of this Idempotency-Key generates {}", report.job.output_format.content_type());
        return Err(ApiError::new(ErrorCode::NotAcceptable).with_detail(detail));
    }
    let response = match preferences.wait(state.settings.wait_max) {
        None => accepted_response(&report, &origin),
        Some(wait) => {
            let report = state.jobs.wait(caller.0.key_id, report.job.id, wait).await?;
            waited_response(&state, &report, &origin, preferences).await?
        }
    };
    if let Some(accepted) = accepted {
        accepted.keep();
    }
    Ok(response)
}

/// The job of an earlier request with this idempotency key. What that needed may be gone since, such as a LoRA.
async fn earlier(
    state: &HttpState,
    caller: &InferenceCaller,
    key: Option<&RepeatKey>,
) -> Result<Option<JobReport>, ApiError> {
    let Some(key) = key else { return Ok(None) };
    let owner = caller.recheck(state).await?.key_id;
    Ok(state.jobs.earlier(owner, key).await?)
}
