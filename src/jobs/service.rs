//! The job service.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;
use tracing::Instrument as _;

use super::allowance::Allowance;
use super::bucket::{Bucket, ResultBucket};
use super::charged::Charged;
use super::idempotency::RepeatKey;
use super::launch::JobToRun;
use super::links::LinkSigner;
use super::results::ResultFiles;
use super::state::Inner;
use super::store::{JobOutbox, JobStore, NewJob};
use super::submission::{AcceptedJob, Submission, Submitted};
use super::usage_buffer::UsageBuffer;
use super::watchers::Watchers;
use super::{Job, JobReport, JobRequest, JobSettings, JobTerms, JobsError, Visibility};
use super::{idempotency, input_images, recovery, spool, sweep};
use crate::catalog::{Availability, Catalog, Replicas};
use crate::domain::budget::BudgetHolder;
use crate::domain::clock::Clock;
use crate::domain::ids::{JobId, KeyId, ModelId};
use crate::domain::job::JobStatus;
use crate::domain::money::Prices;
use crate::domain::pace::Pace;
use crate::domain::review::Reviewer;
use crate::queue::{CancelCause, DraftMemory, Drafts, EngineState, Queue, Reservation};
use crate::store::Store;

/// Parts of the service.
pub struct ServiceParts {
    /// The database.
    pub store: Store,
    /// The models.
    pub catalog: Arc<Catalog>,
    /// One queue for each served model.
    pub queues: BTreeMap<ModelId, Queue>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// Where images are stored. `None`: in the folder of the settings.
    pub bucket: Option<ResultBucket>,
    /// Who judges prompts before they are queued, and images before they are stored. `None`: nobody.
    pub reviewer: Option<Arc<dyn Reviewer>>,
    /// Its settings.
    pub settings: JobSettings,
    /// Who learns of each change of a job, in the transaction of the change.
    pub outbox: Arc<dyn JobOutbox>,
}

/// The service that accepts, runs and stores jobs. Clones share it.
#[derive(Clone)]
pub struct JobService(pub(super) Arc<Inner>);

impl JobService {
    /// Starts the service: resumes jobs that a crash left unfinished, and starts the sweep. Needs a tokio runtime.
    ///
    /// # Errors
    /// When the database or the results folder cannot be used.
    pub async fn start(parts: ServiceParts) -> Result<Self, JobsError> {
        let ServiceParts { store, catalog, queues, clock, bucket, reviewer, settings, outbox } = parts;
        let (store, usage_buffer) = (JobStore::new(store.clone()).with_outbox(outbox), UsageBuffer::new(store));
        let (files, bucket) = open_results(&settings, bucket).await?;
        let secret_path = settings.link_secret_path.clone();
        let link_life = time::Duration::try_from(settings.link_life).unwrap_or(time::Duration::MAX);
        let signer = tokio::task::spawn_blocking(move || LinkSigner::open(secret_path, link_life)).await;
        let signer = signer.map_err(JobsError::storage)??;
        let last_end = store.last_end().await?;
        let pace = Pace::new(last_end.unwrap_or(clock.now()), clock.now(), clock.uptime());
        let (unfinished, _) = watch::channel(0);
        let (live, allowances, watchers) = (Mutex::default(), Arc::default(), Watchers::default());
        let (draining, closed) = (AtomicBool::new(false), watch::Sender::new(false));
        let inner = Inner {
            store,
            catalog,
            queues,
            clock,
            reviewer,
            settings,
            files,
            bucket,
            probe_freed_at: tokio::sync::Mutex::default(),
            // A process before may not have come to it.
            log_has_deleted: AtomicBool::new(true),
            pace,
            allowances,
            repeats: idempotency::Turns::default(),
            usage_buffer,
            charged: Charged::default(),
            signer,
            live,
            watchers,
            draft_memory: DraftMemory::default(),
            unfinished,
            draining,
            closed,
        };
        let inner = Arc::new(inner);
        for (model, queue) in &inner.queues {
            tokio::spawn(mirror_availability(Arc::clone(&inner.catalog), model.clone(), queue.clone()));
        }
        let resumed = recovery::recover(&inner).await?;
        if resumed > 0 {
            tracing::info!(jobs = resumed, "unfinished jobs are retried");
        }
        tokio::spawn(sweep::run(Arc::downgrade(&inner)));
        tokio::spawn(spool::run(Arc::downgrade(&inner)));
        Ok(Self(inner))
    }

    /// Accepts a job: it is in the database when this returns, and ends exactly once. Until the caller calls
    /// [`AcceptedJob::keep`], dropping it cancels the job. A repeated request gives the earlier job, even when the
    /// queue has no room for a new one.
    ///
    /// # Errors
    /// When the model is not available, the queue is full, the worker is shutting down, or the database fails; when the
    /// idempotency key was used for another request; or when the moderation refuses the prompt or does not answer.
    pub async fn submit(&self, submission: Submission) -> Result<Submitted, JobsError> {
        self.submit_with(submission, Drafts::default()).await
    }

    /// [`JobService::submit`], with the drafts that a reader wants.
    pub(super) async fn submit_with(&self, submission: Submission, drafts: Drafts) -> Result<Submitted, JobsError> {
        let turn = match &submission.repeat_key {
            Some(key) => Some(self.0.repeats.take(submission.owner, key).await),
            None => None,
        };
        if let Some(earlier) = self.repeated(&submission).await? {
            return Ok(Submitted::Earlier(earlier));
        }
        if self.is_draining() {
            return Err(JobsError::Draining);
        }
        let model = submission.spec.model();
        let availability = self.0.catalog.availability(model);
        let queue = self.0.queues.get(model).ok_or(JobsError::ModelUnavailable(availability))?;
        let (allowance, reservation) = self.0.admit(&submission, queue).await?;
        if availability != Availability::Ready {
            return Err(JobsError::ModelUnavailable(availability));
        }
        let id = JobId::generate();
        // With a place in the queue, which bounds how many are under review, and gives it back if the client disconnects.
        self.0.review_prompt(id, submission.owner, &submission.spec).await?;
        // It may have taken seconds.
        if self.is_draining() {
            return Err(JobsError::Draining);
        }
        let service = self.clone();
        // A task of its own: a client that disconnects between insert and hand-over must not leave an orphaned row. The
        // task's result is then dropped, which cancels the job.
        let accepting = async move {
            let accepted = service.accept(id, submission, reservation.with_drafts(drafts), allowance).await;
            drop(turn);
            accepted
        };
        let accepted = tokio::spawn(accepting.in_current_span());
        accepted.await.map_err(JobsError::storage)?
    }

    async fn accept(
        self,
        id: JobId,
        submission: Submission,
        reservation: Reservation,
        allowance: Allowance,
    ) -> Result<Submitted, JobsError> {
        let created_at = self.0.clock.now();
        let job = Job {
            id,
            owner: submission.owner,
            status: JobStatus::Queued,
            request: JobRequest::from(&submission.spec),
            output_format: submission.output_format,
            terms: JobTerms {
                priority: submission.priority,
                owner_priority: submission.limits.priority,
                deadline_at: submission.deadline.map(|deadline| created_at + deadline),
            },
            error: None,
            created_at,
            started_at: None,
            finished_at: None,
        };
        let input_images = input_images::encode_for_storage(&submission.spec).await?;
        let repeat_key_cutoff = idempotency::cutoff(self.0.paced().now);
        let row = NewJob {
            id: job.id,
            owner: job.owner,
            request: &job.request,
            output_format: job.output_format,
            terms: job.terms,
            created_at: job.created_at,
            repeat_key: submission.repeat_key.as_ref().map(|key| (key, repeat_key_cutoff)),
            input_images: &input_images,
            project: allowance.project(),
            webhook: submission.webhook.as_ref(),
        };
        if !self.0.store.insert(row).await? {
            // The same request came twice at once, and this one is the second.
            let earlier = self.repeated(&submission).await?;
            return earlier.map(Submitted::Earlier).ok_or_else(|| JobsError::storage("an idempotency key vanished"));
        }
        let to_run = JobToRun { spec: submission.spec, reservation, allowance, is_suspect: false };
        self.0.hand_over(&job, to_run);
        let report = self.0.report(job);
        // A client with an idempotency key means to come back if the connection breaks.
        let is_kept = submission.repeat_key.is_some();
        Ok(Submitted::New(AcceptedJob::new(self.0, report, is_kept)))
    }

    async fn repeated(&self, submission: &Submission) -> Result<Option<JobReport>, JobsError> {
        let Some(key) = &submission.repeat_key else { return Ok(None) };
        self.earlier(submission.owner, key).await
    }

    /// The owner's job with this idempotency key. [`JobService::submit`] finds it as well; this does without the request that was
    /// repeated, which may no longer be valid.
    ///
    /// # Errors
    /// When the idempotency key was used for another request, or the database fails.
    pub async fn earlier(&self, owner: KeyId, key: &RepeatKey) -> Result<Option<JobReport>, JobsError> {
        let job = self.0.earlier_job(owner, key).await?;
        Ok(job.map(|job| self.0.report(job)))
    }

    /// Cancels a job: at once while pending, before the next step while running. A job that has ended stays unchanged.
    ///
    /// # Errors
    /// As [`JobService::get`].
    pub async fn cancel(&self, visibility: impl Into<Visibility>, id: JobId) -> Result<(), JobsError> {
        let job = self.0.within(visibility.into(), id).await?;
        self.0.cancel(&job.request.model, id, CancelCause::Request);
        if job.status.is_final() {
            return Ok(());
        }
        // Its step may take minutes, and the process may end within it.
        self.0.store.note_cancel(id, self.0.clock.now()).await
    }

    /// The usage of owners.
    pub fn usage_buffer(&self) -> &UsageBuffer {
        &self.0.usage_buffer
    }

    /// What work costs, if the operator has set prices.
    pub fn prices(&self) -> Option<&Prices> {
        self.0.settings.prices.as_ref()
    }

    /// Waits until jobs have ended or were refused for a budget, and returns whose: each with whether one was refused.
    pub async fn charged(&self) -> BTreeMap<BudgetHolder, bool> {
        self.0.charged.take().await
    }

    /// Notes that a budget has changed, for [`JobService::charged`].
    pub fn note_budget(&self, holder: BudgetHolder) {
        self.0.charged.note_change(holder);
    }

    /// Proves that the database accepts writes.
    ///
    /// # Errors
    /// When it does not.
    pub async fn check_writable(&self) -> Result<(), JobsError> {
        self.0.store.check_writable().await
    }

    /// Deletes jobs past their retention, and images beyond the disk limit; returns how many jobs were affected. Also
    /// runs at an interval by itself.
    ///
    /// # Errors
    /// When the database or the disk fails.
    pub async fn sweep(&self) -> Result<usize, JobsError> {
        sweep::sweep(&self.0).await
    }

    /// Accepts no more jobs. Accepted ones still run.
    pub fn drain(&self) {
        self.0.draining.store(true, Ordering::Release);
        self.0.queues.values().for_each(Queue::drain);
    }

    /// Whether [`JobService::drain`] was called.
    pub fn is_draining(&self) -> bool {
        self.0.draining.load(Ordering::Acquire)
    }

    /// Waits until every accepted job has ended and is stored, but no longer than `wait_max`; returns how many are
    /// left.
    pub async fn wait_until_idle(&self, wait_max: Duration) -> usize {
        let mut unfinished = self.0.unfinished.subscribe();
        drop(tokio::time::timeout(wait_max, unfinished.wait_for(|count| *count == 0)).await);
        *unfinished.borrow()
    }

    /// Stops the engines after their current call. Unfinished jobs stay in the database for the next start.
    pub fn close(&self) {
        self.0.closed.send_replace(true);
        self.0.queues.values().for_each(Queue::close);
    }

    /// Called last before a clean exit: unfinished jobs are queued again, and their attempt is not counted. Only a
    /// crash counts as an attempt. Returns how many there were.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn leave_to_next_start(&self) -> Result<u64, JobsError> {
        self.0.store.undo_attempts().await
    }
}

/// Opens the results folder, and with a bucket counts the images that wait there.
async fn open_results(
    settings: &JobSettings,
    bucket: Option<ResultBucket>,
) -> Result<(ResultFiles, Option<Arc<Bucket>>), JobsError> {
    let directory = settings.results_directory.clone();
    let opening = tokio::task::spawn_blocking(move || {
        let files = ResultFiles::open(&directory)?;
        let bucket = match bucket {
            Some(bucket) => Some(Arc::new(Bucket::new(bucket, files.survey(None, 0)?.all))),
            None => None,
        };
        Ok::<_, std::io::Error>((files, bucket))
    });
    Ok(opening.await.map_err(JobsError::storage)??)
}

/// Mirrors the state of a model's engines to the catalog.
async fn mirror_availability(catalog: Arc<Catalog>, model: ModelId, queue: Queue) {
    let mut state = queue.state();
    loop {
        let availability = match *state.borrow_and_update() {
            EngineState::Loading => Availability::Loading,
            EngineState::Ready => Availability::Ready,
            EngineState::Rebuilding { .. } | EngineState::DeviceLost { .. } | EngineState::Gone => Availability::Failed,
        };
        let (ready, desired) = queue.engines();
        let count = |engines: usize| u32::try_from(engines).unwrap_or(u32::MAX);
        catalog.set_availability(&model, availability, Replicas { ready: count(ready), desired: count(desired) });
        if state.changed().await.is_err() {
            return;
        }
    }
}
