//! Every statement on the table `uploads`.

use sqlx::FromRow;
use time::OffsetDateTime;

use super::error::UploadError;
use super::id::UploadId;
use crate::decode::ImageHeader;
use crate::domain::ids::KeyId;
use crate::store::{Store, StoreError, from_milliseconds, to_milliseconds};

/// The statements on uploads.
#[derive(Debug, Clone)]
pub(super) struct UploadStore(Store);

/// Where the file of an upload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FilePlace {
    /// In the folder of this worker.
    Folder,
    /// In the bucket.
    Bucket,
}

impl FilePlace {
    /// The word of the database.
    fn as_str(self) -> &'static str {
        match self {
            Self::Folder => "folder",
            Self::Bucket => "bucket",
        }
    }

    fn of(word: &str) -> Result<Self, UploadError> {
        let place = [Self::Folder, Self::Bucket].into_iter().find(|place| place.as_str() == word);
        place.ok_or(UploadError::CorruptRow { column: "place" })
    }
}

/// A row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StoredUpload {
    pub(super) id: UploadId,
    pub(super) bytes: u64,
    pub(super) header: ImageHeader,
    pub(super) stored_at: OffsetDateTime,
    pub(super) place: FilePlace,
}

/// What some uploads take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Taken {
    pub(super) uploads: u32,
    pub(super) bytes: u64,
    /// When the oldest of them last arrived.
    pub(super) oldest_at: Option<OffsetDateTime>,
}

#[derive(FromRow)]
struct UploadRow {
    id: String,
    bytes: i64,
    width: u32,
    height: u32,
    format: String,
    stored_at_ms: i64,
    place: String,
}

impl UploadRow {
    fn read(self) -> Result<StoredUpload, UploadError> {
        let corrupt = |column| UploadError::CorruptRow { column };
        Ok(StoredUpload {
            id: self.id.parse().map_err(|_| corrupt("id"))?,
            bytes: self.bytes.unsigned_abs(),
            header: ImageHeader {
                format: self.format.parse().map_err(|_| corrupt("format"))?,
                width: self.width,
                height: self.height,
            },
            stored_at: from_milliseconds(self.stored_at_ms).ok_or_else(|| corrupt("stored_at_ms"))?,
            place: FilePlace::of(&self.place)?,
        })
    }
}

impl UploadStore {
    pub(super) fn new(store: Store) -> Self {
        Self(store)
    }

    /// An owner's uploads in use that arrived after `since`, the newest first.
    pub(super) async fn of(&self, owner: KeyId, since: OffsetDateTime) -> Result<Vec<StoredUpload>, UploadError> {
        let rows: Vec<UploadRow> = sqlx::query_as(
            "SELECT id, bytes, width, height, format, stored_at_ms, place FROM uploads
             WHERE owner = ? AND stored_at_ms > ? AND removed_at_ms IS NULL ORDER BY stored_at_ms DESC, id",
        )
        .bind(owner.to_string())
        .bind(to_milliseconds(since))
        .fetch_all(self.0.pool())
        .await?;
        rows.into_iter().map(UploadRow::read).collect()
    }

    /// An owner's upload, if it is in use and arrived after `since`.
    pub(super) async fn find(
        &self,
        owner: KeyId,
        id: &UploadId,
        since: OffsetDateTime,
    ) -> Result<Option<StoredUpload>, UploadError> {
        let row: Option<UploadRow> = sqlx::query_as(
            "SELECT id, bytes, width, height, format, stored_at_ms, place FROM uploads
             WHERE owner = ? AND id = ? AND stored_at_ms > ? AND removed_at_ms IS NULL",
        )
        .bind(owner.to_string())
        .bind(id.as_str())
        .bind(to_milliseconds(since))
        .fetch_optional(self.0.pool())
        .await?;
        row.map(UploadRow::read).transpose()
    }

    /// Where the file of an upload is, in use or not.
    pub(super) async fn place(&self, owner: KeyId, id: &UploadId) -> Result<Option<FilePlace>, UploadError> {
        let place: Option<String> = sqlx::query_scalar("SELECT place FROM uploads WHERE owner = ? AND id = ?")
            .bind(owner.to_string())
            .bind(id.as_str())
            .fetch_optional(self.0.pool())
            .await?;
        place.map(|place| FilePlace::of(&place)).transpose()
    }

    /// What an owner's uploads take, or all, with those whose files still have to leave the bucket.
    pub(super) async fn taken(&self, owner: Option<KeyId>) -> Result<Taken, UploadError> {
        // Two statements: one for both would read the whole table for one owner, too.
        let query = match owner {
            Some(owner) => sqlx::query_as(
                "SELECT COUNT(*), COALESCE(SUM(bytes), 0), MIN(stored_at_ms) FROM uploads WHERE owner = ?",
            )
            .bind(owner.to_string()),
            None => sqlx::query_as("SELECT COUNT(*), COALESCE(SUM(bytes), 0), MIN(stored_at_ms) FROM uploads"),
        };
        let (uploads, bytes, oldest): (i64, i64, Option<i64>) = query.fetch_one(self.0.pool()).await?;
        let uploads = u32::try_from(uploads).unwrap_or(u32::MAX);
        Ok(Taken { uploads, bytes: bytes.unsigned_abs(), oldest_at: oldest.and_then(from_milliseconds) })
    }

    /// Stores an upload, or that it has arrived again, wherever it was before.
    pub(super) async fn put(&self, owner: KeyId, upload: &StoredUpload) -> Result<(), UploadError> {
        let ImageHeader { format, width, height } = upload.header;
        sqlx::query(
            "INSERT INTO uploads (owner, id, bytes, width, height, format, stored_at_ms, place)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?)
             ON CONFLICT DO UPDATE SET
                stored_at_ms = excluded.stored_at_ms, place = excluded.place, removed_at_ms = NULL",
        )
        .bind(owner.to_string())
        .bind(upload.id.as_str())
        .bind(i64::try_from(upload.bytes).unwrap_or(i64::MAX))
        .bind(width)
        .bind(height)
        .bind(format.as_str())
        .bind(to_milliseconds(upload.stored_at))
        .bind(upload.place.as_str())
        .execute(self.0.pool())
        .await?;
        Ok(())
    }

    /// Deletes an upload; whether it was there.
    pub(super) async fn delete(&self, owner: KeyId, id: &UploadId) -> Result<bool, UploadError> {
        let deleted = sqlx::query("DELETE FROM uploads WHERE owner = ? AND id = ?")
            .bind(owner.to_string())
            .bind(id.as_str())
            .execute(self.0.pool())
            .await?;
        Ok(deleted.rows_affected() > 0)
    }

    /// Deletes a row, which need not be readable.
    pub(super) async fn delete_as_stored(&self, owner: &str, id: &str) -> Result<(), UploadError> {
        let delete = sqlx::query("DELETE FROM uploads WHERE owner = ? AND id = ?");
        delete.bind(owner).bind(id).execute(self.0.pool()).await?;
        Ok(())
    }

    /// Takes an upload in the bucket out of use, and notes that its removal is tried now; whether there is one. With
    /// `stored_until`, only if it is out of use already, or arrived then or before.
    pub(super) async fn hide(
        &self,
        owner: KeyId,
        id: &UploadId,
        stored_until: Option<OffsetDateTime>,
        now: OffsetDateTime,
    ) -> Result<bool, UploadError> {
        let hidden = sqlx::query(
            "UPDATE uploads SET removed_at_ms = ?1 WHERE owner = ?2 AND id = ?3 AND place = 'bucket'
             AND (?4 IS NULL OR stored_at_ms <= ?4 OR removed_at_ms IS NOT NULL)",
        )
        .bind(to_milliseconds(now))
        .bind(owner.to_string())
        .bind(id.as_str())
        .bind(stored_until.map(to_milliseconds))
        .execute(self.0.pool())
        .await?;
        Ok(hidden.rows_affected() > 0)
    }

    /// Takes all of an owner's uploads in the bucket out of use.
    pub(super) async fn hide_all_of(&self, owner: KeyId, now: OffsetDateTime) -> Result<(), UploadError> {
        sqlx::query(
            "UPDATE uploads SET removed_at_ms = ? WHERE owner = ? AND place = 'bucket' AND removed_at_ms IS NULL",
        )
        .bind(to_milliseconds(now))
        .bind(owner.to_string())
        .execute(self.0.pool())
        .await?;
        Ok(())
    }

    /// Uploads in the bucket, of an owner or of all, that are out of use or arrived at `cutoff` or before. First those whose
    /// removal was not tried yet, then those for which that is longest ago: what cannot be removed keeps no other.
    pub(super) async fn leaving_bucket(
        &self,
        owner: Option<KeyId>,
        cutoff: OffsetDateTime,
        uploads_max: u32,
    ) -> Result<Vec<(String, String)>, UploadError> {
        let rows = sqlx::query_as(
            "SELECT owner, id FROM uploads WHERE place = 'bucket' AND (?1 IS NULL OR owner = ?1)
             AND (removed_at_ms IS NOT NULL OR stored_at_ms <= ?2) ORDER BY removed_at_ms, stored_at_ms LIMIT ?3",
        )
        .bind(owner.map(|owner| owner.to_string()))
        .bind(to_milliseconds(cutoff))
        .bind(uploads_max);
        Ok(rows.fetch_all(self.0.pool()).await?)
    }

    /// Uploads in the folder that arrived at `cutoff` or before, the oldest first.
    pub(super) async fn expired(
        &self,
        cutoff: OffsetDateTime,
        uploads_max: u32,
    ) -> Result<Vec<(String, String)>, UploadError> {
        let rows = sqlx::query_as(
            "SELECT owner, id FROM uploads WHERE place = 'folder' AND stored_at_ms <= ? ORDER BY stored_at_ms LIMIT ?",
        )
        .bind(to_milliseconds(cutoff))
        .bind(uploads_max);
        Ok(rows.fetch_all(self.0.pool()).await?)
    }

    /// All uploads in the folder, by owner and id as stored.
    pub(super) async fn in_folder(&self) -> Result<Vec<(String, String)>, UploadError> {
        let statement = "SELECT owner, id FROM uploads WHERE place = 'folder'";
        Ok(sqlx::query_as(statement).fetch_all(self.0.pool()).await?)
    }

    /// The owners of uploads.
    pub(super) async fn owners(&self) -> Result<Vec<KeyId>, UploadError> {
        let owners: Vec<String> =
            sqlx::query_scalar("SELECT DISTINCT owner FROM uploads").fetch_all(self.0.pool()).await?;
        Ok(owners.iter().filter_map(|owner| owner.parse().ok()).collect())
    }

    /// When the last one arrived.
    pub(super) async fn last(&self) -> Result<Option<OffsetDateTime>, UploadError> {
        let last: Option<i64> =
            sqlx::query_scalar("SELECT MAX(stored_at_ms) FROM uploads").fetch_one(self.0.pool()).await?;
        Ok(last.and_then(from_milliseconds))
    }

    /// Redates what is dated later than `future_begins` to `now`, so that its retention starts now.
    pub(super) async fn pull_back(
        &self,
        future_begins: OffsetDateTime,
        now: OffsetDateTime,
    ) -> Result<(), UploadError> {
        sqlx::query("UPDATE uploads SET stored_at_ms = ? WHERE stored_at_ms > ?")
            .bind(to_milliseconds(now))
            .bind(to_milliseconds(future_begins))
            .execute(self.0.pool())
            .await?;
        Ok(())
    }
}

impl From<sqlx::Error> for UploadError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(StoreError::from(error))
    }
}
