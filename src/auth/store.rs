//! The table `api_keys`: every statement that touches it.

use time::OffsetDateTime;

use crate::auth::KeyFailure;
use crate::auth::cache::RowVersion;
use crate::auth::hash::{HashedKey, SecretTag};
use crate::auth::key::PublicId;
use crate::domain::ids::KeyId;
use crate::domain::scope::Scope;
use crate::store::{Store, StoreError};

macro_rules! select_keys {
    ($rest:literal) => {
        concat!(
            "SELECT id, public_id, name, secret_hash, secret_tag, scope, version, ",
            "created_at_ms, expires_at_ms, revoked_at_ms, last_used_at_ms FROM api_keys ",
            $rest
        )
    };
}

/// One row, read and checked.
#[derive(Debug)]
pub(super) struct KeyRow {
    pub(super) id: KeyId,
    pub(super) public_id: PublicId,
    pub(super) name: String,
    pub(super) hash: HashedKey,
    pub(super) tag: SecretTag,
    pub(super) scope: Scope,
    pub(super) version: i64,
    pub(super) created_at: OffsetDateTime,
    pub(super) expires_at: Option<OffsetDateTime>,
    pub(super) revoked_at: Option<OffsetDateTime>,
    pub(super) last_used_at: Option<OffsetDateTime>,
}

impl KeyRow {
    pub(super) fn row_version(&self) -> RowVersion {
        RowVersion { key_id: self.id, version: self.version }
    }
}

/// The columns as they stand in the file.
#[derive(sqlx::FromRow)]
struct StoredRow {
    id: String,
    public_id: String,
    name: String,
    secret_hash: String,
    secret_tag: Vec<u8>,
    scope: String,
    version: i64,
    created_at_ms: i64,
    expires_at_ms: Option<i64>,
    revoked_at_ms: Option<i64>,
    last_used_at_ms: Option<i64>,
}

impl TryFrom<StoredRow> for KeyRow {
    type Error = KeyFailure;

    /// A row that does not read back is never taken for a valid key.
    fn try_from(stored: StoredRow) -> Result<Self, Self::Error> {
        let id = stored.id;
        let corrupt = |column: &'static str| KeyFailure::CorruptRow { key_id: id.clone(), column };
        let moment = |column, milliseconds| from_milliseconds(milliseconds).ok_or_else(|| corrupt(column));
        let scope = serde_json::from_str(&stored.scope).map_err(|_| corrupt("scope"))?;
        Ok(Self {
            public_id: PublicId::from_stored(&stored.public_id).map_err(|_| corrupt("public_id"))?,
            name: stored.name,
            hash: HashedKey::from_stored(stored.secret_hash),
            tag: SecretTag::from_stored(&stored.secret_tag).ok_or_else(|| corrupt("secret_tag"))?,
            scope: Scope::from_json(&scope).map_err(|_| corrupt("scope"))?,
            version: stored.version,
            created_at: moment("created_at_ms", stored.created_at_ms)?,
            expires_at: stored.expires_at_ms.map(|value| moment("expires_at_ms", value)).transpose()?,
            revoked_at: stored.revoked_at_ms.map(|value| moment("revoked_at_ms", value)).transpose()?,
            last_used_at: stored.last_used_at_ms.map(|value| moment("last_used_at_ms", value)).transpose()?,
            id: id.parse().map_err(|_| corrupt("id"))?,
        })
    }
}

/// The statements.
#[derive(Debug, Clone)]
pub(super) struct KeyStore(Store);

impl KeyStore {
    pub(super) fn new(store: Store) -> Self {
        Self(store)
    }

    pub(super) async fn insert(&self, row: &KeyRow) -> Result<(), KeyFailure> {
        sqlx::query(
            "INSERT INTO api_keys (id, public_id, name, secret_hash, secret_tag, scope, version, \
                                   created_at_ms, expires_at_ms, revoked_at_ms, last_used_at_ms) \
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(row.id.to_string())
        .bind(row.public_id.as_str())
        .bind(&row.name)
        .bind(row.hash.as_str())
        .bind(row.tag.as_bytes())
        .bind(row.scope.to_json().to_string())
        .bind(row.version)
        .bind(to_milliseconds(row.created_at))
        .bind(row.expires_at.map(to_milliseconds))
        .bind(row.revoked_at.map(to_milliseconds))
        .bind(row.last_used_at.map(to_milliseconds))
        .execute(self.0.pool())
        .await
        .map_err(StoreError::from)?;
        Ok(())
    }

    pub(super) async fn by_public_id(&self, public_id: PublicId) -> Result<Option<KeyRow>, KeyFailure> {
        let stored: Option<StoredRow> = sqlx::query_as(select_keys!("WHERE public_id = ?"))
            .bind(public_id.as_str())
            .fetch_optional(self.0.pool())
            .await
            .map_err(StoreError::from)?;
        stored.map(KeyRow::try_from).transpose()
    }

    /// Rows in the order of their creation, from the one after `after`.
    pub(super) async fn page(&self, after: Option<KeyId>, limit: u32) -> Result<Vec<KeyRow>, KeyFailure> {
        let stored: Vec<StoredRow> = sqlx::query_as(select_keys!("WHERE id > ? ORDER BY id LIMIT ?"))
            .bind(after.map_or_else(String::new, |id| id.to_string()))
            .bind(limit)
            .fetch_all(self.0.pool())
            .await
            .map_err(StoreError::from)?;
        stored.into_iter().map(KeyRow::try_from).collect()
    }

    pub(super) async fn count(&self) -> Result<u64, KeyFailure> {
        let count: (i64,) =
            sqlx::query_as("SELECT count(*) FROM api_keys").fetch_one(self.0.pool()).await.map_err(StoreError::from)?;
        Ok(count.0.unsigned_abs())
    }

    /// Revokes a key that is not revoked yet; the first revocation's time stays.
    pub(super) async fn revoke(&self, public_id: PublicId, now: OffsetDateTime) -> Result<(), KeyFailure> {
        sqlx::query(
            "UPDATE api_keys SET revoked_at_ms = ?, version = version + 1 \
             WHERE public_id = ? AND revoked_at_ms IS NULL",
        )
        .bind(to_milliseconds(now))
        .bind(public_id.as_str())
        .execute(self.0.pool())
        .await
        .map_err(StoreError::from)?;
        Ok(())
    }

    /// Notes when keys were last used, all in one transaction.
    pub(super) async fn record_uses(&self, uses: &[(KeyId, OffsetDateTime)]) -> Result<(), KeyFailure> {
        let mut transaction = self.0.pool().begin().await.map_err(StoreError::from)?;
        for (id, used_at) in uses {
            // Another process may have written a later use.
            sqlx::query("UPDATE api_keys SET last_used_at_ms = max(coalesce(last_used_at_ms, ?1), ?1) WHERE id = ?2")
                .bind(to_milliseconds(*used_at))
                .bind(id.to_string())
                .execute(&mut *transaction)
                .await
                .map_err(StoreError::from)?;
        }
        transaction.commit().await.map_err(StoreError::from)?;
        Ok(())
    }
}

fn to_milliseconds(moment: OffsetDateTime) -> i64 {
    // Years −9999 to 9999 in milliseconds fit 49 bits.
    (moment.unix_timestamp_nanos() / 1_000_000) as i64
}

fn from_milliseconds(milliseconds: i64) -> Option<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(milliseconds) * 1_000_000).ok()
}
