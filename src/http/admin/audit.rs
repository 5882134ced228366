//! `/v1/audit`: who did what, when and from where.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

use super::wire::audit::{AuditEntryView, AuditListView};
use crate::auth::AUDIT_PER_PAGE_MAX;
use crate::http::error::ApiError;
use crate::http::extract::administrator::Administrator;
use crate::http::extract::query::Parameters;
use crate::http::openapi::{Operation, Tag};
use crate::http::state::HttpState;

pub(in crate::http) async fn list(
    State(state): State<HttpState>,
    _: Administrator,
    mut parameters: Parameters,
) -> Result<Json<AuditListView>, ApiError> {
    let before = parameters.take("cursor", "the `next_cursor` of an earlier page");
    let limit = parameters.take_limit(AUDIT_PER_PAGE_MAX);
    parameters.finish()?;
    let page = state.admin.audit_page(before, limit).await?;
    let data = page.entries.into_iter().map(AuditEntryView::from).collect();
    Ok(Json(AuditListView { data, next_cursor: page.next.map(|id| id.to_string()) }))
}

pub(in crate::http) fn list_operation() -> Operation {
    Operation::new(Tag::Audit, "list_audit_entries", "Audit log, the newest entry first")
        .pages(AUDIT_PER_PAGE_MAX)
        .answers::<AuditListView>(StatusCode::OK, "One page of the log.")
}
