//! Background work: revokes tokens whose key has lost its permission, removes objects from the cluster, checks namespaces,
//! and renews the worker's own token.
//!
//! It compares the actual state with the intended one instead of reacting to events, so it also finds a permission that
//! ended by the command line, by the clock, or while the worker was down.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::time::Duration;

use time::OffsetDateTime;
use tokio::time::{Instant, sleep};

use super::cluster::{Cluster, ClusterError};
use super::connect::write_private;
use super::credential::TOKEN_LIFE;
use super::error::KubernetesError;
use super::service::{Inner, Kubernetes};
use super::store::Removal;
use super::token::{Claims, Token};

/// Time between two checks for writes to the database. Without writes, a check costs almost nothing.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// Time between two comparisons of grants with keys without a write: keys also expire by the clock.
const COMPARE_INTERVAL: Duration = Duration::from_secs(1);
/// Delay of a retry after the first failed removal, doubled after each further one.
const RETRY_DELAY: Duration = Duration::from_secs(1);
/// Longest delay of a retry: an hour's outage must not be followed by an hour's wait.
const RETRY_DELAY_MAX: Duration = Duration::from_secs(15);
/// Time between two checks of a namespace that is not open.
const PENDING_LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// Open namespaces are checked in one of this many rounds.
const ROUNDS_PER_OPEN_LOOK: u32 = 12;
/// Time between two checks whether the worker's own token is due.
const RENEWAL_LOOK_INTERVAL: Duration = Duration::from_mins(1);
/// How far this machine's clock may be behind the API server's before a token counts as from the future.
const CLOCKS_APART: time::Duration = time::Duration::minutes(5);

impl Kubernetes {
    /// Runs the background work forever. Does nothing without a cluster.
    pub async fn keep(&self) {
        let Some(cluster) = &self.0.cluster else { return };
        // Boxed: each is as large as a request to the cluster.
        tokio::join!(
            Box::pin(self.0.revoke_forever()),
            Box::pin(self.0.remove_forever(cluster)),
            Box::pin(self.0.check_forever(cluster)),
            Box::pin(self.0.renew_forever(cluster)),
        );
    }
}

impl Inner {
    async fn revoke_forever(&self) {
        let mut seen = None;
        let mut compared_at = None;
        loop {
            let mark = self.store.change_mark();
            let is_due = compared_at.is_none_or(|at: Instant| at.elapsed() >= COMPARE_INTERVAL);
            if is_due || mark.is_none() || mark != seen {
                (seen, compared_at) = (mark, Some(Instant::now()));
                if let Err(error) = self.revoke().await {
                    tracing::warn!(%error, "cannot tell now which tokens to revoke");
                }
            }
            sleep(LOOK_INTERVAL).await;
        }
    }

    /// Withdraws grants whose holder has lost its permission, and those whose tokens have all expired: an unused key leaves
    /// nothing in the cluster.
    async fn revoke(&self) -> Result<(), KubernetesError> {
        let grants = self.store.grants().await?;
        self.granted.keep_only(&grants);
        for grant in grants {
            let now = self.now();
            let has_right = self.rights.covers(&grant.holder, grant.namespace).await?;
            if !has_right {
                tracing::info!(key = %grant.holder.key, namespace = %grant.namespace, "revoking tokens");
                self.store.withdraw(&grant, now).await?;
            } else if self.granted.unused_for(&grant, self.clock.uptime()) >= TOKEN_LIFE {
                self.store.withdraw_unused(&grant, now).await?;
            }
        }
        Ok(())
    }

    async fn remove_forever(&self, cluster: &Cluster) {
        let mut delays = Delays::default();
        loop {
            match self.store.removals().await {
                Ok(removals) => self.remove(cluster, removals, &mut delays).await,
                Err(error) => tracing::warn!(%error, "cannot tell now what to remove from the cluster"),
            }
            sleep(LOOK_INTERVAL).await;
        }
    }

    async fn remove(&self, cluster: &Cluster, removals: Vec<Removal>, delays: &mut Delays) {
        delays.keep_only(&removals);
        for removal in removals {
            if delays.are_over(removal.id) {
                let outcome = cluster.remove(removal.kind, &removal.name, &removal.namespace).await;
                let is_away = matches!(outcome, Err(ClusterError::Unreachable(_)));
                let noted = match outcome {
                    Ok(()) => {
                        tracing::info!(name = removal.name, "removed from the cluster");
                        self.store.finish_removal(removal.id).await
                    }
                    Err(error) => {
                        let retry_in = delays.lengthen(removal.id);
                        tracing::warn!(name = removal.name, %error, ?retry_in, "cannot remove from the cluster");
                        self.store.note_failed_removal(removal.id, &error.to_string()).await
                    }
                };
                if let Err(error) = noted {
                    tracing::warn!(%error, "cannot record the outcome of a removal");
                }
                if is_away {
                    // The cluster is unreachable for the others as well.
                    return;
                }
            }
        }
    }

    async fn check_forever(&self, cluster: &Cluster) {
        for round in 0_u32.. {
            let looks_at_open = round.is_multiple_of(ROUNDS_PER_OPEN_LOOK);
            for namespace in self.store.namespaces().await.unwrap_or_default() {
                if (looks_at_open || !namespace.standing.is_open)
                    && let Err(error) = self.check(cluster, &namespace).await
                {
                    tracing::warn!(%error, "cannot record the status of a namespace");
                }
            }
            sleep(PENDING_LOOK_INTERVAL).await;
        }
    }

    async fn renew_forever(&self, cluster: &Cluster) {
        let Some(file) = cluster.token_file() else { return };
        let mut known = Known::default();
        loop {
            match renew(cluster, file, &mut known, (self.now(), self.clock.uptime())).await {
                Ok(false) => {}
                Ok(true) => tracing::info!("renewed the worker's own token for the cluster"),
                Err(error) => tracing::warn!(%error, "cannot renew the worker's own token for the cluster"),
            }
            sleep(RENEWAL_LOOK_INTERVAL).await;
        }
    }
}

/// Renews the token in `file` if it is the worker's own and due. Returns whether it was renewed.
async fn renew(
    cluster: &Cluster,
    file: &Path,
    known: &mut Known,
    now: (OffsetDateTime, time::Duration),
) -> Result<bool, RenewalError> {
    let token = Token::new(tokio::fs::read_to_string(file).await?.trim().to_owned());
    let Some(claims) = token.claims() else { return Ok(false) };
    let own = format!("system:serviceaccount:{}:{}", cluster.holder(), super::manifest::WORKER_ACCOUNT);
    if claims.sub != own || !known.is_due(&claims, now) {
        return Ok(false);
    }
    let minted = cluster.mint_own().await?;
    write_private(file, minted.token.reveal())?;
    known.is_fresh = true;
    Ok(true)
}

/// The worker's own token and its age. Its claims are by the API server's clock: by the clock of a machine that is days
/// behind, it would never be due, and would expire.
#[derive(Debug, Default)]
struct Known {
    made_at: Option<OffsetDateTime>,
    since: time::Duration,
    /// Whether this process made it, so that its age is known.
    is_fresh: bool,
}

impl Known {
    fn is_due(&mut self, claims: &Claims, (now, elapsed): (OffsetDateTime, time::Duration)) -> bool {
        let made_at = claims.made_at();
        if self.made_at.is_none() || self.made_at != made_at {
            (self.made_at, self.since) = (made_at, elapsed);
        }
        // A token from the future is due once: the age of the next one is known.
        let is_of_the_future = made_at.is_some_and(|made_at| made_at > now + CLOCKS_APART);
        elapsed - self.since >= claims.due_after() || !self.is_fresh && (claims.is_due(now) || is_of_the_future)
    }
}

#[derive(Debug, thiserror::Error)]
enum RenewalError {
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    #[error("its file: {0}")]
    File(#[from] io::Error),
}

/// Retry delay of each failed removal, by its id.
#[derive(Debug, Default)]
struct Delays(HashMap<i64, (Instant, Duration)>);

impl Delays {
    /// Forgets all but `removals`.
    fn keep_only(&mut self, removals: &[Removal]) {
        self.0.retain(|id, _| removals.iter().any(|removal| removal.id == *id));
    }

    fn are_over(&self, id: i64) -> bool {
        self.0.get(&id).is_none_or(|(failed_at, delay)| failed_at.elapsed() >= *delay)
    }

    /// Records one more failure and returns the delay.
    fn lengthen(&mut self, id: i64) -> Duration {
        let delay = self.0.get(&id).map_or(RETRY_DELAY, |(_, delay)| (*delay * 2).min(RETRY_DELAY_MAX));
        self.0.insert(id, (Instant::now(), delay));
        delay
    }
}

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;

    use super::*;

    #[test]
    fn a_token_is_renewed_in_time_whatever_the_clock_says() {
        let (made, life) = (OffsetDateTime::UNIX_EPOCH + time::Duration::days(20_000), 7 * 86_400);
        let iat = made.unix_timestamp();
        let payload = serde_json::json!({ "sub": "worker", "iat": iat, "exp": iat + life });
        let claims: Claims = serde_json::from_value(payload).expect("claims");
        for off in [-400, -1, 0, 1, 400] {
            // Made by this process: its age counts, not the clock.
            let mut known = Known { is_fresh: true, ..Known::default() };
            let now = made + time::Duration::days(off);
            for (days, is_due) in [(0, false), (3, false), (4, true)] {
                let elapsed = time::Duration::days(days);
                assert_eq!(known.is_due(&claims, (now + elapsed, elapsed)), is_due, "{off} days off, after {days}");
            }
        }
        // Made by an earlier process: by the clock, or at once if the clock cannot be right.
        for (off, is_due) in [(0, false), (4, true), (400, true), (-400, true)] {
            let now = made + time::Duration::days(off);
            assert_eq!(Known::default().is_due(&claims, (now, time::Duration::ZERO)), is_due, "{off} days off");
        }
    }
}
