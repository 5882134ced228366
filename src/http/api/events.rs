//! A job's progress as Server-Sent Events: its updates as they happen, up to its end.
//!
//! An event is made from the job's state when the connection has room for it. So a slow reader costs no memory; one
//! that reads nothing is disconnected, as with any other answer.

use std::convert::Infallible;
use std::future::ready;
use std::time::Duration;

use axum::extract::State;
use axum::http::header::CACHE_CONTROL;
use axum::http::{HeaderName, StatusCode};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::{Stream, StreamExt, stream};
use serde::Serialize;
use tokio::time::{Instant, timeout_at};
use utoipa::ToSchema;

use super::jobs::{JobView, eta_seconds};
use crate::http::error::{ApiError, ErrorCode};
use crate::http::extract::caller::InferenceCaller;
use crate::http::extract::path::JobPath;
use crate::http::extract::watching::{LAST_EVENT_ID, Watching};
use crate::http::openapi::schema::{ObjectSchema, one_of, text};
use crate::http::openapi::{Operation, Tag};
use crate::http::origin::Origin;
use crate::http::state::HttpState;
use crate::jobs::{Image, JobReport, JobUpdate, JobWatch};

/// Time after which a client with a broken stream reconnects.
const RETRY: Duration = Duration::from_secs(2);
/// Tells nginx and compatible proxies not to buffer the stream.
const ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");
/// Those of a stream.
const HEADERS: [(HeaderName, &str); 2] = [(CACHE_CONTROL, "no-store"), (ACCEL_BUFFERING, "no")];

/// The data of a `queued` event.
#[derive(Serialize, ToSchema)]
#[schema(as = JobQueuedEvent)]
struct QueuedView {
    position: usize,
    eta_seconds: Option<f64>,
}

/// The data of a `step` event.
#[derive(Serialize, ToSchema)]
#[schema(as = JobStepEvent)]
struct StepView {
    step: u32,
    steps: u32,
    eta_seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    preview: Option<String>,
}

pub(in crate::http) async fn follow(
    State(state): State<HttpState>,
    InferenceCaller(caller): InferenceCaller,
    JobPath(id): JobPath,
    Watching(preferences): Watching,
    origin: Origin,
) -> Result<Response, ApiError> {
    let watch = state.jobs.watch(caller.key_id, id, preferences).await?;
    Ok(event_stream(&state, watch, move |report| JobView::new(report, &origin)))
}

pub(in crate::http) fn follow_operation() -> Operation {
    describe(Operation::new(Tag::Jobs, "follow_job", "Follow a job's progress"))
}

/// Documents a stream of events.
pub(in crate::http) fn describe(operation: Operation) -> Operation {
    let names = ["queued", "step", "succeeded", "failed", "canceled"];
    let event = ObjectSchema::new("One event with its fields.")
        .required("id", text().description(Some("The id for `Last-Event-ID`.")))
        .required("event", one_of(names))
        .required("data", text().description(Some("JSON.")));
    operation
        .description(
            "Server-Sent Events. `queued` is sent at first and whenever the position in the queue changes \
             (`JobQueuedEvent`). `step` is sent after each step, except for steps that pass faster than they are read \
             (`JobStepEvent`); a job that is restarted goes back. One of `succeeded`, `failed` and `canceled` ends \
             the stream, with the job as `GET` without `/events` returns it. A stream ends early after some minutes. \
             Then reconnect with the last event's id as `Last-Event-ID`, as browsers do automatically; earlier events \
             are not repeated.",
        )
        .query(
            "preview",
            one_of(["true", "false"]),
            "Whether `step` includes a small, rough preview if there is a new one.",
        )
        .header(LAST_EVENT_ID.as_str(), "The id of the last received event. An unknown id is ignored.")
        .answers_events(event, "The events, with a comment from time to time.")
        .mentions::<QueuedView>()
        .mentions::<StepView>()
        .answers_nothing(StatusCode::NO_CONTENT, "The client has seen the last event; nothing more will come.")
        .refuses([ErrorCode::TooManyStreams, ErrorCode::Draining, ErrorCode::StorageUnavailable])
}

/// The updates of a watch as an answer; `view` renders the job that has ended.
pub(in crate::http) fn event_stream<V: Serialize>(
    state: &HttpState,
    watch: Option<JobWatch>,
    view: impl Fn(&JobReport) -> V + Send + 'static,
) -> Response {
    let Some(watch) = watch else { return (StatusCode::NO_CONTENT, HEADERS).into_response() };
    let until = Instant::now() + state.settings.event_stream_max;
    let span = tracing::Span::current();
    let first = stream::once(ready(Ok::<_, Infallible>(Event::default().retry(RETRY))));
    let rest = stream::unfold((watch, view, span), move |(mut watch, view, span)| async move {
        let update = timeout_at(until, watch.next()).await.ok()?;
        match update {
            Ok(update) => update.map(|update| (Ok(event(&update, &view)), (watch, view, span))),
            Err(error) => {
                span.in_scope(|| tracing::error!(?error, "an event stream failed"));
                None
            }
        }
    });
    answer(state, first.chain(rest))
}

/// A stream of events as an answer, with heartbeats.
pub(in crate::http) fn answer(
    state: &HttpState,
    events: impl Stream<Item = Result<Event, Infallible>> + Send + 'static,
) -> Response {
    let heartbeat = KeepAlive::new().interval(state.settings.event_heartbeat);
    (HEADERS, Sse::new(events).keep_alive(heartbeat)).into_response()
}

fn event<V: Serialize>(update: &JobUpdate, view: impl Fn(&JobReport) -> V) -> Event {
    let event = Event::default().id(update.mark().to_string());
    let event = match update {
        JobUpdate::Queued { position, eta_seconds: eta } => {
            let view = QueuedView { position: *position, eta_seconds: eta.map(eta_seconds) };
            event.event("queued").json_data(view)
        }
        JobUpdate::Step { step, steps, eta_seconds: eta, preview } => {
            let preview = preview.as_ref().map(data_url);
            let view = StepView { step: *step, steps: *steps, eta_seconds: eta.map(eta_seconds), preview };
            event.event("step").json_data(view)
        }
        JobUpdate::Ended(report) => event.event(report.job.status.as_str()).json_data(view(report)),
    };
    event.expect("views are plain data")
}

/// A small image as a data URL (RFC 2397).
fn data_url(image: &Image) -> String {
    format!("data:{};base64,{}", image.format.content_type(), STANDARD.encode(&image.bytes))
}
