//! The program sends a job's spans to a collector, also at the default log level, and flushes them before it exits. An
//! unreachable collector does not block it.

#![cfg(unix)]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

const MODEL: &str = "fluxserve/flux-shapes";
/// Longest that a request takes.
const PATIENCE: Duration = Duration::from_secs(90);
/// Longest exit of an idle worker, including the wait for an unreachable collector.
const END_MAX: Duration = Duration::from_secs(20);

/// Requests that a collector has received: heads and bodies.
#[derive(Clone, Default)]
struct Received(Arc<Mutex<Vec<Exchange>>>);

type Exchange = (String, Vec<u8>);

impl Received {
    /// Accepts all requests on a connection, one after the other.
    fn serve(&self, stream: &TcpStream) -> Option<()> {
        let mut reader = BufReader::new(stream);
        let mut writer = stream;
        loop {
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                (reader.read_line(&mut head).ok()? > 0).then_some(())?;
            }
            let length =
                head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
            let mut body = vec![0; length?];
            reader.read_exact(&mut body).ok()?;
            self.0.lock().expect("not poisoned").push((head, body));
            writer.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").ok()?;
        }
    }

    /// Starts a collector; returns its URL.
    fn start(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let received = self.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let received = received.clone();
                std::thread::spawn(move || received.serve(&stream));
            }
        });
        url
    }
}

fn program(data: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fluxserve"));
    command.env_clear().current_dir(data.parent().expect("a folder around it")).arg("--data-dir").arg(data);
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Starts a worker that sends its spans to `endpoint`, generates one image, and stops the worker. Returns the job's id
/// and the worker's output.
fn generate(endpoint: &str, prompt: &str) -> (String, Output) {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    let made = program(&data).args(["keys", "create", "--name", "test", "--scope", "inference"]).output();
    let key = text(&made.expect("an end").stdout).trim().to_owned();
    let mut command = program(&data);
    command.args(["serve", "--listen", "127.0.0.1:0", "--device", "cpu"]);
    command.env("FLUXSERVE_TELEMETRY_OTLP_ENDPOINT", endpoint);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("a process");
    let mut output = BufReader::new(child.stdout.take().expect("piped")).lines().map_while(Result::ok);
    let url = output.find_map(|line| line.strip_prefix("fluxserve listens on ").map(str::to_owned)).expect("a line");
    output.find(|line| line.starts_with("Generate an image:") || line.contains("is ready")).expect("a line");
    // Reads the rest, so that the pipe does not fill up.
    let rest = std::thread::spawn(move || output.for_each(drop));
    let body = json!({ "model": MODEL, "prompt": prompt, "width": 64, "height": 64, "steps": 2, "seed": 1 });
    let request = ureq::post(format!("{url}/v1/inference/image")).header("x-api-key", &key);
    let request = request.header("content-type", "application/json").header("prefer", "wait=60");
    let request = request.config().timeout_global(Some(PATIENCE)).build();
    let mut answer = request.send(body.to_string()).expect("an answer");
    let job: Value = serde_json::from_str(&answer.body_mut().read_to_string().expect("a text")).expect("JSON");
    assert_eq!(job["status"], "succeeded", "{job}");
    drop(answer);
    let told = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().expect("kill");
    assert!(told.success());
    let stopped_at = Instant::now();
    while child.try_wait().expect("a child").is_none() {
        if stopped_at.elapsed() > END_MAX {
            drop(child.kill());
            panic!("the worker does not exit");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    rest.join().expect("no panic");
    (job["job_id"].as_str().expect("an id").to_owned(), child.wait_with_output().expect("an end"))
}

#[test]
fn a_collector_receives_the_spans_of_a_job_and_no_prompt() {
    let received = Received::default();
    let (job, output) = generate(&received.start(), "a secret otter");
    assert!(output.status.success());
    let all = received.0.lock().expect("not poisoned");
    assert!(!all.is_empty(), "something was sent: {}", text(&output.stderr));
    let mut bytes = Vec::new();
    for (head, body) in all.iter() {
        assert!(head.starts_with("POST /v1/traces HTTP/1.1\r\n"), "{head}");
        assert!(head.to_lowercase().contains("content-type: application/x-protobuf"), "{head}");
        bytes.extend_from_slice(body);
    }
    let has = |word: &[u8]| bytes.windows(word.len()).any(|window| window == word);
    // A span's name is field 5 of its message: the tag, the length, the word.
    for word in [&b"\x2a\x03job"[..], b"\x2a\x04step", b"\x2a\x07request", b"service.name", job.as_bytes()] {
        assert!(has(word), "`{}` was not sent", text(word));
    }
    assert!(!has(b"otter"), "the prompt was sent");
    let log = text(&output.stderr);
    assert!(log.contains("job ended") && !log.contains("admitted"), "the log stays at its level: {log}");
}

#[test]
fn an_unreachable_collector_blocks_nothing_and_is_logged_once() {
    // Bound and dropped again: nothing listens there.
    let address = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
    let (_, output) = generate(&format!("http://{address}"), "a fox");
    assert!(output.status.success());
    assert_eq!(text(&output.stderr).matches("cannot send spans").count(), 1, "{}", text(&output.stderr));
}
