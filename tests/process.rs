//! The program as its operator sees it: processes that are started, told to stop, and started again, on the model that
//! is compiled in.

#![cfg(unix)]

use std::io::{BufRead as _, BufReader, PipeReader, PipeWriter, Read, Write as _};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

#[path = "../build/source.rs"]
mod source;

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

/// The lines that come out of a pipe, as they come.
fn lines_of(output: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel();
    let output = BufReader::new(output);
    std::thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
    lines
}

/// A worker that dies with the test.
struct Server {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Drop for Server {
    fn drop(&mut self) {
        // Where it has ended already, there is nothing to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
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

    /// The rest of the next line that begins so.
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
        let told = Command::new("kill").args([signal, &self.child.id().to_string()]).status().expect("kill");
        assert!(told.success());
    }
}

/// What serves, without a word of the log.
fn serving(data: &Path) -> Command {
    serving_at(data, "127.0.0.1:0", "cpu")
}

fn serving_at(data: &Path, address: &str, device: &str) -> Command {
    let mut command = program(data);
    command.args(["serve", "--listen", address, "--device", device]).stderr(Stdio::null());
    command.env("FLUXSERVE_DRAIN_DEADLINE_SECONDS", "0");
    command
}

/// A pipe that takes no byte until it is read.
fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    // What Linux has a pipe hold.
    writer.write_all(&vec![b'.'; 65_536]).expect("written");
    (reader, writer)
}

/// An address that nobody listens at.
fn free_address() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("an address");
    listener.local_addr().expect("an address").to_string()
}

fn answers(url: &str) -> bool {
    let request = ureq::get(format!("{url}/healthz")).config().timeout_global(Some(Duration::from_secs(10))).build();
    request.call().is_ok()
}

/// Longest that a worker without anything to do may take to go.
const GOES_WITHIN: Duration = Duration::from_secs(20);

fn goes(server: &mut Server) {
    let told = Instant::now();
    assert!(server.stop().success());
    assert!(told.elapsed() < GOES_WITHIN, "it took {:?} to go", told.elapsed());
}

#[test]
fn a_log_that_nobody_reads_stops_neither_answers_nor_the_end() {
    let (_folder, data) = folder();
    let (_reader, writer) = full_pipe();
    let mut server = Server::of(serving(&data).env("FLUXSERVE_LOG_FILTER", "trace").stderr(writer));
    let url = server.url();
    let key = server.line("A demo key, shown this once: ");
    assert!((0..100).all(|_| answers(&url)));
    let job = submit(&url, &key, &json!({ "model": MODEL, "prompt": "a fox", "steps": 2, "seed": 1 }));
    let status = || get(&format!("{url}/v1/inference/jobs/{job}"), &key)["status"].clone();
    until("it is drawn", || (status() == "succeeded").then_some(()));
    goes(&mut server);

    // Also where it cannot start, and its last word is not read.
    let (_reader, writer) = full_pipe();
    let mut command = serving_at(&data, "127.0.0.1:0", "cuda:99");
    let mut refused = command.stdout(Stdio::null()).stderr(writer).spawn().expect("starts");
    assert_eq!(until("its end", || refused.try_wait().expect("a child")).code(), Some(1));
}

#[test]
fn a_standard_output_that_is_closed_or_full_ends_nothing() {
    let (_folder, data) = folder();
    let starts = |stdout: PipeWriter| {
        let address = free_address();
        let mut command = serving_at(&data, &address, "cpu");
        let child = command.stdout(stdout).spawn().expect("a process");
        let server = Server { child, lines: mpsc::channel().1 };
        let url = format!("http://{address}");
        until("it answers", || answers(&url).then_some(()));
        (server, url)
    };
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let (mut closed, url) = starts(writer);
    let is_ready = |url: &str| ureq::get(format!("{url}/readyz")).call().is_ok().then_some(());
    until("it is ready", || is_ready(&url));
    std::thread::sleep(Duration::from_millis(500));
    assert!(answers(&url));
    goes(&mut closed);

    let (reader, writer) = full_pipe();
    let (mut full, url) = starts(writer);
    until("it is ready", || is_ready(&url));
    std::thread::sleep(Duration::from_millis(500));
    assert!(answers(&url));
    goes(&mut full);
    drop(reader);

    // No secret was made that nobody has seen, and who reads late still reads all.
    let (mut reader, writer) = full_pipe();
    let (mut late, url) = starts(writer);
    until("it is ready", || is_ready(&url));
    let mut filling = vec![0; 65_536];
    reader.read_exact(&mut filling).expect("read");
    late.lines = lines_of(reader);
    late.line("The administrator's password, shown this once: ");
    assert!(late.line("A demo key, shown this once: ").starts_with("rgpu_"));
    goes(&mut late);
}

#[cfg(target_os = "linux")]
#[test]
fn a_terminal_that_is_gone_ends_the_worker_in_good_order() {
    let (_folder, data) = folder();
    // Whoever runs the tests may have had the signal ignored, which children inherit.
    let direct = serving(&data);
    let mut heeding = Command::new("env");
    heeding.arg("--default-signal=HUP").arg(direct.get_program()).args(direct.get_args());
    heeding.env_clear().env("PATH", "/usr/bin:/bin").env("FLUXSERVE_DRAIN_DEADLINE_SECONDS", "0");
    heeding.current_dir(data.parent().expect("a folder around it")).stderr(Stdio::null());
    let mut server = Server::of(&mut heeding);
    server.line("Draw an image:");
    server.tell("-HUP");
    let status = until("the end of the process", || server.child.try_wait().expect("a child"));
    assert!(status.success(), "{status:?}");

    // Whoever asked for it to go on, as `nohup` does, is heeded.
    let direct = serving(&data);
    let mut shell = Command::new("sh");
    shell.args(["-c", "trap '' HUP; exec \"$@\"", "sh"]).arg(direct.get_program()).args(direct.get_args());
    shell.current_dir(data.parent().expect("a folder around it")).stderr(Stdio::null());
    let mut server = Server::of(&mut shell);
    let url = server.url();
    server.line(&format!("{MODEL} is ready"));
    server.tell("-HUP");
    std::thread::sleep(Duration::from_millis(500));
    assert!(answers(&url));
    goes(&mut server);
}

/// The same command, with the limit of open files that `ulimit` is told first.
#[cfg(target_os = "linux")]
fn with_open_files(ulimit: &str, command: &Command) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("ulimit {ulimit} && exec \"$@\""), "sh"]);
    shell.arg(command.get_program()).args(command.get_args());
    shell.env_clear().env("PATH", "/usr/bin:/bin");
    shell.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    shell.current_dir(command.get_current_dir().expect("one"));
    shell
}

#[cfg(target_os = "linux")]
#[test]
fn few_open_files_are_made_more_and_what_does_not_fit_is_refused() {
    let (_folder, data) = folder();
    let mut server = Server::of(with_open_files("-S -n 64", &serving(&data)).stderr(Stdio::null()));
    let url = server.url();
    let key = server.line("A demo key, shown this once: ");
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", server.child.id())).expect("limits");
    let limit = limits.lines().find(|line| line.starts_with("Max open files")).expect("a limit");
    let numbers: Vec<&str> = limit.split_whitespace().filter(|word| word.parse::<u64>().is_ok()).collect();
    assert!(numbers.len() == 2 && numbers[0] == numbers[1], "{limit}");
    let address = url.strip_prefix("http://").expect("by http");
    let silent: Vec<_> = (0..200).map(|_| std::net::TcpStream::connect(address).expect("connected")).collect();
    assert!(answers(&url));
    let job = submit(&url, &key, &json!({ "model": MODEL, "prompt": "a fox", "steps": 2, "seed": 1 }));
    until("it is drawn", || {
        let status = get(&format!("{url}/v1/inference/jobs/{job}"), &key)["status"].clone();
        assert_ne!(status, "failed");
        (status == "succeeded").then_some(())
    });
    drop(silent);
    goes(&mut server);

    let refused = |ulimit: &str| {
        let output = with_open_files(ulimit, &serving(&data)).output().expect("it runs");
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let said = text(&output.stderr);
        assert!(said.contains("`http.connections_max`") && said.contains("ulimit -n"), "{said}");
        said
    };
    assert!(refused("-n 64").contains("64 files"));
    let said = refused("-n 256");
    let fit = said.split("to at most ").nth(1).and_then(|rest| rest.split(',').next()).expect("a number").to_owned();
    let mut command = serving(&data);
    command.env("FLUXSERVE_HTTP_CONNECTIONS_MAX", &fit);
    let mut server = Server::of(with_open_files("-n 256", &command).stderr(Stdio::null()));
    let url = server.url();
    // Whoever comes then gets in, or waits at the door; a few get a place beyond all others.
    let address = url.strip_prefix("http://").expect("by http");
    let _silent: Vec<_> = (0..120).map(|_| std::net::TcpStream::connect(address).expect("connected")).collect();
    assert!(answers(&url));
    server.line(&format!("{MODEL} is ready"));
    goes(&mut server);
}

#[test]
fn a_password_from_a_file_is_the_administrators_and_who_is_reached_in_the_clear_is_warned() {
    let (folder, data) = folder();
    let file = folder.path().join("password");
    std::fs::write(&file, "a password from a file\n").expect("written");
    let (mut log, writer) = std::io::pipe().expect("a pipe");
    let mut command = serving_at(&data, "0.0.0.0:0", "cpu");
    command.env("FLUXSERVE_ADMIN_PASSWORD_FILE", &file).env("FLUXSERVE_METRICS_LISTEN", "off").stderr(writer);
    let mut server = Server::of(&mut command);
    drop(command);
    let url = server.url();
    server.line("Draw an image:");
    let request = ureq::post(format!("{url}/v1/session")).header("content-type", "application/json");
    let signed_in = request.send(json!({ "password": "a password from a file" }).to_string()).expect("an answer");
    assert_eq!(signed_in.status().as_u16(), 201);
    goes(&mut server);
    let mut said = String::new();
    log.read_to_string(&mut said).expect("a log");
    assert!(said.contains("WARN") && said.contains("without https") && said.contains("--admin-listen"), "{said}");
    assert!(!said.contains("a password from a file"), "{said}");
    let keys = run(&data, &["keys", "list"]);
    assert!(!text(&keys.stdout).contains("demo"), "somebody sees to it");

    let output = serving(&data).env("FLUXSERVE_ADMIN_PASSWORD_FILE", "/nowhere").stderr(Stdio::piped()).output();
    let said = text(&output.expect("it runs").stderr);
    assert!(said.contains("FLUXSERVE_ADMIN_PASSWORD_FILE") && said.contains("/nowhere"), "{said}");
    // On this machine alone there is nothing to warn of.
    let (mut log, writer) = std::io::pipe().expect("a pipe");
    let mut command = serving(&data);
    let mut server = Server::of(command.env("FLUXSERVE_METRICS_LISTEN", "off").stderr(writer));
    drop(command);
    server.line("Draw an image:");
    goes(&mut server);
    let mut said = String::new();
    log.read_to_string(&mut said).expect("a log");
    assert!(!said.contains("https"), "{said}");
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

/// Runs a command that ends by itself.
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
            panic!("{arguments:?} does not end");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let output = child.wait_with_output().expect("an end");
    Output { stderr: errors.join().expect("no panic").expect("readable"), ..output }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_start_that_fails_says_why_and_leaves_the_demo_key_to_the_next() {
    let (_folder, data) = folder();
    let failed = run(&data, &["serve", "--listen", "127.0.0.1:0", "--device", "cuda:99"]);
    assert!(!failed.status.success());
    let errors = text(&failed.stderr);
    let last = errors.lines().last().expect("a reason");
    assert!(last.contains(MODEL) && last.to_lowercase().contains("cuda"), "{errors}");
    assert!(!text(&failed.stdout).contains("demo key") && !text(&failed.stdout).contains("password"));
    let keys = run(&data, &["keys", "list"]);
    assert!(!text(&keys.stdout).contains("demo"), "{}", text(&keys.stdout));

    let mut server = Server::start(&data, &[]);
    let url = server.url();
    let password = server.line("The administrator's password, shown this once: ");
    let key = server.line("A demo key, shown this once: ");
    assert_eq!(server.line("  it is good for "), "30 days");
    let keys = text(&run(&data, &["keys", "list"]).stdout);
    let demo = keys.lines().find(|line| line.starts_with(&key[..13])).expect("listed");
    let expires = time::OffsetDateTime::now_utc() + time::Duration::days(30) - time::Duration::MINUTE;
    let days = [expires, expires + 2 * time::Duration::MINUTE].map(|moment| moment.date().to_string());
    assert!(days.iter().any(|day| demo.contains(day.as_str())), "it expires: {demo}");
    let sign_in = |url: &str| {
        let request = ureq::post(format!("{url}/v1/session")).header("content-type", "application/json");
        request.send(json!({ "password": password }).to_string()).map(|answer| answer.status().as_u16())
    };
    assert_eq!(sign_in(&url).expect("an answer"), 201);
    // Beside the running server, and heeded by its next request.
    let mut set = program(&data)
        .args(["admin", "set-password"])
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("a process");
    set.stdin.take().expect("piped").write_all(b"another password\n").expect("read");
    assert!(set.wait().expect("an end").success());
    assert!(matches!(sign_in(&url), Err(ureq::Error::StatusCode(401))));
    assert!(server.stop().success());
}

#[test]
fn a_data_folder_belongs_to_one_worker_and_keys_can_be_made_beside_it() {
    let (_folder, data) = folder();
    let mut server = Server::start(&data, &[]);
    server.line("A demo key");
    let second = run(&data, &["serve", "--listen", "127.0.0.1:0"]);
    let errors = text(&second.stderr);
    assert!(!second.status.success());
    assert!(errors.contains(&data.display().to_string()) && errors.contains("--data-dir"), "{errors}");
    let made = run(&data, &["keys", "create", "--name", "beside", "--scope", "inference"]);
    assert!(made.status.success() && text(&made.stdout).starts_with("rgpu_"), "{}", text(&made.stderr));
    assert!(server.stop().success());
    // A worker that was stopped has let go of it.
    let mut next = Server::start(&data, &[]);
    next.line(&format!("{MODEL} is ready"));
    assert!(next.stop().success());
}

#[test]
fn many_restarts_do_not_fail_a_job_and_many_crashes_do() {
    let (_folder, data) = folder();
    let made = run(&data, &["keys", "create", "--name", "test", "--scope", "inference"]);
    let key = text(&made.stdout).trim().to_owned();
    let mut server = Server::start(&data, &[]);
    let mut url = server.url();
    server.line("Draw an image:");
    // Long enough to be caught at it each time.
    let body = json!({ "model": MODEL, "prompt": "a fox", "width": 256, "height": 256, "steps": 100, "seed": 1 });
    let job = submit(&url, &key, &body);
    let status = |url: &str| get(&format!("{url}/v1/inference/jobs/{job}"), &key);
    let runs = |url: &str| until("it is drawn", || (status(url)["status"] == "running").then_some(()));
    for is_clean in [true, true, true, true, false, false, false] {
        runs(&url);
        if is_clean {
            assert!(server.stop().success());
        }
        drop(server);
        server = Server::start(&data, &[]);
        url = server.url();
    }
    let view = until("it is given up", || Some(status(&url)).filter(|view| view["status"] == "failed"));
    assert_eq!(view["error"]["code"], "worker_crashed");
    assert!(server.stop().success());
}

#[test]
fn a_key_that_is_revoked_beside_the_server_takes_its_jobs_along() {
    let (_folder, data) = folder();
    let mut server = Server::start(&data, &[]);
    let url = server.url();
    let password = server.line("The administrator's password, shown this once: ");
    let staying = server.line("A demo key, shown this once: ");
    let created = run(&data, &["keys", "create", "--name", "leaving", "--scope", "inference"]);
    let leaving = text(&created.stdout).trim().to_owned();
    let body = json!({ "model": MODEL, "prompt": "a fox", "width": 256, "height": 256, "steps": 100, "seed": 1 });
    let job = submit(&url, &leaving, &body);
    let other = submit(&url, &staying, &json!({ "model": MODEL, "prompt": "a fox", "steps": 2, "seed": 1 }));
    let status = |job: &str, key: &str| get(&format!("{url}/v1/inference/jobs/{job}"), key)["status"].clone();
    until("it is drawn", || (status(&job, &leaving) == "running").then_some(()));
    let prefix = &leaving[..13];
    assert!(run(&data, &["keys", "revoke", prefix]).status.success());
    let signed_in = ureq::post(format!("{url}/v1/session")).header("content-type", "application/json");
    let signed_in = signed_in.send(json!({ "password": password }).to_string()).expect("signed in");
    let cookie =
        signed_in.headers()["set-cookie"].to_str().expect("text").split(';').next().expect("a pair").to_owned();
    until("it is cancelled", || {
        let request = ureq::get(format!("{url}/v1/jobs/{job}")).header("cookie", &cookie);
        let text = request.call().expect("an answer").body_mut().read_to_string().expect("a text");
        let view: Value = serde_json::from_str(&text).expect("JSON");
        assert_ne!(view["status"], "succeeded", "it was drawn to its end");
        (view["status"] == "canceled").then_some(())
    });
    until("the other one is drawn", || (status(&other, &staying) == "succeeded").then_some(()));
    assert!(server.stop().success());
}

/// What a command says, and how it ends. The secret of no key is ever part of it.
fn tell(data: &Path, secret: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let output = run(data, arguments);
    let said = text(&output.stdout) + &text(&output.stderr);
    assert!(!said.contains(&secret[..6]), "{arguments:?} repeats the secret: {said}");
    (output.status.code(), said)
}

#[test]
fn a_whole_key_means_its_prefix() {
    let (_folder, data) = folder();
    let made = run(&data, &["keys", "create", "--name", "leaked", "--scope", "all"]);
    let key = text(&made.stdout).trim().to_owned();
    let (prefix, secret) = key.split_at(13);
    for arguments in [
        &["keys", "edit", &key, "--name", "still leaked"][..],
        &["keys", "usage", &key],
        &["keys", "revoke", &key],
        &["keys", "revoke", prefix],
    ] {
        assert_eq!(tell(&data, secret, arguments).0, Some(0), "{arguments:?}");
    }
    let (_, listed) = tell(&data, secret, &["keys", "list"]);
    assert!(listed.contains(prefix) && listed.contains("still leaked") && listed.contains("revoked"), "{listed}");

    let made = run(&data, &["keys", "create", "--name", "another", "--scope", "all"]);
    let another = text(&made.stdout).trim().to_owned();
    let rotated = run(&data, &["keys", "rotate", &another]);
    let new = text(&rotated.stdout).trim().to_owned();
    assert!(rotated.status.success() && new.starts_with("rgpu_") && new != another, "{rotated:?}");
    assert!(!(text(&rotated.stderr) + &new).contains(&another[13..19]), "{rotated:?}");
    let (_, listed) = tell(&data, &another[13..], &["keys", "list"]);
    assert!(listed.contains(&new[..13]), "{listed}");
}

#[test]
fn the_secret_of_a_key_is_not_repeated_wherever_it_was_pasted() {
    let (_folder, data) = folder();
    let made = run(&data, &["keys", "create", "--name", "leaked", "--scope", "all"]);
    let key = text(&made.stdout).trim().to_owned();
    let (prefix, secret) = key.split_at(13);
    let mistyped = format!("{key}x");
    for arguments in [
        &["keys", "revoke", &mistyped][..],
        &["keys", "revoke", prefix, &key],
        &["keys", "list", &key],
        &["keys", &key],
        &["keys", "usage", prefix, "--days", &key],
        &["keys", "edit", prefix, "--scope", &key],
        &["keys", "revoke", &format!("--prefix={key}")],
        &[key.as_str()],
    ] {
        let (code, said) = tell(&data, secret, arguments);
        assert!(code == Some(1) || code == Some(2), "{arguments:?}: {code:?} {said}");
    }
}

#[test]
fn a_backup_is_where_its_name_says_also_where_that_looks_like_a_uri() {
    use std::os::unix::fs::PermissionsExt as _;

    let (folder, data) = folder();
    assert!(run(&data, &["keys", "create", "--name", "n", "--scope", "all"]).status.success());
    // In a working directory of its own: the name is relative to that.
    let here = folder.path().join("here");
    std::fs::create_dir(&here).expect("made");
    for name in ["file:copy.db", "file:copy.db?mode=memory", "./file:other.db", ":memory:", "plain.db"] {
        let mut command = program(&data);
        let output = command.current_dir(&here).args(["backup", name]).output().expect("it runs");
        let said = text(&output.stderr);
        assert!(output.status.success(), "{name}: {said}");
        let file = here.join(name);
        let metadata = std::fs::metadata(&file).expect("under its name");
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600, "{name}");
        assert!(said.contains(&format!("{} bytes", metadata.len())) && metadata.len() > 4096, "{name}: {said}");
        assert!(std::fs::read(&file).expect("readable").starts_with(b"SQLite format 3\0"), "{name}");
    }
    let mut found: Vec<_> =
        std::fs::read_dir(&here).expect("there").map(|entry| entry.expect("one").file_name()).collect();
    found.sort();
    assert_eq!(found, [":memory:", "file:copy.db", "file:copy.db?mode=memory", "file:other.db", "plain.db"]);
}

#[test]
fn nothing_of_somebody_elses_working_directory_is_run() {
    use std::os::unix::fs::PermissionsExt as _;

    let (folder, data) = folder();
    let evil = folder.path().join("evil");
    std::fs::create_dir(&evil).expect("made");
    let proof = evil.join("was-run");
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "x",
        "clusters": [{ "name": "c", "cluster": { "server": "https://127.0.0.1:1" } }],
        "users": [{ "name": "u", "user": { "exec": {
            "apiVersion": "client.authentication.k8s.io/v1", "interactiveMode": "Never",
            "command": "touch", "args": [proof],
        } } }],
        "contexts": [{ "name": "x", "context": { "cluster": "c", "user": "u" } }],
    });
    std::fs::write(evil.join("kubeconfig"), kubeconfig.to_string()).expect("written");
    let file = evil.join("fluxserve.toml");
    let check = || {
        let output = program(&data).current_dir(&evil).args(["kubernetes", "check"]).output().expect("it runs");
        assert!(!output.status.success() && !proof.exists(), "{output:?}");
        text(&output.stderr)
    };
    // In a file of the user's own no program is run unless it says so, too.
    std::fs::write(&file, "[kubernetes]\nkubeconfig = \"kubeconfig\"\n").expect("written");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).expect("ours");
    let said = check();
    assert!(said.contains("`touch`") && said.contains("kubernetes.allow_exec_plugins"), "{said}");
    // Nor where the data folder is that of the working directory.
    std::fs::create_dir_all(data.join("kubernetes")).expect("made");
    std::fs::copy(evil.join("kubeconfig"), data.join("kubernetes/kubeconfig")).expect("copied");
    std::fs::write(&file, "").expect("written");
    let said = check();
    assert!(said.contains("kubernetes.allow_exec_plugins"), "{said}");

    std::fs::write(&file, "[kubernetes]\nkubeconfig = \"kubeconfig\"\nallow_exec_plugins = true\n").expect("written");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o666)).expect("ours");
    let said = check();
    assert!(said.contains("fluxserve.toml") && said.contains("others than its owner can write"), "{said}");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).expect("ours");
    // Only root can give a file away.
    if std::os::unix::fs::chown(&file, Some(54_321), None).is_ok() {
        let said = check();
        assert!(said.contains("belongs to user 54321") && said.contains("--config"), "{said}");
        std::os::unix::fs::chown(&file, Some(0), None).expect("back");
    }
    let allowed = program(&data).current_dir(&evil).args(["kubernetes", "check"]).output().expect("it runs");
    assert!(!allowed.status.success() && proof.exists(), "it is allowed: {allowed:?}");
}

#[test]
fn an_image_is_drawn_from_another_without_a_server() {
    let (folder, data) = folder();
    let place = |name: &str| folder.path().join(name);
    let generate = |output: &str, more: &[&str], provenance: &str| -> Output {
        let mut command = program(&data);
        command.args(["generate", "--model", MODEL, "--prompt", "a red circle on a blue background", "--steps", "10"]);
        command.args(["--seed", "7", "--output", output]).args(more);
        command.env("FLUXSERVE_RESULTS_PROVENANCE", provenance).output().expect("it runs")
    };
    let told = |name: &str| {
        let bytes = std::fs::read(place(name)).expect("a file");
        let read = exif::Reader::new().read_from_container(&mut std::io::Cursor::new(&bytes)).ok()?;
        let comment = read.get_field(exif::Tag::UserComment, exif::In::PRIMARY)?;
        let exif::Value::Undefined(comment, _) = &comment.value else { panic!("bytes") };
        Some(serde_json::from_slice::<Value>(&comment[8..]).expect("JSON"))
    };
    let first = generate("first.png", &["--width", "96", "--height", "64"], "true");
    assert!(first.status.success(), "{first:?}");
    let expected = json!({ "model": MODEL, "seed": 7, "steps": 10, "guidance": 3.5, "width": 96, "height": 64 });
    assert_eq!(told("first.png"), Some(expected.clone()));

    let from_first = ["--image", "first.png", "--strength", "0.3"];
    for (output, provenance) in [("second.png", "true"), ("again.png", "true"), ("bare.png", "false")] {
        let drawn = generate(output, &from_first, provenance);
        assert!(drawn.status.success(), "{drawn:?}");
    }
    let mut expected = expected;
    expected["strength"] = json!(0.3);
    assert_eq!(told("second.png"), Some(expected), "in the image's own size");
    let read = |name: &str| std::fs::read(place(name)).expect("a file");
    assert!(read("second.png") == read("again.png"), "the same file each time");
    assert_eq!(told("bare.png"), None);
    let pixels = |name: &str| image::open(place(name)).expect("an image").to_rgb8().into_raw();
    assert!(pixels("bare.png") == pixels("second.png"));
    let away = |name: &str| -> u64 {
        pixels("first.png").iter().zip(pixels(name)).map(|(a, b)| u64::from(a.abs_diff(b))).sum()
    };
    assert!(
        away("second.png") > 0 && away("second.png") < 96 * 64 * 3 * 12,
        "much of it is left: {}",
        away("second.png")
    );

    std::fs::write(place("notes.txt"), "no image").expect("written");
    let refused = generate("third.png", &["--image", "notes.txt"], "true");
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(text.contains("--image: `notes.txt` is not a PNG, JPEG or WebP file"), "{text}");
    let refused = generate("third.png", &["--image", "first.png", "--strength", "1.5"], "true");
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(text.contains("--strength: must be above 0 and at most 1, not 1.5"), "{text}");
}

#[test]
fn two_models_are_served_side_by_side() {
    let (_folder, data) = folder();
    let reference = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/FLUX.1-dev");
    let other = "black-forest-labs/FLUX.1-dev";
    let source = format!("{other}={}", reference.display());
    let mut server = Server::start(&data, &["--model", MODEL, "--model", &source]);
    let url = server.url();
    let key = server.line("A demo key, shown this once: ");
    let jobs = [MODEL, other].map(|model| {
        let body = json!({ "model": model, "prompt": "a fox", "width": 64, "height": 64, "steps": 2, "seed": 1 });
        submit(&url, &key, &body)
    });
    for job in jobs {
        let status = || get(&format!("{url}/v1/inference/jobs/{job}"), &key)["status"].clone();
        until("it is drawn", || (status() == "succeeded").then_some(()));
    }
    let runtime = get(&format!("{url}/v1/inference/runtime/models"), &key);
    let drawing = runtime["models"].as_array().expect("a list").iter().filter(|model| model["available"] == true);
    let ids: Vec<&str> = drawing.filter_map(|model| model["id"].as_str()).collect();
    assert_eq!(ids, [other, MODEL]);
    assert!(server.stop().success());
}

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
