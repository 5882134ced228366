//! What goes on by itself: tokens whose key has no right any more are taken back, what has to go from the cluster goes,
//! namespaces are looked at, and the worker's own token is renewed.
//!
//! Nothing here waits to be told. What is compared is what is and what ought to be, so a right that ends by the command
//! line, by the clock, or while the worker was down is found just as well.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::time::Duration;

use time::OffsetDateTime;
use tokio::time::{Instant, sleep};

use super::cluster::{Cluster, ClusterError};
use super::connect::write_private;
use super::credential::TOKEN_LIFE;
use super::store::Removal;
use super::token::{Claims, Token};
use super::{Inner, Kubernetes, KubernetesError};

/// How often is looked whether anything was written to the database. While nothing is, that costs next to nothing.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// How often grants are compared with keys though nothing was written: keys also end by the clock.
const COMPARE_INTERVAL: Duration = Duration::from_secs(1);
/// How long after the first failure something is tried to be removed again; doubled with each further one.
const RETRY_DELAY: Duration = Duration::from_secs(1);
/// At most that long: an hour's outage must not be followed by an hour's wait.
const RETRY_DELAY_MAX: Duration = Duration::from_secs(15);
/// How often a namespace that is not open is looked at.
const PENDING_LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// How often one that is open is looked at: in how many of the rounds for those that are not.
const ROUNDS_PER_OPEN_LOOK: u32 = 12;
/// How often is looked whether the worker's own token is due.
const RENEWAL_LOOK_INTERVAL: Duration = Duration::from_mins(1);
/// How far this machine's clock may be behind the API server's without a token being of the future.
const CLOCKS_APART: time::Duration = time::Duration::minutes(5);

impl Kubernetes {
    /// Does all this, for ever. Where there is no cluster, nothing.
    pub async fn keep(&self) {
        let Some(cluster) = &self.0.cluster else { return };
        // Each holds what a request to the cluster holds.
        tokio::join!(
            Box::pin(self.0.take_back_for_ever()),
            Box::pin(self.0.remove_for_ever(cluster)),
            Box::pin(self.0.look_for_ever(cluster)),
            Box::pin(self.0.renew_for_ever(cluster)),
        );
    }
}

impl Inner {
    async fn take_back_for_ever(&self) {
        let mut seen = None;
        let mut compared_at = None;
        loop {
            let mark = self.store.change_mark();
            let is_due = compared_at.is_none_or(|at: Instant| at.elapsed() >= COMPARE_INTERVAL);
            if is_due || mark.is_none() || mark != seen {
                (seen, compared_at) = (mark, Some(Instant::now()));
                if let Err(error) = self.take_back().await {
                    tracing::warn!(%error, "which tokens have to die cannot be told now");
                }
            }
            sleep(LOOK_INTERVAL).await;
        }
    }

    /// Withdraws the grants whose holder has no right any more, and those whose tokens are all dead: nothing is left in
    /// the cluster of a key that is not used.
    async fn take_back(&self) -> Result<(), KubernetesError> {
        let grants = self.store.grants().await?;
        self.granted.keep_only(&grants);
        for grant in grants {
            let now = self.now();
            let has_right = self.rights.covers(&grant.holder, grant.namespace).await?;
            if !has_right {
                tracing::info!(key = %grant.holder.key, namespace = %grant.namespace, "tokens are taken back");
                self.store.withdraw(&grant, now).await?;
            } else if self.granted.unused_for(&grant, self.clock.uptime()) >= TOKEN_LIFE {
                self.store.withdraw_unused(&grant, now).await?;
            }
        }
        Ok(())
    }

    async fn remove_for_ever(&self, cluster: &Cluster) {
        let mut delays = Delays::default();
        loop {
            match self.store.removals().await {
                Ok(removals) => self.remove(cluster, removals, &mut delays).await,
                Err(error) => tracing::warn!(%error, "what has to go from the cluster cannot be told now"),
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
                        tracing::info!(name = removal.name, "gone from the cluster");
                        self.store.finish_removal(removal.id).await
                    }
                    Err(error) => {
                        let retry_in = delays.lengthen(removal.id);
                        tracing::warn!(name = removal.name, %error, ?retry_in, "cannot be removed from the cluster");
                        self.store.note_failed_removal(removal.id, &error.to_string()).await
                    }
                };
                if let Err(error) = noted {
                    tracing::warn!(%error, "what became of a removal was not written down");
                }
                if is_away {
                    // For the others it is away as well.
                    return;
                }
            }
        }
    }

    async fn look_for_ever(&self, cluster: &Cluster) {
        for round in 0_u32.. {
            let looks_at_open = round.is_multiple_of(ROUNDS_PER_OPEN_LOOK);
            for namespace in self.store.namespaces().await.unwrap_or_default() {
                if (looks_at_open || !namespace.standing.is_open)
                    && let Err(error) = self.look(cluster, &namespace).await
                {
                    tracing::warn!(%error, "how a namespace stands was not written down");
                }
            }
            sleep(PENDING_LOOK_INTERVAL).await;
        }
    }

    async fn renew_for_ever(&self, cluster: &Cluster) {
        let Some(file) = cluster.token_file() else { return };
        let mut known = Known::default();
        loop {
            match renew(cluster, file, &mut known, (self.now(), self.clock.uptime())).await {
                Ok(false) => {}
                Ok(true) => tracing::info!("the worker's own token for the cluster is renewed"),
                Err(error) => tracing::warn!(%error, "the worker's own token for the cluster was not renewed"),
            }
            sleep(RENEWAL_LOOK_INTERVAL).await;
        }
    }
}

/// Renews the worker's own token if it is due, and the worker's. `true`: it was.
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

/// The worker's own token, and since when it is the one. What stands in it is by the API server's clock; by the clock of a
/// machine that is days behind it would never be due, and die.
#[derive(Debug, Default)]
struct Known {
    made_at: Option<OffsetDateTime>,
    since: time::Duration,
    /// It was made while this process lived, so that how old it is is known.
    is_fresh: bool,
}

impl Known {
    fn is_due(&mut self, claims: &Claims, (now, elapsed): (OffsetDateTime, time::Duration)) -> bool {
        let made_at = claims.made_at();
        if self.made_at.is_none() || self.made_at != made_at {
            (self.made_at, self.since) = (made_at, elapsed);
        }
        // One that is from the future is due once: the next one's age is then known.
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

/// When each removal that has failed is tried again, by its id.
#[derive(Debug, Default)]
struct Delays(HashMap<i64, (Instant, Duration)>);

impl Delays {
    /// Forgets removals that there are no more.
    fn keep_only(&mut self, removals: &[Removal]) {
        self.0.retain(|id, _| removals.iter().any(|removal| removal.id == *id));
    }

    fn are_over(&self, id: i64) -> bool {
        self.0.get(&id).is_none_or(|(failed_at, delay)| failed_at.elapsed() >= *delay)
    }

    /// After one more failure.
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
    fn a_token_is_renewed_in_time_whatever_the_clock_is_set_to() {
        let (made, life) = (OffsetDateTime::UNIX_EPOCH + time::Duration::days(20_000), 7 * 86_400);
        let iat = made.unix_timestamp();
        let payload = serde_json::json!({ "sub": "worker", "iat": iat, "exp": iat + life });
        let claims: Claims = serde_json::from_value(payload).expect("claims");
        for off in [-400, -1, 0, 1, 400] {
            // Made here: its age counts, and no clock.
            let mut known = Known { is_fresh: true, ..Known::default() };
            let now = made + time::Duration::days(off);
            for (days, is_due) in [(0, false), (3, false), (4, true)] {
                let elapsed = time::Duration::days(days);
                assert_eq!(known.is_due(&claims, (now + elapsed, elapsed)), is_due, "{off} days off, after {days}");
            }
        }
        // Of an earlier life: by the clock, and where that cannot be right, at once.
        for (off, is_due) in [(0, false), (4, true), (400, true), (-400, true)] {
            let now = made + time::Duration::days(off);
            assert_eq!(Known::default().is_due(&claims, (now, time::Duration::ZERO)), is_due, "{off} days off");
        }
    }
}
