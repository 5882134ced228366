//! What the build script learns of its source.

use std::path::Path;
use std::process::Command;

#[path = "../../build/source.rs"]
mod source;

/// Runs git in a repository of a test: what it printed.
fn git(folder: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new("git");
    for variable in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"] {
        command.env_remove(variable);
    }
    let identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"];
    let dated = command.env("GIT_COMMITTER_DATE", "1000000000 +0200").args(identity).args(arguments);
    let output = dated.current_dir(folder).output().expect("git");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text").trim().to_owned()
}

#[test]
fn a_build_knows_its_commit_and_notices_the_next_one() {
    let root = tempfile::tempdir().expect("a folder");
    let outer = root.path();
    git(outer, &["init", "--quiet", "--initial-branch", "main"]);
    git(outer, &["commit", "--quiet", "--allow-empty", "--message", "first"]);
    let first = git(outer, &["rev-parse", "HEAD"]);
    let found = source::Source::of(outer);
    assert_eq!((found.commit, found.committed_at), (Some(first), Some(1_000_000_000)));
    assert!(found.watched.iter().any(|path| path.ends_with("refs/heads/main")), "{:?}", found.watched);

    // Also of a branch without a file of its own, in a worktree, and without a branch.
    git(outer, &["pack-refs", "--all"]);
    let watched = source::Source::of(outer).watched;
    assert!(["HEAD", "packed-refs", "refs/heads"].iter().all(|name| watched.iter().any(|path| path.ends_with(name))));
    git(outer, &["worktree", "add", "--quiet", "-b", "side", "tree"]);
    let tree = outer.join("tree");
    git(&tree, &["commit", "--quiet", "--allow-empty", "--message", "second"]);
    let found = source::Source::of(&tree);
    assert_eq!(found.commit, Some(git(&tree, &["rev-parse", "side"])));
    assert!(found.watched.iter().any(|path| path.ends_with("refs/heads/side")), "{:?}", found.watched);
    git(&tree, &["checkout", "--quiet", "--detach"]);
    let watched = source::Source::of(&tree).watched;
    assert!(watched.len() == 1 && watched[0].ends_with("HEAD") && watched[0].exists(), "{watched:?}");

    // A source archive inside another repository is not that repository.
    let archive = outer.join("archive");
    std::fs::create_dir(&archive).expect("made");
    assert_eq!(source::Source::of(&archive), source::Source::default());
}
