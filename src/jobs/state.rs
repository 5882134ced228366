//! The state that all parts of the job service share.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::watch;

use super::JobSettings;
use super::allowance::Allowances;
use super::bucket::Bucket;
use super::charged::Charged;
use super::idempotency::Turns;
use super::links::LinkSigner;
use super::results::ResultFiles;
use super::store::JobStore;
use super::usage_buffer::UsageBuffer;
use super::watchers::Watchers;
use crate::catalog::Catalog;
use crate::domain::clock::Clock;
use crate::domain::ids::{JobId, KeyId, ModelId};
use crate::domain::pace::{Moment, Pace};
use crate::domain::review::Reviewer;
use crate::queue::{CancelCause, DraftMemory, Previews, Queue};

/// Progress of an unfinished job.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Live {
    pub(super) step: u32,
}

/// What memory holds of an unfinished job.
pub(super) struct LiveJob {
    pub(super) progress: watch::Receiver<Live>,
    pub(super) previews: Previews,
    pub(super) owner: KeyId,
    pub(super) model: ModelId,
}

/// State of the job service.
pub(super) struct Inner {
    pub(super) store: JobStore,
    pub(super) catalog: Arc<Catalog>,
    pub(super) queues: BTreeMap<ModelId, Queue>,
    pub(super) clock: Arc<dyn Clock>,
    /// Who judges prompts and images, if anyone does.
    pub(super) reviewer: Option<Arc<dyn Reviewer>>,
    pub(super) settings: JobSettings,
    /// The folder of images; with a bucket, of those that wait for it.
    pub(super) files: ResultFiles,
    pub(super) bucket: Option<Arc<Bucket>>,
    /// Held while disk space is freed; remembers when that was last done for a probe.
    pub(super) probe_freed_at: tokio::sync::Mutex<Option<Instant>>,
    /// Whether the database's write-ahead log may have deleted rows, in readable form.
    pub(super) log_has_deleted: AtomicBool,
    pub(super) pace: Pace,
    pub(super) allowances: Arc<Allowances>,
    pub(super) repeats: Turns,
    pub(super) usage_buffer: UsageBuffer,
    pub(super) charged: Charged,
    pub(super) signer: LinkSigner,
    /// Jobs with a recorder; the queues' sizes bound them. A dropped sender means "ended".
    pub(super) live: Mutex<HashMap<JobId, LiveJob>>,
    pub(super) watchers: Watchers,
    pub(super) draft_memory: DraftMemory,
    pub(super) unfinished: watch::Sender<usize>,
    pub(super) draining: AtomicBool,
    pub(super) closed: watch::Sender<bool>,
}

impl Inner {
    pub(super) fn live(&self) -> MutexGuard<'_, HashMap<JobId, LiveJob>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The moment that retention goes by.
    pub(super) fn paced(&self) -> Moment {
        let clock = self.clock.now();
        let moment = self.pace.look(clock, self.clock.uptime());
        if moment.has_leapt {
            let expected = moment.now;
            tracing::warn!(%clock, %expected, "the clock has leapt ahead; what expires by that is kept for another hour");
        }
        moment
    }

    /// Whether [`JobService::close`] was called.
    pub(super) fn is_closed(&self) -> bool {
        *self.closed.borrow()
    }

    pub(super) fn cancel(&self, model: &ModelId, id: JobId, cause: CancelCause) {
        if let Some(queue) = self.queues.get(model) {
            queue.cancel(id, cause);
        }
    }
}
