//! Checks the results folder's disk against the configuration.

use super::fetching::size;
use super::result_bucket;
use crate::config::{Config, ResultStore};
use crate::jobs::{results_disk_bytes, try_results};

/// A warning when images may take more space than their file system has.
pub(super) fn too_small(config: &Config) -> Option<String> {
    let has = results_disk_bytes(&config.results_dir()).ok()?;
    let (field, wants, then) = match &config.results.store {
        ResultStore::Bucket(bucket) => {
            ("spool_bytes_max", bucket.spool_bytes_max, "no image can wait for a bucket that is down")
        }
        ResultStore::DataFolder | ResultStore::Folder(_) => {
            ("bytes_max", config.results.bytes_max, "the oldest images are removed early")
        }
    };
    (wants > has).then(|| {
        format!(
            "`results.{field}` is {}, but the file system of `{}` has {}: it fills up first, and then {then}",
            size(wants),
            config.results_dir().display(),
            size(has)
        )
    })
}

/// Whether images can be stored: in the results folder, or in the bucket.
pub(super) async fn look_at(config: &Config) -> Result<String, String> {
    if let ResultStore::Bucket(bucket) = &config.results.store {
        return result_bucket::look_at(bucket).await;
    }
    let folder = config.results_dir();
    let notes = too_small(config).map_or_else(String::new, |note| format!("; but {note}"));
    if !folder.exists() {
        return Ok(format!("`{}` does not exist yet; `fluxserve serve` creates it{notes}", folder.display()));
    }
    match try_results(&folder) {
        Ok(()) => Ok(format!("`{}` accepts images{notes}", folder.display())),
        Err(error) => Err(format!("`{}` does not accept images: {error}{notes}", folder.display())),
    }
}
