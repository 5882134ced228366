//! Files and folders for this user only.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::path::Path;

/// Creates the folder for this user only; closes an existing one to others.
pub(super) fn create_private_folder(directory: &Path) -> io::Result<()> {
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
        builder.mode(0o700);
        builder.create(directory)?;
        let is_open = fs::metadata(directory)?.permissions().mode() & 0o077 != 0;
        if is_open && let Err(error) = fs::set_permissions(directory, fs::Permissions::from_mode(0o700)) {
            // Owned by another user, perhaps a mounted volume. Its images are private all the same.
            tracing::warn!(%error, folder = %directory.display(), "others on this machine may list the results");
        }
        Ok(())
    }
    #[cfg(not(unix))]
    builder.create(directory)
}

/// Creates a file for this user only.
pub(super) fn create_private(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}
