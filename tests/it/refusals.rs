//! Answers that are sent before the body is read: they arrive even if the client first sends its complete body.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use axum::Router;
use fluxserve::auth::{Actor, NewKey};
use fluxserve::domain::limits::KeyLimits;
use fluxserve::domain::scope::Scope;
use fluxserve::http::{ConnectionLimits, HttpSettings, Tls, serve};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::addresses::{HOST, certified, secured};
use crate::app::{Options, TestApp};

const PATIENCE: Duration = Duration::from_secs(20);
/// More than the buffers of a connection can hold.
const BODY_BYTES: usize = 24 * 1024 * 1024;

/// A request that is refused before its body is read.
struct Refused<'a> {
    method: &'a str,
    path: &'a str,
    key: Option<&'a str>,
    media_type: &'a str,
    status: u16,
}

impl Refused<'_> {
    fn of(status: u16) -> Self {
        Self { method: "POST", path: "/v1/inference/image", key: None, media_type: "application/json", status }
    }

    fn head(&self, length: Option<usize>, more: &str) -> String {
        let Self { method, path, media_type, .. } = self;
        let key = self.key.map(|key| format!("x-api-key: {key}\r\n")).unwrap_or_default();
        let length = match length {
            Some(length) => format!("content-length: {length}"),
            None => "transfer-encoding: chunked".to_owned(),
        };
        format!("{method} {path} HTTP/1.1\r\nhost: {HOST}\r\ncontent-type: {media_type}\r\n{key}{length}\r\n{more}\r\n")
    }
}

async fn start(router: &Router, tls: Option<Tls>) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    let limits = ConnectionLimits::default();
    (address, tokio::spawn(serve(listener, router.clone(), std::future::pending(), limits, tls)))
}

async fn connect(address: SocketAddr) -> TcpStream {
    TcpStream::connect(address).await.expect("a connection")
}

/// Sends a complete request, like clients that read the answer only afterwards.
async fn send(connection: &mut (impl AsyncWrite + Unpin), head: &str, bytes: usize, is_chunked: bool) {
    connection.write_all(head.as_bytes()).await.expect("the head is taken");
    let chunk = vec![b'x'; 64 * 1024];
    for start in (0..bytes).step_by(chunk.len()) {
        let chunk = &chunk[..chunk.len().min(bytes - start)];
        if is_chunked {
            connection.write_all(format!("{:x}\r\n", chunk.len()).as_bytes()).await.expect("all of it is taken");
        }
        connection.write_all(chunk).await.expect("all of it is taken");
        if is_chunked {
            connection.write_all(b"\r\n").await.expect("all of it is taken");
        }
    }
    if is_chunked {
        connection.write_all(b"0\r\n\r\n").await.expect("all of it is taken");
    }
    connection.flush().await.expect("all of it is taken");
}

/// The head of an answer in lower case, and its body.
async fn answer(connection: &mut (impl AsyncRead + Unpin)) -> (String, Vec<u8>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(connection.read_u8().await.expect("an answer"));
    }
    let head = String::from_utf8(head).expect("text").to_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a length");
    let mut body = vec![0; length.parse().expect("a number")];
    connection.read_exact(&mut body).await.expect("all of the answer");
    (head, body)
}

/// The answer arrives with its body, and the connection can be reused.
async fn arrives(connection: &mut (impl AsyncRead + AsyncWrite + Unpin), refused: &Refused<'_>, is_chunked: bool) {
    let what = format!("{} {}, chunked: {is_chunked}", refused.method, refused.path);
    let exchange = async {
        let length = (!is_chunked).then_some(BODY_BYTES);
        send(connection, &refused.head(length, ""), BODY_BYTES, is_chunked).await;
        let (head, body) = answer(connection).await;
        assert!(head.starts_with(&format!("http/1.1 {}", refused.status)), "{what}: {head}");
        assert!(body.starts_with(b"{"), "{what}");
        assert!(!head.contains("connection: close"), "{what}: {head}");
        send(connection, &format!("GET /healthz HTTP/1.1\r\nhost: {HOST}\r\n\r\n"), 0, false).await;
        let (head, _) = answer(connection).await;
        assert!(head.starts_with("http/1.1 200"), "{what}: {head}");
    };
    timeout(PATIENCE, exchange).await.unwrap_or_else(|_| panic!("no answer to {what}"));
}

#[tokio::test]
async fn a_refusal_arrives_while_the_body_is_still_being_sent() {
    let app = TestApp::start().await;
    let limits = KeyLimits { requests_per_minute: Some(1), ..KeyLimits::default() };
    let limited = NewKey { name: "limited".into(), scope: Scope::Inference, expires_at: None, limits };
    let limited = app.service.create(limited, &Actor::CommandLine).await.expect("a key");
    let limited = limited.plain.reveal().to_owned();
    let used_up = app.send(crate::app::request("GET", "/v1/inference/jobs", Some(&limited), None)).await;
    assert_eq!(used_up.status, 200);
    let refused = [
        Refused::of(401),
        Refused { key: Some(&app.keys.kubernetes), ..Refused::of(403) },
        Refused { path: "/v1/nothing", ..Refused::of(404) },
        Refused { path: "/v1/images/upscale", key: Some(&app.keys.inference), ..Refused::of(404) },
        Refused { method: "PUT", ..Refused::of(405) },
        Refused { key: Some(&app.keys.inference), ..Refused::of(413) },
        Refused { key: Some(&app.keys.inference), media_type: "text/plain", ..Refused::of(415) },
        Refused { path: "/v1/images/edits", media_type: "multipart/form-data; boundary=x", ..Refused::of(401) },
        Refused { path: "/v1/images/variations", key: Some(&app.keys.inference), ..Refused::of(415) },
        Refused { key: Some(&limited), ..Refused::of(429) },
        Refused { path: "/v1/session", media_type: "multipart/form-data", ..Refused::of(415) },
        Refused { path: "/v1/api-keys", ..Refused::of(401) },
    ];
    let (address, server) = start(&app.router, None).await;
    for refused in &refused {
        for is_chunked in [false, true] {
            arrives(&mut connect(address).await, refused, is_chunked).await;
        }
    }
    // Keys can no longer be looked up.
    app.store.close().await;
    for is_chunked in [false, true] {
        let refused = Refused { key: Some(&app.keys.inference), ..Refused::of(503) };
        arrives(&mut connect(address).await, &refused, is_chunked).await;
    }
    server.abort();
}

#[tokio::test]
async fn a_refusal_arrives_at_the_management_address_and_over_https() {
    let http = HttpSettings { has_own_management: true, has_tls: true, ..Options::default().http };
    let app = TestApp::with(Options { http, ..Options::default() }).await;
    let folder = tempfile::tempdir().expect("a folder");
    let (tls, client) = certified(folder.path());
    let management = app.management.as_ref().expect("a second router");
    let (clients, first) = start(&app.router, Some(tls)).await;
    let (administrators, second) = start(management, None).await;
    for is_chunked in [false, true] {
        let mut connection = secured(connect(clients).await, &client).await;
        arrives(&mut connection, &Refused::of(401), is_chunked).await;
        let refused = Refused { path: "/v1/api-keys", ..Refused::of(401) };
        arrives(&mut connect(administrators).await, &refused, is_chunked).await;
        let refused = Refused { path: "/v1/inference/image", ..Refused::of(404) };
        arrives(&mut connect(administrators).await, &refused, is_chunked).await;
    }
    first.abort();
    second.abort();
}

/// Here the connection ends, announces it, and does not cut the answer off.
#[tokio::test]
async fn a_refusal_arrives_before_a_body_too_large_to_drain() {
    const BYTES: usize = 48 * 1024 * 1024;
    let app = TestApp::start().await;
    let folder = tempfile::tempdir().expect("a folder");
    let (tls, client) = certified(folder.path());
    let (plain, first) = start(&app.router, None).await;
    let (by_https, second) = start(&app.router, Some(tls)).await;
    let exchange = async {
        let mut connection = connect(plain).await;
        send(&mut connection, &Refused::of(401).head(Some(BYTES), ""), BYTES, false).await;
        let (head, _) = answer(&mut connection).await;
        assert!(head.starts_with("http/1.1 401") && head.contains("connection: close"), "{head}");
        assert_eq!(connection.read(&mut [0]).await.expect("a clean end"), 0);
        let mut connection = secured(connect(by_https).await, &client).await;
        send(&mut connection, &Refused::of(401).head(Some(BYTES), ""), BYTES, false).await;
        let (head, _) = answer(&mut connection).await;
        assert!(head.starts_with("http/1.1 401") && head.contains("connection: close"), "{head}");
        // Chunks do not announce the total length.
        let mut connection = connect(plain).await;
        send(&mut connection, &Refused::of(401).head(None, ""), BYTES, true).await;
        let (head, _) = answer(&mut connection).await;
        assert!(head.starts_with("http/1.1 401"), "{head}");
        assert_eq!(connection.read(&mut [0]).await.expect("a clean end"), 0);
    };
    timeout(PATIENCE, exchange).await.expect("answers");
    first.abort();
    second.abort();
}

#[tokio::test]
async fn a_client_that_expects_100_continue_gets_the_refusal_instead() {
    let app = TestApp::start().await;
    let (address, server) = start(&app.router, None).await;
    let mut connection = connect(address).await;
    let head = Refused::of(401).head(Some(BODY_BYTES), "expect: 100-continue\r\n");
    connection.write_all(head.as_bytes()).await.expect("written");
    let (head, _) = timeout(PATIENCE, answer(&mut connection)).await.expect("an answer");
    assert!(head.starts_with("http/1.1 401") && head.contains("connection: close"), "{head}");
    server.abort();
}

/// A client that never ends its body, or never closes its side, keeps its connection for a few seconds only.
#[tokio::test]
async fn draining_a_body_ends() {
    let app = TestApp::start().await;
    let (address, server) = start(&app.router, None).await;
    let mut connection = connect(address).await;
    connection.write_all(Refused::of(401).head(Some(BODY_BYTES), "").as_bytes()).await.expect("written");
    let (head, _) = timeout(PATIENCE, answer(&mut connection)).await.expect("an answer");
    assert!(head.starts_with("http/1.1 401"), "{head}");
    let started = Instant::now();
    let ended = timeout(PATIENCE, connection.read(&mut [0])).await.expect("an end");
    assert_eq!(ended.expect("a clean end"), 0);
    assert!(started.elapsed() < Duration::from_secs(9), "{:?}", started.elapsed());
    server.abort();
}

#[tokio::test]
async fn connections_without_a_request_do_not_delay_the_shutdown() {
    let app = TestApp::start().await;
    let folder = tempfile::tempdir().expect("a folder");
    let (tls, client) = certified(folder.path());
    for tls in [None, Some(tls)] {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let (close, closing) = tokio::sync::oneshot::channel::<()>();
        let closing = async { drop(closing.await) };
        let limits = ConnectionLimits::default();
        let server = tokio::spawn(serve(listener, app.router.clone(), closing, limits, tls.clone()));
        let used = format!("GET /healthz HTTP/1.1\r\nhost: {HOST}\r\n\r\n");
        let (mut plain, mut by_https) = (None, None);
        if tls.is_some() {
            let mut connection = secured(connect(address).await, &client).await;
            send(&mut connection, &used, 0, false).await;
            answer(&mut connection).await;
            by_https = Some(connection);
        } else {
            let mut connection = connect(address).await;
            send(&mut connection, &used, 0, false).await;
            answer(&mut connection).await;
            plain = Some(connection);
        }
        let _unused = connect(address).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        let started = Instant::now();
        drop(close);
        let deadline = Duration::from_millis(700);
        timeout(PATIENCE, server).await.expect("an end").expect("no panic");
        assert!(started.elapsed() < deadline, "https: {}, {:?}", tls.is_some(), started.elapsed());
        drop((plain, by_https));
    }
}
