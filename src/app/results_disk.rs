//! Whether the disk is what the configuration thinks it is.

use super::fetching::size;
use crate::config::Config;
use crate::jobs::{results_disk_bytes, try_results};

/// What there is to say where images may take more than their file system has.
pub(super) fn too_small(config: &Config) -> Option<String> {
    let has = results_disk_bytes(&config.results_dir()).ok()?;
    let wants = config.results.bytes_max;
    (wants > has).then(|| {
        format!(
            "`results.bytes_max` is {}, and the file system of `{}` has {}: it fills up first, and then the oldest \
             images go early",
            size(wants),
            config.results_dir().display(),
            size(has)
        )
    })
}

/// Whether the folder of results takes images.
pub(super) fn look_at(config: &Config) -> Result<String, String> {
    let folder = config.results_dir();
    let notes = too_small(config).map_or_else(String::new, |note| format!("; but {note}"));
    if !folder.exists() {
        return Ok(format!("`{}` is not there yet; `fluxserve serve` makes it{notes}", folder.display()));
    }
    match try_results(&folder) {
        Ok(()) => Ok(format!("`{}` takes images{notes}", folder.display())),
        Err(error) => Err(format!("`{}` takes no images: {error}{notes}", folder.display())),
    }
}
