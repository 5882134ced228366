//! Where the operator's moderation is, and when it is asked.

use crate::domain::review::OnFailure;
use crate::domain::shared_secret::SharedSecret;

/// The operator's moderation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModerationConfig {
    /// Its URL, http or https. `None`: nobody is asked.
    pub url: Option<String>,
    /// Whether it is asked about each prompt, before the job is queued.
    pub before: bool,
    /// Whether it is asked about each image, before it is stored.
    pub after: bool,
    /// What happens when it does not answer.
    pub on_failure: OnFailure,
    /// Longest time of a question and its answer.
    pub timeout_seconds: u64,
    /// Sent with each question as a bearer token.
    pub secret: Option<SharedSecret>,
}

impl Default for ModerationConfig {
    fn default() -> Self {
        Self {
            url: None,
            before: true,
            after: true,
            on_failure: OnFailure::default(),
            timeout_seconds: 10,
            secret: None,
        }
    }
}
