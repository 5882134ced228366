//! Files and folders that only this user can read.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::path::Path;

use super::error::StoreError;

/// Creates the file before SQLite does, because SQLite would apply the process's umask; the files that it later puts beside
/// it get the same permissions.
pub(super) fn create_file(path: &Path) -> Result<(), StoreError> {
    let failed = |path: &Path, source| StoreError::Create { path: path.to_owned(), source };
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        create_private_folder(folder).map_err(|source| failed(folder, source))?;
    }
    open_private(OpenOptions::new().write(true).create(true).truncate(false), path)
        .map_err(|source| failed(path, source))?;
    Ok(())
}

/// Creates a folder and those above it, for this user alone. One that exists is left as it is.
///
/// # Errors
/// Those of the file system.
pub fn create_private_folder(folder: &Path) -> io::Result<()> {
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder)
}

/// Opens a file; if it is created, only this user can read it.
///
/// # Errors
/// Those of the file system.
pub fn open_private(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(options, 0o600);
    options.open(path)
}
