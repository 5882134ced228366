//! The life of a job from acceptance to stored image. Knows nothing of HTTP or auth.
//!
//! Owns the table of jobs, the folder of results and the links to them. An accepted job is in the database before its
//! acceptance is reported, so it survives a crash: at the next start it is drawn again with the same seed.

mod allowance;
mod disk;
mod idempotency;
mod images;
mod input_images;
mod links;
mod orphans;
mod owners;
mod recorder;
mod recovery;
mod reports;
mod request;
mod results;
mod service;
mod span;
mod statistics;
mod store;
mod submission;
mod sweep;
mod usage_buffer;
mod visibility;
mod watch;
mod watchers;

use std::path::PathBuf;
use std::time::Duration;

use time::OffsetDateTime;

pub use allowance::LimitReached;
pub use idempotency::RepeatKey;
pub use links::{ResultLink, rotate_link_secret};
pub use request::JobRequest;
pub use results::{results_disk_bytes, try_results};
pub use service::{JobService, ServiceParts};
pub use statistics::{Minute, Statistics};
pub use submission::{AcceptedJob, Submission, Submitted};
pub use usage_buffer::UsageBuffer;
pub use visibility::Visibility;
pub use watch::{JobMark, JobUpdate, JobWatch, UnknownMark, WatchOptions};
pub use watchers::{WATCHES_MAX, WATCHES_PER_OWNER_MAX};

use crate::catalog::Availability;
use crate::domain::format::OutputFormat;
use crate::domain::ids::{JobId, KeyId};
use crate::domain::job::JobStatus;
use crate::domain::priority::Priority;

/// Most jobs in one page of a list.
pub const PAGE_JOBS_MAX: u32 = 100;

/// Ended jobs of one owner that are kept, where nothing else is said: a day of one every nine seconds.
pub const ENDED_JOBS_PER_OWNER_MAX: u32 = 10_000;

/// Memory for the images that unfinished jobs start from, where nothing else is said: some three hundred of 1024×1024.
pub const INPUT_IMAGES_BYTES_MAX: u64 = 1024 * 1024 * 1024;

/// What the life of a job is held to.
#[derive(Debug, Clone)]
pub struct JobSettings {
    /// Where images are kept; made where it is missing.
    pub results_directory: PathBuf,
    /// The file of the secret behind links to images; made where it is missing. Not part of the database, so that no
    /// copy of that opens images.
    pub link_secret_path: PathBuf,
    /// How long a link to an image is good.
    pub link_life: Duration,
    /// How long an image is offered to a disk that does not take it before its job fails.
    pub storage_patience: Duration,
    /// How long a finished job and its image are kept.
    pub results_retention: Duration,
    /// How much disk images may take; the oldest go first. Looked after by the sweep, so passed for a while.
    pub results_bytes_max: u64,
    /// How many ended jobs of one owner are kept; the oldest go first. Looked after by the sweep, so passed for a while.
    pub ended_jobs_per_owner_max: u32,
    /// How much memory the images may take that unfinished jobs start from, and about as much of the database.
    pub input_images_bytes_max: u64,
    /// Whether an image's file says how it came to be.
    pub writes_provenance: bool,
    /// How often finished jobs are looked through for those to be forgotten.
    pub sweep_interval: Duration,
}

/// A job as it stands in the database.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// Its id.
    pub id: JobId,
    /// The key that asked for it.
    pub owner: KeyId,
    /// Where it stands.
    pub status: JobStatus,
    /// What is drawn, with every default filled in.
    pub request: JobRequest,
    /// How the image is encoded.
    pub output_format: OutputFormat,
    /// How urgent it is.
    pub terms: JobTerms,
    /// Why it failed, where it failed.
    pub error: Option<JobError>,
    /// When it was accepted.
    pub created_at: OffsetDateTime,
    /// When the engine began it.
    pub started_at: Option<OffsetDateTime>,
    /// When it ended.
    pub finished_at: Option<OffsetDateTime>,
}

/// How urgent a job is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct JobTerms {
    /// Its place among the jobs of the same owner.
    pub priority: Priority,
    /// The owner's part of the device beside other owners', as of the job's acceptance.
    pub owner_priority: Priority,
    /// From this moment on nobody wants the image any more: then the job fails.
    pub deadline_at: Option<OffsetDateTime>,
}

/// Why a job failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobError {
    /// A stable word.
    pub code: String,
    /// In words for the client.
    pub reason: String,
}

/// A job and how far it is.
#[derive(Debug, Clone, PartialEq)]
pub struct JobReport {
    /// The job.
    pub job: Job,
    /// Denoising steps done; of those the request asks for.
    pub step: u32,
    /// Place in the line: 0 while it is drawn. `None` when it is not in the queue.
    pub queue_position: Option<usize>,
    /// Likely time to its end.
    pub eta_seconds: Option<f64>,
    /// Where its image can be had without a key, once it has succeeded.
    pub link: ResultLink,
}

/// Which jobs to list.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ListQuery {
    /// Only jobs older than this one.
    pub before: Option<JobId>,
    /// Only jobs that stand here.
    pub status: Option<JobStatus>,
    /// Most jobs to return, up to [`PAGE_JOBS_MAX`].
    pub jobs_max: u32,
}

/// Some jobs, newest first.
#[derive(Debug, Clone, PartialEq)]
pub struct JobPage {
    /// The jobs.
    pub jobs: Vec<JobReport>,
    /// Where the next page begins, when there is one.
    pub next: Option<JobId>,
}

/// An encoded image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The file.
    pub bytes: Vec<u8>,
    /// Its format.
    pub format: OutputFormat,
}

/// Why something about a job could not be done, by what the caller can do about it.
#[derive(Debug, thiserror::Error)]
pub enum JobsError {
    /// There is no such job, or it is somebody else's.
    #[error("there is no such job")]
    NotFound,
    /// The job has no image: it has not succeeded (yet).
    #[error("the job has no image; it is {0}")]
    NoImage(JobStatus),
    /// Nothing can be seen of the job now: it is not being drawn, or has not come to its first step.
    #[error("there is no preview of the job now")]
    NoPreview,
    /// The job succeeded, and its image is gone.
    #[error("the image is gone")]
    ImageGone,
    /// The link was not made by this worker, or its time is over.
    #[error("the link is not valid or has expired")]
    LinkRefused,
    /// The model is known and does not draw now.
    #[error("the model does not draw now: {0:?}")]
    ModelUnavailable(Availability),
    /// No place in the queue, or none left of this owner's share.
    #[error("the queue is full")]
    QueueFull {
        /// When a place is likely to be free.
        retry_after_seconds: u64,
    },
    /// A bound of the key that asks.
    #[error(transparent)]
    LimitReached(LimitReached),
    /// The word that makes a request repeatable stood for another request.
    #[error("the same word was used for another request")]
    OtherRequest,
    /// As many watch jobs as are allowed, of all owners or of this one.
    #[error("too many are watching")]
    TooManyWatches,
    /// The worker is going down.
    #[error("the worker is shutting down")]
    Draining,
    /// The database or the disk does not do its part. Not for clients' eyes.
    #[error("jobs cannot be stored")]
    Storage(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl JobsError {
    /// A failure of the database or the disk.
    fn storage(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Storage(cause.into())
    }
}

impl From<std::io::Error> for JobsError {
    fn from(error: std::io::Error) -> Self {
        Self::storage(error)
    }
}
