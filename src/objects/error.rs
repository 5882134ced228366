//! Errors of object stores, short and without secrets.

use object_store::Error;

/// Longest text of a store's own error that is repeated.
const SAID_CHARS_MAX: usize = 300;
/// What is before the status of an answer in a store's error.
const STATUS_MARK: &str = "status code: ";
/// Answers that ask for the same request later: 408 Request Timeout, 425 Too Early, 429 Too Many Requests.
const PASSING_STATUSES: [u16; 3] = [408, 425, 429];

/// Why a request to a bucket failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ObjectsError {
    /// There is no such file in it.
    #[error("the bucket has no such file")]
    Missing,
    /// It did not answer in time.
    #[error("the bucket did not answer within {0} s")]
    Late(u64),
    /// A file is larger than any of ours.
    #[error("the file in the bucket has {0} bytes, which is no file of this worker")]
    TooLarge(u64),
    /// It refused this request, and may accept another one.
    #[error("{0}")]
    Refused(String),
    /// It answered with an error, or could not be reached.
    #[error("{0}")]
    Failed(String),
    /// Its kind, or its credentials, make no links.
    #[error("the bucket's credentials make no links: {0}")]
    NoLinks(String),
}

impl From<Error> for ObjectsError {
    fn from(error: Error) -> Self {
        if let Error::NotFound { .. } = error {
            return Self::Missing;
        }
        let text = with_cause(&error);
        if is_refusal(&text) { Self::Refused(brief(&text)) } else { Self::Failed(brief(&text)) }
    }
}

/// Whether a store's answer says that the request is wrong, not that the store has a problem. The status is in the error's text
/// alone.
fn is_refusal(text: &str) -> bool {
    let status = text.split_once(STATUS_MARK).and_then(|(_, rest)| rest.get(..3)?.parse::<u16>().ok());
    status.is_some_and(|status| (400..500).contains(&status) && !PASSING_STATUSES.contains(&status))
}

/// An error's text, and that of what is behind it.
fn with_cause(error: &Error) -> String {
    let text = error.to_string();
    let mut cause = std::error::Error::source(error);
    let mut last = String::new();
    while let Some(inner) = cause {
        last = inner.to_string();
        cause = inner.source();
    }
    if text.contains(&last) { text } else { format!("{text}: {last}") }
}

/// The gist of a store's error. Bodies of answers repeat what was signed, and queries may hold a signature: neither is kept.
pub(super) fn brief(text: &str) -> String {
    let code = text.split_once("<Code>").and_then(|(_, rest)| rest.split_once("</Code>")).map(|(code, _)| code);
    let head = text.split('<').next().unwrap_or_default();
    let words = head.split_whitespace().map(|word| word.split('?').next().unwrap_or_default());
    let said: String = words.chain(code).collect::<Vec<_>>().join(" ");
    said.chars().filter(|character| !character.is_control()).take(SAID_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gist_has_no_signature_and_no_body() {
        let text = "Generic S3 error: Error performing PUT https://s3.test/b/a.png?X-Amz-Signature=abc in 3ms - Server returned \
                    non-2xx status code: 403 Forbidden: <?xml version=\"1.0\"?><Error><Code>SignatureDoesNotMatch</Code>\
                    <AWSAccessKeyId>AKIA</AWSAccessKeyId><StringToSign>AWS4</StringToSign></Error>";
        let said = brief(text);
        assert!(said.contains("https://s3.test/b/a.png in") && said.ends_with("SignatureDoesNotMatch"), "{said}");
        for secret in ["abc", "AKIA", "AWS4"] {
            assert!(!said.contains(secret), "{secret} in {said}");
        }
        assert_eq!(brief(&"x".repeat(10_000)).len(), SAID_CHARS_MAX);
        assert_eq!(brief("line\nli\u{7}ne"), "line line");
    }

    #[test]
    fn a_missing_file_is_no_failure() {
        let missing = Error::NotFound { path: "a".into(), source: "no".into() };
        assert_eq!(ObjectsError::from(missing), ObjectsError::Missing);
        let denied = Error::PermissionDenied { path: "a".into(), source: "no".into() };
        assert!(matches!(ObjectsError::from(denied), ObjectsError::Failed(_)));
    }
}
