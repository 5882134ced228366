//! How the client wants its answer: `Prefer: wait=SECONDS` and `Accept`.

use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::http::header::ACCEPT;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName};

use crate::domain::format::OutputFormat;
use crate::http::HttpState;
use crate::http::error::{ApiError, ErrorCode};

const PREFER: HeaderName = HeaderName::from_static("prefer");

/// The form of the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::http) enum AnswerForm {
    /// The job as JSON.
    Json,
    /// The picture; in this format where the client names one.
    Picture(Option<OutputFormat>),
}

/// What the client asked for beside the picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::http) struct Wishes {
    /// The form of the answer.
    pub(in crate::http) form: AnswerForm,
    /// Seconds to wait, as `Prefer` asked, cut to what we allow.
    pub(in crate::http) wait_seconds: Option<u64>,
}

impl FromRequestParts<HttpState> for Wishes {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &HttpState) -> Result<Self, ApiError> {
        let form = answer_form(&parts.headers).ok_or_else(|| {
            let detail = "this route answers application/json, image/png, image/jpeg or image/webp";
            ApiError::new(ErrorCode::NotAcceptable).with_detail(detail)
        })?;
        let wait_seconds = wait_seconds(&parts.headers).map(|wait| wait.min(state.settings.wait_max.as_secs()));
        Ok(Self { form, wait_seconds })
    }
}

impl Wishes {
    /// How long to wait for the end of the job; `None`: not at all. Who wants a picture as the answer waits for it.
    pub(in crate::http) fn wait(&self, wait_max: Duration) -> Option<Duration> {
        match (self.wait_seconds, self.form) {
            (Some(seconds), _) => Some(Duration::from_secs(seconds)),
            (None, AnswerForm::Picture(_)) => Some(wait_max),
            (None, AnswerForm::Json) => None,
        }
    }
}

/// Preferences are wishes: what cannot be read is passed over (RFC 7240).
fn wait_seconds(headers: &HeaderMap) -> Option<u64> {
    let values = headers.get_all(PREFER).iter().filter_map(|value| value.to_str().ok());
    let mut preferences = values.flat_map(|value| value.split(','));
    preferences.find_map(|preference| {
        let (name, value) = preference.split(';').next()?.split_once('=')?;
        let is_wait = name.trim().eq_ignore_ascii_case("wait");
        is_wait.then(|| value.trim().trim_matches('"').parse().ok()).flatten()
    })
}

/// The first form the client likes best; JSON when it does not say. `None`: none of ours.
fn answer_form(headers: &HeaderMap) -> Option<AnswerForm> {
    let mut best: Option<(AnswerForm, f32)> = None;
    let mut is_said = false;
    for value in headers.get_all(ACCEPT) {
        for range in value.to_str().unwrap_or_default().split(',').map(str::trim).filter(|range| !range.is_empty()) {
            is_said = true;
            let (form, quality) = (form_of(range), quality_of(range));
            if let Some(form) = form
                && quality > 0.0
                && best.is_none_or(|(_, best)| quality > best)
            {
                best = Some((form, quality));
            }
        }
    }
    if is_said { best.map(|(form, _)| form) } else { Some(AnswerForm::Json) }
}

fn form_of(range: &str) -> Option<AnswerForm> {
    let essence = range.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match essence.as_str() {
        "*/*" | "application/*" | "application/json" => Some(AnswerForm::Json),
        "image/*" => Some(AnswerForm::Picture(None)),
        other => {
            let format = OutputFormat::ALL.into_iter().find(|format| format.content_type() == other)?;
            Some(AnswerForm::Picture(Some(format)))
        }
    }
}

fn quality_of(range: &str) -> f32 {
    let weight = range.split(';').skip(1).find_map(|parameter| parameter.trim().strip_prefix("q="));
    weight.map_or(1.0, |weight| weight.parse().unwrap_or(0.0))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn form(accept: &'static str) -> Option<AnswerForm> {
        answer_form(&HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(accept))]))
    }

    fn wait(prefer: &'static str) -> Option<u64> {
        wait_seconds(&HeaderMap::from_iter([(PREFER, HeaderValue::from_static(prefer))]))
    }

    #[test]
    fn the_best_liked_form_is_given() {
        use AnswerForm::{Json, Picture};
        assert_eq!(answer_form(&HeaderMap::new()), Some(Json));
        assert_eq!(form("*/*"), Some(Json));
        assert_eq!(form("image/png"), Some(Picture(Some(OutputFormat::Png))));
        assert_eq!(form("Image/WebP"), Some(Picture(Some(OutputFormat::Webp))));
        assert_eq!(form("image/*"), Some(Picture(None)));
        assert_eq!(form("image/jpeg;q=0.5, application/json"), Some(Json));
        assert_eq!(form("application/json;q=0.5, image/jpeg"), Some(Picture(Some(OutputFormat::Jpeg))));
        assert_eq!(form("text/html, */*;q=0.1"), Some(Json));
        assert_eq!(form("text/html"), None);
        assert_eq!(form("image/png;q=0"), None);
    }

    #[test]
    fn waits_are_found_among_other_preferences() {
        assert_eq!(wait("wait=10"), Some(10));
        assert_eq!(wait("respond-async, Wait=5; x=y"), Some(5));
        assert_eq!(wait("wait=soon"), None);
        assert_eq!(wait("return=minimal"), None);
    }
}
