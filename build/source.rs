//! The source that a build is made of. Part of the build script; `tests/process.rs` tests it.

use std::path::{Path, PathBuf};
use std::process::Command;

/// What is known of the source.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Source {
    /// The commit's full name.
    pub(crate) commit: Option<String>,
    /// When it was committed, in seconds since 1970.
    pub(crate) committed_at: Option<i64>,
    /// Files and folders that change when another commit is checked out or made.
    pub(crate) watched: Vec<PathBuf>,
}

impl Source {
    /// Asks git about the repository at `folder`. Nothing is known without a `.git` there, or without git.
    pub(crate) fn of(folder: &Path) -> Self {
        // Without one, git would name a commit of a repository around this folder.
        if !folder.join(".git").exists() {
            return Self::default();
        }
        let Some(head) = git(folder, &["log", "-1", "--format=%H %ct"]) else { return Self::default() };
        let (commit, seconds) = head.split_once(' ').unwrap_or_default();
        Self {
            commit: Some(commit.to_owned()).filter(|commit| !commit.is_empty()),
            committed_at: seconds.parse().ok(),
            watched: watched(folder),
        }
    }
}

fn watched(folder: &Path) -> Vec<PathBuf> {
    let inside = |path: &str| git(folder, &["rev-parse", "--git-path", path]).map(|path| folder.join(path));
    let branch = git(folder, &["symbolic-ref", "--quiet", "HEAD"]);
    let branch = branch.as_deref().map(inside);
    let paths = match branch {
        // HEAD names a commit.
        None => vec![inside("HEAD")],
        Some(Some(branch)) if branch.exists() => vec![inside("HEAD"), Some(branch)],
        // Packed; the next commit makes a file of it again.
        Some(_) => vec![inside("HEAD"), inside("packed-refs"), inside("refs/heads")],
    };
    paths.into_iter().flatten().filter(|path| path.exists()).collect()
}

fn git(folder: &Path, arguments: &[&str]) -> Option<String> {
    let mut command = Command::new("git");
    // A hook sets these for its own repository.
    command.env_remove("GIT_DIR").env_remove("GIT_WORK_TREE").current_dir(folder).args(arguments);
    let output = command.output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}
