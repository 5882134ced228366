//! The worker on a real port: the limits of connections.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use fluxserve::http::{ConnectionLimits, serve};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::app::{TestApp, image, listen};

const PATIENCE: Duration = Duration::from_secs(10);
const REQUEST: &[u8] = b"GET /healthz HTTP/1.1\r\nhost: worker.test\r\nconnection: close\r\n\r\n";

fn strict(connections_max: usize) -> ConnectionLimits {
    ConnectionLimits { connections_max, header_deadline: Duration::from_millis(300), ..ConnectionLimits::default() }
}

async fn connect(address: SocketAddr) -> TcpStream {
    TcpStream::connect(address).await.expect("a connection")
}

/// Everything received until the other side closes.
async fn rest(connection: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    // A reset connection has ended as well.
    drop(timeout(PATIENCE, connection.read_to_end(&mut bytes)).await.expect("the worker closes the connection"));
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Connections that send nothing, or an incomplete head.
async fn half_open(address: SocketAddr, count: usize) -> Vec<TcpStream> {
    let mut silent = Vec::new();
    for number in 0..count {
        let mut connection = connect(address).await;
        if number % 2 == 0 {
            connection.write_all(b"GET /healthz HTTP/1.1\r\nhost: ").await.expect("written");
        }
        silent.push(connection);
    }
    silent
}

#[tokio::test]
async fn half_open_connections_do_not_block_other_clients() {
    let app = TestApp::start().await;
    let limits = ConnectionLimits { connections_max: 4, ..ConnectionLimits::default() };
    let deadline = limits.header_deadline;
    let (address, server) = listen(&app, limits).await;
    let answer = async |path: &str| {
        let mut good = connect(address).await;
        ask(&mut good, path).await;
        head(&mut good).await
    };
    let mut silent = Vec::new();
    for round in 0..3 {
        silent.extend(half_open(address, 20).await);
        let asked = Instant::now();
        assert!(answer("/healthz").await.starts_with("http/1.1 200"), "a health check succeeds");
        // A client may have to retry until one of the silent connections has been idle long enough to be evicted.
        while !answer("/v1/models").await.starts_with("http/1.1 200") {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert!(asked.elapsed() < deadline / 3, "round {round} took {:?}", asked.elapsed());
    }
    server.abort();
}

#[tokio::test]
async fn half_open_connections_are_closed_at_their_deadline() {
    let app = TestApp::start().await;
    let (address, server) = listen(&app, strict(4)).await;
    let mut silent = half_open(address, 12).await;
    let mut good = connect(address).await;
    good.write_all(REQUEST).await.expect("written");
    assert!(rest(&mut good).await.starts_with("HTTP/1.1 200"));
    for connection in &mut silent {
        assert!(!rest(connection).await.contains("200"));
    }
    server.abort();
}

#[tokio::test]
async fn a_connection_that_is_kept_open_without_use_is_closed() {
    let app = TestApp::start().await;
    let (address, server) = listen(&app, strict(4)).await;
    let mut connection = connect(address).await;
    connection.write_all(b"GET /healthz HTTP/1.1\r\nhost: worker.test\r\n\r\n").await.expect("written");
    assert!(rest(&mut connection).await.starts_with("HTTP/1.1 200"));
    server.abort();
}

#[tokio::test]
async fn a_head_without_end_is_refused() {
    let app = TestApp::start().await;
    let (address, server) = listen(&app, ConnectionLimits::default()).await;
    let mut connection = connect(address).await;
    let head = format!("GET /healthz HTTP/1.1\r\nhost: worker.test\r\nx: {}", "x".repeat(100_000));
    // The worker may have closed the connection before all of it is written.
    drop(connection.write_all(head.as_bytes()).await);
    let answer = rest(&mut connection).await;
    assert!(!answer.contains(" 200 "), "{answer}");
    server.abort();
}

#[tokio::test]
async fn closing_lets_the_present_request_finish() {
    let app = TestApp::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    let (close, closing) = tokio::sync::oneshot::channel::<()>();
    let server = tokio::spawn(serve(listener, app.router.clone(), async { drop(closing.await) }, strict(4), None));
    app.control.hold();
    let mut connection = connect(address).await;
    ask_for_image(&mut connection, &app.keys.inference, 1).await;
    app.control.held().await;
    drop(close);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!server.is_finished());
    assert!(TcpStream::connect(address).await.is_err(), "no new connections");
    app.control.release();
    let answer = rest(&mut connection).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("image/png"), "{answer}");
    timeout(PATIENCE, server).await.expect("all connections are closed").expect("no panic");
}

async fn ask(connection: &mut TcpStream, path: &str) {
    let head = format!("GET {path} HTTP/1.1\r\nhost: worker.test\r\n\r\n");
    connection.write_all(head.as_bytes()).await.expect("written");
}

/// Requests an image and its file as the answer.
async fn ask_for_image(connection: &mut TcpStream, key: &str, seed: u64) {
    let body = image(seed).to_string();
    let head = format!(
        "POST /v1/inference/image HTTP/1.1\r\nhost: worker.test\r\nx-api-key: {key}\r\naccept: image/png\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    connection.write_all(head.as_bytes()).await.expect("written");
}

/// The head of an answer in lower case; its body has arrived as well.
async fn head(connection: &mut TcpStream) -> String {
    let mut bytes = vec![0; 16 * 1024];
    let count = timeout(PATIENCE, connection.read(&mut bytes)).await.expect("an answer").expect("an answer");
    let answer = String::from_utf8_lossy(&bytes[..count]).to_lowercase();
    answer.split("\r\n\r\n").next().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn idle_connections_do_not_block_other_clients() {
    let app = TestApp::start().await;
    let limits = ConnectionLimits { connections_max: 4, ..ConnectionLimits::default() };
    let (address, server) = listen(&app, limits).await;
    let mut kept = Vec::new();
    for _ in 0..4 {
        let mut connection = connect(address).await;
        ask(&mut connection, "/healthz").await;
        assert!(head(&mut connection).await.starts_with("http/1.1 200"));
        kept.push(connection);
    }
    // The second one is used again, so that the first has been idle the longest.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    ask(&mut kept[1], "/healthz").await;
    assert!(head(&mut kept[1]).await.starts_with("http/1.1 200"));
    for expected in [0, 2] {
        let started = Instant::now();
        let mut new = connect(address).await;
        ask(&mut new, "/v1/models").await;
        assert!(head(&mut new).await.starts_with("http/1.1 200"));
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
        assert_eq!(rest(&mut kept[expected]).await, "", "the one idle the longest is evicted");
        kept.push(new);
    }
    ask(&mut kept[1], "/healthz").await;
    assert!(head(&mut kept[1]).await.starts_with("http/1.1 200"), "the others stay open");
    server.abort();
}

#[tokio::test]
async fn health_is_answered_when_every_connection_is_busy() {
    let app = TestApp::start().await;
    let limits = ConnectionLimits { connections_max: 2, ..ConnectionLimits::default() };
    let (address, server) = listen(&app, limits).await;
    app.control.hold();
    let mut working = Vec::new();
    for seed in 0..2 {
        let mut connection = connect(address).await;
        ask_for_image(&mut connection, &app.keys.inference, seed).await;
        working.push(connection);
    }
    app.control.held().await;
    tokio::time::sleep(Duration::from_millis(1200)).await;
    for _ in 0..20 {
        let mut supervisor = connect(address).await;
        ask(&mut supervisor, "/healthz").await;
        let answer = head(&mut supervisor).await;
        assert!(answer.starts_with("http/1.1 200") && answer.contains("connection: close"), "{answer}");
    }
    let mut other = connect(address).await;
    ask(&mut other, "/v1/models").await;
    let answer = rest(&mut other).await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("retry-after: "), "{answer}");
    assert!(answer.contains("too_many_connections"), "{answer}");
    app.control.release();
    for connection in &mut working {
        assert!(head(connection).await.starts_with("http/1.1 200"), "no busy connection was evicted");
    }
    server.abort();
}

#[tokio::test]
async fn a_connection_is_not_used_forever() {
    let app = TestApp::start().await;
    let few = ConnectionLimits { requests_per_connection_max: 3, ..ConnectionLimits::default() };
    let (address, server) = listen(&app, few).await;
    let mut connection = connect(address).await;
    for number in 1..=3 {
        ask(&mut connection, "/healthz").await;
        assert_eq!(head(&mut connection).await.contains("connection: close"), number == 3, "{number}");
    }
    assert_eq!(rest(&mut connection).await, "");
    server.abort();
    let short = ConnectionLimits { connection_age_max: Duration::from_millis(200), ..ConnectionLimits::default() };
    let (address, server) = listen(&app, short).await;
    let mut connection = connect(address).await;
    for is_last in [false, true] {
        ask(&mut connection, "/healthz").await;
        assert_eq!(head(&mut connection).await.contains("connection: close"), is_last);
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    server.abort();
}
