//! The administrator: one password, and the sessions opened with it.
//!
//! A password can be guessed, unlike a key. So wrong passwords are limited per address and in total, each attempt counts
//! before it is checked, and argon2 runs for one at a time, apart from the keys' queue. Beyond the limits, one attempt per
//! second is still checked, so that guessing does not lock out the administrator.

mod session;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};

use crate::auth::KeyFailure;
use crate::auth::audit::{AUDIT_PER_PAGE_MAX, Actor, AuditAction, AuditPage, AuditedKey, NewEntry};
use crate::auth::hash::{HashError, HashedSecret, Hasher};
use crate::auth::key::random_base62;
use crate::auth::store::admin::{AdminStore, Lifetimes, NewSessionRow, SessionRef};
use crate::auth::store::audit;
use crate::auth::throttle::{Throttle, ThrottleRule};
use crate::domain::clock::{Clock, to_the_millisecond};
use crate::domain::ids::SessionId;
use crate::domain::password::{AdminPassword, PASSWORD_CHARS_MAX};
use crate::store::Store;
pub(super) use session::SessionHash;
pub use session::{NewSession, SESSION_IDLE_LIFETIME, SESSION_LIFETIME, Session, SessionToken};

/// Maximum concurrent sessions; the oldest goes.
pub const SESSIONS_MAX: u32 = 32;
/// Time between two recorded uses of a session: not every request has to write.
const USE_WRITE_INTERVAL: Duration = Duration::minutes(1);

/// Wrong passwords from one address: a burst, then one every half minute.
const BY_ADDRESS: ThrottleRule = ThrottleRule { failures_max: 5, seconds_per_failure: 30 };
/// Wrong passwords from all addresses: a burst, then one every other second.
const FROM_EVERYWHERE: ThrottleRule = ThrottleRule { failures_max: 30, seconds_per_failure: 2 };
/// Attempts that are checked beyond the limits. Otherwise continued guessing would lock out the administrator, at the same
/// address or everywhere.
const BEYOND: ThrottleRule = ThrottleRule { failures_max: 1, seconds_per_failure: 1 };
/// The only bucket of [`FROM_EVERYWHERE`] and of [`BEYOND`].
const EVERYWHERE: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// Passwords hashed concurrently.
const HASHES_AT_ONCE_MAX: usize = 1;
/// Passwords waiting to be hashed.
const HASHES_WAITING_MAX: usize = 16;
/// Retry time that a client is told when all of them are taken.
const BUSY_RETRY_SECONDS: u64 = 2;

/// Characters of a generated password: 142 random bits.
const GENERATED_PASSWORD_CHARS: usize = 24;

/// Why a sign-in failed.
#[derive(Debug, thiserror::Error)]
pub enum SignInError {
    /// The password is wrong, or none is set.
    #[error("the password is wrong")]
    WrongPassword,
    /// Too many wrong passwords, from this address or in total, or too many concurrent attempts.
    #[error("too many attempts, try again in {retry_after_seconds} s")]
    Throttled {
        /// When the next attempt is checked.
        retry_after_seconds: u64,
    },
    /// The password cannot be checked now.
    #[error("the password cannot be checked")]
    Unavailable(#[from] KeyFailure),
}

/// The administrator's password and sessions, and the audit log. Cheap to clone; clones share all state.
#[derive(Clone)]
pub struct AdminService(Arc<Inner>);

struct Inner {
    admin: AdminStore,
    hasher: Hasher,
    by_address: Throttle,
    from_everywhere: Throttle,
    beyond: Throttle,
    clock: Arc<dyn Clock>,
}

impl AdminService {
    /// The password and sessions in `store`.
    pub fn new(store: Store, clock: Arc<dyn Clock>) -> Self {
        Self(Arc::new(Inner {
            admin: AdminStore::new(store),
            hasher: Hasher::new(HASHES_AT_ONCE_MAX, HASHES_WAITING_MAX),
            by_address: Throttle::new(BY_ADDRESS),
            from_everywhere: Throttle::new(FROM_EVERYWHERE),
            beyond: Throttle::new(BEYOND),
            clock,
        }))
    }

    /// Whether a password is set. Without one, no sign-in succeeds.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn has_password(&self) -> Result<bool, KeyFailure> {
        Ok(self.0.admin.password_hash().await?.is_some())
    }

    /// Sets the password and ends all sessions.
    ///
    /// # Errors
    /// When it cannot be hashed or stored.
    pub async fn set_password(&self, password: &AdminPassword, by: &Actor) -> Result<(), KeyFailure> {
        let hash = self.0.hasher.hash(password.reveal()).await?;
        let entry = self.entry(by, AuditAction::PasswordSet);
        self.0.admin.set_password(&hash, &entry).await
    }

    /// Sets the password if it is another one or none. Returns whether it was set.
    ///
    /// # Errors
    /// When it cannot be hashed, compared or stored.
    pub async fn ensure_password(&self, password: &AdminPassword, by: &Actor) -> Result<bool, KeyFailure> {
        if let Some(hash) = self.0.admin.password_hash().await?
            && self.0.hasher.verify(password.reveal(), &hash, || false).await?
        {
            return Ok(false);
        }
        self.set_password(password, by).await?;
        Ok(true)
    }

    /// Sets a random password and returns it, to be shown once.
    ///
    /// # Errors
    /// When there are no random bytes, or as [`AdminService::set_password`].
    pub async fn generate_password(&self, by: &Actor) -> Result<AdminPassword, KeyFailure> {
        let text = random_base62(GENERATED_PASSWORD_CHARS)?;
        let password: AdminPassword = text.parse().expect("as long as a password must be");
        self.set_password(&password, by).await?;
        Ok(password)
    }

    /// Opens a session if the password is right.
    ///
    /// # Errors
    /// See [`SignInError`].
    pub async fn sign_in(&self, password: &str, client: IpAddr) -> Result<NewSession, SignInError> {
        let Some(hash) = self.0.admin.password_hash().await? else { return Err(SignInError::WrongPassword) };
        let attempt = match self.count_attempt(client).await {
            Ok(attempt) => attempt,
            Err(refusal) => return self.sign_in_beyond(password, &hash, client, refusal).await,
        };
        let is_right = match self.verify(password, &hash).await {
            Ok(is_right) => is_right,
            Err(HashError::Busy) => {
                attempt.forgive();
                return Err(SignInError::Throttled { retry_after_seconds: BUSY_RETRY_SECONDS });
            }
            Err(error) => return Err(KeyFailure::from(error).into()),
        };
        if !is_right {
            return Err(self.refuse(client).await);
        }
        attempt.forgive();
        // A password change in between ends this sign-in as well.
        self.begin_session(&hash, client).await?.ok_or(SignInError::WrongPassword)
    }

    /// Checks one attempt beyond the limits: a right password succeeds, a wrong one gets `refusal` and so learns nothing.
    async fn sign_in_beyond(
        &self,
        password: &str,
        hash: &HashedSecret,
        client: IpAddr,
        refusal: SignInError,
    ) -> Result<NewSession, SignInError> {
        let is_throttled = matches!(refusal, SignInError::Throttled { .. });
        if !is_throttled || self.0.beyond.try_failure(EVERYWHERE, self.0.clock.uptime()).is_err() {
            return Err(refusal);
        }
        match self.verify(password, hash).await {
            Ok(true) => self.begin_session(hash, client).await?.ok_or(refusal),
            Ok(false) | Err(HashError::Busy) => Err(refusal),
            Err(error) => Err(KeyFailure::from(error).into()),
        }
    }

    async fn verify(&self, password: &str, hash: &HashedSecret) -> Result<bool, HashError> {
        // A longer one cannot be right, and hashing it would let a stranger choose the cost.
        if password.chars().nth(PASSWORD_CHARS_MAX).is_some() {
            return Ok(false);
        }
        self.0.hasher.verify(password, hash, || false).await
    }

    async fn refuse(&self, client: IpAddr) -> SignInError {
        tracing::warn!(%client, "sign-in refused: wrong password");
        let stranger = Actor::Stranger { address: client };
        let entry = self.entry(&stranger, AuditAction::SignInRefused);
        match audit::insert_alone(self.0.admin.store(), &entry).await {
            Ok(()) => SignInError::WrongPassword,
            Err(failure) => failure.into(),
        }
    }

    /// Opens a session. `None` if the password has changed.
    async fn begin_session(&self, password: &HashedSecret, client: IpAddr) -> Result<Option<NewSession>, KeyFailure> {
        let now = self.now();
        let token = SessionToken::generate()?;
        let session = Session { id: SessionId::generate(), created_at: now, last_used_at: now };
        let row = NewSessionRow {
            hash: SessionHash::of(token.reveal()),
            id: session.id,
            address: client.to_string(),
            created_at: now,
        };
        let actor = Actor::Administrator { session: session.id, address: client };
        let entry = self.entry(&actor, AuditAction::SignedIn);
        let is_in = self.0.admin.insert_session(&row, (password, lifetimes(now)), SESSIONS_MAX, &entry).await?;
        Ok(is_in.then_some(NewSession { token, session }))
    }

    /// The session of `token`, if it has not ended. Counts as a use of it.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn session(&self, token: &str) -> Result<Option<Session>, KeyFailure> {
        let now = self.now();
        let found = self.0.admin.session(SessionRef::Token(&SessionHash::of(token)), lifetimes(now)).await?;
        let Some(mut session) = found else { return Ok(None) };
        if session.created_at > now || session.last_used_at > now {
            // The clock was ahead and has been set back: otherwise the session would last until the clock is there again.
            self.0.admin.pull_back(session.id, now).await?;
            session.created_at = session.created_at.min(now);
            session.last_used_at = session.last_used_at.min(now);
        }
        if now - session.last_used_at >= USE_WRITE_INTERVAL {
            self.0.admin.note_use(session.id, now).await?;
            session.last_used_at = now;
        }
        Ok(Some(session))
    }

    /// A session by id, if it has not ended: for a long request that was authenticated at its start.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn session_again(&self, session: SessionId) -> Result<Option<Session>, KeyFailure> {
        self.0.admin.session(SessionRef::Id(session), lifetimes(self.now())).await
    }

    /// Ends a session.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn sign_out(&self, session: SessionId, by: &Actor) -> Result<(), KeyFailure> {
        self.0.admin.delete_session(session, &self.entry(by, AuditAction::SignedOut)).await
    }

    /// Audit entries before `before`, the newest first: at most `limit`, up to [`AUDIT_PER_PAGE_MAX`].
    ///
    /// # Errors
    /// When the database fails.
    pub async fn audit_page(&self, before: Option<i64>, limit: u32) -> Result<AuditPage, KeyFailure> {
        let limit = limit.clamp(1, AUDIT_PER_PAGE_MAX);
        let (entries, next) = audit::page(self.0.admin.store(), before, limit).await?;
        Ok(AuditPage { entries, next })
    }

    /// Writes an audit entry for a change outside this module's tables.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn note(
        &self,
        by: &Actor,
        action: AuditAction,
        key: Option<AuditedKey>,
        detail: Value,
    ) -> Result<(), KeyFailure> {
        let entry = NewEntry { key, detail, ..self.entry(by, action) };
        audit::insert_alone(self.0.admin.store(), &entry).await
    }

    fn now(&self) -> OffsetDateTime {
        to_the_millisecond(self.0.clock.now())
    }

    /// Counts an attempt as a failure until it has succeeded: concurrent attempts must not be free.
    async fn count_attempt(&self, client: IpAddr) -> Result<Attempt<'_>, SignInError> {
        let now = self.0.clock.uptime();
        let throttled = |retry_after_seconds| SignInError::Throttled { retry_after_seconds };
        self.0.by_address.try_failure(client, now).map_err(throttled)?;
        let mut attempt = Attempt { inner: &self.0, client, is_counted_everywhere: false };
        match self.0.from_everywhere.try_failure(EVERYWHERE, now) {
            Ok(()) => attempt.is_counted_everywhere = true,
            // Guessing from many addresses must not lock out clients on this machine or in a network with an earlier
            // sign-in. They are still limited by address.
            Err(seconds) => {
                if !client.is_loopback() && !self.0.admin.has_session_from(client).await? {
                    attempt.forgive();
                    return Err(throttled(seconds));
                }
            }
        }
        Ok(attempt)
    }

    fn entry<'a>(&self, actor: &'a Actor, action: AuditAction) -> NewEntry<'a> {
        NewEntry { at: self.now(), actor, action, key: None, detail: json!({}) }
    }
}

/// An attempt counted as a failure.
struct Attempt<'a> {
    inner: &'a Inner,
    client: IpAddr,
    is_counted_everywhere: bool,
}

impl Attempt<'_> {
    fn forgive(self) {
        self.inner.by_address.forgive(self.client);
        if self.is_counted_everywhere {
            self.inner.from_everywhere.forgive(EVERYWHERE);
        }
    }
}

fn lifetimes(now: OffsetDateTime) -> Lifetimes {
    Lifetimes { created_after: now - SESSION_LIFETIME, used_after: now - SESSION_IDLE_LIFETIME }
}

impl fmt::Debug for AdminService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdminService").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
