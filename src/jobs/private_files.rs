//! Files and folders of the results, for this user only.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::Path;

use crate::store::private_file;

/// The bit of a folder that all users share.
#[cfg(unix)]
const STICKY: u32 = 0o1000;

/// Creates the folder for this user only; closes an existing one to others, unless it is one that all users share, like `/tmp`.
pub(super) fn create_private_folder(directory: &Path) -> io::Result<()> {
    private_file::create_private_folder(directory)?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = fs::metadata(directory)?.permissions().mode();
        let (is_open, is_shared) = (mode & 0o077 != 0, mode & STICKY != 0);
        let close = || {
            if is_shared {
                return Err(io::Error::other("the folder is shared by all users, as its sticky bit says"));
            }
            fs::set_permissions(directory, fs::Permissions::from_mode(0o700))
        };
        if is_open && let Err(error) = close() {
            // Or it is owned by another user, perhaps a mounted volume. Its images are private all the same.
            tracing::warn!(%error, folder = %directory.display(), "others on this machine may list the results");
        }
    }
    Ok(())
}

/// Creates a file for this user only, or empties it.
pub(super) fn create_private(path: &Path) -> io::Result<File> {
    private_file::open_private(OpenOptions::new().write(true).create(true).truncate(true), path)
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_folder_that_all_users_share_is_not_closed_to_them() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for (before, after) in [(0o755, 0o700), (0o1777, 0o1777)] {
            fs::set_permissions(folder.path(), fs::Permissions::from_mode(before)).expect("ours");
            create_private_folder(folder.path()).expect("usable");
            let mode = fs::metadata(folder.path()).expect("there").permissions().mode() & 0o7777;
            assert_eq!(mode, after, "{before:o}");
        }
    }
}
