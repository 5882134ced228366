//! The files in a bucket.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use object_store::path::Path;
use object_store::signer::{Method, Signer};
use object_store::{
    Attribute, Attributes, Error, GetOptions, ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload,
};
use tokio::sync::Semaphore;

use super::error::ObjectsError;
use crate::telemetry::metrics;

/// Requests to a bucket at the same time; each takes a connection. Others wait for their turn.
pub const REQUESTS_MAX: usize = 64;
/// Larger files are sent in parts of this size. Stores want parts of at least 5 MiB.
const PART_BYTES: usize = 16 * 1024 * 1024;
/// Largest file that is read: more than the largest image has.
const FILE_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Time for a request, and for each MiB that it sends: 4 Mbit/s at least.
const DEADLINE: Duration = Duration::from_secs(10);
const MEBIBYTE_DEADLINE: Duration = Duration::from_secs(2);
const MEBIBYTE: usize = 1024 * 1024;
/// The file that a check writes.
const CHECK_NAME: &str = "write-check";
const CHECK_BYTES: &[u8] = b"fluxserve writes this file to see whether it can\n";
const CHECK_MEDIA_TYPE: &str = "text/plain";

/// The files in a folder of a bucket. Clones share its connections.
#[derive(Clone)]
pub struct Objects {
    store: Arc<dyn ObjectStore>,
    signer: Option<Arc<dyn Signer>>,
    prefix: String,
    turns: Arc<Semaphore>,
}

impl fmt::Debug for Objects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A store may show its credentials.
        f.debug_struct("Objects").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

impl Objects {
    /// The files below `prefix` in a store of any kind; `signer` makes links to them.
    #[must_use]
    pub fn over(store: Arc<dyn ObjectStore>, signer: Option<Arc<dyn Signer>>, prefix: &str) -> Self {
        Self { store, signer, prefix: prefix.to_owned(), turns: Arc::new(Semaphore::new(REQUESTS_MAX)) }
    }

    /// Files that are kept in memory, for tests.
    #[cfg(test)]
    pub(crate) fn in_memory() -> Self {
        Self::over(Arc::new(object_store::memory::InMemory::new()), None, "")
    }

    /// Writes a file, whole or not at all. A file of this name with the same bytes counts as written, as after a request whose
    /// answer was lost; another one is replaced.
    ///
    /// # Errors
    /// When the bucket does not confirm it.
    pub async fn put(&self, name: &str, bytes: &[u8], media_type: &'static str) -> Result<(), ObjectsError> {
        let writing = self.write(name, bytes, media_type);
        noted("put", self.in_time(sending_deadline(bytes.len()), writing).await.map_err(no_bucket))
    }

    /// Writes a file, whole or not at all, in place of whatever has its name. Its age in the bucket begins again, also if the
    /// bytes are the same.
    ///
    /// # Errors
    /// When the bucket does not confirm it.
    pub async fn replace(&self, name: &str, bytes: Vec<u8>, media_type: &'static str) -> Result<(), ObjectsError> {
        let deadline = sending_deadline(bytes.len());
        let writing = self.overwrite(name, bytes, media_type);
        noted("put", self.in_time(deadline, writing).await.map_err(no_bucket))
    }

    async fn overwrite(&self, name: &str, bytes: Vec<u8>, media_type: &'static str) -> Result<(), ObjectsError> {
        let path = self.path(name);
        let attributes = attributes(media_type);
        if bytes.len() > PART_BYTES {
            return Ok(self.write_in_parts(&path, &bytes, attributes).await?);
        }
        self.store.put_opts(&path, PutPayload::from(bytes), attributes.into()).await?;
        Ok(())
    }

    async fn write(&self, name: &str, bytes: &[u8], media_type: &'static str) -> Result<(), ObjectsError> {
        let path = self.path(name);
        let attributes = attributes(media_type);
        if bytes.len() > PART_BYTES {
            // It appears when its last part is confirmed, in place of whatever has the name.
            return Ok(self.write_in_parts(&path, bytes, attributes).await?);
        }
        let payload = PutPayload::from(bytes.to_vec());
        let options = PutOptions { mode: PutMode::Create, attributes: attributes.clone(), ..PutOptions::default() };
        match self.store.put_opts(&path, payload.clone(), options).await {
            Ok(_) => return Ok(()),
            Err(Error::AlreadyExists { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        if self.read(name, FILE_BYTES_MAX).await? == bytes {
            return Ok(());
        }
        tracing::warn!(name, "another file had this name in the bucket, and is replaced");
        self.store.put_opts(&path, payload, attributes.into()).await?;
        Ok(())
    }

    async fn write_in_parts(&self, path: &Path, bytes: &[u8], attributes: Attributes) -> Result<(), Error> {
        let options = PutMultipartOptions::from(attributes);
        let mut upload = self.store.put_multipart_opts(path, options).await?;
        for part in bytes.chunks(PART_BYTES) {
            if let Err(error) = upload.put_part(PutPayload::from(part.to_vec())).await {
                // Parts that are left cost their owner money until a rule of the bucket removes them.
                drop(upload.abort().await);
                return Err(error);
            }
        }
        upload.complete().await.map(|_| ())
    }

    /// Reads a file.
    ///
    /// # Errors
    /// [`ObjectsError::Missing`], or when the bucket does not give it.
    pub async fn get(&self, name: &str) -> Result<Vec<u8>, ObjectsError> {
        self.get_at_most(name, FILE_BYTES_MAX).await
    }

    /// Reads a file that has at most so many bytes.
    ///
    /// # Errors
    /// [`ObjectsError::Missing`], [`ObjectsError::TooLarge`], or when the bucket does not give it.
    pub async fn get_at_most(&self, name: &str, bytes_max: u64) -> Result<Vec<u8>, ObjectsError> {
        noted("get", self.in_time(DEADLINE * 2, self.read(name, bytes_max)).await)
    }

    async fn read(&self, name: &str, bytes_max: u64) -> Result<Vec<u8>, ObjectsError> {
        let found = self.store.get_opts(&self.path(name), GetOptions::default()).await?;
        let size = found.meta.size;
        if size > bytes_max {
            return Err(ObjectsError::TooLarge(size));
        }
        Ok(found.bytes().await?.into())
    }

    /// Removes a file; a missing one is no error.
    ///
    /// # Errors
    /// When the bucket does not confirm it.
    pub async fn delete(&self, name: &str) -> Result<(), ObjectsError> {
        let path = self.path(name);
        let removing = async {
            let mut removed = self.store.delete_stream(stream::once(async move { Ok(path) }).boxed());
            match removed.next().await {
                Some(Ok(_) | Err(Error::NotFound { .. })) => Ok(()),
                Some(Err(error)) => Err(error.into()),
                None => Err(ObjectsError::Failed("the bucket did not say whether it removed the file".into())),
            }
        };
        noted("delete", self.in_time(DEADLINE, removing).await)
    }

    /// Proves that the bucket accepts files, and knows the condition under which they are written: writes a small one, always the
    /// same.
    ///
    /// # Errors
    /// When it does not.
    pub async fn check(&self) -> Result<(), ObjectsError> {
        let path = self.path(CHECK_NAME);
        let writing = async {
            self.write(CHECK_NAME, CHECK_BYTES, CHECK_MEDIA_TYPE).await?;
            // It was there already, probably: whether it can be written is another question.
            let payload = PutPayload::from_static(CHECK_BYTES);
            self.store.put_opts(&path, payload, attributes(CHECK_MEDIA_TYPE).into()).await?;
            Ok::<_, ObjectsError>(())
        };
        noted("check", self.in_time(DEADLINE, writing).await.map_err(no_bucket))
    }

    /// A link that lets anyone read a file for `life`. Whether the file is there is not looked at.
    ///
    /// # Errors
    /// When the bucket's credentials cannot sign, or cannot be had.
    pub async fn signed_url(&self, name: &str, life: Duration) -> Result<String, ObjectsError> {
        let Some(signer) = &self.signer else { return Err(ObjectsError::NoLinks("its kind has none".into())) };
        let path = self.path(name);
        let signing = async {
            let url = signer.signed_url(Method::GET, &path, life).await;
            url.map(|url| url.to_string()).map_err(|error| match ObjectsError::from(error) {
                ObjectsError::Failed(reason) => ObjectsError::NoLinks(reason),
                error => error,
            })
        };
        self.in_time(DEADLINE, signing).await
    }

    /// A request, with the wait for its turn.
    async fn in_time<T>(
        &self,
        deadline: Duration,
        request: impl Future<Output = Result<T, ObjectsError>>,
    ) -> Result<T, ObjectsError> {
        let in_turn = async {
            let _turn = self.turns.acquire().await;
            request.await
        };
        let answer = tokio::time::timeout(deadline, in_turn).await;
        answer.unwrap_or_else(|_| Err(ObjectsError::Late(deadline.as_secs())))
    }

    fn path(&self, name: &str) -> Path {
        if self.prefix.is_empty() { Path::from(name) } else { Path::from(format!("{}/{name}", self.prefix)) }
    }
}

/// Time for sending so many bytes.
fn sending_deadline(bytes: usize) -> Duration {
    DEADLINE + MEBIBYTE_DEADLINE * u32::try_from(bytes / MEBIBYTE).unwrap_or(u32::MAX)
}

/// What a bucket says of a file to those who read it by a link: what it is, and, as the worker does, that nobody keeps it.
fn attributes(media_type: &'static str) -> Attributes {
    let mut attributes = Attributes::new();
    attributes.insert(Attribute::ContentType, media_type.into());
    attributes.insert(Attribute::CacheControl, "no-store".into());
    attributes
}

/// What is absent when a file is written is the bucket.
fn no_bucket(error: ObjectsError) -> ObjectsError {
    match error {
        ObjectsError::Missing => ObjectsError::Failed("there is no such bucket".into()),
        error => error,
    }
}

/// Counts a request.
fn noted<T>(request: &'static str, outcome: Result<T, ObjectsError>) -> Result<T, ObjectsError> {
    let word = match &outcome {
        Ok(_) => "ok",
        Err(ObjectsError::Missing) => "missing",
        Err(_) => "failed",
    };
    metrics::bucket_request(request, word);
    outcome
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;

    use super::*;

    fn objects(prefix: &str) -> (Arc<InMemory>, Objects) {
        let store = Arc::new(InMemory::new());
        let objects = Objects::over(Arc::<InMemory>::clone(&store), None, prefix);
        (store, objects)
    }

    #[tokio::test]
    async fn files_are_written_read_and_removed() {
        let (store, objects) = objects("some/folder");
        assert_eq!(objects.get("a.png").await, Err(ObjectsError::Missing));
        objects.put("a.png", b"bytes", "image/png").await.expect("written");
        assert_eq!(objects.get("a.png").await.as_deref(), Ok(&b"bytes"[..]));
        let found = store.get_opts(&Path::from("some/folder/a.png"), GetOptions::default()).await.expect("there");
        assert_eq!(found.attributes, attributes("image/png"));
        objects.delete("a.png").await.expect("removed");
        objects.delete("a.png").await.expect("a missing file is no error");
        assert_eq!(objects.get("a.png").await, Err(ObjectsError::Missing));
        for _ in 0..2 {
            objects.check().await.expect("writable");
        }
    }

    #[tokio::test]
    async fn writing_again_is_no_error_and_the_last_bytes_stay() {
        let (_, objects) = objects("");
        for bytes in [b"first", b"first", b"other"] {
            objects.put("a.png", bytes, "image/png").await.expect("written");
            assert_eq!(objects.get("a.png").await.as_deref(), Ok(&bytes[..]));
        }
    }

    #[tokio::test]
    async fn a_file_takes_the_place_of_another_and_is_read_within_a_bound() {
        let (store, objects) = objects("a");
        for bytes in [b"first", b"other", b"other"] {
            objects.replace("a.png", bytes.to_vec(), "image/png").await.expect("written");
            assert_eq!(objects.get_at_most("a.png", 5).await.as_deref(), Ok(&bytes[..]));
        }
        assert_eq!(objects.get_at_most("a.png", 4).await, Err(ObjectsError::TooLarge(5)));
        assert_eq!(objects.get_at_most("b.png", 4).await, Err(ObjectsError::Missing));
        let found = store.get_opts(&Path::from("a/a.png"), GetOptions::default()).await.expect("there");
        assert_eq!(found.attributes, attributes("image/png"));
    }

    #[tokio::test]
    async fn large_files_are_sent_in_parts() {
        let (_, objects) = objects("a");
        let bytes: Vec<u8> = (0..PART_BYTES + 5).map(|at| (at % 251) as u8).collect();
        objects.put("large.png", &bytes, "image/png").await.expect("written");
        assert!(objects.get("large.png").await.expect("there") == bytes, "the same bytes");
        objects.replace("larger.png", bytes.clone(), "image/png").await.expect("written");
        assert!(objects.get("larger.png").await.expect("there") == bytes, "the same bytes");
    }

    #[tokio::test]
    async fn a_store_without_signatures_makes_no_links() {
        let (_, objects) = objects("a");
        let refused = objects.signed_url("a.png", Duration::from_secs(1)).await;
        assert!(matches!(refused, Err(ObjectsError::NoLinks(_))));
    }
}
