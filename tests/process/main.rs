//! The program as its operator sees it: processes that are started, stopped and restarted, with the embedded model.

#![cfg(unix)]

mod build;
mod device;
mod files;
mod inpainting;
mod jobs;
mod keys;
mod loras;
mod lost_device;
mod output;
mod start;

use std::io::{BufRead as _, BufReader, PipeReader, PipeWriter, Read, Write as _};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

const MODEL: &str = "fluxserve/flux-shapes";
/// Longest a test waits for something to happen.
const PATIENCE: Duration = Duration::from_secs(90);

fn program(data: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fluxserve"));
    command.env_clear().current_dir(data.parent().expect("a folder around it")).arg("--data-dir").arg(data);
    command
}

fn folder() -> (TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    (folder, data)
}

fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(started.elapsed() < PATIENCE, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The lines of a pipe, as they arrive.
fn lines_of(output: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel();
    let output = BufReader::new(output);
    std::thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
    lines
}

/// A worker that is killed at the end of the test.
struct Server {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Server {
    fn start(data: &Path, arguments: &[&str]) -> Self {
        Self::of(serving(data).args(arguments))
    }

    fn of(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().expect("a process");
        let lines = lines_of(child.stdout.take().expect("piped"));
        Self { child, lines }
    }

    /// The rest of the next line with this beginning.
    fn line(&self, beginning: &str) -> String {
        loop {
            let line = self.lines.recv_timeout(PATIENCE).expect("a line in time");
            if let Some(rest) = line.strip_prefix(beginning) {
                return rest.to_owned();
            }
        }
    }

    fn url(&self) -> String {
        self.line("fluxserve listens on ")
    }

    fn stop(&mut self) -> ExitStatus {
        self.tell("-TERM");
        until("the end of the process", || self.child.try_wait().expect("a child"))
    }

    fn tell(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.child.id().to_string()]).status().expect("kill");
        assert!(sent.success());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Fails if it has already exited.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The command `serve`, without its log.
fn serving(data: &Path) -> Command {
    serving_at(data, "127.0.0.1:0", "cpu")
}

fn serving_at(data: &Path, address: &str, device: &str) -> Command {
    let mut command = program(data);
    command.args(["serve", "--listen", address, "--device", device]).stderr(Stdio::null());
    command.env("FLUXSERVE_DRAIN_DEADLINE_SECONDS", "0");
    command
}

fn answers(url: &str) -> bool {
    let request = ureq::get(format!("{url}/healthz")).config().timeout_global(Some(Duration::from_secs(10))).build();
    request.call().is_ok()
}

/// Longest exit of an idle worker.
const EXITS_WITHIN: Duration = Duration::from_secs(20);

fn exits(server: &mut Server) {
    let started = Instant::now();
    assert!(server.stop().success());
    assert!(started.elapsed() < EXITS_WITHIN, "it took {:?} to exit", started.elapsed());
}

fn get(url: &str, key: &str) -> Value {
    let mut answer = ureq::get(url).header("x-api-key", key).call().expect("an answer");
    serde_json::from_str(&answer.body_mut().read_to_string().expect("a text")).expect("JSON")
}

fn submit(url: &str, key: &str, body: &Value) -> String {
    let request = ureq::post(format!("{url}/v1/inference/image"));
    let request = request.header("x-api-key", key).header("content-type", "application/json");
    let mut answer = request.send(body.to_string()).expect("an answer");
    let job: Value = serde_json::from_str(&answer.body_mut().read_to_string().expect("a text")).expect("JSON");
    job["job_id"].as_str().expect("an id").to_owned()
}

/// Runs a command that exits by itself.
fn run(data: &Path, arguments: &[&str]) -> Output {
    let mut child =
        program(data).args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
    let mut stderr = child.stderr.take().expect("piped");
    let errors = std::thread::spawn(move || {
        let mut text = Vec::new();
        stderr.read_to_end(&mut text).map(|_| text)
    });
    let started = Instant::now();
    while child.try_wait().expect("a child").is_none() {
        if started.elapsed() > PATIENCE {
            drop(child.kill());
            panic!("{arguments:?} does not exit");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let output = child.wait_with_output().expect("an end");
    Output { stderr: errors.join().expect("no panic").expect("readable"), ..output }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
