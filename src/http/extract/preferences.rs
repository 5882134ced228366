//! The client's preferences for the answer: `Prefer: wait=SECONDS` and `Accept`.

use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::http::header::ACCEPT;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName};

use crate::domain::format::OutputFormat;
use crate::http::error::{ApiError, ErrorCode};
use crate::http::state::HttpState;

const PREFER: HeaderName = HeaderName::from_static("prefer");

/// The form of the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::http) enum AnswerForm {
    /// The job as JSON.
    Json,
    /// The image; in this format if the client names one.
    Image(Option<OutputFormat>),
}

/// The client's preferences.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::http) struct RequestPreferences {
    /// The form of the answer.
    pub(in crate::http) form: AnswerForm,
    /// Seconds to wait as in `Prefer`, up to the worker's maximum.
    pub(in crate::http) wait_seconds: Option<u64>,
    /// Which of [`OutputFormat::ALL`] an image may have that is the answer.
    accepted: [bool; OutputFormat::ALL.len()],
}

impl FromRequestParts<HttpState> for RequestPreferences {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &HttpState) -> Result<Self, ApiError> {
        let form = answer_form(&parts.headers).ok_or_else(|| {
            let detail = "this route answers application/json, image/png, image/jpeg or image/webp";
            ApiError::new(ErrorCode::NotAcceptable).with_detail(detail)
        })?;
        let wait_seconds = wait_seconds(&parts.headers).map(|wait| wait.min(state.settings.wait_max.as_secs()));
        Ok(Self { form, wait_seconds, accepted: accepted_formats(&parts.headers) })
    }
}

impl RequestPreferences {
    /// Those of a route that answers with the job alone.
    pub(in crate::http) const JSON: Self =
        Self { form: AnswerForm::Json, wait_seconds: None, accepted: [true; OutputFormat::ALL.len()] };

    /// The format that the client prefers; `None` where it names none, or the answer is no image.
    pub(in crate::http) fn wanted_format(&self) -> Option<OutputFormat> {
        match self.form {
            AnswerForm::Json => None,
            AnswerForm::Image(wanted) => wanted,
        }
    }

    /// Whether a job may have this format: any, where the answer is no image.
    pub(in crate::http) fn accepts(&self, format: OutputFormat) -> bool {
        let mut formats = OutputFormat::ALL.iter().zip(self.accepted);
        self.form == AnswerForm::Json || formats.any(|(other, is_accepted)| is_accepted && *other == format)
    }

    /// How long to wait for the end of the job; `None`: not at all. An image as the answer implies a wait.
    pub(in crate::http) fn wait(&self, wait_max: Duration) -> Option<Duration> {
        match (self.wait_seconds, self.form) {
            (Some(seconds), _) => Some(Duration::from_secs(seconds)),
            (None, AnswerForm::Image(_)) => Some(wait_max),
            (None, AnswerForm::Json) => None,
        }
    }
}

/// Unreadable preferences are ignored (RFC 7240).
fn wait_seconds(headers: &HeaderMap) -> Option<u64> {
    let values = headers.get_all(PREFER).iter().filter_map(|value| value.to_str().ok());
    let mut preferences = values.flat_map(|value| value.split(','));
    preferences.find_map(|preference| {
        let (name, value) = preference.split(';').next()?.split_once('=')?;
        let is_wait = name.trim().eq_ignore_ascii_case("wait");
        is_wait.then(|| value.trim().trim_matches('"').parse().ok()).flatten()
    })
}

/// One or more media types in `Accept`: `image/png`, `image/*`, `*/*`.
struct MediaRange {
    essence: String,
    quality: f32,
}

/// The form that the client prefers: the first one among equals, JSON without an `Accept`. `None`: none of ours.
fn answer_form(headers: &HeaderMap) -> Option<AnswerForm> {
    let ranges = media_ranges(headers);
    if ranges.is_empty() {
        return Some(AnswerForm::Json);
    }
    let json = range_for(&ranges, "application/json").map(|place| (place, AnswerForm::Json));
    let formats = OutputFormat::ALL.map(|format| (format, range_for(&ranges, format.content_type())));
    let are_alike = formats.iter().all(|(_, place)| *place == formats[0].1);
    let images = formats.into_iter().filter_map(|(format, place)| {
        let wanted = (!are_alike).then_some(format);
        place.map(|place| (place, AnswerForm::Image(wanted)))
    });
    let mut best: Option<(usize, AnswerForm)> = None;
    for (place, form) in json.into_iter().chain(images) {
        let is_better = best.is_none_or(|(other, _)| {
            let (mine, its) = (ranges[place].quality, ranges[other].quality);
            mine > its || (mine == its && place < other)
        });
        if is_better {
            best = Some((place, form));
        }
    }
    best.map(|(_, form)| form)
}

/// Which of [`OutputFormat::ALL`] are accepted, preferred or not.
fn accepted_formats(headers: &HeaderMap) -> [bool; OutputFormat::ALL.len()] {
    let ranges = media_ranges(headers);
    OutputFormat::ALL.map(|format| ranges.is_empty() || range_for(&ranges, format.content_type()).is_some())
}

fn media_ranges(headers: &HeaderMap) -> Vec<MediaRange> {
    let values = headers.get_all(ACCEPT).iter().map(|value| value.to_str().unwrap_or("unreadable"));
    let texts = values.flat_map(|value| value.split(',')).map(str::trim).filter(|text| !text.is_empty());
    texts.map(MediaRange::read).collect()
}

/// The index of the range that applies to a type, which is the most specific match (RFC 9110, 12.5.1); `None` if there
/// is none, or if it excludes the type.
fn range_for(ranges: &[MediaRange], media_type: &str) -> Option<usize> {
    let (kind, _) = media_type.split_once('/')?;
    let wildcard = format!("{kind}/*");
    let fitting = [media_type, &wildcard, "*/*"];
    let place = fitting.iter().find_map(|text| ranges.iter().position(|range| range.essence == *text))?;
    (ranges[place].quality > 0.0).then_some(place)
}

impl MediaRange {
    fn read(text: &str) -> Self {
        let mut parts = text.split(';').map(str::trim);
        let essence = parts.next().unwrap_or_default().to_ascii_lowercase();
        let weight = parts.filter_map(|part| part.split_once('=')).find(|(name, _)| name.eq_ignore_ascii_case("q"));
        // An invalid weight excludes the type.
        let read = |weight: &str| weight.parse().ok().filter(|weight| (0.0..=1.0).contains(weight)).unwrap_or(0.0);
        Self { essence, quality: weight.map_or(1.0, |(_, weight)| read(weight)) }
    }
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
    fn the_preferred_form_is_chosen() {
        use AnswerForm::{Image, Json};
        assert_eq!(answer_form(&HeaderMap::new()), Some(Json));
        assert_eq!(form("*/*"), Some(Json));
        assert_eq!(form("image/png"), Some(Image(Some(OutputFormat::Png))));
        assert_eq!(form("Image/WebP"), Some(Image(Some(OutputFormat::Webp))));
        assert_eq!(form("image/*"), Some(Image(None)));
        assert_eq!(form("image/jpeg;q=0.5, application/json"), Some(Json));
        assert_eq!(form("application/json;q=0.5, image/jpeg"), Some(Image(Some(OutputFormat::Jpeg))));
        assert_eq!(form("text/html, */*;q=0.1"), Some(Json));
        assert_eq!(form("text/html"), None);
        assert_eq!(form("image/png;q=0"), None);
        assert_eq!(form("image/webp, image/png"), Some(Image(Some(OutputFormat::Webp))));
    }

    #[test]
    fn weights_count_in_any_spelling_and_zero_excludes() {
        use AnswerForm::{Image, Json};
        assert_eq!(form("application/json;Q=0.5, image/jpeg"), Some(Image(Some(OutputFormat::Jpeg))));
        assert_eq!(form("image/png; Q=0"), None);
        assert_eq!(form("*/*, application/json;q=0"), Some(Image(None)));
        assert_eq!(form("image/*, image/png;q=0"), Some(Image(Some(OutputFormat::Jpeg))));
        assert_eq!(form("image/*;q=0, */*"), Some(Json));
        assert_eq!(form("*/*;q=0"), None);
        assert_eq!(form("application/json;q=0.2, */*;q=0.8"), Some(Image(None)), "the more specific one counts");
        assert_eq!(form("application/json;q=2"), None, "an invalid weight");
    }

    #[test]
    fn formats_are_accepted_also_where_another_one_is_preferred() {
        let accepted = |accept| accepted_formats(&HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(accept))]));
        assert_eq!(accepted("image/png, image/webp;q=0.5"), [true, false, true]);
        assert_eq!(accepted("image/webp,image/png,*/*;q=0.8"), [true; 3], "as browsers send it");
        assert_eq!(accepted("image/*, image/png;q=0"), [false, true, true]);
        assert_eq!(accepted_formats(&HeaderMap::new()), [true; 3]);
    }

    #[test]
    fn waits_are_found_among_other_preferences() {
        assert_eq!(wait("wait=10"), Some(10));
        assert_eq!(wait("respond-async, Wait=5; x=y"), Some(5));
        assert_eq!(wait("wait=soon"), None);
        assert_eq!(wait("return=minimal"), None);
    }
}
