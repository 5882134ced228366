//! What proving a key costs a request, and what a flood of wrong keys costs those who have a good one.
//!
//! `cargo bench --bench auth` serves two routes that do nothing, one of them behind a key, from this process on a loopback
//! port, with the real database, and asks them over keep-alive connections from threads of its own. Rounds of both
//! alternate; what counts are the ratios of their medians. `FLUXSERVE_BENCH_SECONDS` is the length of a round,
//! `FLUXSERVE_BENCH_CONNECTIONS` how many ask at once (16 saturate two cores: then latencies are those of waiting), and
//! `FLUXSERVE_BENCH_SERVE=1` only serves, for a load generator of your own, and prints its key.

#![allow(missing_docs, clippy::print_stdout, reason = "a benchmark prints its result")]

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::get;
use fluxserve::auth::{Actor, Authenticator, KeyService, NewKey};
use fluxserve::domain::clock::{Clock, SystemClock};
use fluxserve::domain::limits::KeyLimits;
use fluxserve::domain::scope::Scope;
use fluxserve::http::{ConnectionLimits, serve};
use fluxserve::store::Store;
use fluxserve::telemetry::process::resident_bytes;
use tokio::net::TcpListener;

const ROUNDS: usize = 5;
const FLOOD_PER_SECOND: u32 = 2000;
const OTHER_KEYS: u32 = 10_000;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let folder = tempfile::tempdir().expect("a folder");
    let worker = runtime.block_on(Worker::start(folder.path()));
    if std::env::var_os("FLUXSERVE_BENCH_SERVE").is_some() {
        println!("http://{}/plain, http://{}/keyed; x-api-key: {}", worker.address, worker.address, worker.key);
        std::thread::park();
    }
    println!("{:<44}{:>10}{:>10}{:>10}", "", "req/s", "p50 µs", "p99 µs");
    compare(&worker, "one key", false);
    runtime.block_on(worker.add_keys(OTHER_KEYS));
    compare(&worker, &format!("{OTHER_KEYS} other keys"), false);
    let before = resident_bytes().unwrap_or(0);
    compare(&worker, &format!("{OTHER_KEYS} other keys, {FLOOD_PER_SECOND} wrong keys/s beside"), true);
    let after = resident_bytes().unwrap_or(0);
    println!("memory before and after the flood: {} and {} MiB", before >> 20, after >> 20);
}

struct Worker {
    address: SocketAddr,
    key: String,
    store: Store,
}

impl Worker {
    async fn start(folder: &std::path::Path) -> Self {
        let store = Store::open(&folder.join("fluxserve.db")).await.expect("a database");
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let keys = KeyService::new(store.clone(), Arc::clone(&clock));
        let new =
            NewKey { name: "good".into(), scope: Scope::Inference, expires_at: None, limits: KeyLimits::default() };
        let key = keys.create(new, &Actor::CommandLine).await.expect("a key").plain.reveal().to_owned();
        let authenticator = Authenticator::new(store.clone(), clock).expect("random bytes");
        let recording = authenticator.clone();
        tokio::spawn(async move { recording.record_uses_until(std::future::pending()).await });
        let router =
            Router::new().route("/plain", get(|| async { "ok" })).route("/keyed", get(keyed)).with_state(authenticator);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(serve(listener, router, std::future::pending(), ConnectionLimits::default(), None));
        Self { address, key, store }
    }

    /// Rows as the first key's, under other names.
    async fn add_keys(&self, count: u32) {
        sqlx::query(
            "WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < ?)
             INSERT INTO api_keys (id, public_id, name, secret_hash, secret_tag, scope, created_at_ms)
             SELECT printf('00000000-0000-7000-8000-%012d', n), printf('%08d', n), 'other', secret_hash, secret_tag, scope,
                    created_at_ms
             FROM numbers, (SELECT * FROM api_keys LIMIT 1)",
        )
        .bind(count)
        .execute(self.store.pool())
        .await
        .expect("written");
    }
}

/// Behind a key. Wrong keys come from everywhere: the header says from where.
async fn keyed(State(authenticator): State<Authenticator>, headers: HeaderMap) -> (StatusCode, &'static str) {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let client = text("x-from").and_then(|text| text.parse().ok()).unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
    match authenticator.authenticate(text("x-api-key").unwrap_or_default(), client).await {
        Ok(_) => (StatusCode::OK, "ok"),
        Err(_) => (StatusCode::UNAUTHORIZED, "no"),
    }
}

fn request(path: &str, headers: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nhost: bench\r\n{headers}\r\n").into_bytes()
}

/// Plain and keyed rounds in turn, and the ratio of their medians.
fn compare(worker: &Worker, name: &str, with_flood: bool) {
    let plain = request("/plain", "");
    let keyed = request("/keyed", &format!("x-api-key: {}\r\n", worker.key));
    let mut plains = Vec::new();
    let (mut keyeds, mut flooded, mut crowded) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let results = [
            measure(worker.address, &plain),
            measure(worker.address, &keyed),
            if with_flood {
                beside(worker, Beside::WrongKeys, || measure(worker.address, &keyed))
            } else {
                Load::default()
            },
            if with_flood {
                beside(worker, Beside::NoKeys, || measure(worker.address, &keyed))
            } else {
                Load::default()
            },
        ];
        // The first warms up.
        if round > 0 {
            plains.push(results[0]);
            keyeds.push(results[1]);
            flooded.push(results[2]);
            crowded.push(results[3]);
        }
    }
    let (plain, keyed, flooded, crowded) = (median(plains), median(keyeds), median(flooded), median(crowded));
    line(&format!("{name}: without a key"), plain);
    line(&format!("{name}: with a key"), keyed);
    println!(
        "{:<44}{:>10.3}{:>20} µs more at p99",
        "  ratio",
        keyed.per_second / plain.per_second,
        (keyed.p99_microseconds - plain.p99_microseconds).round()
    );
    if with_flood {
        line("  with a key beside the flood", flooded);
        println!("{:<44}{:>10.3}", "  ratio to the same without the flood", flooded.per_second / keyed.per_second);
        line("  beside as many requests that need no key", crowded);
        println!("{:<44}{:>10.3}", "  ratio of flood to that", flooded.per_second / crowded.per_second);
    }
}

fn line(name: &str, load: Load) {
    println!("{name:<44}{:>10.0}{:>10.0}{:>10.0}", load.per_second, load.p50_microseconds, load.p99_microseconds);
}

#[derive(Debug, Clone, Copy, Default)]
struct Load {
    per_second: f64,
    p50_microseconds: f64,
    p99_microseconds: f64,
}

fn median(mut loads: Vec<Load>) -> Load {
    loads.sort_by(|one, other| one.per_second.total_cmp(&other.per_second));
    loads[loads.len() / 2]
}

fn setting(name: &str, default: f64) -> f64 {
    let text = std::env::var(format!("FLUXSERVE_BENCH_{name}")).ok();
    text.and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Asks over some connections, each waiting for its answer, for one round.
fn measure(address: SocketAddr, request: &[u8]) -> Load {
    let seconds = setting("SECONDS", 1.0);
    let connections = setting("CONNECTIONS", 16.0) as usize;
    let end = Instant::now() + Duration::from_secs_f64(seconds);
    let mut latencies: Vec<Duration> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..connections).map(|_| scope.spawn(|| ask_until(address, request, end))).collect();
        clients.into_iter().flat_map(|client| client.join().expect("no panic")).collect()
    });
    latencies.sort_unstable();
    let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e6;
    Load { per_second: latencies.len() as f64 / seconds, p50_microseconds: at(0.5), p99_microseconds: at(0.99) }
}

fn ask_until(address: SocketAddr, request: &[u8], end: Instant) -> Vec<Duration> {
    let mut client = Client::connect(address);
    let mut latencies = Vec::new();
    while Instant::now() < end {
        let started = Instant::now();
        assert_eq!(client.ask(request), 200);
        latencies.push(started.elapsed());
    }
    latencies
}

struct Client {
    stream: TcpStream,
    buffer: [u8; 1024],
}

impl Client {
    fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("a connection");
        stream.set_nodelay(true).expect("an option");
        Self { stream, buffer: [0; 1024] }
    }

    /// The status of the answer, all of which comes in one piece: it is short.
    fn ask(&mut self, request: &[u8]) -> u16 {
        self.stream.write_all(request).expect("written");
        let count = self.stream.read(&mut self.buffer).expect("read");
        let answer = std::str::from_utf8(&self.buffer[..count]).expect("text");
        answer.get(9..12).and_then(|status| status.parse().ok()).expect("a status")
    }
}

/// What else comes in while good keys are measured.
#[derive(Clone, Copy)]
enum Beside {
    /// Wrong keys of three kinds, each from another address.
    WrongKeys,
    /// As many requests that are nobody's fault: what the flood would cost if wrong keys cost nothing.
    NoKeys,
}

/// Runs `measure` while other requests come in at a fixed rate.
fn beside(worker: &Worker, others: Beside, measure: impl FnOnce() -> Load) -> Load {
    let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut client = Client::connect(worker.address);
            let started = Instant::now();
            while !stop.load(Ordering::Relaxed) {
                let number = sent.fetch_add(1, Ordering::Relaxed) as u32;
                match others {
                    Beside::WrongKeys => {
                        let key = wrong_key(worker, number);
                        let headers = format!("x-api-key: {key}\r\nx-from: {}\r\n", address_of(number));
                        assert_eq!(client.ask(&request("/keyed", &headers)), 401);
                    }
                    Beside::NoKeys => assert_eq!(client.ask(&request("/plain", "")), 200),
                }
                let due = started + Duration::from_secs(1) * (number + 1) / FLOOD_PER_SECOND;
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
            }
            let rate = f64::from(sent.load(Ordering::Relaxed) as u32) / started.elapsed().as_secs_f64();
            assert!(rate > f64::from(FLOOD_PER_SECOND) * 0.5, "the others got through at {rate:.0}/s only");
        });
        let load = measure();
        stop.store(true, Ordering::Relaxed);
        load
    })
}

fn address_of(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x0a00_0000 | (number % 0x00ff_ffff))
}

/// In turn: what is no key at all, a key that nobody has, and the good key's name with another secret.
fn wrong_key(worker: &Worker, number: u32) -> String {
    let with_checksum = |start: String| {
        let mut checksum = crc32fast::hash(start.as_bytes());
        let digits = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
        let mut tail = [b'0'; 6];
        for place in tail.iter_mut().rev() {
            *place = digits[(checksum % 62) as usize];
            checksum /= 62;
        }
        start + std::str::from_utf8(&tail).expect("digits")
    };
    match number % 3 {
        0 => format!("rgpu_{number}"),
        1 => with_checksum(format!("rgpu_{:08}{:032}", number % 100_000_000, number)),
        _ => with_checksum(format!("{}{:032}", &worker.key[..13], number)),
    }
}
