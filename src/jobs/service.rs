//! What can be done with jobs.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tracing::Instrument as _;

use super::allowance::{Allowance, Allowances};
use super::disk::RoomTurn;
use super::links::LinkSigner;
use super::recorder::{self, Recorder};
use super::results::ResultFiles;
use super::store::{JobStore, NewJob};
use super::submission::{AcceptedJob, Submission, Submitted};
use super::usage_buffer::UsageBuffer;
use super::watchers::Watchers;
use super::{Job, JobReport, JobRequest, JobSettings, JobTerms, JobsError, Visibility};
use super::{allowance, idempotency, input_images, recovery, sweep};
use crate::catalog::{Availability, Catalog, Replicas};
use crate::domain::clock::Clock;
use crate::domain::ids::{JobId, KeyId, ModelId};
use crate::domain::job::JobStatus;
use crate::domain::pace::{Moment, Pace};
use crate::domain::spec::GenerateSpec;
use crate::queue::{CancelCause, EngineState, Previews, Queue, Reservation, ReserveError, Terms};
use crate::store::Store;

/// How far a job is, while it has not ended.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Live {
    pub(super) step: u32,
}

/// What is known in memory of a job that has not ended.
pub(super) struct LiveJob {
    pub(super) progress: watch::Receiver<Live>,
    pub(super) previews: Previews,
    pub(super) owner: KeyId,
    pub(super) model: ModelId,
}

/// What it takes to draw a job whose row stands.
pub(super) struct JobToRun {
    pub(super) spec: GenerateSpec,
    pub(super) reservation: Reservation,
    pub(super) allowance: Allowance,
    /// See [`Terms::is_suspect`].
    pub(super) is_suspect: bool,
}

/// What the service is made of.
pub struct ServiceParts {
    /// The database.
    pub store: Store,
    /// The models.
    pub catalog: Arc<Catalog>,
    /// One queue for each served model.
    pub queues: BTreeMap<ModelId, Queue>,
    /// Where "now" comes from.
    pub clock: Arc<dyn Clock>,
    /// What it is held to.
    pub settings: JobSettings,
}

/// The life of jobs. Clones share it.
#[derive(Clone)]
pub struct JobService(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub(super) store: JobStore,
    pub(super) catalog: Arc<Catalog>,
    pub(super) queues: BTreeMap<ModelId, Queue>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) settings: JobSettings,
    pub(super) files: ResultFiles,
    pub(super) room_turn: RoomTurn,
    pace: Pace,
    pub(super) allowances: Arc<Allowances>,
    repeats: idempotency::Turns,
    usage_buffer: UsageBuffer,
    pub(super) signer: LinkSigner,
    /// Jobs with a recorder: at most as many as the queues have places. A sender that is gone means "ended".
    live: Mutex<HashMap<JobId, LiveJob>>,
    pub(super) watchers: Watchers,
    unfinished: watch::Sender<usize>,
    draining: AtomicBool,
    pub(super) closed: watch::Sender<bool>,
}

impl JobService {
    /// Starts the service: takes up the jobs a crash left unfinished, and begins to forget old ones. Needs a tokio
    /// runtime.
    ///
    /// # Errors
    /// When the database or the folder of results cannot be used.
    pub async fn start(parts: ServiceParts) -> Result<Self, JobsError> {
        let ServiceParts { store, catalog, queues, clock, settings } = parts;
        let (store, usage_buffer) = (JobStore::new(store.clone()), UsageBuffer::new(store));
        let directory = settings.results_directory.clone();
        let files =
            tokio::task::spawn_blocking(move || ResultFiles::open(&directory)).await.map_err(JobsError::storage)??;
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
            settings,
            files,
            room_turn: RoomTurn::default(),
            pace,
            allowances,
            repeats: idempotency::Turns::default(),
            usage_buffer,
            signer,
            live,
            watchers,
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
            tracing::info!(jobs = resumed, "unfinished jobs are drawn again");
        }
        tokio::spawn(sweep::run(Arc::downgrade(&inner)));
        Ok(Self(inner))
    }

    /// Accepts a job: it is in the database when this returns, and ends exactly once. Until the caller says
    /// [`AcceptedJob::keep`], the job goes with the caller. A request that was accepted before gives that job, also
    /// when there would be no place for a new one.
    ///
    /// # Errors
    /// When the model does not draw now, there is no place, the worker is going down, or the database fails; or when
    /// the repeat key stood for another request.
    pub async fn submit(&self, submission: Submission) -> Result<Submitted, JobsError> {
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
        let (allowance, reservation) = self.let_in(&submission, queue).await?;
        if availability != Availability::Ready {
            return Err(JobsError::ModelUnavailable(availability));
        }
        let service = self.clone();
        // A task of its own: a caller who leaves between the insert and the hand-over must not leave a row behind
        // that nobody draws. What it returns is then dropped, which cancels the job.
        let accepting = async move {
            let accepted = service.accept(submission, reservation, allowance).await;
            drop(turn);
            accepted
        };
        let accepted = tokio::spawn(accepting.in_current_span());
        accepted.await.map_err(JobsError::storage)?
    }

    async fn let_in(&self, submission: &Submission, queue: &Queue) -> Result<(Allowance, Reservation), JobsError> {
        let allowance = allowance::take(&self.0, submission, queue).await?;
        let reservation = queue.reserve(submission.owner).map_err(|refusal| match refusal {
            ReserveError::Full { retry_after_seconds } => JobsError::QueueFull { retry_after_seconds },
            ReserveError::Draining => JobsError::Draining,
        })?;
        Ok((allowance, reservation))
    }

    async fn accept(
        self,
        submission: Submission,
        reservation: Reservation,
        allowance: Allowance,
    ) -> Result<Submitted, JobsError> {
        let created_at = self.0.clock.now();
        let job = Job {
            id: JobId::generate(),
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
        let input_image = input_images::to_keep(&submission.spec).await?;
        let repeats_since = idempotency::cutoff(self.0.paced().now);
        let row = NewJob {
            id: job.id,
            owner: job.owner,
            request: &job.request,
            output_format: job.output_format,
            terms: job.terms,
            created_at: job.created_at,
            repeat_key: submission.repeat_key.as_ref().map(|key| (key, repeats_since)),
            input_image: input_image.as_deref(),
        };
        if !self.0.store.insert(row).await? {
            // The same request came twice at once, and the other one was first.
            let earlier = self.repeated(&submission).await?;
            return earlier.map(Submitted::Earlier).ok_or_else(|| JobsError::storage("a repeat key came and went"));
        }
        let to_run = JobToRun { spec: submission.spec, reservation, allowance, is_suspect: false };
        self.0.hand_over(&job, to_run);
        let report = self.0.report(job);
        // Who makes a request repeatable means to come back for it, should the connection break.
        let is_kept = submission.repeat_key.is_some();
        Ok(Submitted::New(AcceptedJob::new(self, report, is_kept)))
    }

    async fn repeated(&self, submission: &Submission) -> Result<Option<JobReport>, JobsError> {
        let Some(key) = &submission.repeat_key else { return Ok(None) };
        let job = idempotency::earlier_job(&self.0, submission.owner, key).await?;
        Ok(job.map(|job| self.0.report(job)))
    }

    /// Asks for the end of a job: out of the line at once, out of a running batch before the next step. A job that has
    /// ended stays as it is.
    ///
    /// # Errors
    /// As [`JobService::get`].
    pub async fn cancel(&self, reach: impl Into<Visibility>, id: JobId) -> Result<(), JobsError> {
        let job = self.0.within(reach.into(), id).await?;
        self.0.cancel(&job.request.model, id, CancelCause::Request);
        Ok(())
    }

    /// What was drawn for whom.
    pub fn usage_buffer(&self) -> &UsageBuffer {
        &self.0.usage_buffer
    }

    /// Proves that the database takes writes.
    ///
    /// # Errors
    /// When it does not.
    pub async fn check_writable(&self) -> Result<(), JobsError> {
        self.0.store.check_writable().await
    }

    /// Forgets the jobs whose time is over now, and images beyond the share of the disk; returns how many jobs this
    /// was about. Also happens from time to time by itself.
    ///
    /// # Errors
    /// When the database or the disk fails.
    pub async fn sweep(&self) -> Result<usize, JobsError> {
        sweep::sweep(&self.0).await
    }

    /// Accepts no more jobs. Those that were accepted are still drawn.
    pub fn drain(&self) {
        self.0.draining.store(true, Ordering::Release);
        self.0.queues.values().for_each(Queue::drain);
    }

    /// Whether [`JobService::drain`] was called.
    pub fn is_draining(&self) -> bool {
        self.0.draining.load(Ordering::Acquire)
    }

    /// Waits until every accepted job has ended and is written down, but no longer than `wait_max`; returns how many
    /// have not.
    pub async fn wait_until_idle(&self, wait_max: Duration) -> usize {
        let mut unfinished = self.0.unfinished.subscribe();
        drop(tokio::time::timeout(wait_max, unfinished.wait_for(|count| *count == 0)).await);
        *unfinished.borrow()
    }

    /// Stops the engines after what they are doing now. Unfinished jobs stay in the database for the next start.
    pub fn close(&self) {
        self.0.closed.send_replace(true);
        self.0.queues.values().for_each(Queue::close);
    }

    /// The last thing before the process ends cleanly: jobs that were begun and have not ended wait again, and the
    /// attempt is not counted. Only a life that breaks off counts against its jobs. Returns how many there were.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn leave_to_next_start(&self) -> Result<u64, JobsError> {
        self.0.store.undo_attempts().await
    }
}

impl Inner {
    pub(super) fn live(&self) -> MutexGuard<'_, HashMap<JobId, LiveJob>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What forgetting goes by now.
    pub(super) fn paced(&self) -> Moment {
        let clock = self.clock.now();
        let moment = self.pace.look(clock, self.clock.uptime());
        if moment.has_leapt {
            let expected = moment.now;
            tracing::warn!(%clock, %expected, "the clock has leapt ahead; what its time is over by that stays for an hour more");
        }
        moment
    }

    /// Whether [`JobService::close`] was called.
    pub(super) fn is_closed(&self) -> bool {
        *self.closed.borrow()
    }

    /// Puts a job whose row stands into the queue, and writes down what becomes of it.
    pub(super) fn hand_over(self: &Arc<Self>, job: &Job, to_run: JobToRun) {
        let JobToRun { spec, reservation, allowance, is_suspect } = to_run;
        let (live, receiver) = watch::channel(Live::default());
        self.unfinished.send_modify(|count| *count += 1);
        let cost = spec.cost();
        let provenance = recorder::provenance(self, &spec);
        let span = super::span::of(job);
        let terms = Terms { is_suspect, ..self.queue_terms(&job.terms) };
        let events = reservation.within(span.clone()).submit(job.id, spec, terms);
        let (previews, model) = (events.previews(), job.request.model.clone());
        self.live().insert(job.id, LiveJob { progress: receiver, previews, owner: job.owner, model });
        let Job { id, owner, output_format, created_at, terms, .. } = *job;
        let age = (self.clock.now() - created_at).max(time::Duration::ZERO);
        // Not by the clock that it was accepted by: that can be set while the job is drawn.
        let accepted_at = self.clock.uptime() - age;
        let wanted_until = terms.deadline_at.map(|deadline| accepted_at + (deadline - created_at));
        let format = output_format;
        let recorder = Recorder { id, owner, cost, format, provenance, accepted_at, wanted_until, live };
        let inner = Arc::clone(self);
        let recording = async move {
            recorder.run(&inner, events).await;
            drop(allowance);
            inner.live().remove(&id);
            inner.unfinished.send_modify(|count| *count -= 1);
        };
        tokio::spawn(recording.instrument(span));
    }

    /// The terms as the queue's clock has them.
    fn queue_terms(&self, terms: &JobTerms) -> Terms {
        let left = terms.deadline_at.map(|deadline| deadline - self.clock.now());
        // A deadline that has passed while the worker was down is one that passes now.
        let deadline = left.map(|left| Instant::now() + Duration::try_from(left).unwrap_or_default());
        Terms { priority: terms.priority, owner_priority: terms.owner_priority, deadline, is_suspect: false }
    }

    pub(super) fn cancel(&self, model: &ModelId, id: JobId, cause: CancelCause) {
        if let Some(queue) = self.queues.get(model) {
            queue.cancel(id, cause);
        }
    }
}

/// Keeps the catalog's word on a model true to what its engine does.
async fn mirror_availability(catalog: Arc<Catalog>, model: ModelId, queue: Queue) {
    let mut state = queue.state();
    loop {
        let availability = match *state.borrow_and_update() {
            EngineState::Loading => Availability::Loading,
            EngineState::Ready => Availability::Ready,
            EngineState::Rebuilding { .. } | EngineState::Gone => Availability::Failed,
        };
        let (ready, desired) = queue.engines();
        let count = |engines: usize| u32::try_from(engines).unwrap_or(u32::MAX);
        catalog.set_availability(&model, availability, Replicas { ready: count(ready), desired: count(desired) });
        if state.changed().await.is_err() {
            return;
        }
    }
}
