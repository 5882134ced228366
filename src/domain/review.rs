//! Reviews by someone outside: what is shown of a job, and the verdict on it.

use std::future::Future;
use std::pin::Pin;
use std::str::FromStr;

use crate::domain::format::OutputFormat;
use crate::domain::ids::{JobId, KeyId, ModelId};

/// When a job is reviewed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReviewStage {
    /// Before it is queued: its prompt.
    Before,
    /// Before its image is stored: the image.
    After,
}

impl ReviewStage {
    /// Its name for reviewers, in metrics and in the audit log.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Before => "before",
            Self::After => "after",
        }
    }
}

/// What is shown to a reviewer. It has no `Debug`: a prompt must not end up in a log.
pub enum Subject {
    /// The texts of a request.
    Prompt {
        /// What to generate.
        prompt: String,
        /// T5's prompt, if it differs.
        prompt_2: Option<String>,
        /// What to steer away from.
        negative_prompt: Option<String>,
    },
    /// A generated image.
    Image {
        /// The file as it would be stored.
        bytes: Vec<u8>,
        /// Its format.
        format: OutputFormat,
    },
}

/// A question to a reviewer.
pub struct Review {
    /// The job. Before it is queued, the id that it will have.
    pub job: JobId,
    /// The key that submitted it; [`KeyId::NONE`] for the console.
    pub owner: KeyId,
    /// The model.
    pub model: ModelId,
    /// What is to be judged.
    pub subject: Subject,
}

impl Review {
    /// When it takes place.
    #[must_use]
    pub fn stage(&self) -> ReviewStage {
        match self.subject {
            Subject::Prompt { .. } => ReviewStage::Before,
            Subject::Image { .. } => ReviewStage::After,
        }
    }
}

/// The outcome of a review.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The job may go on.
    Allowed,
    /// It may not.
    Refused {
        /// Why, for the client: short, one line.
        reason: String,
    },
    /// There was no answer, and without one nothing may go on.
    Unavailable,
}

/// A verdict that is being waited for, no longer than the reviewer's own limit.
pub type PendingVerdict<'a> = Pin<Box<dyn Future<Output = Verdict> + Send + 'a>>;

/// Someone who judges what jobs are asked for and what they generate.
pub trait Reviewer: Send + Sync {
    /// Whether it is asked at this stage.
    fn is_asked(&self, stage: ReviewStage) -> bool;

    /// Judges. Ends within a bounded time, whatever happens.
    fn review(&self, review: Review) -> PendingVerdict<'_>;
}

/// What happens when a reviewer does not answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OnFailure {
    /// The job is refused, or fails.
    #[default]
    Refuse,
    /// The job goes on.
    Allow,
}

/// A text that is neither.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be `refuse` or `allow`")]
pub struct UnknownReaction;

impl FromStr for OnFailure {
    type Err = UnknownReaction;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "refuse" => Ok(Self::Refuse),
            "allow" => Ok(Self::Allow),
            _ => Err(UnknownReaction),
        }
    }
}
