//! Delivers what is due: several deliveries at a time, of each job and each budget one after the other, and again and again
//! until the receiver has them or their time is over.
//!
//! It looks into the table instead of being told, so it also finds what an earlier process has left, and what another process
//! has written. A delivery stays pending until its outcome is stored: a crash in between repeats it.

use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::backoff::wait_after;
use super::error::WebhookError;
use super::flights::Flight;
use super::payload;
use super::receiver::AlertReceiver;
use super::secret::SigningSecret;
use super::sender::{Message, Outcome};
use super::service::{Inner, Webhooks};
use super::signature::sign;
use super::store::{Attempted, DueDelivery};
use super::{Delivery, DeliveryState};
use crate::auth::{KeyError, KeyState};
use crate::domain::ids::KeyId;
use crate::domain::webhook::WebhookEvent;
use crate::jobs::{JobReport, JobsError, Visibility};
use crate::telemetry::metrics;

/// Time between two looks for writes to the database. Without writes, one costs almost nothing.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// Time between two looks into the table without a write: waits end by the clock.
const DUE_INTERVAL: Duration = Duration::from_secs(1);
/// Time between two counts of what is pending.
const COUNT_INTERVAL: Duration = Duration::from_secs(5);
/// Time between two sweeps of the log.
const SWEEP_INTERVAL: Duration = Duration::from_mins(10);
/// Time to the next sweep after one that has deleted something: there may be more than one deletes at a time.
const SWEEP_AGAIN: Duration = Duration::from_secs(1);
/// How long a delivery stays in the log after its end.
const LOG_KEPT: time::Duration = time::Duration::days(7);
/// How many ended deliveries of one key stay in the log.
const LOG_PER_KEY_MAX: u32 = 10_000;
/// How far ahead a retry can be. What is due later was dated by a clock that was ahead.
const RETRY_AHEAD_MAX: time::Duration = time::Duration::hours(7);
/// How long a delivery is put off that this worker cannot try now.
const POSTPONED: time::Duration = time::Duration::seconds(5);
/// Wait before storing an outcome is retried.
const STORE_RETRY: Duration = Duration::from_secs(1);

/// Why a delivery to a key that has ended is given up.
const KEY_ENDED: &str = "the key has expired or was revoked";
/// Why a delivery to a receiver of the operator that is no longer there is given up.
const NO_RECEIVER: &str = "the operator has removed `webhooks.alerts_url`";

impl Webhooks {
    /// Delivers forever. Does nothing if webhooks are off.
    pub async fn deliver(&self) {
        if !self.0.is_enabled {
            return;
        }
        let (mut attempts, mut seen) = (JoinSet::new(), None);
        let (mut looked_at, mut counted_at, mut swept_at) = (None, None, None);
        let mut sweep_pause = SWEEP_INTERVAL;
        loop {
            while attempts.try_join_next().is_some() {}
            let mark = self.0.store.change_mark();
            if is_over(looked_at, DUE_INTERVAL) || mark.is_none() || mark != seen {
                (seen, looked_at) = (mark, Some(Instant::now()));
                if let Err(error) = self.launch(&mut attempts).await {
                    tracing::warn!(%error, "cannot tell now what to deliver to webhooks");
                }
            }
            if is_over(counted_at, COUNT_INTERVAL) {
                counted_at = Some(Instant::now());
                if let Ok(pending) = self.0.store.pending().await {
                    metrics::webhooks_pending(pending);
                }
            }
            if is_over(swept_at, sweep_pause) {
                swept_at = Some(Instant::now());
                let swept = self.sweep().await;
                let swept = swept.inspect_err(|error| tracing::warn!(%error, "the log of webhooks was not swept"));
                sweep_pause = if swept.is_ok_and(|deleted| deleted > 0) { SWEEP_AGAIN } else { SWEEP_INTERVAL };
            }
            tokio::select! {
                () = self.0.flights.ended() => {}
                () = sleep(LOOK_INTERVAL) => {}
            }
        }
    }

    /// Deletes deliveries that are past their retention; some at a time. Returns how many.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn sweep(&self) -> Result<u64, WebhookError> {
        let now = self.0.now();
        self.0.store.pull_back(now + RETRY_AHEAD_MAX, now).await?;
        self.0.store.forget(now - LOG_KEPT, LOG_PER_KEY_MAX).await
    }

    /// Starts an attempt for each delivery that is due, as far as there is room.
    async fn launch(&self, attempts: &mut JoinSet<()>) -> Result<(), WebhookError> {
        loop {
            let busy = self.0.flights.busy();
            if busy.room == 0 {
                return Ok(());
            }
            let mut started = 0;
            for due in self.0.store.due(self.0.now(), &busy).await? {
                let flight = self.0.flights.begin(due.number, due.delivery.key, &due.host);
                if let Some(flight) = flight {
                    let webhooks = self.clone();
                    attempts.spawn(async move { webhooks.0.attempt(due, flight).await });
                    started += 1;
                }
            }
            // Hosts and keys that have become busy leave the next look to others.
            if started == 0 {
                return Ok(());
            }
        }
    }
}

/// What one attempt has come to.
enum Tried {
    Sent(Outcome),
    /// It cannot succeed, whenever it is tried.
    Hopeless(&'static str),
}

/// Where a delivery goes, and what signs it.
struct Way<'a> {
    url: &'a str,
    secrets: Vec<Arc<SigningSecret>>,
}

impl Inner {
    async fn attempt(&self, due: DueDelivery, _flight: Flight) {
        let delivery = &due.delivery;
        let tried = self.send(&due).await;
        let now = self.now();
        let attempted = match tried {
            Ok(tried) => attempted(&due, tried, now),
            Err(error) => {
                tracing::warn!(delivery = %delivery.id, %error, "a webhook cannot be sent now");
                let postponed = self.store.postpone(due.number, now + POSTPONED).await;
                if let Err(error) = postponed {
                    tracing::warn!(%error, "a webhook cannot be put off");
                    // Or it would be tried again at once.
                    sleep(STORE_RETRY).await;
                }
                return;
            }
        };
        let state = match (&attempted.next_at, &attempted.error) {
            (Some(_), _) => DeliveryState::Pending,
            (None, Some(_)) => DeliveryState::Failed,
            (None, None) => DeliveryState::Delivered,
        };
        while let Err(error) = self.store.note_attempt(&due, &attempted).await {
            if self.store.is_closed() {
                tracing::warn!(delivery = %delivery.id, "the outcome of a webhook is lost; the next start sends it again");
                return;
            }
            tracing::warn!(delivery = %delivery.id, %error, "the outcome of a webhook cannot be stored; retrying");
            sleep(STORE_RETRY).await;
        }
        let (host, error) = (&due.host, attempted.error.as_deref().unwrap_or_default());
        match state {
            DeliveryState::Pending => {
                metrics::webhook_attempted("retry");
                tracing::debug!(delivery = %delivery.id, host, error, "a webhook failed and is tried again");
            }
            DeliveryState::Failed => {
                metrics::webhook_attempted("failed");
                tracing::warn!(delivery = %delivery.id, key = %delivery.key, host, error, "a webhook is given up");
            }
            DeliveryState::Delivered => {
                metrics::webhook_attempted("delivered");
                tracing::debug!(delivery = %delivery.id, host, "a webhook is delivered");
            }
        }
    }

    /// Sends a delivery once. An error is one of this worker, and counts as no attempt.
    async fn send(&self, due: &DueDelivery) -> Result<Tried, WebhookError> {
        let delivery = &due.delivery;
        let Way { url, secrets } = match self.way_of(delivery).await? {
            Ok(way) => way,
            Err(tried) => return Ok(tried),
        };
        let body = self.body(due).await?;
        let (id, timestamp) = (delivery.id.to_string(), self.now().unix_timestamp());
        let signatures = secrets.iter().map(|secret| sign(secret.bytes(), &id, timestamp, &body));
        let signatures = signatures.collect::<Vec<_>>().join(" ");
        let message = Message { id, timestamp, signatures, body };
        Ok(Tried::Sent(self.sender.send(url, message).await))
    }

    /// Where a delivery goes and what signs it now, or why it cannot be sent.
    async fn way_of<'a>(&'a self, delivery: &'a Delivery) -> Result<Result<Way<'a>, Tried>, WebhookError> {
        if delivery.key == KeyId::NONE {
            // As configured now: its row has neither the path nor the secret.
            let way =
                |receiver: &'a AlertReceiver| Way { url: receiver.url(), secrets: vec![Arc::clone(receiver.secret())] };
            return Ok(self.receiver.as_ref().map(way).ok_or(Tried::Hopeless(NO_RECEIVER)));
        }
        match self.keys.get(delivery.key).await {
            Ok(key) if key.state == KeyState::Active => {}
            // Its jobs and links are closed to whoever holds it, too.
            Ok(_) | Err(KeyError::NotFound(_)) => return Ok(Err(Tried::Hopeless(KEY_ENDED))),
            Err(error) => return Err(error.into()),
        }
        match self.secrets(delivery.key).await {
            Ok(secrets) => Ok(Ok(Way { url: &delivery.url, secrets })),
            Err(error @ (WebhookError::NoSecret | WebhookError::OtherSecret)) => {
                Ok(Err(Tried::Sent(Outcome::Failed { status: None, error: error.to_string() })))
            }
            Err(error) => Err(error),
        }
    }

    async fn body(&self, due: &DueDelivery) -> Result<String, WebhookError> {
        let delivery = &due.delivery;
        if let Some(data) = &due.data {
            return Ok(payload::of_alert(delivery, data).to_string());
        }
        if delivery.event == WebhookEvent::Test {
            return Ok(payload::of_test(delivery).to_string());
        }
        let report = self.report(delivery).await?;
        Ok(payload::about_job(delivery, report, &due.origin, &*self.render).to_string())
    }

    /// The job of a delivery; `None` if it was deleted.
    async fn report(&self, delivery: &Delivery) -> Result<Option<JobReport>, WebhookError> {
        let Some(id) = delivery.job.as_deref().and_then(|id| id.parse().ok()) else { return Ok(None) };
        match self.jobs.get(Visibility::Of(delivery.key), id).await {
            Ok(report) => Ok(Some(report)),
            Err(JobsError::NotFound) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

fn is_over(since: Option<Instant>, interval: Duration) -> bool {
    since.is_none_or(|since| since.elapsed() >= interval)
}

fn attempted(due: &DueDelivery, tried: Tried, at: OffsetDateTime) -> Attempted {
    let ended = |status, error: Option<String>, is_gone| Attempted { status, error, at, next_at: None, is_gone };
    match tried {
        Tried::Hopeless(error) => ended(None, Some(error.to_owned()), false),
        Tried::Sent(Outcome::Delivered { status }) => ended(Some(status), None, false),
        Tried::Sent(Outcome::Gone) => ended(Some(410), Some("the receiver is gone".to_owned()), true),
        Tried::Sent(Outcome::Failed { status, error }) => {
            let wait = wait_after(due.failures + 1, random());
            let next_at = wait.map(|wait| at + wait);
            Attempted { status, error: Some(error), at, next_at, is_gone: false }
        }
    }
}

/// A number from 0 to 1, which differs from attempt to attempt.
fn random() -> f64 {
    let mut bytes = [0; 4];
    // Without random bytes the waits are not spread.
    if getrandom::fill(&mut bytes).is_err() {
        return 0.5;
    }
    f64::from(u32::from_ne_bytes(bytes)) / f64::from(u32::MAX)
}
