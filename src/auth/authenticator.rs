//! Whose key a caller has presented.
//!
//! Three things are wanted at once: a key costs microseconds after its first use, a change to its row acts on the very
//! next request, and a flood of wrong keys does not get in the way of good ones. So the row is as the database has it at
//! every request, read again after every commit; argon2 runs once for each version of a row; and only keys not yet proven
//! queue anywhere.

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
use crate::domain::ids::KeyId;
use crate::domain::limits::KeyLimits;
use crate::domain::rates::Rates;
use crate::domain::scope::Scope;
use crate::store::Store;

/// Unproven keys that are looked up at one time. Fewer than the database has connections, so that proven ones always
/// find one.
const LOOKUPS_AT_ONCE_MAX: usize = 4;
/// Unproven keys that wait for their look-up.
const LOOKUPS_WAITING_MAX: usize = 1024;
/// The same for addresses that have tried too many wrong keys: all of them share one place. They are not shut out,
/// because behind one address there may be a good key beside the wrong ones.
const SLOW_LOOKUPS_AT_ONCE_MAX: usize = 1;
/// Waiting for that place.
const SLOW_LOOKUPS_WAITING_MAX: usize = 64;
/// Wrong keys from one address.
pub(super) const WRONG_KEYS: ThrottleRule = ThrottleRule { failures_max: 20, seconds_per_failure: 3 };
/// What a caller is told when a line is full.
const LINE_FULL_RETRY_SECONDS: u64 = 1;

/// A caller that has proven itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// The key it did it with.
    pub key_id: KeyId,
    /// The part of the key's value that anyone may see: of the present one, or of the one before a rotation.
    pub prefix: PublicId,
    /// What that key may do, as of this request.
    pub scope: Scope,
    /// What it may use up, as of this request.
    pub limits: KeyLimits,
}

/// Why a caller is not let in.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// No such key: missing, malformed, wrong checksum, unknown, revoked or expired. The caller is not told which.
    #[error("the API key is not valid")]
    Refused,
    /// Too many wrong keys from this address, or too many unproven keys at once.
    #[error("too many attempts, try again in {retry_after_seconds} s")]
    Throttled {
        /// When the next attempt has a chance.
        retry_after_seconds: u64,
    },
    /// The key is good, and has sent as many requests as it may.
    #[error("more than {per_minute} requests a minute, try again in {retry_after_seconds} s")]
    RateLimited {
        /// How many it may.
        per_minute: u32,
        /// When the next one may come.
        retry_after_seconds: u64,
    },
    /// It cannot be told now. Not the caller's fault.
    #[error("keys cannot be checked")]
    Unavailable(#[from] KeyFailure),
}

/// Checks presented keys. Cheap to clone; clones share everything.
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

    /// Whose key `presented` is. An absent key is the empty text.
    ///
    /// # Errors
    /// See [`AuthError`].
    pub async fn authenticate(&self, presented: &str, client: IpAddr) -> Result<Principal, AuthError> {
        // Costs nothing and asks nobody, so it counts for nothing either: a typo is no attack.
        let key = PresentedKey::parse(presented).map_err(|_| AuthError::Refused)?;
        self.0.authenticate(key, client).await
    }

    /// What a caller that has proven itself may do now. Costs none of its requests a minute: it is still the same one.
    ///
    /// # Errors
    /// When its key does not work any more, or cannot be asked for.
    pub async fn again(&self, caller: &Principal) -> Result<Principal, AuthError> {
        let row = self.0.rows.get(caller.prefix).await?.filter(|row| row.id == caller.key_id);
        let row = row.ok_or(AuthError::Refused)?;
        if row.state_of(caller.prefix, self.0.clock.now()) != KeyState::Active {
            return Err(AuthError::Refused);
        }
        Ok(Principal { scope: row.scope.clone(), limits: row.limits, ..caller.clone() })
    }

    /// Counts `more` requests for the one that `caller` has sent: all of them or none, and then that one neither.
    ///
    /// # Errors
    /// [`AuthError::RateLimited`].
    pub fn count_more(&self, caller: &Principal, more: u32) -> Result<(), AuthError> {
        let Some(per_minute) = caller.limits.requests_per_minute else { return Ok(()) };
        let taken = self.0.rates.take_more(caller.key_id, per_minute, more, self.0.clock.uptime());
        taken.map_err(|retry_after_seconds| AuthError::RateLimited { per_minute, retry_after_seconds })
    }

    /// Writes now and then how keys were used, until `stop` is done, and then once more: to be spawned beside the
    /// server and awaited before the database is closed.
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
            let _place = if proven.is_none() { Some(self.queue_for_lookup(client, uptime).await?) } else { None };
            self.rows.get(key.public_id()).await?
        };
        // An unknown id and a wrong secret take the same path from here, without argon2: 20 ms of a core on every random key
        // would hand the flood its lever. Up to here they may differ by a twentieth of a millisecond: the row of a known id
        // is in memory, that of an unknown one is asked of the database. Whoever measures well learns that way that a
        // public id exists, which is no secret: it stands in lists and logs, and opens nothing.
        let Some(row) = row.filter(|row| row.value_of(key.public_id()).tag.matches(SecretTag::of(key))) else {
            return Err(self.refuse("unknown", client, uptime));
        };
        if proven != Some(row.row_version()) && !self.prove(key, &digest, &row).await? {
            return Err(self.refuse("unknown", client, uptime));
        }
        let state = row.state_of(key.public_id(), now);
        if state != KeyState::Active {
            // Not a guess: who has the whole key once had the right. A client that has missed its end is told so as
            // often as it asks, and its neighbours behind the same address go on undisturbed.
            tracing::debug!(reason = state.as_str(), %client, "key refused");
            return Err(AuthError::Refused);
        }
        if let Some(per_minute) = row.limits.requests_per_minute {
            self.rates
                .take(row.id, per_minute, uptime)
                .map_err(|retry_after_seconds| AuthError::RateLimited { per_minute, retry_after_seconds })?;
        }
        self.uses.note(row.id, now);
        Ok(Principal { key_id: row.id, prefix: key.public_id(), scope: row.scope.clone(), limits: row.limits })
    }

    /// Waits to look up a key of which nothing is known.
    async fn queue_for_lookup(&self, client: IpAddr, uptime: Duration) -> Result<LanePermit, AuthError> {
        let wait_seconds = self.throttle.retry_after_seconds(client, uptime);
        let lane = if wait_seconds.is_none() { &self.lookups } else { &self.slow_lookups };
        let retry_after_seconds = wait_seconds.unwrap_or(LINE_FULL_RETRY_SECONDS);
        lane.enter().await.ok_or(AuthError::Throttled { retry_after_seconds })
    }

    /// Runs argon2, and remembers a success.
    async fn prove(&self, key: PresentedKey<'_>, digest: &KeyDigest, row: &KeyRow) -> Result<bool, AuthError> {
        let (public_id, version) = (key.public_id(), row.row_version());
        // Many requests may come with a key before its first proof is done; one proof is enough for all of them.
        let is_settled = || self.cache.proven_row(public_id, digest) == Some(version);
        match self.hasher.verify(key.value(), &row.value_of(public_id).hash, is_settled).await {
            Ok(true) => {
                self.cache.remember(public_id, digest, version);
                Ok(true)
            }
            Ok(false) => Ok(false),
            Err(HashError::Busy) => Err(AuthError::Throttled { retry_after_seconds: LINE_FULL_RETRY_SECONDS }),
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

impl fmt::Debug for Authenticator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authenticator").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
