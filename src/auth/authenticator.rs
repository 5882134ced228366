//! The check of the key that a caller presents.
//!
//! It has three goals: a key costs microseconds after its first use, a change to its row applies to the next request, and a
//! flood of wrong keys does not delay good ones. So each request uses the row as the database has it, read again after every
//! commit; argon2 runs once for each version of a row; and only unproven keys queue.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use time::Duration;

use crate::auth::KeyFailure;
use crate::auth::cache::{KeyCache, KeyDigest};
use crate::auth::hash::{HashError, Hasher, SecretTag};
use crate::auth::key::{NoRandomness, PresentedKey, PublicId};
use crate::auth::lane::{Lane, LanePermit};
use crate::auth::record::KeyState;
use crate::auth::rows::Rows;
use crate::auth::store::{KeyRow, KeyStore};
use crate::auth::throttle::{Throttle, ThrottleRule};
use crate::auth::uses::Uses;
use crate::domain::clock::Clock;
use crate::domain::ids::{KeyId, ProjectId};
use crate::domain::limits::{KeyLimits, LimitHolder};
use crate::domain::rates::Rates;
use crate::domain::scope::Scope;
use crate::store::Store;

/// Unproven keys looked up concurrently. Fewer than the database has connections, so that proven keys always find one.
const LOOKUPS_AT_ONCE_MAX: usize = 4;
/// Unproven keys waiting for their lookup.
const LOOKUPS_WAITING_MAX: usize = 1024;
/// The same for addresses that have tried too many wrong keys, all together. They are not blocked, because an address may
/// be shared by good and wrong keys.
const SLOW_LOOKUPS_AT_ONCE_MAX: usize = 1;
/// Keys waiting for that lookup.
const SLOW_LOOKUPS_WAITING_MAX: usize = 64;
/// Wrong keys from one address.
pub(super) const WRONG_KEYS: ThrottleRule = ThrottleRule { failures_max: 20, seconds_per_failure: 3 };
/// Retry time that a caller is told when a queue is full.
const QUEUE_FULL_RETRY_SECONDS: u64 = 1;

/// An authenticated caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// Its key.
    pub key_id: KeyId,
    /// The public part of the key's value: of the current one, or of the one before a rotation.
    pub prefix: PublicId,
    /// The key's scope, as of this request.
    pub scope: Scope,
    /// The key's limits and its project's, as of this request.
    pub limits: KeyLimits,
}

/// How many requests a key has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestsLeft {
    /// Its requests per minute.
    pub limit: u32,
    /// Those that would be accepted now.
    pub left: u32,
    /// After how many seconds without a request as many as the limit are.
    pub whole_after_seconds: u64,
}

/// Why a caller is refused.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// The key is missing, malformed, unknown, revoked or expired, or its checksum is wrong. The caller is not told which.
    #[error("the API key is not valid")]
    Refused,
    /// Too many wrong keys from this address, or too many concurrent unproven keys.
    #[error("too many attempts, try again in {retry_after_seconds} s")]
    Throttled {
        /// When the next attempt is checked.
        retry_after_seconds: u64,
    },
    /// The key is valid, and it or its project has reached its requests per minute.
    #[error("more than {per_minute} requests a minute, try again in {retry_after_seconds} s")]
    RateLimited {
        /// Whose limit it is.
        holder: LimitHolder,
        /// The limit.
        per_minute: u32,
        /// When the next request is allowed.
        retry_after_seconds: u64,
    },
    /// The key cannot be checked now. Not the caller's fault.
    #[error("keys cannot be checked")]
    Unavailable(#[from] KeyFailure),
}

/// Checks presented keys. Cheap to clone; clones share all state.
#[derive(Clone)]
pub struct Authenticator(Arc<Inner>);

struct Inner {
    rows: Rows,
    hasher: Hasher,
    cache: KeyCache,
    throttle: Throttle,
    lookups: Lane,
    slow_lookups: Lane,
    rates: Rates,
    project_rates: Rates<ProjectId>,
    uses: Uses,
    clock: Arc<dyn Clock>,
}

impl Authenticator {
    /// Checks keys against those in `store`.
    ///
    /// # Errors
    /// When the operating system has no random bytes for the cache's secret.
    pub fn new(store: Store, clock: Arc<dyn Clock>) -> Result<Self, NoRandomness> {
        let keys = KeyStore::new(store);
        Ok(Self(Arc::new(Inner {
            rates: Rates::new(),
            project_rates: Rates::new(),
            uses: Uses::new(keys.clone(), Arc::clone(&clock)),
            rows: Rows::new(keys),
            hasher: Hasher::for_keys(),
            cache: KeyCache::new()?,
            throttle: Throttle::new(WRONG_KEYS),
            lookups: Lane::new(LOOKUPS_AT_ONCE_MAX, LOOKUPS_WAITING_MAX),
            slow_lookups: Lane::new(SLOW_LOOKUPS_AT_ONCE_MAX, SLOW_LOOKUPS_WAITING_MAX),
            clock,
        })))
    }

    /// The caller with the key `presented`; empty if it sent none.
    ///
    /// # Errors
    /// See [`AuthError`].
    pub async fn authenticate(&self, presented: &str, client: IpAddr) -> Result<Principal, AuthError> {
        // Costs nothing, so it does not count as a failure: a typo is no attack.
        let key = PresentedKey::parse(presented).map_err(|_| AuthError::Refused)?;
        self.0.authenticate(key, client).await
    }

    /// An authenticated caller as of now. Does not count against its requests per minute: it is still the same request.
    ///
    /// # Errors
    /// When its key no longer works, or cannot be read.
    pub async fn again(&self, caller: &Principal) -> Result<Principal, AuthError> {
        let row = self.0.rows.get(caller.prefix).await?.filter(|row| row.id == caller.key_id);
        let row = row.ok_or(AuthError::Refused)?;
        if row.state_of(caller.prefix, self.0.clock.now()) != KeyState::Active {
            return Err(AuthError::Refused);
        }
        Ok(Principal { scope: row.scope.clone(), limits: row.limits.clone(), ..caller.clone() })
    }

    /// Counts `more` requests besides the one that `caller` has sent. On an error, counts none of them, nor that one.
    ///
    /// # Errors
    /// [`AuthError::RateLimited`].
    pub fn count_more(&self, caller: &Principal, more: u32) -> Result<(), AuthError> {
        self.0.count_more(caller, more, self.0.clock.uptime())
    }

    /// How many requests a caller has left. `None`: its key has no limit.
    pub fn requests_left(&self, caller: &Principal) -> Option<RequestsLeft> {
        let limit = caller.limits.requests_per_minute?;
        let (left, whole_after_seconds) = self.0.rates.left(caller.key_id, limit, self.0.clock.uptime());
        Some(RequestsLeft { limit, left, whole_after_seconds })
    }

    /// Writes uses of keys periodically until `stop` completes, and then once more. Await it before closing the database.
    pub async fn record_uses_until(&self, stop: impl Future<Output = ()>) {
        self.0.uses.write_until(stop).await;
    }
}

impl Inner {
    async fn authenticate(&self, key: PresentedKey<'_>, client: IpAddr) -> Result<Principal, AuthError> {
        let (now, uptime) = (self.clock.now(), self.clock.uptime());
        let digest = self.cache.digest(key);
        let proven = self.cache.proven_row(key.public_id(), &digest);
        let row = {
            let _permit = if proven.is_none() { Some(self.queue_for_lookup(client, uptime).await?) } else { None };
            self.rows.get(key.public_id()).await?
        };
        // From here an unknown id and a wrong secret take the same path, without argon2: 20 ms of a core per random key would
        // help a flood. Before, they may differ by 50 µs: a known id's row is in memory, an unknown id takes a query. So
        // precise timing reveals whether a public id exists, which is no secret: lists and logs show it, and it grants
        // nothing.
        let Some(row) = row.filter(|row| row.value_of(key.public_id()).tag.matches(SecretTag::of(key))) else {
            return Err(self.refuse("unknown", client, uptime));
        };
        if proven != Some(row.row_version()) && !self.prove(key, &digest, &row).await? {
            return Err(self.refuse("unknown", client, uptime));
        }
        let state = row.state_of(key.public_id(), now);
        if state != KeyState::Active {
            // No guess: a client with the complete key once had the right. It is refused as often as it asks, without
            // throttling its address.
            tracing::debug!(reason = state.as_str(), %client, "key refused");
            return Err(AuthError::Refused);
        }
        self.count(row.id, &row.limits, uptime)?;
        self.uses.note(row.id, now);
        Ok(Principal { key_id: row.id, prefix: key.public_id(), scope: row.scope.clone(), limits: row.limits.clone() })
    }

    /// Counts a request against the key's limit and its project's, or against neither.
    fn count(&self, key: KeyId, limits: &KeyLimits, uptime: Duration) -> Result<(), AuthError> {
        let own = limits.requests_per_minute;
        if let Some(per_minute) = own {
            self.rates.take(key, per_minute, uptime).map_err(over(LimitHolder::Key, per_minute))?;
        }
        let Some((project, per_minute)) = project_rate(limits) else { return Ok(()) };
        self.project_rates.take(project, per_minute, uptime).map_err(|seconds| {
            if let Some(per_minute) = own {
                self.rates.give_back(key, per_minute, 1);
            }
            over(LimitHolder::Project, per_minute)(seconds)
        })
    }

    /// Counts more requests against both limits; if that fails, counts neither them nor the one that was counted.
    fn count_more(&self, caller: &Principal, more: u32, uptime: Duration) -> Result<(), AuthError> {
        let (key, limits) = (caller.key_id, &caller.limits);
        let own = limits.requests_per_minute;
        let of_project = project_rate(limits);
        if let Some(per_minute) = own {
            self.rates.take_more(key, per_minute, more, uptime).map_err(|seconds| {
                if let Some((project, per_minute)) = of_project {
                    self.project_rates.give_back(project, per_minute, 1);
                }
                over(LimitHolder::Key, per_minute)(seconds)
            })?;
        }
        let Some((project, per_minute)) = of_project else { return Ok(()) };
        self.project_rates.take_more(project, per_minute, more, uptime).map_err(|seconds| {
            if let Some(per_minute) = own {
                self.rates.give_back(key, per_minute, more.saturating_add(1));
            }
            over(LimitHolder::Project, per_minute)(seconds)
        })
    }

    /// Waits for the lookup of an unproven key.
    async fn queue_for_lookup(&self, client: IpAddr, uptime: Duration) -> Result<LanePermit, AuthError> {
        let wait_seconds = self.throttle.retry_after_seconds(client, uptime);
        let lane = if wait_seconds.is_none() { &self.lookups } else { &self.slow_lookups };
        let retry_after_seconds = wait_seconds.unwrap_or(QUEUE_FULL_RETRY_SECONDS);
        lane.enter().await.ok_or(AuthError::Throttled { retry_after_seconds })
    }

    /// Runs argon2, and remembers a success.
    async fn prove(&self, key: PresentedKey<'_>, digest: &KeyDigest, row: &KeyRow) -> Result<bool, AuthError> {
        let (public_id, version) = (key.public_id(), row.row_version());
        // Many requests may bring a key before its first proof is done; one proof serves them all.
        let is_settled = || self.cache.proven_row(public_id, digest) == Some(version);
        match self.hasher.verify(key.value(), &row.value_of(public_id).hash, is_settled).await {
            Ok(true) => {
                self.cache.remember(public_id, digest, version);
                Ok(true)
            }
            Ok(false) => Ok(false),
            Err(HashError::Busy) => Err(AuthError::Throttled { retry_after_seconds: QUEUE_FULL_RETRY_SECONDS }),
            Err(error) => Err(KeyFailure::from(error).into()),
        }
    }

    fn refuse(&self, reason: &'static str, client: IpAddr, uptime: Duration) -> AuthError {
        tracing::debug!(reason, %client, "key refused");
        if let Some(retry_after_seconds) = self.throttle.retry_after_seconds(client, uptime) {
            return AuthError::Throttled { retry_after_seconds };
        }
        self.throttle.record_failure(client, uptime);
        AuthError::Refused
    }
}

/// The project that a key belongs to, and its requests per minute, if they are limited.
fn project_rate(limits: &KeyLimits) -> Option<(ProjectId, u32)> {
    let project = limits.project?;
    Some((project.id, project.limits.requests_per_minute?))
}

/// The error of a limit of requests per minute, from the time to wait.
fn over(holder: LimitHolder, per_minute: u32) -> impl Fn(u64) -> AuthError {
    move |retry_after_seconds| AuthError::RateLimited { holder, per_minute, retry_after_seconds }
}

impl fmt::Debug for Authenticator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authenticator").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
