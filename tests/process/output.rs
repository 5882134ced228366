//! Standard output and log that are unread, closed or full, and a closed terminal.

use super::*;

/// A full pipe.
fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    // The capacity of a pipe on Linux.
    writer.write_all(&vec![b'.'; 65_536]).expect("written");
    (reader, writer)
}

/// An address that nothing listens at.
fn free_address() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("an address");
    listener.local_addr().expect("an address").to_string()
}

#[test]
fn an_unread_log_blocks_neither_responses_nor_the_exit() {
    let (_folder, data) = folder();
    let (_reader, writer) = full_pipe();
    let mut server = Server::of(serving(&data).env("FLUXSERVE_LOG_FILTER", "trace").stderr(writer));
    let url = server.url();
    let key = server.line("A demo key, shown this once: ");
    assert!((0..100).all(|_| answers(&url)));
    let job = submit(&url, &key, &json!({ "model": MODEL, "prompt": "a fox", "steps": 2, "seed": 1 }));
    let status = || get(&format!("{url}/v1/inference/jobs/{job}"), &key)["status"].clone();
    until("it succeeds", || (status() == "succeeded").then_some(()));
    exits(&mut server);

    // Also if it cannot start, and its error message is not read.
    let (_reader, writer) = full_pipe();
    let mut command = serving_at(&data, "127.0.0.1:0", "cuda:99");
    let mut refused = command.stdout(Stdio::null()).stderr(writer).spawn().expect("starts");
    assert_eq!(until("its end", || refused.try_wait().expect("a child")).code(), Some(1));
}

#[test]
fn a_closed_or_full_standard_output_does_not_stop_the_worker() {
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
    exits(&mut closed);

    let (reader, writer) = full_pipe();
    let (mut full, url) = starts(writer);
    until("it is ready", || is_ready(&url));
    std::thread::sleep(Duration::from_millis(500));
    assert!(answers(&url));
    exits(&mut full);
    drop(reader);

    // Secrets are created only when they can be read, and a late reader still reads everything.
    let (mut reader, writer) = full_pipe();
    let (mut late, url) = starts(writer);
    until("it is ready", || is_ready(&url));
    let mut filling = vec![0; 65_536];
    reader.read_exact(&mut filling).expect("read");
    late.lines = lines_of(reader);
    late.line("The administrator's password, shown this once: ");
    assert!(late.line("A demo key, shown this once: ").starts_with("rgpu_"));
    exits(&mut late);
}

#[cfg(target_os = "linux")]
#[test]
fn a_closed_terminal_shuts_the_worker_down_gracefully() {
    let (_folder, data) = folder();
    // The tests may run with the signal ignored, which children inherit.
    let direct = serving(&data);
    let mut handling = Command::new("env");
    handling.arg("--default-signal=HUP").arg(direct.get_program()).args(direct.get_args());
    handling.env_clear().env("PATH", "/usr/bin:/bin").env("FLUXSERVE_DRAIN_DEADLINE_SECONDS", "0");
    handling.current_dir(data.parent().expect("a folder around it")).stderr(Stdio::null());
    let mut server = Server::of(&mut handling);
    server.line("Generate an image:");
    server.tell("-HUP");
    let status = until("the end of the process", || server.child.try_wait().expect("a child"));
    assert!(status.success(), "{status:?}");

    // An ignored signal, as with `nohup`, stays ignored.
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
    exits(&mut server);
}
