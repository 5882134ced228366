//! The one table of errors: every code a client can meet, its status and its title. Nothing else in the project knows
//! status codes of errors.
//!
//! An [`ApiError`] becomes an answer in two steps: here it gets its status and headers, and the outermost layer writes
//! the body, since only that knows the request's id.

mod cluster;

use std::fmt;

use axum::http::header::{RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};

use super::quota::{DAY_SECONDS, Quota};
use crate::auth::{AuthError, KeyError, KeyFailure, SignInError};
use crate::catalog::Availability;
use crate::domain::limits::InvalidLimit;
use crate::domain::spec::FieldError;
use crate::jobs::{JobsError, LimitReached};

/// A client that comes back after this many seconds finds the next worker in our place.
const DRAINING_RETRY_AFTER_SECONDS: u64 = 30;
/// An engine takes seconds to minutes to load.
const LOADING_RETRY_AFTER_SECONDS: u64 = 10;
/// A lock passes in seconds, and a disk that was full is looked after by then. Each try has the client wait for the
/// database, too.
const STORAGE_RETRY_AFTER_SECONDS: u64 = 5;

/// Jobs end all the time, and those who watch them leave then.
const WATCH_RETRY_AFTER_SECONDS: u64 = 5;

/// A large body is read and its images are decoded in a second or so.
const BODIES_RETRY_AFTER_SECONDS: u64 = 2;

/// Broken rules named in one answer. A refusal must not be many times as long as what it refuses.
const FIELD_ERRORS_MAX: usize = 32;
/// Characters of a field's name in an answer; names of ours are shorter.
const FIELD_CHARS_MAX: usize = 64;

macro_rules! error_codes {
    ($($name:ident $word:literal $status:ident $title:literal;)*) => {
        /// A kind of error, by a word that never changes.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum ErrorCode {
            $(#[doc = $title] $name,)*
        }

        impl ErrorCode {
            /// Every code.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The word clients match on.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $word,)* }
            }

            /// The status of the answer.
            #[must_use]
            pub fn status(self) -> StatusCode {
                match self { $(Self::$name => StatusCode::$status,)* }
            }

            /// A short sentence, the same for every occurrence.
            #[must_use]
            pub fn title(self) -> &'static str {
                match self { $(Self::$name => $title,)* }
            }
        }
    };
}

error_codes! {
    InvalidRequest          "invalid_request"           BAD_REQUEST            "The request breaks rules of its fields";
    InvalidHost             "invalid_host"              BAD_REQUEST            "The request needs one Host";
    MalformedJson           "malformed_json"            BAD_REQUEST            "The body is not a JSON object";
    Unauthorized            "unauthorized"              UNAUTHORIZED           "A valid API key is needed";
    SessionRequired         "session_required"          UNAUTHORIZED           "A signed-in session is needed";
    WrongPassword           "wrong_password"            UNAUTHORIZED           "The password is wrong";
    ScopeForbidden          "scope_forbidden"           FORBIDDEN              "The key's scope does not allow this";
    LinkRefused             "link_refused"              FORBIDDEN              "The link is not valid or has expired";
    ForeignOrigin           "foreign_origin"            FORBIDDEN              "The request comes from a page of another site";
    NotFound                "not_found"                 NOT_FOUND              "There is nothing at this path";
    ModelNotFound           "model_not_found"           NOT_FOUND              "There is no such model";
    KeyNotFound             "key_not_found"             NOT_FOUND              "There is no such key";
    NamespaceNotFound       "namespace_not_found"       NOT_FOUND              "There is no such namespace";
    JobNotFound             "job_not_found"             NOT_FOUND              "There is no such job";
    NoPreview               "no_preview"                NOT_FOUND              "Nothing can be seen of the job now";
    MethodNotAllowed        "method_not_allowed"        METHOD_NOT_ALLOWED     "The path does not take this method";
    NotAcceptable           "not_acceptable"            NOT_ACCEPTABLE         "No acceptable form of the answer can be given";
    BodyTimeout             "body_timeout"              REQUEST_TIMEOUT        "The body took too long to arrive";
    NoImage               "no_picture"                CONFLICT               "The job has no image";
    IdempotencyConflict     "idempotency_conflict"      CONFLICT               "The Idempotency-Key was used for another request";
    JobCanceled             "job_canceled"              CONFLICT               "The job was canceled";
    KeyEnded                "key_ended"                 CONFLICT               "The key has expired or is revoked";
    NamespaceExists         "namespace_exists"          CONFLICT               "There is a namespace of that name";
    NamespaceInUse          "namespace_in_use"          CONFLICT               "Keys name the namespace";
    NamespacePending        "namespace_pending"         CONFLICT               "The namespace is not open in the cluster yet";
    ImageGone             "picture_gone"              GONE                   "The image is gone";
    BodyTooLarge            "body_too_large"            PAYLOAD_TOO_LARGE      "The body is too large";
    UnsupportedMediaType    "unsupported_media_type"    UNSUPPORTED_MEDIA_TYPE "The body must be application/json";
    MisdirectedRequest      "misdirected_request"       MISDIRECTED_REQUEST    "The Host is not a name of this worker";
    TooManyFailures         "too_many_failures"         TOO_MANY_REQUESTS      "Too many refused keys from this address";
    TooManySignIns          "too_many_sign_ins"         TOO_MANY_REQUESTS      "Too many attempts to sign in";
    RateLimited             "rate_limited"              TOO_MANY_REQUESTS      "The key sends more requests than it may";
    TooManyBodies           "too_many_bodies"           TOO_MANY_REQUESTS      "Too many large bodies are on their way";
    ConcurrentJobsLimit     "concurrent_jobs_limit"     TOO_MANY_REQUESTS      "The key has as many jobs as it may";
    DailyLimit              "daily_limit"               TOO_MANY_REQUESTS      "The key's share of the day does not suffice";
    TooManyStreams          "too_many_streams"          TOO_MANY_REQUESTS      "Too many event streams are open";
    QueueFull               "queue_full"                TOO_MANY_REQUESTS      "The queue is full";
    Internal                "internal"                  INTERNAL_SERVER_ERROR  "Something went wrong in the worker";
    JobFailed               "job_failed"                INTERNAL_SERVER_ERROR  "The job failed";
    ModelUnavailable        "model_unavailable"         SERVICE_UNAVAILABLE    "The model is not being served now";
    Draining                "draining"                  SERVICE_UNAVAILABLE    "The worker is shutting down";
    StorageUnavailable      "storage_unavailable"       SERVICE_UNAVAILABLE    "Jobs cannot be stored or read now";
    AuthUnavailable         "auth_unavailable"          SERVICE_UNAVAILABLE    "Keys cannot be checked now";
    TooManyConnections      "too_many_connections"      SERVICE_UNAVAILABLE    "The worker has as many connections as it may";
    NotReady                "not_ready"                 SERVICE_UNAVAILABLE    "The worker is not ready";
    EngineStalled           "engine_stalled"            SERVICE_UNAVAILABLE    "An engine draws nothing any more";
    KubernetesNotConfigured "kubernetes_not_configured" SERVICE_UNAVAILABLE    "This worker has no cluster";
    KubernetesUnavailable   "kubernetes_unavailable"    SERVICE_UNAVAILABLE    "The cluster did not do as asked";
    DeadlineExceeded        "deadline_exceeded"         GATEWAY_TIMEOUT        "The request took too long";
}

impl ErrorCode {
    /// The kind of error it is to clients of OpenAI, which has no words finer than these.
    #[must_use]
    pub(super) fn openai_type(self) -> &'static str {
        match self.status() {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::FORBIDDEN => "permission_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        }
    }
}

/// An error on its way to the client.
#[derive(Debug, Clone)]
pub struct ApiError(Box<Problem>);

/// What an answer with an error says. Travels as an extension of the response to the layer that writes it.
#[derive(Debug, Clone)]
pub(super) struct Problem {
    pub(super) code: ErrorCode,
    pub(super) detail: Option<String>,
    pub(super) errors: Vec<FieldError>,
    /// For the log, never for the client.
    pub(super) cause: Option<String>,
    retry_after_seconds: Option<u64>,
    quota: Option<Quota>,
}

impl ApiError {
    /// An error of this kind, with nothing more to say.
    #[must_use]
    pub fn new(code: ErrorCode) -> Self {
        Self(Box::new(Problem {
            code,
            detail: None,
            errors: Vec::new(),
            cause: None,
            retry_after_seconds: None,
            quota: None,
        }))
    }

    /// Which kind of error it is.
    #[cfg(test)]
    pub(super) fn code(&self) -> ErrorCode {
        self.0.code
    }

    /// What is special about this occurrence, in words for the client.
    #[must_use]
    pub fn with_detail(mut self, detail: impl Into<String>) -> Self {
        self.0.detail = Some(detail.into());
        self
    }

    /// What was behind it, for the log alone.
    #[must_use]
    pub fn with_cause(mut self, cause: &dyn fmt::Display) -> Self {
        self.0.cause = Some(cause.to_string());
        self
    }

    /// More large bodies at one time than are taken.
    #[must_use]
    pub fn too_many_bodies(detail: &str) -> Self {
        Self::new(ErrorCode::TooManyBodies).with_detail(detail).with_retry_after(BODIES_RETRY_AFTER_SECONDS)
    }

    /// When to come back.
    #[must_use]
    pub fn with_retry_after(mut self, seconds: u64) -> Self {
        self.0.retry_after_seconds = Some(seconds);
        self
    }

    /// Which share is used up, and when there is more of it.
    #[must_use]
    fn with_quota(mut self, quota: Quota, retry_after_seconds: u64) -> Self {
        self.0.quota = Some(quota);
        self.with_retry_after(retry_after_seconds)
    }

    /// What stands in the way, one by one.
    #[must_use]
    pub fn with_errors(mut self, mut errors: Vec<FieldError>) -> Self {
        errors.truncate(FIELD_ERRORS_MAX);
        self.0.errors = errors;
        self
    }

    /// Fields that break rules.
    #[must_use]
    pub fn invalid(mut errors: Vec<FieldError>) -> Self {
        let more = errors.len().saturating_sub(FIELD_ERRORS_MAX);
        errors.truncate(FIELD_ERRORS_MAX);
        for error in &mut errors {
            cut(&mut error.field);
        }
        let fields: Vec<&str> = errors.iter().map(|error| error.field.as_str()).collect();
        let and_more = if more > 0 { format!(", and {more} more") } else { String::new() };
        let detail = format!("these fields break rules: {}{and_more}", fields.join(", "));
        let mut invalid = Self::new(ErrorCode::InvalidRequest).with_detail(detail);
        invalid.0.errors = errors;
        invalid
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let problem = *self.0;
        let mut response = problem.code.status().into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = problem.retry_after_seconds {
            headers.insert(RETRY_AFTER, seconds.into());
            if let Some(quota) = &problem.quota {
                quota.write(headers, seconds);
            }
        }
        if problem.code.status() == StatusCode::UNAUTHORIZED {
            let is_for_keys = problem.code == ErrorCode::Unauthorized;
            let challenge = if is_for_keys { r#"Bearer realm="fluxserve""# } else { r#"Session realm="fluxserve""# };
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        }
        response.extensions_mut().insert(problem);
        response
    }
}

impl From<AuthError> for ApiError {
    fn from(error: AuthError) -> Self {
        match error {
            // The same words whatever is wrong with the key: they would help who guesses.
            AuthError::Refused => Self::new(ErrorCode::Unauthorized),
            AuthError::Throttled { retry_after_seconds } => {
                Self::new(ErrorCode::TooManyFailures).with_retry_after(retry_after_seconds)
            }
            AuthError::RateLimited { per_minute, retry_after_seconds } => {
                let quota = Quota { name: "requests", limit: per_minute, window_seconds: Some(60), left: 0 };
                Self::new(ErrorCode::RateLimited)
                    .with_detail(format!("the key may send {per_minute} requests a minute"))
                    .with_quota(quota, retry_after_seconds)
            }
            AuthError::Unavailable(failure) => failure.into(),
        }
    }
}

impl From<KeyFailure> for ApiError {
    fn from(failure: KeyFailure) -> Self {
        Self::new(ErrorCode::AuthUnavailable).with_cause(&causes(&failure))
    }
}

impl From<SignInError> for ApiError {
    fn from(error: SignInError) -> Self {
        match error {
            SignInError::WrongPassword => Self::new(ErrorCode::WrongPassword),
            SignInError::Throttled { retry_after_seconds } => {
                Self::new(ErrorCode::TooManySignIns).with_retry_after(retry_after_seconds)
            }
            SignInError::Unavailable(failure) => failure.into(),
        }
    }
}

impl From<KeyError> for ApiError {
    fn from(error: KeyError) -> Self {
        let field = match error {
            KeyError::Limit(InvalidLimit { limit, max }) => {
                let reason = format!("must be a whole number from 1 to {max}");
                return Self::invalid(vec![FieldError::new(format!("limits.{limit}"), reason)]);
            }
            KeyError::NotFound(_) => return Self::new(ErrorCode::KeyNotFound),
            KeyError::Ended(state) => return Self::new(ErrorCode::KeyEnded).with_detail(format!("the key is {state}")),
            KeyError::Unavailable(failure) => return failure.into(),
            KeyError::Name => "name",
            KeyError::ExpiryPassed | KeyError::ExpiryTooLate => "expires_at",
            KeyError::GraceTooLong => "grace_seconds",
        };
        Self::invalid(vec![FieldError::new(field, error.to_string())])
    }
}

impl From<JobsError> for ApiError {
    fn from(error: JobsError) -> Self {
        match error {
            JobsError::NotFound => Self::new(ErrorCode::JobNotFound),
            JobsError::NoImage(status) => Self::new(ErrorCode::NoImage).with_detail(format!("the job is {status}")),
            JobsError::NoPreview => Self::new(ErrorCode::NoPreview),
            JobsError::ImageGone => Self::new(ErrorCode::ImageGone),
            JobsError::LinkRefused => Self::new(ErrorCode::LinkRefused),
            JobsError::ModelUnavailable(availability) => model_unavailable(availability),
            JobsError::LimitReached(reached) => limit_reached(&reached),
            JobsError::OtherRequest => Self::new(ErrorCode::IdempotencyConflict),
            JobsError::TooManyWatches => {
                Self::new(ErrorCode::TooManyStreams).with_retry_after(WATCH_RETRY_AFTER_SECONDS)
            }
            JobsError::QueueFull { retry_after_seconds } => {
                Self::new(ErrorCode::QueueFull).with_retry_after(retry_after_seconds)
            }
            JobsError::Draining => Self::new(ErrorCode::Draining).with_retry_after(DRAINING_RETRY_AFTER_SECONDS),
            error @ JobsError::Storage(_) => Self::new(ErrorCode::StorageUnavailable)
                .with_retry_after(STORAGE_RETRY_AFTER_SECONDS)
                .with_cause(&causes(&error)),
        }
    }
}

/// Cuts a name that a client has made up.
fn cut(name: &mut String) {
    if let Some((end, _)) = name.char_indices().nth(FIELD_CHARS_MAX) {
        name.truncate(end);
        name.push('…');
    }
}

/// An error's text and those of all that was behind it.
fn causes(error: &dyn std::error::Error) -> String {
    let behind = std::iter::successors(error.source(), |cause| cause.source());
    behind.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

fn limit_reached(reached: &LimitReached) -> ApiError {
    match *reached {
        LimitReached::ConcurrentJobs { limit, retry_after_seconds } => {
            let quota = Quota { name: "concurrent-jobs", limit, window_seconds: None, left: 0 };
            ApiError::new(ErrorCode::ConcurrentJobsLimit)
                .with_detail(format!("the key may have {limit} unfinished jobs"))
                .with_quota(quota, retry_after_seconds)
        }
        LimitReached::MegapixelSteps { limit, left, needed, retry_after_seconds } => {
            let quota = Quota { name: "megapixel-steps", limit, window_seconds: Some(DAY_SECONDS), left };
            let detail = format!(
                "of the {limit} megapixel-steps that the key has in a UTC day {left} are left, and this takes {needed}"
            );
            ApiError::new(ErrorCode::DailyLimit).with_detail(detail).with_quota(quota, retry_after_seconds)
        }
    }
}

fn model_unavailable(availability: Availability) -> ApiError {
    let error = ApiError::new(ErrorCode::ModelUnavailable);
    match availability {
        Availability::NotServed => error.with_detail("this worker knows the model and does not serve it"),
        Availability::Failed => {
            error.with_detail("the model's engine failed").with_retry_after(LOADING_RETRY_AFTER_SECONDS)
        }
        Availability::Loading | Availability::Ready => {
            error.with_detail("the model is being loaded").with_retry_after(LOADING_RETRY_AFTER_SECONDS)
        }
    }
}
