//! The bucket of finished images, as configured.

use std::time::Duration;

use anyhow::Context as _;

use crate::config::{BucketConfig, Config, ResultStore};
use crate::jobs::ResultBucket;
use crate::objects::{Objects, ObjectsSettings};

/// The configured bucket, if images are stored in one. Nothing is sent yet: a bucket that does not answer keeps no worker from
/// starting.
///
/// # Errors
/// When its credentials are incomplete, or https is not possible on this machine.
pub(super) fn result_bucket(config: &Config) -> anyhow::Result<Option<ResultBucket>> {
    let ResultStore::Bucket(bucket) = &config.results.store else { return Ok(None) };
    Ok(Some(ResultBucket {
        objects: open(bucket)?,
        waiting_bytes_max: bucket.spool_bytes_max,
        redirect_life: bucket.redirect_seconds.map(Duration::from_secs),
    }))
}

/// Whether the bucket accepts images: writes a small file.
pub(super) async fn look_at(bucket: &BucketConfig) -> Result<String, String> {
    let objects = open(bucket).map_err(|error| format!("{error:#}"))?;
    match objects.check().await {
        Ok(()) => Ok(format!("`{}` accepts images", bucket.location)),
        Err(error) => Err(format!("`{}` does not accept images: {error}", bucket.location)),
    }
}

fn open(bucket: &BucketConfig) -> anyhow::Result<Objects> {
    let BucketConfig { location, endpoint, region, allow_http, .. } = bucket.clone();
    let place = format!("opening `results.store`, {location}: are its credentials in the environment?");
    Objects::open(&ObjectsSettings { location, endpoint, region, allow_http }).context(place)
}
