//! What is asked of the service, and what becomes of it.

use super::{AcceptedJob, JobReport, RepeatKey};
use crate::domain::format::OutputFormat;
use crate::domain::ids::KeyId;
use crate::domain::spec::GenerateSpec;

/// A job that is asked for.
#[derive(Debug)]
pub struct Submission {
    /// The key that asks.
    pub owner: KeyId,
    /// What is drawn.
    pub spec: GenerateSpec,
    /// How the picture is encoded.
    pub output_format: OutputFormat,
    /// Where the client may ask again: by what the repetition is known.
    pub repeat_key: Option<RepeatKey>,
}

/// What became of a [`Submission`].
pub enum Submitted {
    /// A new job.
    New(AcceptedJob),
    /// The job of the same request that came before.
    Earlier(JobReport),
}
