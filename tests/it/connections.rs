//! The worker on a real port: what connections are held to.

use std::net::SocketAddr;
use std::time::Duration;

use fluxserve::http::{ConnectionLimits, serve};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::app::{TestApp, listen, picture};

const PATIENCE: Duration = Duration::from_secs(10);
const REQUEST: &[u8] = b"GET /healthz HTTP/1.1\r\nhost: worker.test\r\nconnection: close\r\n\r\n";

fn strict(connections_max: usize) -> ConnectionLimits {
    ConnectionLimits { connections_max, header_deadline: Duration::from_millis(300), ..ConnectionLimits::default() }
}

async fn connect(address: SocketAddr) -> TcpStream {
    TcpStream::connect(address).await.expect("a connection")
}

/// All that comes until the other side closes.
async fn rest(connection: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    // A connection that is reset has ended as well.
    drop(timeout(PATIENCE, connection.read_to_end(&mut bytes)).await.expect("the worker closes the connection"));
    String::from_utf8_lossy(&bytes).into_owned()
}

#[tokio::test]
async fn half_open_connections_shut_nobody_out() {
    let app = TestApp::start().await;
    let (address, server) = listen(&app, strict(4)).await;
    let mut silent = Vec::new();
    for number in 0..12 {
        let mut connection = connect(address).await;
        // Some say nothing, some never finish saying it.
        if number % 2 == 0 {
            connection.write_all(b"GET /healthz HTTP/1.1\r\nhost: ").await.expect("written");
        }
        silent.push(connection);
    }
    let mut good = connect(address).await;
    good.write_all(REQUEST).await.expect("written");
    assert!(rest(&mut good).await.starts_with("HTTP/1.1 200"), "answered once the silent ones are gone");
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
async fn closing_lets_the_request_at_hand_finish() {
    let app = TestApp::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    let (close, closing) = tokio::sync::oneshot::channel::<()>();
    let server = tokio::spawn(serve(listener, app.router.clone(), async { drop(closing.await) }, strict(4), None));
    app.control.hold();
    let body = picture(1).to_string();
    let head = format!(
        "POST /v1/inference/image HTTP/1.1\r\nhost: worker.test\r\nx-api-key: {}\r\naccept: image/png\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        app.keys.inference,
        body.len()
    );
    let mut connection = connect(address).await;
    connection.write_all(head.as_bytes()).await.expect("written");
    app.control.held().await;
    drop(close);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!server.is_finished());
    assert!(TcpStream::connect(address).await.is_err(), "no newcomers");
    app.control.release();
    let answer = rest(&mut connection).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("image/png"), "{answer}");
    timeout(PATIENCE, server).await.expect("all are gone").expect("no panic");
}
