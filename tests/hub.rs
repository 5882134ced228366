//! Downloads from a hub: complete, resumed, and with every kind of failure. A stub on this machine serves the reference
//! checkpoint.

#![cfg(unix)]

#[path = "hub/stub.rs"]
mod stub;

#[path = "hub/program.rs"]
mod program;

#[path = "hub/files.rs"]
mod files;

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use fluxserve::domain::model::ModelFiles;
use fluxserve::engine;
use fluxserve::hub::{self, Downloaded, FileSystem, HubError, HubSettings, Patience, Progress, Request, known_files};
use stub::{COMMIT, Fault, Hub, ID, LICENSE};
use tempfile::TempDir;

const SHARD: &str = "transformer/diffusion_pytorch_model-00002-of-00003.safetensors";
const T5_SHARD: &str = "text_encoder_2/model-00001-of-00002.safetensors";

/// Records the progress.
#[derive(Default)]
struct Recorded {
    chosen: Mutex<Vec<(String, u64)>>,
    waits: Mutex<Vec<Duration>>,
    planned: Mutex<Option<(usize, u64, u64)>>,
    received: Mutex<u64>,
}

impl Progress for Recorded {
    fn chosen(&self, path: &str, bytes: u64) {
        assert!(self.planned.lock().expect("no panic").is_none(), "it is said before the download");
        self.chosen.lock().expect("no panic").push((path.to_owned(), bytes));
    }

    fn planned(&self, files: usize, bytes: u64, bytes_here: u64) {
        *self.planned.lock().expect("no panic") = Some((files, bytes, bytes_here));
    }

    fn begun(&self, _: &str, _: u64, _: u64) {}

    fn received(&self, _: &str, bytes: u64) {
        *self.received.lock().expect("no panic") += bytes;
    }

    fn lost(&self, _: &str, bytes: u64) {
        *self.received.lock().expect("no panic") -= bytes;
    }

    fn ended(&self, _: &str) {}

    fn waiting(&self, _: &str, wait: Duration) {
        self.waits.lock().expect("no panic").push(wait);
    }
}

struct Client {
    hub: Hub,
    home: TempDir,
    settings: HubSettings,
    recorded: Recorded,
}

impl Client {
    fn new() -> Self {
        let (hub, home) = (Hub::start(), tempfile::tempdir().expect("a folder"));
        let patience = Patience {
            connect: Duration::from_secs(5),
            read: Duration::from_secs(5),
            tries_max: 3,
            pause: Duration::from_millis(1),
            rate_limit_wait_max: Duration::from_secs(2),
        };
        let settings = HubSettings {
            endpoint: hub.endpoint(),
            token: None,
            token_file: Some(home.path().join("token")),
            cache_dir: Some(home.path().join("hub")),
            is_offline: false,
            proxy: hub::Proxy::default(),
            patience,
            file_system: FileSystem::default(),
        };
        Self { hub, home, settings, recorded: Recorded::default() }
    }

    fn token(mut self, token: &str) -> Self {
        self.settings.token = Some(token.parse().expect("a token"));
        self
    }

    fn request() -> Request {
        let (repository, revision) = (ID.parse().expect("an id"), hub::Revision::default());
        Request { repository, revision, folder: None, files: Vec::new(), file_bytes_max: None }
    }

    fn ask(&self, request: &Request) -> Result<Downloaded, HubError> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        runtime.expect("a runtime").block_on(hub::download(&self.settings, request, &self.recorded))
    }

    fn download(&self) -> Result<Downloaded, HubError> {
        self.ask(&Self::request())
    }

    fn refusal(&self) -> String {
        self.download().expect_err("a refusal").to_string()
    }

    fn repository_folder(&self) -> PathBuf {
        self.home.path().join("hub/models--black-forest-labs--FLUX.1-dev")
    }

    fn blob(&self, path: &str) -> PathBuf {
        self.repository_folder().join("blobs").join(stub::sha256(&self.hub.conduct().files[path]))
    }
}

fn is_sound(folder: &Path) -> bool {
    engine::inspect(&ModelFiles::Directory(folder.to_owned())).is_sound()
}

#[test]
fn one_layout_is_downloaded_into_the_shared_cache() {
    let client = Client::new().token("hf_secret");
    let downloaded = client.download().expect("downloaded");
    let snapshot = client.repository_folder().join("snapshots").join(COMMIT);
    assert_eq!((&downloaded.folder, downloaded.commit.as_deref()), (&snapshot, Some(COMMIT)));
    assert!(is_sound(&snapshot));
    assert_eq!(std::fs::read_to_string(client.repository_folder().join("refs/main")).expect("a ref"), COMMIT);
    assert_eq!(std::fs::read_to_string(snapshot.join("LICENSE.md")).expect("the license"), LICENSE);
    let link = std::fs::read_link(snapshot.join(SHARD)).expect("a link");
    assert!(link.starts_with("../../../blobs") && !link.is_absolute(), "{link:?}");
    for surplus in ["flux1-dev.safetensors", "ae.safetensors", "README.md"] {
        assert!(!snapshot.join(surplus).exists(), "{surplus}");
    }
    let known = known_files(&snapshot);
    assert_eq!(known.len(), downloaded.files);
    for file in known {
        assert_eq!(hub::checksum_of(&file.content, &file.checksum).expect("read"), file.checksum, "{}", file.path);
    }
    let (files, bytes, here) = client.recorded.planned.lock().expect("no panic").expect("planned");
    assert_eq!((files, bytes, here), (downloaded.files, downloaded.bytes_fetched, 0));
    assert_eq!(*client.recorded.received.lock().expect("no panic"), bytes);

    // Only the hub gets the token.
    let seen = client.hub.seen();
    assert!(seen.iter().any(|seen| seen.at_storage) && seen.iter().any(|seen| !seen.at_storage));
    for seen in seen {
        assert_eq!(seen.authorization.as_deref(), (!seen.at_storage).then_some("Bearer hf_secret"), "{}", seen.path);
    }

    // A second download transfers nothing.
    client.hub.forget();
    let again = client.download().expect("here");
    assert_eq!((again.bytes_fetched, again.folder), (0, snapshot));
    assert_eq!(client.hub.seen().len(), 1, "the listing alone");
    // Only a missing blob is downloaded again.
    std::fs::remove_file(client.blob(SHARD)).expect("removed");
    client.hub.forget();
    let size = client.hub.conduct().files[SHARD].len() as u64;
    assert_eq!(client.download().expect("repaired").bytes_fetched, size);
    assert!(is_sound(&downloaded.folder));
}

#[test]
fn a_download_resumes_after_a_broken_connection() {
    let client = Client::new();
    client.hub.fails(SHARD, &[Fault::Cut(70_000), Fault::Cut(0), Fault::Cut(1000), Fault::Cut(0)]);
    client.download().expect("downloaded");
    let size = client.hub.conduct().files[SHARD].len();
    let seen: Vec<_> = client.hub.seen_of(SHARD).into_iter().filter(|seen| seen.at_storage).collect();
    let starts: Vec<u64> = seen.iter().map(|seen| seen.start).collect();
    assert_eq!(starts, [0, 70_000, 70_000, 71_000, 71_000]);
    assert_eq!(seen.iter().map(|seen| seen.sent).sum::<usize>(), size, "no byte twice");
}

#[test]
fn the_next_command_resumes_a_download_that_was_given_up() {
    let client = Client::new();
    client.hub.fails(SHARD, &[Fault::Cut(50_000), Fault::Cut(0), Fault::Cut(0)]);
    let text = client.refusal();
    let size = client.hub.conduct().files[SHARD].len();
    assert!(
        text.contains(&format!("50000 of {size} bytes of `{SHARD}`")) && text.contains("3 times in a row"),
        "{text}"
    );
    client.hub.forget();
    client.download().expect("downloaded");
    let seen: Vec<_> = client.hub.seen_of(SHARD).into_iter().filter(|seen| seen.at_storage).collect();
    assert_eq!(seen.iter().map(|seen| (seen.start, seen.sent)).collect::<Vec<_>>(), [(50_000, size - 50_000)]);
}

#[test]
fn a_hub_without_ranges_sends_the_complete_file_again() {
    let client = Client::new();
    client.hub.fails(SHARD, &[Fault::Cut(50_000), Fault::NoRange]);
    let downloaded = client.download().expect("downloaded");
    assert!(is_sound(&downloaded.folder));
    let bytes = downloaded.bytes_fetched;
    assert_eq!(*client.recorded.received.lock().expect("no panic"), bytes, "discarded bytes do not count");
}

#[test]
fn a_damaged_file_is_named_deleted_and_downloaded_again() {
    for path in [SHARD, "vae/config.json"] {
        let client = Client::new();
        client.hub.fails(path, &[Fault::Damaged]);
        let text = client.refusal();
        assert!(text.starts_with(&format!("`{path}` arrived damaged and was deleted: its ")), "{text}");
        let blobs = std::fs::read_dir(client.repository_folder().join("blobs")).expect("a folder");
        let digest = match path {
            SHARD => stub::sha256(&client.hub.conduct().files[path]),
            _ => stub::git_blob(&client.hub.conduct().files[path]),
        };
        assert!(text.contains(&digest), "{text}");
        let left: Vec<_> = blobs.map(|blob| blob.expect("a blob").file_name()).collect();
        assert!(!left.iter().any(|name| name.to_string_lossy().starts_with(&digest)), "{left:?}");
        assert!(!client.repository_folder().join("refs/main").exists(), "no ref points to an incomplete model");
        assert!(is_sound(&client.download().expect("downloaded").folder));
    }
}

#[test]
fn a_gated_repository_says_where_to_accept_its_license_and_where_to_put_the_token() {
    let client = Client::new();
    client.hub.conduct().gate = Some("hf_accepted".into());
    let text = client.refusal();
    let page = format!("{}/{ID}", client.hub.endpoint());
    let token_file = client.home.path().join("token");
    for part in [page.as_str(), "accept it there", "/settings/tokens", "HF_TOKEN", token_file.to_str().expect("text")] {
        assert!(text.contains(part), "{part} in {text}");
    }
    let client = client.token("hf_other");
    let text = client.refusal();
    assert!(text.contains("the account of the token in HF_TOKEN") && text.contains(&page), "{text}");
    assert!(!text.contains("hf_other"), "{text}");
    let client = client.token("hf_accepted");
    client.download().expect("accepted");
}

#[test]
fn a_token_file_is_used_and_an_invalid_one_is_named() {
    let client = Client::new();
    client.hub.conduct().gate = Some("hf_accepted".into());
    let file = client.home.path().join("token");
    std::fs::write(&file, "two words\n").expect("written");
    let text = client.refusal();
    assert!(text.contains(file.to_str().expect("text")) && text.contains("not an access token"), "{text}");
    assert!(!text.contains("two words"), "{text}");
    std::fs::write(&file, "hf_accepted\n").expect("written");
    client.download().expect("accepted");
}

#[test]
fn each_refusal_has_its_own_message() {
    let status = |status: u16, code: &str, message: &str| {
        Fault::Status(status, vec![("x-error-code", code.into()), ("x-error-message", message.into())])
    };
    let anonymous = [
        ("", status(401, "", ""), &["no repository", "private", "HF_TOKEN"][..]),
        ("", status(404, "RepoNotFound", ""), &["there is no repository", ID]),
        ("vae/config.json", status(404, "EntryNotFound", ""), &["lists the file `vae/config.json`"]),
        (T5_SHARD, status(404, "", ""), &["lists the file", T5_SHARD]),
        ("", status(403, "", "not with this token"), &["refuses", "the hub says: not with this token"]),
        ("", status(418, "", ""), &["answers 418"]),
        ("", Fault::Status(200, vec![]), &["does not answer like a hub"]),
        (SHARD, Fault::Circle, &["redirects more than 8 times"]),
    ];
    for (path, fault, parts) in anonymous {
        let client = Client::new();
        client.hub.fails(path, &[fault]);
        let text = client.refusal();
        for part in parts {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
    let client = Client::new().token("hf_old");
    client.hub.fails("", &[status(401, "", "Invalid credentials")]);
    let text = client.refusal();
    assert!(text.contains("rejects the token in HF_TOKEN") && text.contains("Invalid credentials"), "{text}");

    let request = Request { revision: "v9".parse().expect("a name"), ..Client::request() };
    let text = client.ask(&request).expect_err("no such revision").to_string();
    assert!(text.contains("no revision `v9`"), "{text}");
    let text = "FLUX.1-dev".parse::<hub::RepositoryId>().expect_err("no owner").to_string();
    assert!(text.contains("`FLUX.1-dev` is no repository") && text.contains("OWNER/NAME"), "{text}");
    client.hub.conduct().files.retain(|path, _| !path.starts_with("transformer/"));
    let text = client.refusal();
    assert!(text.contains("has no transformer/ with weights"), "{text}");
}

#[test]
fn the_wait_for_a_rate_limit_is_bounded() {
    let too_many = |seconds: u32| Fault::Status(429, vec![("retry-after", seconds.to_string())]);
    let client = Client::new();
    client.hub.fails("", &[too_many(1)]);
    client.hub.fails(SHARD, &[too_many(0)]);
    client.download().expect("downloaded after a pause");
    let waits = client.recorded.waits.lock().expect("no panic").clone();
    assert_eq!(waits, [Duration::from_secs(1), Duration::ZERO]);

    let client = Client::new();
    let limited = Fault::Status(429, vec![("ratelimit", "\"api\";r=0;t=1".into())]);
    client.hub.fails("", &[limited, too_many(0), too_many(2)]);
    let text = client.refusal();
    assert!(text.contains("in 2 seconds"), "one of the two seconds has passed: {text}");

    let client = Client::new();
    client.hub.fails("", &[too_many(3600)]);
    let text = client.refusal();
    assert!(text.contains("limits the rate") && text.contains("in 3600 seconds"), "{text}");
    assert!(client.recorded.waits.lock().expect("no panic").is_empty(), "it does not wait for an hour");
}

#[test]
fn server_errors_are_retried_a_few_times() {
    let trouble = || Fault::Status(503, vec![]);
    let client = Client::new();
    client.hub.fails("", &[trouble(), trouble()]);
    client.download().expect("the third time");
    let client = Client::new();
    client.hub.fails(SHARD, &[trouble(), trouble(), trouble()]);
    let text = client.refusal();
    assert!(text.contains("answers 503") && text.contains(SHARD) && text.contains("3 times in a row"), "{text}");

    let mut client = Client::new();
    let unused = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    client.settings.endpoint = format!("http://{unused}");
    let text = client.refusal();
    assert!(text.contains(&unused.to_string()) && text.contains("cannot be reached"), "{text}");
    assert!(text.contains("HTTPS_PROXY"), "{text}");
}

#[test]
fn a_download_that_does_not_fit_on_the_disk_is_not_started() {
    let client = Client::new();
    client.hub.conduct().listed_sizes.insert(SHARD.into(), 1 << 55);
    let text = client.refusal();
    assert!(text.contains("the download needs 33554432.00 GiB") && text.contains("are free in"), "{text}");
    assert!(client.hub.seen().iter().all(|seen| !seen.at_storage), "only the listing was requested");
}

#[test]
fn offline_uses_the_cache_or_refuses() {
    let mut client = Client::new();
    client.settings.is_offline = true;
    let text = client.refusal();
    assert!(text.contains("HF_HUB_OFFLINE") && text.contains(ID), "{text}");
    assert!(client.hub.seen().is_empty());
    client.settings.is_offline = false;
    let folder = client.download().expect("downloaded").folder;
    client.settings.is_offline = true;
    client.hub.forget();
    assert_eq!(client.download().expect("cached").folder, folder);
    assert!(client.hub.seen().is_empty());
}

#[test]
fn requests_go_through_a_proxy_unless_the_host_is_excepted() {
    let mut client = Client::new();
    // The stub is its own proxy: its path is the complete address.
    let real = std::mem::replace(&mut client.settings.endpoint, "http://hub.invalid".into());
    client.settings.proxy.http = Some(real.clone());
    let text = client.refusal();
    assert!(client.hub.seen()[0].path.starts_with("http://hub.invalid/api/models/"), "{text}");
    client.settings.proxy.except = Some("hub.invalid".into());
    client.hub.forget();
    let text = client.refusal();
    assert!(text.contains("cannot be reached") && client.hub.seen().is_empty(), "{text}");
}

#[test]
fn a_target_folder_has_plain_files_with_known_checksums() {
    let client = Client::new();
    let folder = client.home.path().join("weights");
    let request = Request { folder: Some(folder.clone()), ..Client::request() };
    let downloaded = client.ask(&request).expect("downloaded");
    assert_eq!(downloaded.folder, folder);
    assert!(is_sound(&folder) && !client.repository_folder().exists());
    assert!(std::fs::symlink_metadata(folder.join(SHARD)).expect("there").is_file(), "no link");
    assert_eq!(known_files(&folder).len(), downloaded.files);
    assert_eq!(client.ask(&request).expect("here").bytes_fetched, 0);
    // Without metadata, files are read, and changed ones are downloaded again.
    std::fs::remove_dir_all(folder.join(".cache")).expect("removed");
    let mut bytes = std::fs::read(folder.join(SHARD)).expect("readable");
    *bytes.last_mut().expect("not empty") ^= 1;
    std::fs::write(folder.join(SHARD), &bytes).expect("written");
    assert_eq!(client.ask(&request).expect("repaired").bytes_fetched, bytes.len() as u64);
}

#[test]
fn two_processes_do_not_write_one_file() {
    let client = Client::new();
    let lock = client.home.path().join("hub/.locks/models--black-forest-labs--FLUX.1-dev");
    std::fs::create_dir_all(&lock).expect("made");
    let digest = stub::sha256(&client.hub.conduct().files[SHARD]);
    let file = std::fs::File::create(lock.join(format!("{digest}.lock"))).expect("made");
    file.lock().expect("taken");
    let text = client.refusal();
    assert!(text.contains("another process is downloading") && text.contains(SHARD), "{text}");
    file.unlock().expect("released");
    client.download().expect("downloaded");
}

/// The system's error where a file system lacks links or locks.
fn refused() -> std::io::Error {
    std::io::ErrorKind::Unsupported.into()
}

#[test]
fn a_cache_without_links_works_and_is_found_again() {
    let no_symbolic_links = FileSystem { symbolic_link: |_, _| Err(refused()), ..FileSystem::default() };
    let no_links = FileSystem { hard_link: |_, _| Err(refused()), ..no_symbolic_links };
    for (file_system, has_hard_links) in [(no_symbolic_links, true), (no_links, false)] {
        let mut client = Client::new();
        client.settings.file_system = file_system;
        // One blob for two files.
        let config = client.hub.conduct().files["vae/config.json"].clone();
        client.hub.conduct().files.insert("LICENSE.md".into(), config.clone());
        let downloaded = client.download().expect("downloaded");
        let snapshot = &downloaded.folder;
        assert!(is_sound(snapshot));
        for path in [SHARD, "vae/config.json", "LICENSE.md"] {
            assert!(std::fs::symlink_metadata(snapshot.join(path)).expect("there").is_file(), "no link: {path}");
        }
        assert_eq!(std::fs::read(snapshot.join("LICENSE.md")).expect("readable"), config);
        assert_eq!(client.blob(SHARD).exists(), has_hard_links, "it is not stored twice");
        let known = known_files(snapshot);
        assert_eq!(known.len(), downloaded.files, "the checksums are known");

        let again = |expected: u64| {
            client.hub.forget();
            assert_eq!(client.download().expect("here").bytes_fetched, expected);
            assert!(is_sound(snapshot));
        };
        again(0);
        // As Python's tools leave it.
        std::fs::remove_dir_all(snapshot.join(".cache")).expect("removed");
        again(0);
        let size = client.hub.conduct().files[SHARD].len() as u64;
        drop(std::fs::remove_file(client.blob(SHARD)));
        std::fs::write(snapshot.join(SHARD), "cut off").expect("written");
        again(size);
        again(0);
        client.settings.is_offline = true;
        assert_eq!(client.download().expect("here").folder, *snapshot);
    }
}

#[test]
fn a_file_system_without_locks_is_refused_before_the_first_transfer() {
    let mut client = Client::new();
    // `ENOLCK`, as on a network share.
    let try_lock = |_: &std::fs::File| Err(std::fs::TryLockError::Error(std::io::Error::from_raw_os_error(37)));
    client.settings.file_system.try_lock = try_lock;
    let folder = client.home.path().join("weights");
    for request in [Client::request(), Request { folder: Some(folder), ..Client::request() }] {
        let text = client.ask(&request).expect_err("a refusal").to_string();
        for part in ["cannot be locked", "os error 37", "HF_HUB_CACHE", "--to"] {
            assert!(text.contains(part), "{part:?} in {text}");
        }
    }
    assert!(client.hub.seen().iter().all(|seen| !seen.at_storage), "only the listing was requested");
    // A complete download needs no locks.
    client.settings.file_system = FileSystem::default();
    client.download().expect("downloaded");
    client.settings.file_system.try_lock = try_lock;
    assert_eq!(client.download().expect("here").bytes_fetched, 0);
}
