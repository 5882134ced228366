//! Holds every answer that these tests see to the API's description: its status, its media type, its error code.

use std::sync::LazyLock;

use axum::http::Method;
use fluxserve::http::openapi_json;
use serde_json::Value;

use crate::app::Answer;

static DOCUMENT: LazyLock<Value> = LazyLock::new(|| serde_json::from_str(&openapi_json()).expect("JSON"));

/// Panics when the description does not know this answer.
#[track_caller]
pub(crate) fn check(method: &Method, path: &str, answer: &Answer) {
    let paths = DOCUMENT["paths"].as_object().expect("paths");
    let Some((_, item)) = paths.iter().find(|(template, _)| is_of(template, path)) else {
        assert_eq!(answer.code(), "not_found", "{method} {path}");
        return;
    };
    let operation = &item[method.as_str().to_lowercase()];
    let status = answer.status.as_u16();
    if operation.is_null() {
        // A path that is hidden takes no method at all.
        assert!(["not_found", "method_not_allowed"].contains(&answer.code().as_str()), "{method} {path}: {status}");
        return;
    }
    let response = &operation["responses"][status.to_string()];
    assert!(response.is_object(), "{method} {path} answers {status}, and that is not described");
    let Some(content) = response["content"].as_object() else {
        assert!(answer.bytes.is_empty(), "{method} {path} answers {status} with a body that is not described");
        return;
    };
    let media_type = answer.header("content-type");
    let content = content.get(media_type);
    let content = content.unwrap_or_else(|| panic!("{method} {path} answers {status} with {media_type}"));
    if media_type == "application/problem+json" {
        let codes = content["schema"]["allOf"][1]["properties"]["code"]["enum"].as_array().expect("codes");
        let code = answer.json()["code"].clone();
        assert!(codes.contains(&code), "{method} {path} answers {code}, and that is not described");
    }
}

fn is_of(template: &str, path: &str) -> bool {
    let (template, path): (Vec<_>, Vec<_>) = (template.split('/').collect(), path.split('/').collect());
    template.len() == path.len() && template.iter().zip(&path).all(|(name, word)| name.starts_with('{') || name == word)
}
