//! A hub on this machine: one repository, its storage at another address, and their failures.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use serde_json::{Value, json};
use sha1::Sha1;
use sha2::{Digest as _, Sha256};

pub(crate) const ID: &str = "black-forest-labs/FLUX.1-dev";
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
pub(crate) const LICENSE: &str = "the terms\n";

/// A received request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Whether the storage got it, which is another host than the hub.
    pub(crate) at_storage: bool,
    pub(crate) path: String,
    pub(crate) authorization: Option<String>,
    /// First byte of the requested range.
    pub(crate) start: u64,
    /// Bytes of the file that were sent.
    pub(crate) sent: usize,
}

/// Failures of a file's answers, one for each request; later requests succeed.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    Status(u16, Vec<(&'static str, String)>),
    /// The connection ends after this many bytes of the body.
    Cut(usize),
    /// The right length with another content.
    Damaged,
    /// The complete file, whatever range was requested.
    NoRange,
    /// A redirect to the same address.
    Circle,
}

#[derive(Default)]
pub(crate) struct Conduct {
    pub(crate) files: BTreeMap<String, Vec<u8>>,
    /// Sizes in the listing that differ from the files'.
    pub(crate) listed_sizes: BTreeMap<String, u64>,
    /// By path inside the repository; `""` is the listing.
    pub(crate) faults: BTreeMap<String, Vec<Fault>>,
    /// The only token that may read files; other accounts have not accepted the license.
    pub(crate) gate: Option<String>,
    /// A wait before each 64 KiB from the storage.
    pub(crate) pause: Duration,
}

pub(crate) struct Hub {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    conduct: Mutex<Conduct>,
    seen: Mutex<Vec<Seen>>,
    storage: SocketAddr,
    /// Open connections.
    open: AtomicUsize,
}

/// An open connection.
struct Open(Arc<Shared>);

impl Open {
    fn new(shared: &Arc<Shared>) -> Self {
        shared.open.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(shared))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut digits, byte| {
        write!(digits, "{byte:02x}").expect("a string takes all");
        digits
    })
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

pub(crate) fn git_blob(bytes: &[u8]) -> String {
    let mut hasher = Sha1::new();
    hasher.update(format!("blob {}\0", bytes.len()));
    hasher.update(bytes);
    hex(&hasher.finalize())
}

pub(crate) fn is_large(path: &str) -> bool {
    [".safetensors", ".gguf"].iter().any(|ending| path.ends_with(ending))
}

/// Files of `tests/reference/quant`, by the names under which a repository has them.
pub(crate) fn quantized(files: &[(&str, &str)]) -> BTreeMap<String, Vec<u8>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/quant");
    let read = |path: &str| std::fs::read(root.join(path)).expect("readable");
    files.iter().map(|(name, path)| ((*name).to_owned(), read(path))).collect()
}

/// The reference checkpoint in both layouts, as a repository holds it.
pub(crate) fn reference() -> BTreeMap<String, Vec<u8>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/FLUX.1-dev");
    let mut files = BTreeMap::from([
        ("LICENSE.md".to_owned(), LICENSE.as_bytes().to_vec()),
        ("README.md".to_owned(), b"about it".to_vec()),
    ]);
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(&root).expect("inside").to_str().expect("text").to_owned();
                files.insert(name, std::fs::read(path).expect("readable"));
            }
        }
    }
    files
}

impl Hub {
    pub(crate) fn start() -> Self {
        let hub = TcpListener::bind("127.0.0.1:0").expect("a port");
        let storage = TcpListener::bind("127.0.0.1:0").expect("a port");
        let shared = Arc::new(Shared {
            conduct: Mutex::new(Conduct { files: reference(), ..Conduct::default() }),
            seen: Mutex::default(),
            storage: storage.local_addr().expect("an address"),
            open: AtomicUsize::new(0),
        });
        let address = hub.local_addr().expect("an address");
        for (listener, at_storage) in [(hub, false), (storage, true)] {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || {
                for stream in listener.incoming().map_while(Result::ok) {
                    let open = Open::new(&shared);
                    // Some tests disconnect before the answer is complete.
                    std::thread::spawn(move || drop(open.0.answer(stream, at_storage)));
                }
            });
        }
        Self { address, shared }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn conduct(&self) -> MutexGuard<'_, Conduct> {
        self.shared.conduct.lock().expect("no panic under this lock")
    }

    pub(crate) fn fails(&self, path: &str, faults: &[Fault]) {
        self.conduct().faults.insert(path.to_owned(), faults.to_vec());
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().expect("no panic under this lock").clone()
    }

    /// Forgets the requests, once all connections are closed: those still count bytes.
    pub(crate) fn forget(&self) {
        let mut quiet = 0;
        for _ in 0..1000 {
            quiet = if self.shared.open.load(Ordering::SeqCst) == 0 { quiet + 1 } else { 0 };
            if quiet == 5 {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(quiet == 5, "a connection is still open");
        self.shared.seen.lock().expect("no panic under this lock").clear();
    }

    /// The requests for a file's content.
    pub(crate) fn seen_of(&self, path: &str) -> Vec<Seen> {
        let digest = sha256(&self.conduct().files[path]);
        self.seen().into_iter().filter(|seen| seen.path.contains(&digest) || seen.path.ends_with(path)).collect()
    }
}

struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    /// Where the body breaks off.
    cut: Option<usize>,
}

impl Answer {
    fn of(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: Vec::new(), body: body.into(), cut: None }
    }

    fn error(status: u16, code: &str) -> Self {
        let mut answer = Self::of(status, "refused");
        answer.headers.push(("x-error-code", code.to_owned()));
        answer
    }
}

impl Shared {
    fn answer(&self, stream: TcpStream, at_storage: bool) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut line = String::new();
        reader.read_line(&mut line)?;
        if line.is_empty() {
            // A client that gives up may close a connection before its first request.
            return Ok(());
        }
        let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
        let (mut authorization, mut start) = (None, 0);
        loop {
            let mut header = String::new();
            if reader.read_line(&mut header)? == 0 {
                return Ok(());
            }
            if header == "\r\n" {
                break;
            }
            let (name, value) = header.trim_end().split_once(": ").unwrap_or_default();
            match name.to_lowercase().as_str() {
                "authorization" => authorization = Some(value.to_owned()),
                "range" => {
                    let range = value.strip_prefix("bytes=").and_then(|range| range.strip_suffix('-'));
                    start = range.expect("an open range").parse().expect("a number");
                }
                _ => {}
            }
        }
        let seen = Seen { at_storage, path, authorization, start, sent: 0 };
        let answer = self.decide(&mut self.conduct.lock().expect("no panic under this lock"), &seen);
        let pause = if at_storage { self.conduct.lock().expect("no panic").pause } else { Duration::ZERO };
        let at = {
            let mut all = self.seen.lock().expect("no panic under this lock");
            all.push(seen);
            all.len() - 1
        };
        let length = answer.body.len();
        let mut head =
            format!("HTTP/1.1 {} Status\r\ncontent-length: {length}\r\nconnection: close\r\n", answer.status);
        for (name, value) in answer.headers {
            write!(head, "{name}: {value}\r\n").expect("a string takes all");
        }
        let mut stream = stream;
        stream.write_all(format!("{head}\r\n").as_bytes())?;
        let body = &answer.body[..answer.cut.unwrap_or(length).min(length)];
        for chunk in body.chunks(64 << 10) {
            std::thread::sleep(pause);
            stream.write_all(chunk)?;
            if let Some(seen) = self.seen.lock().expect("no panic under this lock").get_mut(at) {
                seen.sent += chunk.len();
            }
        }
        stream.flush()
    }

    fn decide(&self, conduct: &mut Conduct, seen: &Seen) -> Answer {
        let Seen { at_storage, path, authorization, start, .. } = seen;
        let (path, start) = (path.as_str(), *start);
        if *at_storage {
            let found = conduct.files.iter().find(|(_, bytes)| path.contains(&sha256(bytes)));
            let (name, bytes) = found.map(|(name, bytes)| (name.clone(), bytes.clone())).expect("a blob");
            let fault = next_fault(conduct, &name);
            return content(bytes, start, fault);
        }
        let listing = format!("/api/models/{ID}/revision/");
        if let Some(rest) = path.strip_prefix(&listing) {
            return match (next_fault(conduct, ""), rest) {
                (Some(Fault::Status(status, headers)), _) => Answer { headers, ..Answer::of(status, "no") },
                (_, "main?blobs=true") => Answer::of(200, listing_of(conduct).to_string()),
                (_, rest) if rest == format!("{COMMIT}?blobs=true") => Answer::of(200, listing_of(conduct).to_string()),
                _ => Answer::error(404, "RevisionNotFound"),
            };
        }
        let Some(name) = path.strip_prefix(&format!("/{ID}/resolve/{COMMIT}/")) else {
            return Answer::error(404, "RepoNotFound");
        };
        match (&conduct.gate, authorization) {
            (Some(_), None) => return Answer::error(401, "GatedRepo"),
            (Some(gate), Some(token)) if *token != format!("Bearer {gate}") => return Answer::error(403, "GatedRepo"),
            _ => {}
        }
        let Some(bytes) = conduct.files.get(name).cloned() else { return Answer::error(404, "EntryNotFound") };
        if !is_large(name) {
            let fault = next_fault(conduct, name);
            return content(bytes, start, fault);
        }
        // The hub's own fault; the others are the storage's.
        let is_ours = |fault: &Fault| matches!(fault, Fault::Circle);
        let mut answer = Answer::of(302, "");
        let target = if conduct.faults.get(name).and_then(|faults| faults.first()).is_some_and(is_ours) {
            path.to_owned()
        } else {
            format!("http://{}/{}?signature=secret", self.storage, sha256(&bytes))
        };
        answer.headers.push(("location", target));
        answer
    }
}

fn next_fault(conduct: &mut Conduct, name: &str) -> Option<Fault> {
    let faults = conduct.faults.get_mut(name)?;
    (!faults.is_empty()).then(|| faults.remove(0))
}

fn content(mut bytes: Vec<u8>, start: u64, fault: Option<Fault>) -> Answer {
    let length = bytes.len();
    if matches!(fault, Some(Fault::Damaged)) {
        bytes[length / 2] ^= 1;
    }
    let start = if matches!(fault, Some(Fault::NoRange)) { 0 } else { usize::try_from(start).expect("small") };
    let mut answer = match fault {
        Some(Fault::Status(status, headers)) => return Answer { headers, ..Answer::of(status, "no") },
        _ => Answer::of(if start > 0 { 206 } else { 200 }, bytes.split_off(start)),
    };
    if start > 0 {
        answer.headers.push(("content-range", format!("bytes {start}-{}/{length}", length - 1)));
    }
    if let Some(Fault::Cut(after)) = fault {
        answer.cut = Some(after);
    }
    answer
}

fn listing_of(conduct: &Conduct) -> Value {
    let siblings = conduct.files.iter().map(|(path, bytes)| {
        let size = conduct.listed_sizes.get(path).copied().unwrap_or(bytes.len() as u64);
        if is_large(path) {
            let lfs = json!({ "sha256": sha256(bytes), "size": size, "pointerSize": 134 });
            json!({ "rfilename": path, "size": size, "blobId": git_blob(b"a pointer"), "lfs": lfs })
        } else {
            json!({ "rfilename": path, "size": size, "blobId": git_blob(bytes) })
        }
    });
    json!({ "id": ID, "sha": COMMIT, "gated": "auto", "siblings": siblings.collect::<Vec<_>>() })
}
