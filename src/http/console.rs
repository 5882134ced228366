//! The administrator's console: static pages that are compiled into the program. They load their data from the
//! management routes, with the session's cookie.

use axum::extract::Path;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, IF_NONE_MATCH, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use include_dir::{Dir, include_dir};

use super::error::{ApiError, ErrorCode};
use super::openapi::{Operation, Tag};

static FILES: Dir<'static> = include_dir!("$CARGO_MANIFEST_DIR/src/http/console");

const PAGE: &str = "index.html";
const HTML: &str = "text/html; charset=utf-8";

/// Everything from this worker, and no inline scripts or styles.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; \
     font-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
);
const OPENER_POLICY: HeaderName = HeaderName::from_static("cross-origin-opener-policy");

pub(super) async fn page(headers: HeaderMap) -> Result<Response, ApiError> {
    answer(PAGE, &headers)
}

pub(super) async fn asset(Path(name): Path<String>, headers: HeaderMap) -> Result<Response, ApiError> {
    answer(&name, &headers)
}

pub(super) fn page_operation() -> Operation {
    Operation::new(Tag::Console, "get_console", "The console's page")
        .answers_text(StatusCode::OK, HTML, "The page.")
        .answers_nothing(StatusCode::NOT_MODIFIED, "The client's copy is current.")
}

pub(super) fn asset_operation() -> Operation {
    let media_types = MEDIA_TYPES.iter().map(|(_, media_type)| *media_type);
    media_types
        .fold(Operation::new(Tag::Console, "get_console_asset", "A file of the console"), |operation, media_type| {
            operation.answers_text(StatusCode::OK, media_type, "The file.")
        })
        .answers_nothing(StatusCode::NOT_MODIFIED, "The client's copy is current.")
        .refuses([ErrorCode::NotFound])
}

const MEDIA_TYPES: [(&str, &str); 4] = [
    ("html", HTML),
    ("js", "text/javascript; charset=utf-8"),
    ("css", "text/css; charset=utf-8"),
    ("svg", "image/svg+xml"),
];

fn answer(name: &str, headers: &HeaderMap) -> Result<Response, ApiError> {
    let file = FILES.get_file(name).ok_or_else(|| ApiError::new(ErrorCode::NotFound))?;
    let kind = name.rsplit_once('.').map_or("", |(_, kind)| kind);
    let (_, media_type) =
        MEDIA_TYPES.iter().find(|(known, _)| *known == kind).ok_or_else(|| ApiError::new(ErrorCode::NotFound))?;
    let tag = format!("\"{}\"", blake3::hash(file.contents()).to_hex());
    let tag = HeaderValue::try_from(tag).expect("hexadecimal digits are visible ASCII");
    let common = [
        (ETAG, tag.clone()),
        // Revalidated each time, and sent again only by another version.
        (CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
        (OPENER_POLICY, HeaderValue::from_static("same-origin")),
    ];
    if headers.get(IF_NONE_MATCH) == Some(&tag) {
        return Ok((StatusCode::NOT_MODIFIED, common).into_response());
    }
    let content_type = [(CONTENT_TYPE, HeaderValue::from_static(media_type))];
    Ok((common, content_type, file.contents()).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_has_a_media_type_and_the_page_names_only_existing_files() {
        for file in FILES.files() {
            let name = file.path().to_str().expect("a plain name");
            assert!(answer(name, &HeaderMap::new()).is_ok(), "{name} has no media type");
        }
        assert!(FILES.dirs().next().is_none(), "a folder would not be served");
        let page = FILES.get_file(PAGE).and_then(|file| file.contents_utf8()).expect("a page");
        let mut named = 0;
        for rest in page.split("/admin/assets/").skip(1) {
            let name: String = rest.chars().take_while(|sign| !"\"'?#".contains(*sign)).collect();
            assert!(FILES.get_file(&name).is_some(), "the page names {name}");
            named += 1;
        }
        assert!(named > 0);
    }

    #[test]
    fn no_page_holds_what_the_policy_forbids() {
        for file in FILES.files() {
            // The name of an XML namespace, which is not requested.
            let text = file.contents_utf8().expect("text").replace("http://www.w3.org/", "");
            let name = file.path().display();
            for forbidden in ["http://", "https://", " style=\"", "javascript:", "eval("] {
                assert!(!text.contains(forbidden), "{name} holds {forbidden}");
            }
        }
    }
}
