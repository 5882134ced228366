//! `/v1/api-keys/{key_id}/usage`: a key's usage by day.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

use super::wire::budget::BudgetUseView;
use super::wire::usage::{DayUsageView, UsageView};
use crate::domain::budget::BudgetHolder;
use crate::domain::spec::FieldError;
use crate::domain::usage::{Day, USAGE_DAYS_KEPT, by_day};
use crate::http::error::{ApiError, ErrorCode};
use crate::http::extract::administrator::Administrator;
use crate::http::extract::path::KeyPath;
use crate::http::extract::query::Parameters;
use crate::http::openapi::schema::integer;
use crate::http::openapi::{Operation, Tag};
use crate::http::state::HttpState;

/// Days that are returned by default.
const DAYS_DEFAULT: u32 = 30;

pub(in crate::http) async fn show(
    State(state): State<HttpState>,
    _: Administrator,
    KeyPath(id): KeyPath,
    mut parameters: Parameters,
) -> Result<Json<UsageView>, ApiError> {
    let rule = format!("a whole number from 1 to {USAGE_DAYS_KEPT}");
    let days = parameters.take("days", &rule).unwrap_or(DAYS_DEFAULT);
    parameters.finish()?;
    if !(1..=USAGE_DAYS_KEPT).contains(&days) {
        return Err(ApiError::invalid(vec![FieldError::new("days", format!("must be {rule}"))]));
    }
    let key = state.keys.get(id).await?;
    let today = Day::of(state.keys.now());
    let since = today.before(days - 1);
    let requests = state.keys.requests_by_day(key.id, since).await?;
    let work = state.jobs.usage_buffer().by_day(key.id, since).await?;
    let data = by_day(today, days, &requests, &work).into_iter().map(DayUsageView::from).collect();
    let budget = match key.limits.budget {
        None => None,
        Some(budget) => {
            let standing = state.usage.standing(BudgetHolder::Key(key.id), budget).await?;
            Some(BudgetUseView::of(&state, &standing))
        }
    };
    Ok(Json(UsageView { data, budget }))
}

pub(in crate::http) fn show_operation() -> Operation {
    Operation::new(Tag::ApiKeys, "get_api_key_usage", "Usage of a key by day")
        .query("days", integer(1).maximum(Some(USAGE_DAYS_KEPT)), "The number of UTC days, including today.")
        .answers::<UsageView>(StatusCode::OK, "The days, the oldest first.")
        .refuses([ErrorCode::StorageUnavailable])
}
