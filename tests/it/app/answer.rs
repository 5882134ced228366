//! Answers to requests, with checks of everything that an error must have.

use axum::http::{HeaderMap, StatusCode};
use serde_json::Value;

pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) bytes: Vec<u8>,
}

impl Answer {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap_or_else(|_| panic!("no JSON: {}", self.text()))
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The code of an error, after a check of all its parts.
    #[track_caller]
    pub(crate) fn code(&self) -> String {
        assert_eq!(self.header("content-type"), "application/problem+json", "{}", self.text());
        let body = self.json();
        assert_eq!(body["status"], self.status.as_u16());
        assert_eq!(body["request_id"], self.header("x-request-id"));
        assert!(body["title"].is_string() && body["type"].is_string(), "{body}");
        body["code"].as_str().expect("a code").to_owned()
    }

    /// An error in OpenAI's format, after a check of all its parts.
    #[track_caller]
    pub(crate) fn openai_error(&self) -> Value {
        assert_eq!(self.header("content-type"), "application/json", "{}", self.text());
        assert_ne!(self.header("x-request-id"), "");
        let body = self.json();
        let mut body: serde_json::Map<String, Value> = serde_json::from_value(body).expect("an object");
        let error = body.remove("error").unwrap_or_else(|| panic!("no error: {}", self.text()));
        assert!(body.is_empty(), "{}", self.text());
        let names: Vec<&String> = error.as_object().expect("an object").keys().collect();
        assert_eq!(names.len(), 4, "{names:?}");
        assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{error}");
        assert!(error["type"].is_string() && error["code"].is_string(), "{error}");
        assert!(error["param"].is_string() || error.get("param") == Some(&Value::Null), "{error}");
        error
    }

    /// The code of an error as one line for a terminal, after a check of all its parts.
    #[track_caller]
    pub(crate) fn terminal_code(&self) -> String {
        assert_eq!(self.header("content-type"), "application/json", "{}", self.text());
        let body = self.json();
        assert_eq!(body["request_id"], self.header("x-request-id"));
        assert!(body["error"].as_str().is_some_and(|error| !error.is_empty()), "{body}");
        assert!(self.text().starts_with("{\"error\":") && !self.text().contains('\n'), "{body}");
        body["code"].as_str().expect("a code").to_owned()
    }

    /// The code of an error in the format of AUTOMATIC1111's API, after a check of all its parts.
    #[track_caller]
    pub(crate) fn sdapi_code(&self) -> String {
        assert_eq!(self.header("content-type"), "application/json", "{}", self.text());
        assert_ne!(self.header("x-request-id"), "");
        let body = self.json();
        assert_eq!(body.as_object().map(serde_json::Map::len), Some(4), "{body}");
        assert!(body["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{body}");
        assert_eq!((&body["errors"], body["body"].as_str()), (&body["detail"], Some("")));
        body["error"].as_str().expect("a code").to_owned()
    }

    /// The code of an error in any format.
    #[track_caller]
    pub(crate) fn any_code(&self) -> String {
        if self.header("content-type") == "application/problem+json" {
            return self.code();
        }
        if self.json()["detail"].is_string() {
            return self.sdapi_code();
        }
        if self.json()["error"].is_string() {
            return self.terminal_code();
        }
        self.openai_error()["code"].as_str().expect("a code").to_owned()
    }

    /// The fields of an `invalid_request`.
    #[track_caller]
    pub(crate) fn fields(&self) -> Vec<String> {
        assert_eq!(self.code(), "invalid_request");
        let body = self.json();
        let errors = body["errors"].as_array().expect("errors").iter();
        errors.map(|error| error["field"].as_str().expect("a name").to_owned()).collect()
    }
}

/// The size of an encoded image, and the color of its first pixel.
pub(crate) fn decoded(bytes: &[u8]) -> (u32, u32, [u8; 3]) {
    let image = image::load_from_memory(bytes).expect("an image").to_rgb8();
    (image.width(), image.height(), image.get_pixel(0, 0).0)
}
