//! Detects wrong base URLs: with an extra slash, without `/v1`, or with two of them. OpenAI's clients prepend their
//! base URL to each path unchanged.

use axum::http::Uri;

use super::error::{ApiError, ErrorCode};
use super::origin::Origin;
use super::route::is_of_sdapi;

const VERSION: &str = "/v1";
/// First segments of paths that clients append to their base URL. They include paths of OpenAI that this worker does
/// not have: a missing `/v1` is reported first.
const FIRST_WORDS: [&str; 9] =
    ["audio", "chat", "completions", "embeddings", "files", "images", "inference", "models", "responses"];
/// Longest path that an answer repeats.
const PATH_CHARS_MAX: usize = 128;

/// Answers a request that matches no route.
pub(super) async fn not_found(origin: Origin, uri: Uri) -> ApiError {
    let error = ApiError::new(ErrorCode::NotFound);
    let Some(intended) = intended_path(uri.path()) else { return error };
    let base = if is_of_sdapi(&intended) { origin.root_url().to_owned() } else { origin.base_url() };
    let intended: String = intended.chars().take(PATH_CHARS_MAX).collect();
    error.with_detail(format!("the base URL must be `{base}` here, which makes the path `{intended}`"))
}

/// The intended path if a wrong base URL caused `path`; `None` otherwise.
pub(super) fn intended_path(path: &str) -> Option<String> {
    let words: Vec<&str> = path.split('/').filter(|word| !word.is_empty()).collect();
    let rest = &words[words.iter().take_while(|word| **word == "v1").count()..];
    let is_ours = rest.first().is_some_and(|first| FIRST_WORDS.contains(first));
    let is_v1 = words.first() == Some(&"v1");
    let intended = match rest {
        [] => return None,
        _ if is_v1 || is_ours => format!("{VERSION}/{}", rest.join("/")),
        _ => format!("/{}", rest.join("/")),
    };
    // A trailing slash is a different mistake.
    (intended != path.trim_end_matches('/')).then_some(intended)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_base_urls_are_told_from_unknown_paths() {
        for (path, intended) in [
            ("//v1/images/generations", "/v1/images/generations"),
            ("/v1//images/generations", "/v1/images/generations"),
            ("/v1/v1/models", "/v1/models"),
            ("/images/generations", "/v1/images/generations"),
            ("/models/a/b", "/v1/models/a/b"),
            ("/chat/completions", "/v1/chat/completions"),
            ("//healthz", "/healthz"),
            ("//sdapi/v1/txt2img", "/sdapi/v1/txt2img"),
            ("/v1/models//a", "/v1/models/a"),
        ] {
            assert_eq!(intended_path(path).as_deref(), Some(intended), "{path}");
        }
        for path in [
            "",
            "/",
            "//",
            "/v1",
            "/v1/",
            "/v1/models",
            "/v1/models/",
            "/v1/images/edits",
            "/nothing",
            "/healthz/",
            "/sdapi/v1/x",
        ] {
            assert_eq!(intended_path(path), None, "{path}");
        }
    }
}
