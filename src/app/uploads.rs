//! The uploads of keys in the data folder.

use std::sync::Arc;

use anyhow::Context as _;

use super::Keys;
use crate::config::Config;
use crate::domain::clock::Clock;
use crate::uploads::{UploadLimits, UploadParts, Uploads};

/// The uploads of a worker that starts: without what a crash has left. The data folder's lock must be held.
pub(super) async fn start_uploads(config: &Config, keys: &Keys, clock: &Arc<dyn Clock>) -> anyhow::Result<Uploads> {
    let parts = UploadParts {
        store: keys.store.clone(),
        keys: keys.service.clone(),
        folder: config.uploads_dir(),
        clock: Arc::clone(clock),
        limits: UploadLimits::default(),
    };
    Uploads::start(parts).await.context("reading the table of uploads")
}
