//! Checks every answer in these tests against the OpenAPI document: its status, its media type, its error code.

use std::sync::LazyLock;

use axum::http::Method;
use fluxserve::http::{Route, openapi_json, routes};
use serde_json::Value;

use crate::app::Answer;

static DOCUMENT: LazyLock<Value> = LazyLock::new(|| serde_json::from_str(&openapi_json()).expect("JSON"));

static ROUTES: LazyLock<Vec<Route>> = LazyLock::new(routes);

/// Panics if the document does not list this answer.
#[track_caller]
pub(crate) fn check(method: &Method, path: &str, answer: &Answer) {
    let Some(route) = ROUTES.iter().find(|route| is_of(route, path)) else {
        assert_eq!(answer.any_code(), "not_found", "{method} {path}");
        return;
    };
    // HEAD is answered as GET is.
    let documented = if method == Method::HEAD { Method::GET } else { method.clone() };
    let operation = &DOCUMENT["paths"][route.documented_path()][documented.as_str().to_lowercase()];
    let status = answer.status.as_u16();
    if operation.is_null() {
        // A hidden path allows no method at all.
        assert!(["not_found", "method_not_allowed"].contains(&answer.any_code().as_str()), "{method} {path}: {status}");
        return;
    }
    let response = &operation["responses"][status.to_string()];
    assert!(response.is_object(), "{method} {path} answers {status}, and that is not documented");
    let Some(content) = response["content"].as_object() else {
        assert!(answer.bytes.is_empty(), "{method} {path} answers {status} with a body that is not documented");
        return;
    };
    let media_type = answer.header("content-type");
    let content = content.get(media_type);
    let content = content.unwrap_or_else(|| panic!("{method} {path} answers {status} with {media_type}"));
    if status < 400 {
        return;
    }
    let said = &content["schema"]["allOf"][1]["properties"];
    let code = answer.any_code();
    let codes = [&said["code"], &said["error"]["properties"]["code"], &said["error"]];
    let codes = codes.iter().find_map(|code| code["enum"].as_array()).expect("codes");
    assert!(codes.contains(&code.as_str().into()), "{method} {path} answers {code}, and that is not documented");
}

fn is_of(route: &Route, path: &str) -> bool {
    let mut words = path.split('/');
    for name in route.path.split('/') {
        let Some(word) = words.next() else { return false };
        if name.starts_with("{*") {
            return !word.is_empty();
        }
        if !name.starts_with('{') && name != word {
            return false;
        }
    }
    words.next().is_none()
}
