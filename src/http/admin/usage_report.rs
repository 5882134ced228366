//! `/v1/usage`: who has used what in some days, and what it costs.

use std::fmt;
use std::str::FromStr;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::{CONTENT_DISPOSITION, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use futures_util::stream;

use super::wire::usage_report::{Csv, UsageReportView, UsageRowView};
use crate::domain::ids::KeyId;
use crate::domain::spec::FieldError;
use crate::domain::usage::{Day, DayRange, USAGE_DAYS_KEPT};
use crate::http::error::{ApiError, ErrorCode};
use crate::http::extract::administrator::Administrator;
use crate::http::extract::query::Parameters;
use crate::http::openapi::schema::{one_of, text};
use crate::http::openapi::{Operation, Tag};
use crate::http::state::HttpState;
use crate::usage::{GroupBy, Usage, UsageError, UsagePage, UsageRow};

/// Days that are reported by default, including today.
const DAYS_DEFAULT: u32 = 30;

const CSV: &str = "text/csv; charset=utf-8";
const LINES: &str = "application/x-ndjson";

/// The form of the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Json,
    Csv,
    Lines,
}

impl Format {
    const ALL: [Self; 3] = [Self::Json, Self::Csv, Self::Lines];

    fn as_str(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Csv => "csv",
            Self::Lines => "ndjson",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Format {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|format| format.as_str() == text).ok_or(())
    }
}

pub(in crate::http) async fn show(
    State(state): State<HttpState>,
    _: Administrator,
    mut parameters: Parameters,
) -> Result<Response, ApiError> {
    let to: Option<Day> = parameters.take("to", "a day like 2030-01-31");
    let from: Option<Day> = parameters.take("from", "a day like 2030-01-31");
    let group = parameters.take("group_by", "key, model, day or project").unwrap_or(GroupBy::Day);
    let format = parameters.take("format", "json, csv or ndjson").unwrap_or(Format::Json);
    let cursor: Option<String> = parameters.take("cursor", "the `next_cursor` of an earlier page");
    parameters.finish()?;
    let days = days(&state, from, to)?;
    if let Some(reason) = cursor.as_deref().and_then(|cursor| unfit_cursor(cursor, group, format)) {
        return Err(ApiError::invalid(vec![FieldError::new("cursor", reason)]));
    }
    let page = state.usage.page(group, days, cursor.as_deref()).await?;
    if format == Format::Json {
        let total = state.usage.total(days).await?;
        let report = UsageReportView::new(days, state.usage.prices(), total);
        return Ok(Json(report.with_page(page.rows, page.next)).into_response());
    }
    let name = format!("usage-{}-to-{}-by-{group}.{format}", days.from, days.to);
    let content_type = if format == Format::Csv { CSV } else { LINES };
    let headers =
        [(CONTENT_TYPE, content_type.to_owned()), (CONTENT_DISPOSITION, format!("attachment; filename=\"{name}\""))];
    Ok((headers, streamed(state.usage.clone(), (group, days), format, page)).into_response())
}

/// Why a cursor cannot be used, if so.
fn unfit_cursor(cursor: &str, group: GroupBy, format: Format) -> Option<String> {
    if format != Format::Json {
        return Some(format!("does not go with `format={format}`, which has all rows"));
    }
    let is_fit = group != GroupBy::Key || cursor.parse::<KeyId>().is_ok();
    (!is_fit).then(|| "must be the `next_cursor` of an earlier page".to_owned())
}

/// The wanted days.
fn days(state: &HttpState, from: Option<Day>, to: Option<Day>) -> Result<DayRange, ApiError> {
    let to = to.unwrap_or_else(|| Day::of(state.keys.now()));
    let from = from.unwrap_or(to.before(DAYS_DEFAULT - 1));
    let days = DayRange { from, to };
    let refuse = |reason: String| Err(ApiError::invalid(vec![FieldError::new("from", reason)]));
    match days.days() {
        0 => refuse(format!("is after `to`, {to}")),
        1..=USAGE_DAYS_KEPT => Ok(days),
        number => refuse(format!("must be at most {} days before `to`, not {}", USAGE_DAYS_KEPT - 1, number - 1)),
    }
}

/// All rows, written page by page as the client reads them. If the database fails on the way, the connection breaks off, so
/// that nobody takes a part for the whole.
fn streamed(usage: Usage, (group, days): (GroupBy, DayRange), format: Format, first: UsagePage) -> Body {
    let csv = Csv::new(usage.prices());
    let head = if format == Format::Csv { csv.head(group.as_str()) } else { String::new() };
    let write = move |page: UsagePage| {
        let UsagePage { rows, next } = page;
        let lines = if format == Format::Csv { csv.lines(&rows) } else { json_lines(rows) };
        (lines, next)
    };
    let (lines, next) = write(first);
    let begun = (usage, write, Some(head + &lines), next);
    let pages = stream::try_unfold(begun, move |(usage, write, ready, next)| async move {
        if let Some(text) = ready {
            return Ok::<_, UsageError>(Some((Bytes::from(text), (usage, write, None, next))));
        }
        let Some(after) = next else { return Ok(None) };
        let page = usage.page(group, days, Some(&after)).await?;
        let (text, next) = write(page);
        Ok(Some((Bytes::from(text), (usage, write, None, next))))
    });
    Body::from_stream(pages)
}

/// A JSON object on a line for each row.
fn json_lines(rows: Vec<UsageRow>) -> String {
    let line = |row: UsageRow| serde_json::to_string(&UsageRowView::from(row)).expect("a row is plain data") + "\n";
    rows.into_iter().map(line).collect()
}

pub(in crate::http) fn show_operation() -> Operation {
    let day = || text().description(Some("A UTC day, as in `2030-01-31`."));
    Operation::new(Tag::Usage, "get_usage", "Usage by key, model, day or project")
        .description(
            "Rows have requests, jobs, images, megapixel-steps and engine time, and costs if the server has prices. Each \
             cost is exact and rounded once, at the sixth decimal, a half up: so the cost of a total may differ from the \
             sum of its rows by less than a millionth for each row. JSON has up to 1,000 keys on a page; CSV and lines of \
             JSON have all rows. In CSV, cells that a spreadsheet would take for formulas begin with an apostrophe.",
        )
        .query("from", day(), "The first UTC day. By default 29 days before `to`; at most 399.")
        .query("to", day(), "The last UTC day. By default today.")
        .query("group_by", one_of(GroupBy::ALL.map(GroupBy::as_str)), "What a row is about. Defaults to `day`.")
        .query("format", one_of(Format::ALL.map(Format::as_str)), "The form of the answer. Defaults to `json`.")
        .query("cursor", text(), "The `next_cursor` of an earlier page, for JSON.")
        .answers::<UsageReportView>(StatusCode::OK, "The usage.")
        .answers_text(StatusCode::OK, CSV, "The usage.")
        .answers_text(StatusCode::OK, LINES, "The usage.")
        .mentions::<UsageRowView>()
        .refuses([ErrorCode::StorageUnavailable])
}
