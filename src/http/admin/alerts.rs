//! `/v1/webhooks`: the operator's receiver of alerts, which the configuration names, and what was delivered to it.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

use super::wire::webhook::AlertListView;
use crate::http::api::webhooks::{DeliveryView, describe_list, describe_resend, take_delivery_query};
use crate::http::error::{ApiError, ErrorCode};
use crate::http::extract::administrator::Administrator;
use crate::http::extract::path::DeliveryPath;
use crate::http::extract::query::Parameters;
use crate::http::openapi::{Operation, Tag};
use crate::http::state::HttpState;

pub(in crate::http) async fn deliveries(
    State(state): State<HttpState>,
    _: Administrator,
    mut parameters: Parameters,
) -> Result<Json<AlertListView>, ApiError> {
    let query = take_delivery_query(&mut parameters);
    parameters.finish()?;
    let page = state.webhooks.alert_deliveries(query).await?;
    Ok(Json(AlertListView::of(state.webhooks.alert_host(), page)))
}

pub(in crate::http) fn deliveries_operation() -> Operation {
    let summary = "Deliveries to the operator's receiver of alerts, the newest first";
    describe_list::<AlertListView>(Operation::new(Tag::Webhooks, "list_alert_deliveries", summary)).description(
        "What is still to be delivered, and the log of seven days. Of the receiver's URL there are scheme, host and \
         port.",
    )
}

pub(in crate::http) async fn resend(
    State(state): State<HttpState>,
    _: Administrator,
    DeliveryPath(id): DeliveryPath,
) -> Result<(StatusCode, Json<DeliveryView>), ApiError> {
    Ok((StatusCode::ACCEPTED, Json(state.webhooks.resend_alert(id).await?.into())))
}

pub(in crate::http) fn resend_operation() -> Operation {
    let summary = "Send a delivery to the operator's receiver again";
    describe_resend(Operation::new(Tag::Webhooks, "resend_alert", summary)).refuses([ErrorCode::WebhookNotSetUp])
}

pub(in crate::http) async fn test(
    State(state): State<HttpState>,
    _: Administrator,
) -> Result<(StatusCode, Json<DeliveryView>), ApiError> {
    Ok((StatusCode::ACCEPTED, Json(state.webhooks.test_alerts().await?.into())))
}

pub(in crate::http) fn test_operation() -> Operation {
    Operation::new(Tag::Webhooks, "test_alerts", "Send a test to the operator's receiver of alerts")
        .description("An event of the type `webhook.test`. The list of deliveries shows what becomes of it.")
        .answers::<DeliveryView>(StatusCode::ACCEPTED, "The delivery.")
        .refuses([ErrorCode::WebhookNotSetUp, ErrorCode::WebhooksOff, ErrorCode::StorageUnavailable])
}
