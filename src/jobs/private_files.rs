//! Files and folders of the results, for this user only.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::Path;

use crate::store::private_file;

/// Creates the folder for this user only; closes an existing one to others.
pub(super) fn create_private_folder(directory: &Path) -> io::Result<()> {
    private_file::create_private_folder(directory)?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        let is_open = fs::metadata(directory)?.permissions().mode() & 0o077 != 0;
        if is_open && let Err(error) = fs::set_permissions(directory, fs::Permissions::from_mode(0o700)) {
            // Owned by another user, perhaps a mounted volume. Its images are private all the same.
            tracing::warn!(%error, folder = %directory.display(), "others on this machine may list the results");
        }
    }
    Ok(())
}

/// Creates a file for this user only, or empties it.
pub(super) fn create_private(path: &Path) -> io::Result<File> {
    private_file::open_private(OpenOptions::new().write(true).create(true).truncate(true), path)
}
