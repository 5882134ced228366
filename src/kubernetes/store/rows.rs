//! Rows of the tables, read and checked.

use sqlx::Row as _;
use sqlx::sqlite::SqliteRow;
use time::OffsetDateTime;
use uuid::Uuid;

use super::removals::{Removal, word_of};
use crate::domain::ids::NamespaceId;
use crate::domain::namespace::NamespaceName;
use crate::kubernetes::cluster::Kind;
use crate::kubernetes::error::{KubernetesError, Result};
use crate::kubernetes::namespace::{Missing, Namespace, Standing};
use crate::kubernetes::rights::Holder;
use crate::store::from_milliseconds;

/// A grant of a namespace to one value of a key. Tokens are bound to its Secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::kubernetes) struct Grant {
    pub(in crate::kubernetes) id: Uuid,
    pub(in crate::kubernetes) holder: Holder,
    pub(in crate::kubernetes) namespace: NamespaceId,
    /// The namespace's name when the grant was read.
    pub(in crate::kubernetes) namespace_name: NamespaceName,
    /// When the last of its tokens expires.
    pub(in crate::kubernetes) tokens_end_at: OffsetDateTime,
}

impl Grant {
    /// The Secret's name in the cluster.
    pub(in crate::kubernetes) fn secret(&self) -> String {
        format!("key-{}", self.id.hyphenated())
    }
}

fn corrupt(column: &'static str) -> KubernetesError {
    KubernetesError::CorruptRow { column }
}

/// Parses a text column.
fn word<T: std::str::FromStr>(row: &SqliteRow, column: &'static str) -> Result<T> {
    row.try_get::<String, _>(column)?.parse().map_err(|_| corrupt(column))
}

fn moment(row: &SqliteRow, column: &'static str) -> Result<OffsetDateTime> {
    from_milliseconds(row.try_get(column)?).ok_or_else(|| corrupt(column))
}

fn optional_moment(row: &SqliteRow, column: &'static str) -> Result<Option<OffsetDateTime>> {
    let milliseconds: Option<i64> = row.try_get(column)?;
    milliseconds.map(|milliseconds| from_milliseconds(milliseconds).ok_or_else(|| corrupt(column))).transpose()
}

pub(super) fn read_namespace(row: &SqliteRow) -> Result<Namespace> {
    let missing: Vec<String> = serde_json::from_str(row.try_get("missing")?).map_err(|_| corrupt("missing"))?;
    let missing = Missing::ALL.into_iter().filter(|one| missing.iter().any(|word| word == one.as_str()));
    Ok(Namespace {
        id: word(row, "id")?,
        name: word(row, "name")?,
        created_at: moment(row, "created_at_ms")?,
        standing: Standing {
            is_open: row.try_get("is_open")?,
            missing: missing.collect(),
            problem: row.try_get("problem")?,
        },
        checked_at: optional_moment(row, "checked_at_ms")?,
        cluster_uid: row.try_get("cluster_uid")?,
    })
}

pub(super) fn read_grant(row: &SqliteRow) -> Result<Grant> {
    Ok(Grant {
        id: word(row, "id")?,
        holder: Holder { key: word(row, "key_id")?, prefix: row.try_get("key_prefix")? },
        namespace: word(row, "namespace_id")?,
        namespace_name: word(row, "namespace_name")?,
        tokens_end_at: moment(row, "tokens_end_at_ms")?,
    })
}

pub(super) fn read_removal(row: &SqliteRow) -> Result<Removal> {
    let kind: String = row.try_get("kind")?;
    let kinds = [Kind::Secret, Kind::ServiceAccount, Kind::RoleBinding];
    let holder = match row.try_get::<Option<String>, _>("key_prefix")? {
        Some(prefix) => Some(Holder { key: word(row, "key_id")?, prefix }),
        None => None,
    };
    Ok(Removal {
        id: row.try_get("id")?,
        kind: kinds.into_iter().find(|known| word_of(*known) == kind).ok_or_else(|| corrupt("kind"))?,
        name: row.try_get("name")?,
        namespace: row.try_get("namespace")?,
        holder,
        since: moment(row, "since_at_ms")?,
        tokens_end_at: optional_moment(row, "tokens_end_at_ms")?,
        attempts: row.try_get("attempts")?,
        last_error: row.try_get("last_error")?,
    })
}
