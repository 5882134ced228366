//! What the build script learns of its source, and what it compiles CUDA kernels for.

use std::path::Path;
use std::process::Command;

#[path = "../../build/architectures.rs"]
mod architectures;
#[path = "../../build/kernels.rs"]
mod kernels;
#[path = "../../build/source.rs"]
mod source;

use architectures::{Architecture, Architectures};

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

#[test]
fn kernels_are_compiled_for_every_card_since_ampere() {
    let all = Architectures::of_build(Architecture::new(80, "")).expect("the default");
    assert_eq!(all.in_words(), "8.0 8.6 8.9 9.0a 12.0 8.0+PTX");
    let portable = [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_86,code=sm_86",
        "-gencode=arch=compute_89,code=sm_89",
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_120,code=sm_120",
        // No PTX of 9.0a: that runs on 9.0 alone.
        "-gencode=arch=compute_80,code=compute_80",
    ];
    assert_eq!(all.arguments("rows.cu"), portable);
    assert_eq!(all.arguments("attention_hopper.cu"), ["-gencode=arch=compute_90a,code=sm_90a"]);
}

#[test]
fn another_capability_gives_a_smaller_program_for_one_card() {
    let one = |number, suffix| Architectures::of_build(Architecture::new(number, suffix));
    let ada = one(89, "").expect("Ada");
    assert_eq!(ada.in_words(), "8.9 8.9+PTX");
    let own = ["-gencode=arch=compute_89,code=sm_89", "-gencode=arch=compute_89,code=compute_89"];
    assert_eq!(ada.arguments("rows.cu"), own);
    assert!(ada.arguments("attention_hopper.cu").is_empty());
    let hopper = one(90, "a").expect("Hopper");
    assert_eq!(hopper.in_words(), "9.0a 9.0a+PTX");
    assert_eq!(hopper.arguments("attention_hopper.cu"), ["-gencode=arch=compute_90a,code=sm_90a"]);
    let error = one(75, "").expect_err("too old");
    assert!(error.starts_with("CUDA_COMPUTE_CAP=75 is older than 80"), "{error}");
}

/// A script in place of nvcc: writes its arguments to the file after `-o`, and fails at a source that says so.
#[cfg(unix)]
const NVCC: &str = r#"#!/bin/sh
arguments=$*
while [ "$#" -gt 0 ]; do
  case $1 in -o) target=$2 ;; *.cu) source=$1 ;; esac
  shift
done
grep -q mistake "$source" && { echo 'a mistake' >&2; exit 1; }
echo "$arguments" >>"$target"
"#;

#[cfg(unix)]
#[test]
fn kernels_are_compiled_again_when_they_or_their_targets_change() {
    use std::os::unix::fs::PermissionsExt as _;

    let root = tempfile::tempdir().expect("a folder");
    let [sources, out, nvcc] = ["sources", "out", "nvcc"].map(|name| root.path().join(name));
    for folder in [&sources, &out] {
        std::fs::create_dir(folder).expect("made");
    }
    std::fs::write(&nvcc, NVCC).expect("written");
    std::fs::set_permissions(&nvcc, std::fs::Permissions::from_mode(0o755)).expect("executable");
    let write = |name: &str, text: &str| std::fs::write(sources.join(name), text).expect("written");
    for name in ["rows.cu", "attention_hopper.cu", "device.cuh"] {
        write(name, "first");
    }
    let compiler = kernels::Compiler { nvcc, arguments: Vec::new(), threads: 2 };
    let compile = |number| {
        let architectures = Architectures::of_build(Architecture::new(number, "")).expect("supported");
        compiler.compile(&sources, &out, &architectures)
    };
    // How often nvcc ran for each file. The file of one that it did not run for is empty.
    let runs = || {
        ["rows", "attention_hopper"].map(|name| {
            std::fs::read_to_string(out.join(name).with_extension("fatbin")).expect("there").lines().count()
        })
    };
    compile(80).expect("compiles");
    assert_eq!(runs(), [1, 1]);
    compile(80).expect("has nothing to do");
    assert_eq!(runs(), [1, 1]);
    write("rows.cu", "second");
    compile(80).expect("compiles one");
    assert_eq!(runs(), [2, 1]);
    write("device.cuh", "second");
    compile(80).expect("compiles all");
    assert_eq!(runs(), [3, 2]);
    compile(89).expect("compiles for another");
    assert_eq!(runs(), [4, 0]);
    compile(80).expect("compiles for all again");
    assert_eq!(runs(), [5, 1]);
    write("rows.cu", "a mistake");
    let error = compile(80).expect_err("does not compile");
    assert!(error.contains("rows.cu") && error.contains("a mistake"), "{error}");
}
