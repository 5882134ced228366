//! The life of a job from acceptance to stored image. Knows nothing of HTTP or auth.
//!
//! Owns the table of jobs, the results folder and the links to results. An accepted job is in the database before its
//! acceptance is reported, so it survives a crash: the next start generates it again with the same seed.

mod admission;
mod allowance;
mod charged;
mod disk;
mod drafts;
mod idempotency;
mod images;
mod input_images;
mod launch;
mod links;
mod orphans;
mod owners;
mod private_files;
mod recorder;
mod recovery;
mod reports;
mod request;
mod results;
mod review;
mod service;
mod span;
mod state;
mod statistics;
mod store;
mod submission;
mod sweep;
mod usage_buffer;
mod visibility;
mod watch;
mod watchers;
mod work;

use std::path::PathBuf;
use std::time::Duration;

use time::OffsetDateTime;

pub use allowance::LimitReached;
pub use drafts::{DraftUpdate, DraftWatch};
pub use idempotency::RepeatKey;
pub use links::{ResultLink, rotate_link_secret};
pub use request::{JobRequest, LoraText, RequestedImage, RequestedLora};
pub use results::{results_disk_bytes, try_results};
pub use review::{CONTENT_REFUSED, MODERATION_UNAVAILABLE};
pub use service::{JobService, ServiceParts};
pub use statistics::{Minute, Statistics};
pub use store::{AcceptedRow, JobOutbox};
pub use submission::{AcceptedJob, Submission, Submitted};
pub use usage_buffer::UsageBuffer;
pub use visibility::Visibility;
pub use watch::{JobMark, JobUpdate, JobWatch, UnknownMark, WatchOptions};
pub use watchers::{WATCHES_MAX, WATCHES_PER_OWNER_MAX};
pub use work::{WorkGroup, WorkSum};

use crate::catalog::Availability;
use crate::domain::adapter::AdapterId;
use crate::domain::format::OutputFormat;
use crate::domain::ids::{JobId, KeyId};
use crate::domain::job::JobStatus;
use crate::domain::money::Prices;
use crate::domain::priority::Priority;

/// Maximum jobs in one page of a list.
pub const PAGE_JOBS_MAX: u32 = 100;

/// Default number of ended jobs kept per owner: one day with a job every nine seconds.
pub const ENDED_JOBS_PER_OWNER_MAX: u32 = 10_000;

/// Default memory for the images of unfinished jobs: some three hundred of 1024×1024.
pub const INPUT_IMAGES_BYTES_MAX: u64 = 1024 * 1024 * 1024;

/// Settings of the job service.
#[derive(Debug, Clone)]
pub struct JobSettings {
    /// Folder of the images; created if missing.
    pub results_directory: PathBuf,
    /// Folder of the files of LoRAs.
    pub loras_directory: PathBuf,
    /// File of the secret that signs links; created if missing. Not part of the database, so that a copy of the
    /// database opens no images.
    pub link_secret_path: PathBuf,
    /// How long a link to an image is valid.
    pub link_life: Duration,
    /// How long storing an image is retried before its job fails.
    pub storage_patience: Duration,
    /// How long a finished job and its image are kept.
    pub results_retention: Duration,
    /// How much disk space images may take; the oldest go first. Enforced by the sweep, so it can be exceeded for a
    /// while.
    pub results_bytes_max: u64,
    /// How many ended jobs are kept per owner; the oldest go first. Enforced by the sweep, as above.
    pub ended_jobs_per_owner_max: u32,
    /// How much memory the images of unfinished jobs may take, and about as much of the database.
    pub input_images_bytes_max: u64,
    /// Whether an image's file carries its provenance.
    pub writes_provenance: bool,
    /// Time between sweeps.
    pub sweep_interval: Duration,
    /// What work costs, for budgets of money. `None`: nothing is charged for.
    pub prices: Option<Prices>,
}

/// A job as stored in the database.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// Its id.
    pub id: JobId,
    /// The key that submitted it.
    pub owner: KeyId,
    /// Its state.
    pub status: JobStatus,
    /// The request, with every default filled in.
    pub request: JobRequest,
    /// How the image is encoded.
    pub output_format: OutputFormat,
    /// How urgent it is.
    pub terms: JobTerms,
    /// Why it failed, if it failed.
    pub error: Option<JobError>,
    /// When it was accepted.
    pub created_at: OffsetDateTime,
    /// When an engine started it.
    pub started_at: Option<OffsetDateTime>,
    /// When it ended.
    pub finished_at: Option<OffsetDateTime>,
}

/// How urgent a job is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct JobTerms {
    /// Its order among the jobs of the same owner.
    pub priority: Priority,
    /// The owner's share of the device relative to other owners, at the time of acceptance.
    pub owner_priority: Priority,
    /// From this moment on the image is of no use: then the job fails.
    pub deadline_at: Option<OffsetDateTime>,
}

/// Why a job failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobError {
    /// A stable code.
    pub code: String,
    /// Text for the client.
    pub reason: String,
}

/// A job and its progress.
#[derive(Debug, Clone, PartialEq)]
pub struct JobReport {
    /// The job.
    pub job: Job,
    /// Denoising steps done, of those the request asks for.
    pub step: u32,
    /// Position in the queue: 0 while it runs. `None` when it is not in the queue.
    pub queue_position: Option<usize>,
    /// Likely time to its end.
    pub eta_seconds: Option<f64>,
    /// Link to its image without a key, once it has succeeded.
    pub link: ResultLink,
}

/// Which jobs to list.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ListQuery {
    /// Only jobs older than this one.
    pub before: Option<JobId>,
    /// Only jobs in this state.
    pub status: Option<JobStatus>,
    /// Maximum jobs to return, up to [`PAGE_JOBS_MAX`].
    pub jobs_max: u32,
}

/// Some jobs, newest first.
#[derive(Debug, Clone, PartialEq)]
pub struct JobPage {
    /// The jobs.
    pub jobs: Vec<JobReport>,
    /// Where the next page begins, if there is one.
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

/// Why an operation on a job failed, by what the caller can do about it.
#[derive(Debug, thiserror::Error)]
pub enum JobsError {
    /// There is no such job, or the caller may not see it.
    #[error("there is no such job")]
    NotFound,
    /// The job has no image: it has not succeeded (yet).
    #[error("the job has no image; it is {0}")]
    NoImage(JobStatus),
    /// The job has no preview now: it is not running, or has not finished its first step.
    #[error("there is no preview of the job now")]
    NoPreview,
    /// The job succeeded, but its image is gone.
    #[error("the image is gone")]
    ImageGone,
    /// The link is not from this worker, or has expired.
    #[error("the link is not valid or has expired")]
    LinkRefused,
    /// The model is known but not available now.
    #[error("the model is not available now: {0:?}")]
    ModelUnavailable(Availability),
    /// The queue is full, or this owner's share of it.
    #[error("the queue is full")]
    QueueFull {
        /// When a reservation is likely to be free.
        retry_after_seconds: u64,
    },
    /// A limit of the caller's key.
    #[error(transparent)]
    LimitReached(LimitReached),
    /// A LoRA of the request has been removed since it was found.
    #[error("there is no LoRA {0} any more")]
    LoraGone(AdapterId),
    /// The moderation refused what the request asks for.
    #[error("the content was refused: {reason}")]
    ContentRefused {
        /// Why, for the client.
        reason: String,
    },
    /// The moderation did not answer, and without an answer nothing is accepted.
    #[error("the moderation did not answer")]
    ModerationUnavailable,
    /// The idempotency key was used for another request.
    #[error("the idempotency key was used for another request")]
    OtherRequest,
    /// Too many watches, of all owners or of this one.
    #[error("there are too many watches")]
    TooManyWatches,
    /// The worker is shutting down.
    #[error("the worker is shutting down")]
    Draining,
    /// The database or the disk failed. Not to be shown to clients.
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
