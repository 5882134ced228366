//! A receiver of webhooks in this process, which answers as it is told, and a second implementation of the signature.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Longest wait of a test.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a receiver does with a message.
#[derive(Debug, Clone)]
pub(crate) enum Act {
    Answer(u16),
    Redirect(String),
    /// Says 200, announces a body, and closes before its end.
    BreakOff,
    /// Closes without an answer.
    Close,
    /// Answers 200 once it is released.
    Hold,
}

/// A message as it arrived.
#[derive(Debug, Clone)]
pub(crate) struct Message {
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Message {
    pub(crate) fn header(&self, name: &str) -> &str {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(':'));
        let line = lines.find(|(known, _)| known.eq_ignore_ascii_case(name));
        line.map(|(_, value)| value.trim()).unwrap_or_default()
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).expect("JSON")
    }

    pub(crate) fn kind(&self) -> String {
        self.json()["type"].as_str().expect("a type").to_owned()
    }

    /// How many of the signatures are made with this secret.
    pub(crate) fn signatures_by(&self, secret: &str) -> usize {
        let key = STANDARD.decode(secret.strip_prefix("whsec_").expect("the prefix")).expect("base64");
        let signed = format!("{}.{}.{}", self.header("webhook-id"), self.header("webhook-timestamp"), self.body);
        let expected = format!("v1,{}", STANDARD.encode(hmac(&key, signed.as_bytes())));
        self.header("webhook-signature").split(' ').filter(|signature| *signature == expected).count()
    }
}

/// RFC 2104, for keys of at most a block.
fn hmac(key: &[u8], message: &[u8]) -> Vec<u8> {
    assert!(key.len() <= 64);
    let pad = |byte: u8| {
        let mut block = [byte; 64];
        for (pad, key) in block.iter_mut().zip(key) {
            *pad ^= key;
        }
        block
    };
    let inner = Sha256::new().chain_update(pad(0x36)).chain_update(message).finalize();
    Sha256::new().chain_update(pad(0x5c)).chain_update(inner).finalize().to_vec()
}

#[derive(Default)]
struct State {
    got: Vec<Message>,
    plan: VecDeque<Act>,
}

/// A receiver. It answers 200 unless it is told otherwise.
#[derive(Clone)]
pub(crate) struct Receiver {
    state: Arc<Mutex<State>>,
    is_released: Arc<watch::Sender<bool>>,
    port: u16,
}

impl Receiver {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let receiver = Self { state: Arc::default(), is_released: Arc::new(watch::channel(false).0), port };
        let served = receiver.clone();
        tokio::spawn(async move {
            loop {
                let (connection, _) = listener.accept().await.expect("a connection");
                let receiver = served.clone();
                tokio::spawn(async move { receiver.serve(connection).await });
            }
        });
        receiver
    }

    pub(crate) fn url(&self) -> String {
        self.url_at("127.0.0.1")
    }

    pub(crate) fn url_at(&self, host: &str) -> String {
        format!("http://{host}:{}/hook?token=very-private", self.port)
    }

    /// What to do with the next messages.
    pub(crate) fn plan(&self, acts: impl IntoIterator<Item = Act>) {
        self.state.lock().expect("not poisoned").plan.extend(acts);
    }

    pub(crate) fn release(&self) {
        self.is_released.send_replace(true);
    }

    pub(crate) fn got(&self) -> Vec<Message> {
        self.state.lock().expect("not poisoned").got.clone()
    }

    pub(crate) fn kinds(&self) -> Vec<String> {
        self.got().iter().map(Message::kind).collect()
    }

    /// Waits until so many messages have arrived.
    pub(crate) async fn until(&self, count: usize) -> Vec<Message> {
        let started = Instant::now();
        loop {
            let got = self.got();
            if got.len() >= count {
                return got;
            }
            assert!(started.elapsed() < PATIENCE, "{} of {count} messages", got.len());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn serve(&self, mut connection: TcpStream) {
        let Some(message) = read(&mut connection).await else { return };
        let act = {
            let mut state = self.state.lock().expect("not poisoned");
            state.got.push(message);
            state.plan.pop_front().unwrap_or(Act::Answer(200))
        };
        let answer = match act {
            Act::Answer(status) => format!("HTTP/1.1 {status} X\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok"),
            Act::Redirect(to) => {
                format!("HTTP/1.1 302 X\r\nlocation: {to}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            }
            Act::BreakOff => "HTTP/1.1 200 X\r\ncontent-length: 100\r\n\r\nhalf of".to_owned(),
            Act::Close => return,
            Act::Hold => {
                let mut released = self.is_released.subscribe();
                drop(released.wait_for(|is_released| *is_released).await);
                "HTTP/1.1 200 X\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".to_owned()
            }
        };
        // The sender may have gone.
        drop(connection.write_all(answer.as_bytes()).await);
        drop(connection.shutdown().await);
    }
}

async fn read(connection: &mut TcpStream) -> Option<Message> {
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let message = Message { head: head.to_owned(), body: body.to_owned() };
            let length: usize = message.header("content-length").parse().expect("a length");
            if body.len() >= length {
                return Some(message);
            }
        }
        if connection.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
}
