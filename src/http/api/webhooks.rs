//! Webhooks for clients: the fields of a request, and the deliveries of the calling key.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;
use time::OffsetDateTime;
use time::serde::rfc3339;
use utoipa::ToSchema;
use utoipa::openapi::schema::{Array, ArrayBuilder, ObjectBuilder};

use crate::domain::ids::KeyId;
use crate::domain::spec::FieldError;
use crate::domain::webhook::{JobWebhook, WebhookEvent, WebhookEvents};
use crate::hooks::{
    DELIVERIES_PER_PAGE_MAX, Delivery, DeliveryPage, DeliveryQuery, DeliveryState, URL_BYTES_MAX, WebhookError,
};
use crate::http::error::{ApiError, ErrorCode};
use crate::http::extract::caller::InferenceCaller;
use crate::http::extract::json::Fields;
use crate::http::extract::path::DeliveryPath;
use crate::http::extract::query::Parameters;
use crate::http::openapi::schema::{one_of, text};
use crate::http::openapi::{Operation, Tag};
use crate::http::origin::Origin;
use crate::http::state::HttpState;

/// The field with the receiver's URL.
pub(in crate::http) const WEBHOOK_URL: &str = "webhook_url";
/// The field with the events.
pub(in crate::http) const WEBHOOK_EVENTS: &str = "webhook_events";

const URL_ABOUT: &str =
    "Where to send the job's events, signed with the key's webhook secret. Defaults to the key's own.";
const EVENTS_ABOUT: &str = "Which events to send; an empty list sends none. By default the job's end: with `webhook_url` \
                            all three kinds, else the key's own.";

/// What a request says of its job's webhook.
#[derive(Debug, Default)]
pub(in crate::http) struct WantedWebhook {
    url: Option<String>,
    events: Option<WebhookEvents>,
}

impl WantedWebhook {
    /// Takes its fields.
    pub(in crate::http) fn read(fields: &mut Fields) -> Self {
        Self { url: fields.text(WEBHOOK_URL), events: read_events(fields, WEBHOOK_EVENTS) }
    }

    /// The schema of [`WEBHOOK_URL`].
    pub(in crate::http) fn url_schema() -> ObjectBuilder {
        text().max_length(Some(URL_BYTES_MAX)).description(Some(URL_ABOUT))
    }

    /// The schema of [`WEBHOOK_EVENTS`].
    pub(in crate::http) fn events_schema() -> Array {
        events_schema(EVENTS_ABOUT)
    }

    /// The same, checked, for the job of a key.
    pub(in crate::http) async fn checked(
        &self,
        state: &HttpState,
        key: KeyId,
        origin: &Origin,
    ) -> Result<JobWebhook, ApiError> {
        let (url, events) = (self.url.clone(), self.events.clone());
        let webhook = JobWebhook { url, events, origin: Some(origin.as_str().to_owned()) };
        let refused = |field, reason: String| ApiError::invalid(vec![FieldError::new(field, reason)]);
        match state.webhooks.check(key, &webhook).await {
            Ok(()) => Ok(webhook),
            Err(WebhookError::Url(bad)) => Err(refused(WEBHOOK_URL, bad.to_string())),
            Err(error @ WebhookError::NoUrl) => Err(refused(WEBHOOK_EVENTS, error.to_string())),
            Err(error @ (WebhookError::Off | WebhookError::NoSecret)) => {
                let field = if self.url.is_some() { WEBHOOK_URL } else { WEBHOOK_EVENTS };
                Err(refused(field, error.to_string()))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Refuses it for a job of no key: there is no secret to sign with.
    pub(in crate::http) fn refuse(&self) -> Result<(), ApiError> {
        let given = [(WEBHOOK_URL, self.url.is_some()), (WEBHOOK_EVENTS, self.events.is_some())];
        let errors: Vec<FieldError> = given
            .into_iter()
            .filter(|(_, is_given)| *is_given)
            .map(|(field, _)| FieldError::new(field, "needs a key: the console's images have none"))
            .collect();
        if errors.is_empty() { Ok(()) } else { Err(ApiError::invalid(errors)) }
    }
}

/// Takes a list of events.
pub(in crate::http) fn read_events(fields: &mut Fields, field: &str) -> Option<WebhookEvents> {
    let names = fields.texts(field)?;
    WebhookEvents::of(&names).inspect_err(|error| fields.refuse(field, error.to_string())).ok()
}

/// The schema of a list of events.
pub(in crate::http) fn events_schema(about: &str) -> Array {
    let event = one_of(WebhookEvent::OF_JOBS.map(WebhookEvent::as_str));
    ArrayBuilder::new().items(event).unique_items(true).description(Some(about)).build()
}

/// A delivery to a webhook.
#[derive(Serialize, ToSchema)]
#[schema(as = WebhookDelivery)]
pub(in crate::http) struct DeliveryView {
    /// Its id, `webhook-id` in each attempt.
    delivery_id: String,
    /// The event.
    event: &'static str,
    /// The job, unless it is a test.
    job_id: Option<String>,
    /// Where it goes.
    url: String,
    /// `pending`, `delivered` or `failed`.
    state: &'static str,
    /// Attempts so far.
    attempts: u32,
    /// When the event happened.
    #[serde(with = "rfc3339")]
    happened_at: OffsetDateTime,
    /// When the next attempt is due.
    #[serde(with = "rfc3339::option")]
    next_attempt_at: Option<OffsetDateTime>,
    /// When the last attempt was made.
    #[serde(with = "rfc3339::option")]
    last_attempt_at: Option<OffsetDateTime>,
    /// When it was delivered or given up.
    #[serde(with = "rfc3339::option")]
    ended_at: Option<OffsetDateTime>,
    /// The status of the last answer.
    last_status: Option<u16>,
    /// What was wrong with the last attempt.
    last_error: Option<String>,
}

impl From<Delivery> for DeliveryView {
    fn from(delivery: Delivery) -> Self {
        Self {
            delivery_id: delivery.id.to_string(),
            event: delivery.event.as_str(),
            job_id: delivery.job,
            url: delivery.url,
            state: delivery.state.as_str(),
            attempts: delivery.attempts,
            happened_at: delivery.happened_at,
            next_attempt_at: delivery.next_at,
            last_attempt_at: delivery.tried_at,
            ended_at: delivery.ended_at,
            last_status: delivery.last_status,
            last_error: delivery.last_error,
        }
    }
}

/// One page of deliveries.
#[derive(Serialize, ToSchema)]
#[schema(as = WebhookDeliveryList)]
pub(in crate::http) struct DeliveryListView {
    data: Vec<DeliveryView>,
    next_cursor: Option<String>,
}

impl From<DeliveryPage> for DeliveryListView {
    fn from(page: DeliveryPage) -> Self {
        let data = page.deliveries.into_iter().map(DeliveryView::from).collect();
        Self { data, next_cursor: page.next.map(|id| id.to_string()) }
    }
}

/// The filter and page of a list of deliveries.
pub(in crate::http) fn take_delivery_query(parameters: &mut Parameters) -> DeliveryQuery {
    let before = parameters.take("cursor", "the `next_cursor` of an earlier page");
    let state = parameters.take("state", "pending, delivered or failed");
    DeliveryQuery { before, state, deliveries_max: parameters.take_limit(DELIVERIES_PER_PAGE_MAX) }
}

/// What lists of deliveries have in common.
pub(in crate::http) fn describe_list(operation: Operation) -> Operation {
    operation
        .query("state", one_of(DeliveryState::ALL.map(DeliveryState::as_str)), "Only deliveries in this state.")
        .pages(DELIVERIES_PER_PAGE_MAX)
        .answers::<DeliveryListView>(StatusCode::OK, "One page of deliveries.")
        .refuses([ErrorCode::StorageUnavailable])
}

/// What routes that resend a delivery have in common.
pub(in crate::http) fn describe_resend(operation: Operation) -> Operation {
    operation
        .description("Whatever became of it: with the same `webhook-id`, and as many attempts as a new one has.")
        .answers::<DeliveryView>(StatusCode::ACCEPTED, "The delivery, which is due now.")
        .refuses([ErrorCode::WebhooksOff, ErrorCode::StorageUnavailable])
}

pub(in crate::http) async fn list(
    State(state): State<HttpState>,
    InferenceCaller(caller): InferenceCaller,
    mut parameters: Parameters,
) -> Result<Json<DeliveryListView>, ApiError> {
    let query = take_delivery_query(&mut parameters);
    parameters.finish()?;
    Ok(Json(state.webhooks.deliveries(caller.key_id, query).await?.into()))
}

pub(in crate::http) fn list_operation() -> Operation {
    describe_list(Operation::new(Tag::Webhooks, "list_deliveries", "The calling key's deliveries, the newest first"))
        .description("What is still to be delivered, and the log of seven days.")
}

pub(in crate::http) async fn resend(
    State(state): State<HttpState>,
    InferenceCaller(caller): InferenceCaller,
    DeliveryPath(id): DeliveryPath,
) -> Result<(StatusCode, Json<DeliveryView>), ApiError> {
    let delivery = state.webhooks.resend(caller.key_id, id).await?;
    Ok((StatusCode::ACCEPTED, Json(delivery.into())))
}

pub(in crate::http) fn resend_operation() -> Operation {
    describe_resend(Operation::new(Tag::Webhooks, "resend_delivery", "Send a delivery of the calling key again"))
}
