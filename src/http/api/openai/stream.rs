//! The answer of a request that is streamed: Server-Sent Events, as OpenAI's clients read them. The image as it forms, then the
//! image with the request's usage, or an error, which the clients raise.
//!
//! No event has an `id` or a `retry` field: after either, those clients take a heartbeat for an event without data, and
//! fail. An event is made when the connection has room for it, and one at a time, so a slow reader holds one.

use std::convert::Infallible;

use axum::response::sse::Event;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::stream;
use serde::Serialize;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout_at};
use tracing::Span;
use utoipa::ToSchema;

use super::size_of;
use super::streaming::{Kind, Streaming};
use crate::domain::spec::GenerateSpec;
use crate::http::api::events;
use crate::http::api::inference::check_succeeded;
use crate::http::dialect::openai_event;
use crate::http::error::{ApiError, ErrorCode, Problem};
use crate::http::openapi::Operation;
use crate::http::openapi::schema::{ObjectSchema, one_of, text};
use crate::http::state::HttpState;
use crate::jobs::{DraftUpdate, DraftWatch, Image, JobReport, Submission};

/// The event with an error.
const ERROR: &str = "error";

/// The data of an event with an image.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = OpenAiImageEvent)]
struct ImageEvent {
    /// The event's name.
    #[serde(rename = "type")]
    kind: &'static str,
    /// The image.
    b64_json: String,
    /// Which of the partial images, from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    partial_image_index: Option<u32>,
    /// Unix seconds.
    created_at: i64,
    /// `WIDTHxHEIGHT`, in pixels.
    size: String,
    output_format: &'static str,
    quality: &'static str,
    background: &'static str,
    /// Only with the complete image.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Usage>,
    seed: u64,
    job_id: String,
}

/// What a request took, in tokens.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
#[schema(as = OpenAiUsage)]
struct Usage {
    input_tokens: usize,
    input_tokens_details: InputTokens,
    /// Of the image: one for 16×16 pixels.
    output_tokens: usize,
    total_tokens: usize,
}

/// What a request gave, in tokens.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
#[schema(as = OpenAiInputTokens)]
struct InputTokens {
    /// Of reference and style images.
    image_tokens: usize,
    /// Of the text encoder, which takes the same number for every prompt.
    text_tokens: usize,
}

impl Usage {
    fn of(spec: &GenerateSpec) -> Self {
        let (image_tokens, text_tokens) = (spec.reference_tokens() + spec.style_tokens(), spec.sequence_length());
        let (input_tokens, output_tokens) = (image_tokens + text_tokens, spec.image_tokens());
        Self {
            input_tokens,
            input_tokens_details: InputTokens { image_tokens, text_tokens },
            output_tokens,
            total_tokens: input_tokens + output_tokens,
        }
    }
}

/// Documents the stream of an operation.
pub(super) fn describe(operation: Operation, kind: Kind) -> Operation {
    let names = [kind.partial_image(), kind.completed(), ERROR];
    let event = ObjectSchema::new("One event with its fields.")
        .required("event", one_of(names))
        .required("data", text().description(Some("JSON.")));
    operation
        .answers_events(
            event,
            "With `stream`: the partial images and then the complete one (`OpenAiImageEvent`), or an error \
             (`OpenAiError`), with a comment from time to time. An error before the job begins has its own status instead.",
        )
        .mentions::<ImageEvent>()
        .mentions::<Usage>()
        .mentions::<InputTokens>()
        .refuses([ErrorCode::TooManyStreams])
}

/// Generates an image, and answers with a stream of what becomes of it. If the client hangs up, the job is canceled.
pub(super) async fn respond(
    state: &HttpState,
    submission: Submission,
    streaming: Streaming,
) -> Result<Response, ApiError> {
    let until = Instant::now() + state.settings.wait_max;
    let (usage, size) = (Usage::of(&submission.spec), size_of(&submission.spec));
    let watch = state.jobs.submit_drafted(submission, streaming.partial_images).await?;
    let forming =
        Forming { state: state.clone(), watch, until, kind: streaming.kind, usage, size, span: Span::current() };
    let events = stream::unfold(Some(forming), |forming| async move {
        let mut forming = forming?;
        let (event, is_last) = forming.next().await;
        // After the last event the watch is dropped: a job that has not ended is canceled.
        Some((Ok::<_, Infallible>(event), (!is_last).then_some(forming)))
    });
    Ok(events::answer(state, events))
}

/// An image that forms, for the client of a stream.
struct Forming {
    state: HttpState,
    watch: DraftWatch,
    until: Instant,
    kind: Kind,
    usage: Usage,
    /// Of the result, in pixels.
    size: (u32, u32),
    span: Span,
}

impl Forming {
    /// The next event, and whether it is the last one.
    async fn next(&mut self) -> (Event, bool) {
        match self.next_image().await {
            Ok(next) => next,
            Err(error) => (self.failed(error), true),
        }
    }

    async fn next_image(&mut self) -> Result<(Event, bool), ApiError> {
        let Ok(update) = timeout_at(self.until, self.watch.next()).await else {
            let seconds = self.state.settings.wait_max.as_secs();
            let detail = format!("the image was not finished within {seconds} seconds and is canceled");
            return Err(ApiError::new(ErrorCode::DeadlineExceeded).with_detail(detail));
        };
        match update? {
            Some(DraftUpdate::Draft { index, image, at }) => {
                let view = self.view(self.kind.partial_image(), at.unix_timestamp());
                let view = ImageEvent { partial_image_index: Some(index), ..view };
                Ok((event(view, image).await?, false))
            }
            Some(DraftUpdate::Ended(report)) => {
                let JobReport { job, .. } = *report;
                check_succeeded(&job)?;
                let image = self.state.jobs.image(job.owner, job.id).await?;
                let ended_at = job.finished_at.unwrap_or(job.created_at);
                let view = self.view(self.kind.completed(), ended_at.unix_timestamp());
                Ok((event(ImageEvent { usage: Some(self.usage), ..view }, image).await?, true))
            }
            None => Err(ApiError::new(ErrorCode::Draining)),
        }
    }

    /// The data of an event, without its image.
    fn view(&self, kind: &'static str, created_at: i64) -> ImageEvent {
        let (job, (width, height)) = (&self.watch.report().job, self.size);
        ImageEvent {
            kind,
            b64_json: String::new(),
            partial_image_index: None,
            created_at,
            size: format!("{width}x{height}"),
            output_format: job.output_format.as_str(),
            quality: "auto",
            background: "opaque",
            usage: None,
            seed: job.request.seed,
            job_id: job.id.to_string(),
        }
    }

    /// The event with an error. Its status was sent before, so it is in the data.
    fn failed(&self, error: ApiError) -> Event {
        let response = error.into_response();
        let problem = response.extensions().get::<Problem>().expect("every error has its problem");
        if let Some(cause) = &problem.cause {
            self.span.in_scope(|| tracing::error!(code = problem.code.as_str(), cause, "a stream failed"));
        }
        Event::default().event(ERROR).json_data(openai_event(problem)).expect("views are plain data")
    }
}

/// The event with an image. Megabytes: not on the async threads.
async fn event(view: ImageEvent, image: Image) -> Result<Event, ApiError> {
    let written = spawn_blocking(move || {
        let view = ImageEvent { b64_json: STANDARD.encode(&image.bytes), ..view };
        drop(image);
        Event::default().event(view.kind).json_data(view)
    });
    let internal = |error: &dyn std::fmt::Display| ApiError::new(ErrorCode::Internal).with_cause(error);
    written.await.map_err(|error| internal(&error))?.map_err(|error| internal(&error))
}
