//! A bucket in memory that can be down, and remembers what was written.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use fluxserve::jobs::ResultBucket;
use fluxserve::objects::Objects;
use futures_util::future::ready;
use futures_util::stream::{BoxStream, StreamExt as _, once};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::signer::{Method, Signer, Url};
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

/// Where it keeps images.
pub(crate) const PREFIX: &str = "worker-1";

/// Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct TestStore {
    memory: Arc<InMemory>,
    is_down: Arc<AtomicBool>,
    written: Arc<Mutex<Vec<String>>>,
}

impl TestStore {
    /// It as the bucket of a worker.
    pub(crate) fn bucket(&self) -> ResultBucket {
        let (store, signer) = (Arc::new(self.clone()), Arc::new(self.clone()));
        ResultBucket {
            objects: Objects::over(store, Some(signer), PREFIX),
            waiting_bytes_max: u64::MAX,
            redirect_life: None,
        }
    }

    pub(crate) fn set_down(&self, is_down: bool) {
        self.is_down.store(is_down, Ordering::Release);
    }

    /// The names of the images that were written, in that order.
    pub(crate) fn written(&self) -> Vec<String> {
        let written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        written.iter().filter(|name| name.contains("/results/")).cloned().collect()
    }

    pub(crate) async fn read(&self, name: &str) -> Option<Vec<u8>> {
        let found = self.memory.get_opts(&Path::from(name), GetOptions::default()).await.ok()?;
        Some(found.bytes().await.expect("in memory").to_vec())
    }

    pub(crate) async fn write(&self, name: &str, bytes: &[u8]) {
        let payload = PutPayload::from(bytes.to_vec());
        self.memory.put_opts(&Path::from(name), payload, PutOptions::default()).await.expect("in memory");
    }

    /// As a rule of the bucket removes it.
    pub(crate) async fn remove(&self, name: &str) {
        let path = once(ready(Ok(Path::from(name)))).boxed();
        self.memory.delete_stream(path).next().await.expect("an answer").expect("in memory");
    }

    /// The names of the uploads in it.
    pub(crate) async fn uploads(&self) -> Vec<String> {
        let found = self.memory.list(Some(&Path::from(format!("{PREFIX}/uploads"))));
        let mut names: Vec<String> =
            found.map(|upload| upload.expect("in memory").location.to_string()).collect().await;
        names.sort();
        names
    }

    fn answer(&self) -> Result<()> {
        if self.is_down.load(Ordering::Acquire) {
            return Err(Error::Generic { store: "test", source: "told to be down".into() });
        }
        Ok(())
    }
}

impl fmt::Display for TestStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a test's bucket")
    }
}

#[async_trait]
impl ObjectStore for TestStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        self.answer()?;
        let result = self.memory.put_opts(location, payload, opts).await?;
        self.written.lock().unwrap_or_else(PoisonError::into_inner).push(location.to_string());
        Ok(result)
    }

    async fn put_multipart_opts(&self, location: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.answer()?;
        self.memory.put_multipart_opts(location, opts).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.answer()?;
        self.memory.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        match self.answer() {
            Ok(()) => self.memory.delete_stream(locations),
            Err(error) => once(ready(Err(error))).boxed(),
        }
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.memory.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.memory.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.memory.copy_opts(from, to, options).await
    }
}

#[async_trait]
impl Signer for TestStore {
    async fn signed_url(&self, _: Method, path: &Path, expires_in: Duration) -> Result<Url> {
        let url = format!("https://bucket.test/{path}?life={}", expires_in.as_secs());
        Ok(url.parse().expect("a URL"))
    }
}
