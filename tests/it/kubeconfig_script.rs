//! The kubeconfig's `sh` script, with the real `curl`, a user's own curl settings, and a malicious worker.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Command, Stdio};

use axum::http::StatusCode;
use tokio::task::spawn_blocking;

use crate::app::managing;
use crate::kubernetes::Site;

/// The script in a kubeconfig.
fn script(kubeconfig: &str) -> String {
    let lines = kubeconfig.lines().skip_while(|line| !line.ends_with("- |")).skip(1);
    let lines = lines.take_while(|line| line.starts_with("        "));
    lines.flat_map(|line| [line.trim_start_matches("        "), "\n"]).collect()
}

/// A worker that answers any `count` requests the same way. Returns the requests.
fn worker(status: u16, body: Vec<u8>, count: usize) -> (SocketAddr, std::thread::JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let serving = std::thread::spawn(move || {
        let answer = |_| {
            let (mut stream, _) = listener.accept().expect("a client");
            let mut bytes = Vec::new();
            // The body is empty: the request ends with its head.
            while !bytes.ends_with(b"\r\n\r\n") {
                let mut buffer = [0; 1024];
                let count = stream.read(&mut buffer).expect("readable");
                assert!(count > 0, "a complete request");
                bytes.extend_from_slice(&buffer[..count]);
            }
            let head = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
            stream.write_all(&[head.as_bytes(), &body].concat()).expect("writable");
            String::from_utf8_lossy(&bytes).into_owned()
        };
        (0..count).map(answer).collect()
    });
    (address, serving)
}

/// Runs it as kubectl does. Returns success, standard output and standard error.
async fn run(script: String, home: &Path) -> (bool, Vec<u8>, Vec<u8>) {
    let mut command = Command::new("sh");
    command.args(["-c", &script]).env("HOME", home).env("CURL_HOME", home).env("REMOTEGPU_API_KEY", "rgpu_x");
    command.env_remove("http_proxy").env_remove("ALL_PROXY").env("KUBERNETES_EXEC_INFO", "").stdin(Stdio::null());
    let output = spawn_blocking(move || command.output()).await.expect("no panic").expect("it runs");
    (output.status.success(), output.stdout, output.stderr)
}

async fn script_for(site: &Site, namespace: &str, worker: SocketAddr) -> String {
    let cookie = site.app.sign_in().await;
    let mut request = managing(&cookie, "GET", &format!("/v1/kubernetes/namespaces/{namespace}/kubeconfig"), None);
    request.headers_mut().insert("host", worker.to_string().parse().expect("a value"));
    let answer = site.app.send(request).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    script(answer.json()["kubeconfig"].as_str().expect("YAML"))
}

#[tokio::test]
async fn the_users_own_curl_settings_are_ignored() {
    let site = Site::start().await;
    let namespace = site.namespace("team-a").await;
    let home = tempfile::tempdir().expect("a folder");
    let elsewhere = home.path().join("elsewhere");
    for settings in [
        String::new(),
        "include".into(),
        "verbose".into(),
        "fail\nwrite-out = \"%{url}\"".into(),
        "proxy = \"http://127.0.0.1:1\"".into(),
        format!("output = \"{}\"", elsewhere.display()),
        "user-agent = \"mine\"\nheader = \"X-Mine: yes\"".into(),
    ] {
        std::fs::write(home.path().join(".curlrc"), &settings).expect("written");
        let (address, serving) = worker(200, b"{\"kind\":\"ExecCredential\"}".to_vec(), 1);
        let (is_well, out, said) = run(script_for(&site, &namespace, address).await, home.path()).await;
        let (out, said) = (String::from_utf8_lossy(&out), String::from_utf8_lossy(&said));
        assert!(is_well, "{settings}: {said}");
        assert_eq!((&*out, &*said), ("{\"kind\":\"ExecCredential\"}\n", ""), "{settings}");
        let asked = serving.join().expect("no panic");
        assert!(asked[0].contains("Bearer rgpu_x") && !asked[0].contains("mine"), "{settings}: {}", asked[0]);
        assert!(!elsewhere.exists(), "{settings}");
    }
}

#[tokio::test]
async fn a_refusal_reaches_the_terminal_as_plain_text() {
    let site = Site::start().await;
    let namespace = site.namespace("team-a").await;
    let home = tempfile::tempdir().expect("a folder");
    // It sets a title, clears the screen, overwrites the line, and starts a sequence with a single byte.
    let body = b"no\x1b]0;owned\x07 way\x1b[2J\rok\x08\x9b31m \xc2\x9b1m\xe2\x80\xae end\n\tsecond line".to_vec();
    let (address, serving) = worker(403, body, 1);
    let (is_well, out, said) = run(script_for(&site, &namespace, address).await, home.path()).await;
    assert!(!is_well && out.is_empty());
    assert_eq!(
        String::from_utf8(said).expect("ASCII"),
        "no credential: no]0;owned way[2Jok31m 1m end\n\tsecond line\n"
    );
    serving.join().expect("no panic");
}
