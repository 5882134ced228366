//! Models from a hub: whole, in parts, and through everything that can go wrong on the way. The hub is one on this
//! machine, made of the reference checkpoint.

#![cfg(unix)]

#[path = "hub/stub.rs"]
mod stub;

#[path = "hub/program.rs"]
mod program;

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use fluxserve::domain::model::ModelFiles;
use fluxserve::engine;
use fluxserve::hub::{self, Downloaded, FileSystem, HubError, HubSettings, Patience, Progress, Request, known_files};
use stub::{COMMIT, Fault, Hub, ID, LICENCE};
use tempfile::TempDir;

const SHARD: &str = "transformer/diffusion_pytorch_model-00002-of-00003.safetensors";
const T5_SHARD: &str = "text_encoder_2/model-00001-of-00002.safetensors";

/// Hears everything and counts the waits.
#[derive(Default)]
struct Heard {
    waits: Mutex<Vec<Duration>>,
    planned: Mutex<Option<(usize, u64, u64)>>,
    received: Mutex<u64>,
}

impl Progress for Heard {
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
    heard: Heard,
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
        Self { hub, home, settings, heard: Heard::default() }
    }

    fn token(mut self, token: &str) -> Self {
        self.settings.token = Some(token.parse().expect("a token"));
        self
    }

    fn request() -> Request {
        Request { repository: ID.parse().expect("an id"), revision: hub::Revision::default(), folder: None }
    }

    fn ask(&self, request: &Request) -> Result<Downloaded, HubError> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        runtime.expect("a runtime").block_on(hub::download(&self.settings, request, &self.heard))
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
fn one_layout_comes_whole_into_the_cache_of_others() {
    let client = Client::new().token("hf_secret");
    let downloaded = client.download().expect("fetched");
    let snapshot = client.repository_folder().join("snapshots").join(COMMIT);
    assert_eq!((&downloaded.folder, downloaded.commit.as_deref()), (&snapshot, Some(COMMIT)));
    assert!(is_sound(&snapshot));
    assert_eq!(std::fs::read_to_string(client.repository_folder().join("refs/main")).expect("a ref"), COMMIT);
    assert_eq!(std::fs::read_to_string(snapshot.join("LICENSE.md")).expect("the licence"), LICENCE);
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
    let (files, bytes, here) = client.heard.planned.lock().expect("no panic").expect("planned");
    assert_eq!((files, bytes, here), (downloaded.files, downloaded.bytes_fetched, 0));
    assert_eq!(*client.heard.received.lock().expect("no panic"), bytes);

    // The token is for the hub alone.
    let seen = client.hub.seen();
    assert!(seen.iter().any(|seen| seen.at_storage) && seen.iter().any(|seen| !seen.at_storage));
    for seen in seen {
        assert_eq!(seen.authorization.as_deref(), (!seen.at_storage).then_some("Bearer hf_secret"), "{}", seen.path);
    }

    // What is here is not fetched again.
    client.hub.forget();
    let again = client.download().expect("here");
    assert_eq!((again.bytes_fetched, again.folder), (0, snapshot));
    assert_eq!(client.hub.seen().len(), 1, "the listing alone");
    // A blob that is gone is the only one to come again.
    std::fs::remove_file(client.blob(SHARD)).expect("removed");
    client.hub.forget();
    let size = client.hub.conduct().files[SHARD].len() as u64;
    assert_eq!(client.download().expect("mended").bytes_fetched, size);
    assert!(is_sound(&downloaded.folder));
}

#[test]
fn a_connection_that_breaks_off_goes_on_where_it_was() {
    let client = Client::new();
    client.hub.fails(SHARD, &[Fault::Cut(70_000), Fault::Cut(0), Fault::Cut(1000), Fault::Cut(0)]);
    client.download().expect("fetched");
    let size = client.hub.conduct().files[SHARD].len();
    let seen: Vec<_> = client.hub.seen_of(SHARD).into_iter().filter(|seen| seen.at_storage).collect();
    let starts: Vec<u64> = seen.iter().map(|seen| seen.start).collect();
    assert_eq!(starts, [0, 70_000, 70_000, 71_000, 71_000]);
    assert_eq!(seen.iter().map(|seen| seen.sent).sum::<usize>(), size, "no byte twice");
}

#[test]
fn a_connection_that_never_holds_is_given_up_and_taken_up_by_the_next_command() {
    let client = Client::new();
    client.hub.fails(SHARD, &[Fault::Cut(50_000), Fault::Cut(0), Fault::Cut(0)]);
    let text = client.refusal();
    let size = client.hub.conduct().files[SHARD].len();
    assert!(
        text.contains(&format!("50000 of {size} bytes of `{SHARD}`")) && text.contains("3 times in a row"),
        "{text}"
    );
    client.hub.forget();
    client.download().expect("fetched");
    let seen: Vec<_> = client.hub.seen_of(SHARD).into_iter().filter(|seen| seen.at_storage).collect();
    assert_eq!(seen.iter().map(|seen| (seen.start, seen.sent)).collect::<Vec<_>>(), [(50_000, size - 50_000)]);
}

#[test]
fn a_hub_that_does_no_ranges_sends_all_of_it_again() {
    let client = Client::new();
    client.hub.fails(SHARD, &[Fault::Cut(50_000), Fault::NoRange]);
    let downloaded = client.download().expect("fetched");
    assert!(is_sound(&downloaded.folder));
    let bytes = downloaded.bytes_fetched;
    assert_eq!(*client.heard.received.lock().expect("no panic"), bytes, "what was lost does not count");
}

#[test]
fn a_damaged_file_is_named_deleted_and_fetched_anew() {
    for path in [SHARD, "vae/config.json"] {
        let client = Client::new();
        client.hub.fails(path, &[Fault::Damaged]);
        let text = client.refusal();
        assert!(text.starts_with(&format!("`{path}` came damaged: its ")), "{text}");
        let blobs = std::fs::read_dir(client.repository_folder().join("blobs")).expect("a folder");
        let digest = match path {
            SHARD => stub::sha256(&client.hub.conduct().files[path]),
            _ => stub::git_blob(&client.hub.conduct().files[path]),
        };
        assert!(text.contains(&digest), "{text}");
        let left: Vec<_> = blobs.map(|blob| blob.expect("a blob").file_name()).collect();
        assert!(!left.iter().any(|name| name.to_string_lossy().starts_with(&digest)), "{left:?}");
        assert!(!client.repository_folder().join("refs/main").exists(), "nothing leads to half a model");
        assert!(is_sound(&client.download().expect("fetched").folder));
    }
}

#[test]
fn a_gated_repository_says_where_to_accept_its_licence_and_where_the_token_goes() {
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
    client.download().expect("let in");
}

#[test]
fn a_token_from_its_file_is_used_and_one_that_is_none_is_named() {
    let client = Client::new();
    client.hub.conduct().gate = Some("hf_accepted".into());
    let file = client.home.path().join("token");
    std::fs::write(&file, "two words\n").expect("written");
    let text = client.refusal();
    assert!(text.contains(file.to_str().expect("text")) && text.contains("not an access token"), "{text}");
    assert!(!text.contains("two words"), "{text}");
    std::fs::write(&file, "hf_accepted\n").expect("written");
    client.download().expect("let in");
}

#[test]
fn each_refusal_has_its_own_words() {
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
        ("", Fault::Status(200, vec![]), &["does not answer as a hub does"]),
        (SHARD, Fault::Circle, &["points elsewhere more than 8 times"]),
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
    assert!(text.contains("does not take the token in HF_TOKEN") && text.contains("Invalid credentials"), "{text}");

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
fn a_hub_that_is_asked_too_often_is_waited_for_within_a_bound() {
    let too_many = |seconds: u32| Fault::Status(429, vec![("retry-after", seconds.to_string())]);
    let client = Client::new();
    client.hub.fails("", &[too_many(1)]);
    client.hub.fails(SHARD, &[too_many(0)]);
    client.download().expect("fetched after a rest");
    let waits = client.heard.waits.lock().expect("no panic").clone();
    assert_eq!(waits, [Duration::from_secs(1), Duration::ZERO]);

    let client = Client::new();
    let rested = Fault::Status(429, vec![("ratelimit", "\"api\";r=0;t=1".into())]);
    client.hub.fails("", &[rested, too_many(0), too_many(2)]);
    let text = client.refusal();
    assert!(text.contains("2 more seconds"), "one second of the two was waited already: {text}");

    let client = Client::new();
    client.hub.fails("", &[too_many(3600)]);
    let text = client.refusal();
    assert!(text.contains("asked too often") && text.contains("3600 more seconds"), "{text}");
    assert!(client.heard.waits.lock().expect("no panic").is_empty(), "an hour is not waited");
}

#[test]
fn a_hub_in_trouble_is_asked_again_and_given_up() {
    let trouble = || Fault::Status(503, vec![]);
    let client = Client::new();
    client.hub.fails("", &[trouble(), trouble()]);
    client.download().expect("the third time");
    let client = Client::new();
    client.hub.fails(SHARD, &[trouble(), trouble(), trouble()]);
    let text = client.refusal();
    assert!(text.contains("answers 503") && text.contains(SHARD) && text.contains("3 times in a row"), "{text}");

    let mut client = Client::new();
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    client.settings.endpoint = format!("http://{nobody}");
    let text = client.refusal();
    assert!(text.contains(&nobody.to_string()) && text.contains("cannot be reached"), "{text}");
    assert!(text.contains("HTTPS_PROXY"), "{text}");
}

#[test]
fn what_does_not_fit_is_not_begun() {
    let client = Client::new();
    client.hub.conduct().listed_sizes.insert(SHARD.into(), 1 << 55);
    let text = client.refusal();
    assert!(text.contains("33554432.00 GiB are to be fetched") && text.contains("are free in"), "{text}");
    assert!(client.hub.seen().iter().all(|seen| !seen.at_storage), "only the listing was asked for");
}

#[test]
fn offline_means_the_cache_or_a_refusal() {
    let mut client = Client::new();
    client.settings.is_offline = true;
    let text = client.refusal();
    assert!(text.contains("HF_HUB_OFFLINE") && text.contains(ID), "{text}");
    assert!(client.hub.seen().is_empty());
    client.settings.is_offline = false;
    let folder = client.download().expect("fetched").folder;
    client.settings.is_offline = true;
    client.hub.forget();
    assert_eq!(client.download().expect("cached").folder, folder);
    assert!(client.hub.seen().is_empty());
}

#[test]
fn a_proxy_is_gone_through_unless_the_host_is_excepted() {
    let mut client = Client::new();
    // The stub is its own proxy: it gets the whole address as the path.
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
fn a_folder_of_ones_own_has_plain_files_and_remembers_what_they_are() {
    let client = Client::new();
    let folder = client.home.path().join("weights");
    let request = Request { folder: Some(folder.clone()), ..Client::request() };
    let downloaded = client.ask(&request).expect("fetched");
    assert_eq!(downloaded.folder, folder);
    assert!(is_sound(&folder) && !client.repository_folder().exists());
    assert!(std::fs::symlink_metadata(folder.join(SHARD)).expect("there").is_file(), "no link");
    assert_eq!(known_files(&folder).len(), downloaded.files);
    assert_eq!(client.ask(&request).expect("here").bytes_fetched, 0);
    // Whose notes are lost is looked at, and what is another file comes again.
    std::fs::remove_dir_all(folder.join(".cache")).expect("removed");
    let mut bytes = std::fs::read(folder.join(SHARD)).expect("readable");
    *bytes.last_mut().expect("not empty") ^= 1;
    std::fs::write(folder.join(SHARD), &bytes).expect("written");
    assert_eq!(client.ask(&request).expect("mended").bytes_fetched, bytes.len() as u64);
}

#[test]
fn two_do_not_write_one_file() {
    let client = Client::new();
    let lock = client.home.path().join("hub/.locks/models--black-forest-labs--FLUX.1-dev");
    std::fs::create_dir_all(&lock).expect("made");
    let digest = stub::sha256(&client.hub.conduct().files[SHARD]);
    let file = std::fs::File::create(lock.join(format!("{digest}.lock"))).expect("made");
    file.lock().expect("taken");
    let text = client.refusal();
    assert!(text.contains("another process is fetching") && text.contains(SHARD), "{text}");
    file.unlock().expect("let go of");
    client.download().expect("fetched");
}

/// What systems say of links and locks that a file system does not have.
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
        let downloaded = client.download().expect("fetched");
        let snapshot = &downloaded.folder;
        assert!(is_sound(snapshot));
        for path in [SHARD, "vae/config.json", "LICENSE.md"] {
            assert!(std::fs::symlink_metadata(snapshot.join(path)).expect("there").is_file(), "no link: {path}");
        }
        assert_eq!(std::fs::read(snapshot.join("LICENSE.md")).expect("readable"), config);
        assert_eq!(client.blob(SHARD).exists(), has_hard_links, "it does not lie there twice");
        let known = known_files(snapshot);
        assert_eq!(known.len(), downloaded.files, "what each should be can be looked at");

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
fn a_file_system_without_locks_is_refused_before_anything_is_fetched() {
    let mut client = Client::new();
    // `ENOLCK`, as of a share.
    let try_lock = |_: &std::fs::File| Err(std::fs::TryLockError::Error(std::io::Error::from_raw_os_error(37)));
    client.settings.file_system.try_lock = try_lock;
    let folder = client.home.path().join("weights");
    for request in [Client::request(), Request { folder: Some(folder), ..Client::request() }] {
        let text = client.ask(&request).expect_err("a refusal").to_string();
        for part in ["cannot be locked", "os error 37", "HF_HUB_CACHE", "--to"] {
            assert!(text.contains(part), "{part:?} in {text}");
        }
    }
    assert!(client.hub.seen().iter().all(|seen| !seen.at_storage), "only the listing was asked for");
    // What is there already needs none.
    client.settings.file_system = FileSystem::default();
    client.download().expect("fetched");
    client.settings.file_system.try_lock = try_lock;
    assert_eq!(client.download().expect("here").bytes_fetched, 0);
}
