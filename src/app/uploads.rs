//! The uploads of keys, in the data folder or in the bucket of images.

use std::sync::Arc;

use anyhow::Context as _;

use super::Keys;
use crate::config::Config;
use crate::domain::clock::Clock;
use crate::jobs::ResultBucket;
use crate::uploads::{UploadLimits, UploadParts, Uploads};

/// The uploads of a worker that starts: without what a crash has left. The data folder's lock must be held.
pub(super) async fn start_uploads(
    config: &Config,
    keys: &Keys,
    clock: &Arc<dyn Clock>,
    bucket: Option<&ResultBucket>,
) -> anyhow::Result<Uploads> {
    let parts = UploadParts {
        store: keys.store.clone(),
        keys: keys.service.clone(),
        folder: config.uploads_dir(),
        bucket: bucket.map(|bucket| bucket.objects.clone()),
        clock: Arc::clone(clock),
        limits: UploadLimits::default(),
    };
    Uploads::start(parts).await.context("reading the table of uploads")
}
