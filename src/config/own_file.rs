//! Check of a file that the user did not name: the working directory may belong to another user.

use std::fs::File;
use std::io;

/// Why `file` is not trusted and how to fix it, if so: it belongs neither to this user nor to root, or others can write to it.
/// `name` is its name in a command.
#[cfg(unix)]
pub(super) fn why_not_ours(file: &File, name: &str) -> io::Result<Option<String>> {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

    let metadata = file.metadata()?;
    let us = rustix::process::geteuid().as_raw();
    Ok(why_not(metadata.uid(), us, metadata.permissions().mode(), name))
}

/// Beyond Unix, owner and mode are not known.
#[cfg(not(unix))]
pub(super) fn why_not_ours(_file: &File, _name: &str) -> io::Result<Option<String>> {
    Ok(None)
}

#[cfg(unix)]
fn why_not(owner: u32, us: u32, mode: u32, name: &str) -> Option<String> {
    /// Write permission of the group and of all others.
    const OTHERS_WRITE: u32 = 0o022;

    if owner != us && owner != 0 {
        return Some(format!("it belongs to user {owner}, neither the user of this program ({us}) nor root"));
    }
    let mode = mode & 0o7777;
    (mode & OTHERS_WRITE != 0)
        .then(|| format!("others than its owner can write to it (mode {mode:o}): run `chmod go-w {name}`"))
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_trusted_when_only_its_user_or_root_can_have_written_it() {
        for (owner, mode) in [(1000, 0o100_644), (1000, 0o100_600), (0, 0o100_644), (1000, 0o100_755)] {
            assert_eq!(why_not(owner, 1000, mode, "f"), None, "{owner} {mode:o}");
        }
        for (owner, us, mode, part) in [
            (1001, 1000, 0o100_600, "user 1001"),
            (1001, 0, 0o100_644, "user 1001"),
            (1000, 1000, 0o100_664, "mode 664"),
            (0, 1000, 0o100_646, "chmod go-w f"),
            (1000, 1000, 0o100_777, "mode 777"),
        ] {
            let reason = why_not(owner, us, mode, "f").unwrap_or_default();
            assert!(reason.contains(part), "{owner} {us} {mode:o}: {reason}");
        }
    }
}
