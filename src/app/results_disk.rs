//! Checks the results folder's disk against the configuration.

use super::fetching::size;
use crate::config::Config;
use crate::jobs::{results_disk_bytes, try_results};

/// A warning when images may take more space than their file system has.
pub(super) fn too_small(config: &Config) -> Option<String> {
    let has = results_disk_bytes(&config.results_dir()).ok()?;
    let wants = config.results.bytes_max;
    (wants > has).then(|| {
        format!(
            "`results.bytes_max` is {}, but the file system of `{}` has {}: it fills up first, and then the oldest \
             images are removed early",
            size(wants),
            config.results_dir().display(),
            size(has)
        )
    })
}

/// Whether the results folder accepts images.
pub(super) fn look_at(config: &Config) -> Result<String, String> {
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
