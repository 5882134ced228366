//! What clients are told whose base URL is not quite this worker's: with a slash too many, without `/v1`, or with two of
//! them. OpenAI's clients put their base URL in front of each path as it stands.

use axum::http::Uri;

use super::error::{ApiError, ErrorCode};
use super::origin::Origin;

const VERSION: &str = "/v1";
/// The first words of paths that clients put behind their base URL. Those of OpenAI that this worker does not have are
/// among them: where `/v1` is missing, that is to be said first.
const FIRST_WORDS: [&str; 9] =
    ["audio", "chat", "completions", "embeddings", "files", "images", "inference", "models", "responses"];
/// Longest path that is repeated in an answer.
const PATH_CHARS_MAX: usize = 128;

/// The answer where there is no route.
pub(super) async fn nothing_here(origin: Origin, uri: Uri) -> ApiError {
    let error = ApiError::new(ErrorCode::NotFound);
    let Some(meant) = meant_by(uri.path()) else { return error };
    let meant: String = meant.chars().take(PATH_CHARS_MAX).collect();
    error.with_detail(format!("the base URL must be `{}` here, which makes the path `{meant}`", origin.base_url()))
}

/// The path that is meant by one that a wrong base URL has made; `None` for any other.
pub(super) fn meant_by(path: &str) -> Option<String> {
    let words: Vec<&str> = path.split('/').filter(|word| !word.is_empty()).collect();
    let rest = &words[words.iter().take_while(|word| **word == "v1").count()..];
    let is_ours = rest.first().is_some_and(|first| FIRST_WORDS.contains(first));
    let is_v1 = words.first() == Some(&"v1");
    let meant = match rest {
        [] => return None,
        _ if is_v1 || is_ours => format!("{VERSION}/{}", rest.join("/")),
        _ => format!("/{}", rest.join("/")),
    };
    // A slash at the end is another mistake.
    (meant != path.trim_end_matches('/')).then_some(meant)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slash_too_many_and_v1_missing_or_twice_are_told_from_what_is_not_there() {
        for (path, meant) in [
            ("//v1/images/generations", "/v1/images/generations"),
            ("/v1//images/generations", "/v1/images/generations"),
            ("/v1/v1/models", "/v1/models"),
            ("/images/generations", "/v1/images/generations"),
            ("/models/a/b", "/v1/models/a/b"),
            ("/chat/completions", "/v1/chat/completions"),
            ("//healthz", "/healthz"),
            ("/v1/models//a", "/v1/models/a"),
        ] {
            assert_eq!(meant_by(path).as_deref(), Some(meant), "{path}");
        }
        for path in
            ["", "/", "//", "/v1", "/v1/", "/v1/models", "/v1/models/", "/v1/images/edits", "/nothing", "/healthz/"]
        {
            assert_eq!(meant_by(path), None, "{path}");
        }
    }
}
