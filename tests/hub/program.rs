//! The same from the command line: one command from nothing to an image, and what other commands say about a downloaded
//! model.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use super::SHARD;
use super::stub::{Hub, ID, is_large, sha256};

/// Longest a test waits for something to happen.
const PATIENCE: Duration = Duration::from_secs(90);

pub(crate) struct Machine {
    pub(crate) hub: Hub,
    folder: tempfile::TempDir,
}

impl Machine {
    pub(crate) fn new() -> Self {
        Self { hub: Hub::start(), folder: tempfile::tempdir().expect("a folder") }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn program(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fluxserve"));
        command.env_clear().current_dir(self.folder.path()).args(arguments);
        command.env("HF_HOME", self.path("home")).env("HF_ENDPOINT", self.hub.endpoint());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> (bool, String, String) {
        let Output { status, stdout, stderr } = self.program(arguments).output().expect("a process");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
        (status.success(), text(stdout), text(stderr))
    }

    pub(crate) fn snapshot(&self) -> PathBuf {
        self.path("home/hub/models--black-forest-labs--FLUX.1-dev/snapshots").join(super::COMMIT)
    }

    pub(crate) fn blobs(&self) -> PathBuf {
        self.path("home/hub/models--black-forest-labs--FLUX.1-dev/blobs")
    }
}

/// A process that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(started.elapsed() < PATIENCE, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn one_command_downloads_verifies_serves_and_generates() {
    let machine = Machine::new();
    let data = machine.path("data");
    let serve = ["serve", "--listen", "127.0.0.1:0", "--device", "cpu", "--model", ID];
    let serve = [&serve[..], &["--data-dir", data.to_str().expect("text")]].concat();
    // Without `--download` it only names the command that downloads.
    let (is_done, _, errors) = machine.run(&serve);
    assert!(!is_done && errors.contains(&format!("`fluxserve models download {ID}`")), "{errors}");
    assert!(machine.hub.seen().is_empty() && !machine.path("home").exists());

    let mut server = Running(machine.program(&[&serve[..], &["--download"]].concat()).spawn().expect("a process"));
    let mut lines = BufReader::new(server.0.stdout.take().expect("piped")).lines().map_while(Result::ok);
    let mut line = |beginning: &str| {
        let found = lines.find_map(|line| line.strip_prefix(beginning).map(str::to_owned));
        found.unwrap_or_else(|| panic!("no line begins with {beginning:?}"))
    };
    let url = line("fluxserve listens on ");
    assert_eq!(line(&format!("{ID} is ready (")).trim_end_matches(')'), machine.snapshot().to_str().expect("text"));
    let key = line("A demo key, shown this once: ");
    let body = json!({ "model": ID, "prompt": "a fox", "width": 64, "height": 64, "steps": 2, "seed": 1 });
    let request = ureq::post(format!("{url}/v1/inference/image")).header("content-type", "application/json");
    let request = request.header("x-api-key", &key).header("accept", "image/png");
    let mut answer = request.send(body.to_string()).expect("an answer");
    let image = answer.body_mut().read_to_vec().expect("a body");
    assert!(image.starts_with(b"\x89PNG"), "{} bytes", image.len());
    drop(server);
    // The next start needs no hub.
    machine.hub.forget();
    let mut again = Running(machine.program(&serve).spawn().expect("a process"));
    let mut lines = BufReader::new(again.0.stdout.take().expect("piped")).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.starts_with(&format!("{ID} is ready"))));
    drop(again);

    // The cache is enough for the other commands, too.
    let (is_done, out, errors) = machine.run(&["models", "check", ID]);
    assert!(is_done && out.contains("complete") && out.contains("license: LICENSE.md"), "{out}{errors}");
    let output = machine.path("fox.png");
    let generate = ["generate", "--model", ID, "--prompt", "a fox", "--width", "64", "--height", "64", "--steps", "1"];
    let (is_done, _, errors) =
        machine.run(&[&generate[..], &["--output", output.to_str().expect("text"), "--device", "cpu"]].concat());
    assert!(is_done && output.is_file(), "{errors}");
    let (is_done, out, _) = machine.run(&["models", "list"]);
    let row = out.lines().find(|line| line.starts_with(ID)).expect("a row");
    assert!(is_done && row.contains("Non-Commercial") && row.contains(machine.snapshot().to_str().expect("text")));
    assert!(machine.hub.seen().is_empty());
}

#[test]
fn a_killed_download_resumes() {
    let machine = Machine::new();
    let digest = sha256(&machine.hub.conduct().files[SHARD]);
    let partial = machine.blobs().join(format!("{digest}.incomplete"));
    machine.hub.conduct().pause = Duration::from_millis(100);
    let mut first = Running(machine.program(&["models", "download", ID]).spawn().expect("a process"));
    until("half a file", || std::fs::metadata(&partial).ok().filter(|found| found.len() > 100_000));
    first.0.kill().expect("killed");
    first.0.wait().expect("ended");
    let here = std::fs::metadata(&partial).expect("half a file").len();
    assert!(!machine.snapshot().exists(), "no ref points to an incomplete model");
    let present = bytes_of_partials(&machine.blobs());

    machine.hub.conduct().pause = Duration::ZERO;
    machine.hub.forget();
    let (is_done, out, notes) = machine.run(&["models", "download", ID]);
    assert!(is_done, "{notes}");
    assert_eq!(Path::new(out.trim()), machine.snapshot());
    assert!(notes.contains(&format!("serve it with `fluxserve serve --model {ID}`")), "{notes}");
    let seen: Vec<_> = machine.hub.seen_of(SHARD).into_iter().filter(|seen| seen.at_storage).collect();
    let size = machine.hub.conduct().files[SHARD].len() as u64;
    assert_eq!(seen.iter().map(|seen| (seen.start, seen.sent as u64)).collect::<Vec<_>>(), [(here, size - here)]);
    // No byte of any file was transferred twice.
    let fetched: u64 = machine.hub.seen().iter().filter(|seen| seen.at_storage).map(|seen| seen.sent as u64).sum();
    let needed: u64 = {
        let conduct = machine.hub.conduct();
        let is_needed = |path: &&String| is_large(path) && path.contains('/');
        conduct.files.keys().filter(is_needed).map(|path| conduct.files[path].len() as u64).sum()
    };
    assert_eq!(fetched + present, needed);
}

/// Bytes of the large files on the disk, complete or not.
fn bytes_of_partials(blobs: &Path) -> u64 {
    let entries = std::fs::read_dir(blobs).expect("a folder").map(|entry| entry.expect("an entry"));
    let large = entries.filter(|entry| entry.file_name().to_string_lossy().trim_end_matches(".incomplete").len() == 64);
    large.map(|entry| entry.metadata().expect("there").len()).sum()
}

#[test]
fn a_refused_download_says_why_and_fails() {
    let machine = Machine::new();
    machine.hub.conduct().gate = Some("hf_accepted".into());
    let (is_done, out, errors) = machine.run(&["models", "download", ID]);
    assert!(!is_done && out.is_empty());
    assert!(errors.contains(&format!("{}/{ID}", machine.hub.endpoint())), "{errors}");
    assert!(errors.contains(machine.path("home/token").to_str().expect("text")), "{errors}");
    let (is_done, _, errors) = machine.run(&["models", "download", "black-forest-labs/FLUX.2-klein-4B"]);
    assert!(!is_done && errors.contains("does not work yet: it is of the family FLUX.2"), "{errors}");
    let (is_done, _, errors) = machine.run(&["models", "download", "fluxserve/flux-shapes"]);
    assert!(!is_done && errors.contains("part of this program"), "{errors}");
    let mut accepted = machine.program(&["models", "download", ID, "--to", "weights"]);
    let output = accepted.env("HF_TOKEN", "hf_accepted").output().expect("a process");
    let notes = String::from_utf8(output.stderr).expect("text");
    assert!(output.status.success() && notes.contains(&format!("--model {ID}=weights")), "{notes}");
    assert!(!notes.contains("hf_accepted"), "{notes}");
}

#[test]
fn the_checksum_finds_two_swapped_tensors() {
    let machine = Machine::new();
    assert!(machine.run(&["models", "download", ID]).0);
    let blob = machine.blobs().join(sha256(&machine.hub.conduct().files[SHARD]));
    let mut bytes = std::fs::read(&blob).expect("readable");
    let pair = ["\"transformer_blocks.1.attn.to_q.weight\"", "\"transformer_blocks.1.attn.to_k.weight\""];
    swap(&mut bytes, pair);
    std::fs::write(&blob, bytes).expect("written");
    let (is_done, out, errors) = machine.run(&["models", "check", ID]);
    // The file is small enough to be verified without `--checksums`.
    assert!(!is_done, "{out}");
    assert!(out.contains(&format!("{SHARD}: its SHA-256 is ")), "{out}");
    assert!(out.contains(blob.to_str().expect("text")) && errors.contains("models download"), "{out}{errors}");
    std::fs::remove_file(&blob).expect("removed");
    let (is_done, out, _) = machine.run(&["models", "check", ID]);
    assert!(!is_done && out.contains(&format!("{SHARD}: missing")), "{out}");
    for command in [
        &["generate", "--model", ID, "--prompt", "", "--output", "x.png", "--device", "cpu"][..],
        &["serve", "--listen", "127.0.0.1:0", "--model", ID],
    ] {
        let (is_done, _, errors) = machine.run(command);
        assert!(!is_done && errors.contains(&format!("`fluxserve models download {ID}`")), "{errors}");
    }
    assert!(machine.run(&["models", "download", ID]).0 && machine.run(&["models", "check", ID, "--checksums"]).0);
}

/// Swaps two names of the same length in a header.
fn swap(bytes: &mut [u8], [left, right]: [&str; 2]) {
    assert_eq!(left.len(), right.len());
    let at =
        |name: &str| bytes.windows(name.len()).position(|window| window == name.as_bytes()).expect("in the header");
    let (left_at, right_at) = (at(left), at(right));
    bytes[left_at..left_at + right.len()].copy_from_slice(right.as_bytes());
    bytes[right_at..right_at + left.len()].copy_from_slice(left.as_bytes());
}

#[test]
fn a_worker_stops_while_it_downloads() {
    let machine = Machine::new();
    machine.hub.conduct().pause = Duration::from_millis(500);
    let serve = ["serve", "--listen", "127.0.0.1:0", "--model", ID, "--download"];
    let mut server = Running(machine.program(&serve).spawn().expect("a process"));
    until("a request", || (machine.hub.seen().len() > 2).then_some(()));
    let told = Command::new("kill").args(["-TERM", &server.0.id().to_string()]).status().expect("kill");
    assert!(told.success());
    let status = until("its end", || server.0.try_wait().expect("a child"));
    let mut errors = String::new();
    server.0.stderr.take().expect("piped").read_to_string(&mut errors).expect("text");
    assert!(status.success(), "{errors}");
}
