//! The table of errors: every code a client can get, its status and its title. No other module knows the status codes
//! of errors.
//!
//! An [`ApiError`] becomes an answer in two steps: here it gets its status and headers, and the outermost layer writes
//! the body, since only that layer knows the request's id.

mod cluster;
mod limits;
mod loras;
mod uploads;
mod usage;
mod webhooks;

use std::fmt;

use axum::http::header::{RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};

use super::quota::Quota;
use crate::auth::{AuthError, KeyError, KeyFailure, SignInError};
use crate::catalog::Availability;
use crate::domain::spec::FieldError;
use crate::jobs::JobsError;
use limits::{limit_reached, rate_limited};
use loras::lora_gone;
use usage::invalid_limit;

/// By then a new worker has replaced this one.
const DRAINING_RETRY_AFTER_SECONDS: u64 = 30;
/// An engine takes seconds to minutes to load.
const LOADING_RETRY_AFTER_SECONDS: u64 = 10;
/// A lock is released in seconds, and an operator may have cleaned up a full disk. Each retry also waits for the
/// database.
const STORAGE_RETRY_AFTER_SECONDS: u64 = 5;

/// Jobs end all the time, and their event streams with them.
const WATCH_RETRY_AFTER_SECONDS: u64 = 5;

/// A large body is read and its images decoded in about a second.
const BODIES_RETRY_AFTER_SECONDS: u64 = 2;

/// Maximum violated rules in one answer. A refusal must not be much longer than the request.
const FIELD_ERRORS_MAX: usize = 32;
/// Maximum characters of a field's name in an answer; our own names are shorter.
const FIELD_CHARS_MAX: usize = 64;

macro_rules! error_codes {
    ($($name:ident $word:literal $status:ident $title:literal;)*) => {
        /// A kind of error with a stable code.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum ErrorCode {
            $(#[doc = $title] $name,)*
        }

        impl ErrorCode {
            /// All codes.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The code that clients match on.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $word,)* }
            }

            /// The status of the answer.
            #[must_use]
            pub fn status(self) -> StatusCode {
                match self { $(Self::$name => StatusCode::$status,)* }
            }

            /// A short title, the same for every occurrence.
            #[must_use]
            pub fn title(self) -> &'static str {
                match self { $(Self::$name => $title,)* }
            }
        }
    };
}

error_codes! {
    InvalidRequest          "invalid_request"           BAD_REQUEST            "The request has invalid fields";
    LoraRejected            "lora_rejected"             BAD_REQUEST            "The file is not a usable LoRA";
    ContentRefused          "content_refused"           BAD_REQUEST            "The moderation refused the content";
    InvalidHost             "invalid_host"              BAD_REQUEST            "The request needs exactly one Host";
    MalformedJson           "malformed_json"            BAD_REQUEST            "The body is not a JSON object";
    Unauthorized            "unauthorized"              UNAUTHORIZED           "A valid API key is required";
    SessionRequired         "session_required"          UNAUTHORIZED           "A signed-in session is required";
    WrongPassword           "wrong_password"            UNAUTHORIZED           "The password is wrong";
    ScopeForbidden          "scope_forbidden"           FORBIDDEN              "The key's scope does not allow this";
    LoraForbidden           "lora_forbidden"            FORBIDDEN              "The key may not use this LoRA";
    LinkRefused             "link_refused"              FORBIDDEN              "The link is invalid or has expired";
    ForeignOrigin           "foreign_origin"            FORBIDDEN              "The request comes from another site";
    NotFound                "not_found"                 NOT_FOUND              "There is nothing at this path";
    ModelNotFound           "model_not_found"           NOT_FOUND              "There is no such model";
    KeyNotFound             "key_not_found"             NOT_FOUND              "There is no such key";
    NamespaceNotFound       "namespace_not_found"       NOT_FOUND              "There is no such namespace";
    ProjectNotFound         "project_not_found"         NOT_FOUND              "There is no such project";
    LoraNotFound            "lora_not_found"            NOT_FOUND              "There is no such LoRA";
    DeliveryNotFound        "delivery_not_found"        NOT_FOUND              "There is no such delivery";
    JobNotFound             "job_not_found"             NOT_FOUND              "There is no such job";
    UploadNotFound          "upload_not_found"          NOT_FOUND              "There is no such upload";
    NoPreview               "no_preview"                NOT_FOUND              "The job has no preview now";
    MethodNotAllowed        "method_not_allowed"        METHOD_NOT_ALLOWED     "The path does not allow this method";
    NotAcceptable           "not_acceptable"            NOT_ACCEPTABLE         "No acceptable media type is available";
    BodyTimeout             "body_timeout"              REQUEST_TIMEOUT        "The body took too long to arrive";
    NoImage                 "no_picture"                CONFLICT               "The job has no image";
    IdempotencyConflict     "idempotency_conflict"      CONFLICT               "The Idempotency-Key was used for another request";
    JobCanceled             "job_canceled"              CONFLICT               "The job was canceled";
    KeyEnded                "key_ended"                 CONFLICT               "The key has expired or was revoked";
    NamespaceExists         "namespace_exists"          CONFLICT               "A namespace with this name exists";
    NamespaceInUse          "namespace_in_use"          CONFLICT               "Keys have the namespace in scope";
    NamespacePending        "namespace_pending"         CONFLICT               "The namespace is not open in the cluster yet";
    ProjectExists           "project_exists"            CONFLICT               "A project with this name exists";
    ProjectInUse            "project_in_use"            CONFLICT               "Keys belong to the project";
    LoraExists              "lora_exists"               CONFLICT               "A LoRA with this name exists";
    LoraInUse               "lora_in_use"               CONFLICT               "Unfinished jobs use the LoRA";
    WebhookNotSetUp         "webhook_not_set_up"        CONFLICT               "The key's webhook lacks a URL or a secret";
    ImageGone               "picture_gone"              GONE                   "The image has been deleted";
    BodyTooLarge            "body_too_large"            PAYLOAD_TOO_LARGE      "The body is too large";
    UnsupportedMediaType    "unsupported_media_type"    UNSUPPORTED_MEDIA_TYPE "The body has another media type";
    MisdirectedRequest      "misdirected_request"       MISDIRECTED_REQUEST    "The Host is not a name of this worker";
    TooManyFailures         "too_many_failures"         TOO_MANY_REQUESTS      "Too many invalid keys from this address";
    TooManySignIns          "too_many_sign_ins"         TOO_MANY_REQUESTS      "Too many sign-in attempts";
    RateLimited             "rate_limited"              TOO_MANY_REQUESTS      "The key has exceeded its request rate";
    TooManyBodies           "too_many_bodies"           TOO_MANY_REQUESTS      "Too many large bodies are in transfer";
    TooManyUploads          "too_many_uploads"          TOO_MANY_REQUESTS      "There is no room for another upload";
    ConcurrentJobsLimit     "concurrent_jobs_limit"     TOO_MANY_REQUESTS      "The key has too many unfinished jobs";
    DailyLimit              "daily_limit"               TOO_MANY_REQUESTS      "The key's daily limit does not suffice";
    BudgetExhausted         "budget_exhausted"          TOO_MANY_REQUESTS      "The month's budget does not suffice";
    TooManyStreams          "too_many_streams"          TOO_MANY_REQUESTS      "Too many event streams are open";
    QueueFull               "queue_full"                TOO_MANY_REQUESTS      "The queue is full";
    Internal                "internal"                  INTERNAL_SERVER_ERROR  "An internal error occurred";
    JobFailed               "job_failed"                INTERNAL_SERVER_ERROR  "The job failed";
    ModelUnavailable        "model_unavailable"         SERVICE_UNAVAILABLE    "The model is not available now";
    Draining                "draining"                  SERVICE_UNAVAILABLE    "The worker is shutting down";
    StorageUnavailable      "storage_unavailable"       SERVICE_UNAVAILABLE    "The job storage is not available now";
    AuthUnavailable         "auth_unavailable"          SERVICE_UNAVAILABLE    "Keys cannot be checked now";
    ModerationUnavailable   "moderation_unavailable"    SERVICE_UNAVAILABLE    "Content cannot be reviewed now";
    TooManyConnections      "too_many_connections"      SERVICE_UNAVAILABLE    "The worker has too many connections";
    NotReady                "not_ready"                 SERVICE_UNAVAILABLE    "The worker is not ready";
    EngineStalled           "engine_stalled"            SERVICE_UNAVAILABLE    "An engine has stopped generating";
    WebhooksOff             "webhooks_off"              SERVICE_UNAVAILABLE    "Webhooks are off on this worker";
    KubernetesNotConfigured "kubernetes_not_configured" SERVICE_UNAVAILABLE    "This worker has no cluster";
    KubernetesUnavailable   "kubernetes_unavailable"    SERVICE_UNAVAILABLE    "The cluster did not carry out the \
                                                                                request";
    DeadlineExceeded        "deadline_exceeded"         GATEWAY_TIMEOUT        "The request took too long";
}

impl ErrorCode {
    /// The kind of error for OpenAI's clients, which has no finer distinctions.
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

/// An error for the client.
#[derive(Debug, Clone)]
pub struct ApiError(Box<Problem>);

/// The content of an error. Passed as a response extension to the layer that writes it.
#[derive(Debug, Clone)]
pub(super) struct Problem {
    pub(super) code: ErrorCode,
    pub(super) detail: Option<String>,
    pub(super) errors: Vec<FieldError>,
    /// For the log, never for the client.
    pub(super) cause: Option<String>,
    pub(super) retry_after_seconds: Option<u64>,
    pub(super) quota: Option<Quota>,
}

impl ApiError {
    /// An error of this kind without details.
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

    /// Adds details of this occurrence for the client.
    #[must_use]
    pub fn with_detail(mut self, detail: impl Into<String>) -> Self {
        self.0.detail = Some(detail.into());
        self
    }

    /// Adds the cause, for the log only.
    #[must_use]
    pub fn with_cause(mut self, cause: &dyn fmt::Display) -> Self {
        self.0.cause = Some(cause.to_string());
        self
    }

    /// Too many large bodies at one time.
    #[must_use]
    pub fn too_many_bodies(detail: &str) -> Self {
        Self::new(ErrorCode::TooManyBodies).with_detail(detail).with_retry_after(BODIES_RETRY_AFTER_SECONDS)
    }

    /// Adds the time after which to retry.
    #[must_use]
    pub fn with_retry_after(mut self, seconds: u64) -> Self {
        self.0.retry_after_seconds = Some(seconds);
        self
    }

    /// Adds the exhausted quota, and when it is renewed.
    #[must_use]
    fn with_quota(mut self, quota: Quota, retry_after_seconds: u64) -> Self {
        self.0.quota = Some(quota);
        self.with_retry_after(retry_after_seconds)
    }

    /// Adds what prevents the request, one by one.
    #[must_use]
    pub fn with_errors(mut self, mut errors: Vec<FieldError>) -> Self {
        errors.truncate(FIELD_ERRORS_MAX);
        self.0.errors = errors;
        self
    }

    /// Invalid fields.
    #[must_use]
    pub fn invalid(mut errors: Vec<FieldError>) -> Self {
        let more = errors.len().saturating_sub(FIELD_ERRORS_MAX);
        errors.truncate(FIELD_ERRORS_MAX);
        for error in &mut errors {
            cut(&mut error.field);
        }
        let fields: Vec<&str> = errors.iter().map(|error| error.field.as_str()).collect();
        let and_more = if more > 0 { format!(", and {more} more") } else { String::new() };
        let detail = format!("invalid fields: {}{and_more}", fields.join(", "));
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
            // The same answer whatever is wrong with the key: details would help an attacker to guess.
            AuthError::Refused => Self::new(ErrorCode::Unauthorized),
            AuthError::Throttled { retry_after_seconds } => {
                Self::new(ErrorCode::TooManyFailures).with_retry_after(retry_after_seconds)
            }
            AuthError::RateLimited { holder, per_minute, retry_after_seconds } => {
                rate_limited(holder, per_minute, retry_after_seconds)
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
            KeyError::Limit(invalid) => return invalid_limit(invalid),
            KeyError::UnknownProject => "project",
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
            JobsError::LoraGone(id) => lora_gone(&id),
            JobsError::ContentRefused { reason } => Self::new(ErrorCode::ContentRefused).with_detail(reason),
            JobsError::ModerationUnavailable => Self::new(ErrorCode::ModerationUnavailable),
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

/// Truncates a name from the client.
fn cut(name: &mut String) {
    if let Some((end, _)) = name.char_indices().nth(FIELD_CHARS_MAX) {
        name.truncate(end);
        name.push('…');
    }
}

/// An error's text with those of its causes.
fn causes(error: &dyn std::error::Error) -> String {
    let behind = std::iter::successors(error.source(), |cause| cause.source());
    behind.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

fn model_unavailable(availability: Availability) -> ApiError {
    let error = ApiError::new(ErrorCode::ModelUnavailable);
    match availability {
        Availability::NotServed => error.with_detail("this worker knows the model but does not serve it"),
        Availability::Failed => {
            error.with_detail("the model's engine failed").with_retry_after(LOADING_RETRY_AFTER_SECONDS)
        }
        Availability::Loading | Availability::Ready => {
            error.with_detail("the model is being loaded").with_retry_after(LOADING_RETRY_AFTER_SECONDS)
        }
    }
}
