use std::path::Path;

use tempfile::TempDir;

use super::*;
use crate::auth::{Actor, NewKey};
use crate::domain::clock::ManualClock;
use crate::domain::format::OutputFormat;
use crate::domain::image::RgbImage;
use crate::domain::limits::KeyLimits;
use crate::domain::scope::Scope;
use crate::encode::encode;

/// For reading a file.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(20);

/// Uploads of a database and a folder of their own.
struct Site {
    uploads: Uploads,
    store: Store,
    keys: KeyService,
    clock: ManualClock,
    folder: TempDir,
}

impl Site {
    async fn start(limits: UploadLimits) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open_in_memory().await.expect("opens");
        let clock = ManualClock::new(OffsetDateTime::now_utc());
        let keys = KeyService::new(store.clone(), Arc::new(clock.clone()));
        let uploads = started((&store, &keys, &clock), folder.path(), limits).await;
        Self { uploads, store, keys, clock, folder }
    }

    /// The uploads after a restart.
    async fn restarted(&self) -> Uploads {
        started((&self.store, &self.keys, &self.clock), self.folder.path(), UploadLimits::default()).await
    }

    async fn key(&self) -> KeyId {
        let (scope, limits) = (Scope::Inference, KeyLimits::default());
        let new = NewKey { name: "test".into(), scope, expires_at: None, limits };
        self.keys.create(new, &Actor::CommandLine).await.expect("a key").id
    }

    async fn add(&self, owner: KeyId, bytes: &[u8]) -> Result<Upload, UploadError> {
        let mut arrival = self.uploads.begin(owner).await?;
        for piece in bytes.chunks(40) {
            arrival.write(piece.to_vec()).await?;
        }
        self.uploads.add(arrival).await
    }

    fn files(&self) -> usize {
        std::fs::read_dir(self.folder.path()).expect("a folder").count()
    }
}

async fn started(
    (store, keys, clock): (&Store, &KeyService, &ManualClock),
    folder: &Path,
    limits: UploadLimits,
) -> Uploads {
    let (store, keys, folder) = (store.clone(), keys.clone(), folder.to_owned());
    let parts = UploadParts { store, keys, folder, bucket: None, clock: Arc::new(clock.clone()), limits };
    Uploads::start(parts).await.expect("a database")
}

/// A file of one color.
fn file(color: u8) -> Vec<u8> {
    let image = RgbImage::new(6, 4, vec![color; 6 * 4 * 3]).expect("three bytes per pixel");
    encode(&image, OutputFormat::Png).expect("encodes")
}

#[tokio::test]
async fn the_same_file_of_a_key_is_one_upload_and_another_keys_is_another() {
    let site = Site::start(UploadLimits::default()).await;
    let (one, two) = (site.key().await, site.key().await);
    let first = site.add(one, &file(1)).await.expect("kept");
    assert_eq!((first.width, first.height, first.format), (6, 4, OutputFormat::Png));
    assert_eq!(first.bytes, file(1).len() as u64);
    site.clock.advance(Duration::HOUR);
    let again = site.add(one, &file(1)).await.expect("kept");
    assert_eq!((&again.id, again.expires_at - first.expires_at), (&first.id, Duration::HOUR));
    assert_eq!((site.uploads.list(one).await.expect("listed"), site.files()), (vec![again.clone()], 1));
    let id = first.id.as_str();
    assert!(site.uploads.file(two, id).await.expect("told").is_none(), "it is not its own");
    assert!(matches!(site.uploads.remove(two, first.id.clone()).await, Err(UploadError::NotFound)));
    let found = site.uploads.file(one, id).await.expect("told").expect("there");
    assert_eq!(found.read(PATIENCE).expect("readable"), Some(file(1)));
    assert_eq!(site.add(two, &file(1)).await.expect("kept").id, first.id);
    assert_eq!(site.files(), 2);
    site.uploads.remove(one, first.id.clone()).await.expect("removed");
    assert!(site.uploads.file(one, id).await.expect("told").is_none());
    assert_eq!((found.read(PATIENCE).expect("told"), site.files()), (None, 1), "it is gone for those who have it, too");
    assert!(site.uploads.file(two, id).await.expect("told").is_some());
    assert!(site.uploads.file(two, "../secret").await.expect("told").is_none());
}

#[tokio::test]
async fn what_has_expired_or_belongs_to_a_revoked_key_goes() {
    let site = Site::start(UploadLimits::default()).await;
    let (one, two) = (site.key().await, site.key().await);
    let old = site.add(one, &file(1)).await.expect("kept");
    site.clock.advance(Duration::hours(12));
    site.add(one, &file(2)).await.expect("kept");
    site.add(two, &file(2)).await.expect("kept");
    assert_eq!(site.uploads.sweep().await.expect("swept"), 0);
    site.clock.advance(Duration::hours(12));
    assert!(site.uploads.file(one, old.id.as_str()).await.expect("told").is_none(), "before the sweep");
    assert_eq!(site.uploads.list(one).await.expect("listed").len(), 1);
    assert_eq!((site.uploads.sweep().await.expect("swept"), site.files()), (1, 2));
    site.keys.revoke(two, &Actor::CommandLine).await.expect("revoked");
    assert_eq!((site.uploads.sweep().await.expect("swept"), site.files()), (1, 1));
    assert_eq!(site.uploads.list(one).await.expect("listed").len(), 1);
}

#[tokio::test]
async fn what_arrives_after_a_time_without_the_server_is_kept_for_a_day_from_then() {
    let mut site = Site::start(UploadLimits::default()).await;
    let owner = site.key().await;
    site.add(owner, &file(1)).await.expect("kept");
    // Switched off meanwhile.
    site.clock.set_by(Duration::hours(20));
    site.uploads = site.restarted().await;
    let kept = site.add(owner, &file(2)).await.expect("kept");
    assert_eq!(kept.expires_at, to_the_millisecond(site.clock.now()) + Duration::hours(24));
    assert_eq!(site.uploads.sweep().await.expect("swept"), 0);
    site.clock.advance(Duration::hours(5));
    assert_eq!(site.uploads.sweep().await.expect("swept"), 1, "the first one");
    assert!(site.uploads.file(owner, kept.id.as_str()).await.expect("told").is_some());
}

#[tokio::test]
async fn a_clock_that_leaps_ahead_for_a_moment_deletes_nothing() {
    let site = Site::start(UploadLimits::default()).await;
    let owner = site.key().await;
    site.add(owner, &file(1)).await.expect("kept");
    site.clock.set_by(Duration::days(400));
    assert_eq!(site.uploads.sweep().await.expect("swept"), 0);
    assert_eq!(site.uploads.list(owner).await.expect("listed").len(), 1);
}

#[tokio::test]
async fn keys_and_the_worker_have_limits() {
    let bytes_max = [1, 2, 3].map(|color| file(color).len() as u64).iter().sum();
    let limits = UploadLimits { owner_uploads_max: 2, bytes_max, ..UploadLimits::default() };
    let site = Site::start(limits).await;
    let (one, two) = (site.key().await, site.key().await);
    for color in [1, 2] {
        site.add(one, &file(color)).await.expect("room");
    }
    let refused = site.add(one, &file(3)).await.expect_err("its limit");
    assert!(matches!(refused, UploadError::OwnerFull { uploads: 2, uploads_max: 2, .. }), "{refused}");
    site.add(one, &file(2)).await.expect("it is there already");
    site.add(two, &file(3)).await.expect("room");
    let refused = site.add(two, &file(4)).await.expect_err("the worker's limit");
    let day = 24 * 60 * 60;
    assert!(
        matches!(refused, UploadError::Full { retry_after_seconds } if (1..=day + 60).contains(&retry_after_seconds)),
        "{refused}"
    );
    assert_eq!(site.files(), 3);
    let owner_bytes_max = file(1).len() as u64;
    let limits = UploadLimits { owner_bytes_max, ..UploadLimits::default() };
    let site = Site::start(limits).await;
    let owner = site.key().await;
    site.add(owner, &file(1)).await.expect("room");
    assert!(matches!(site.add(owner, &file(2)).await, Err(UploadError::OwnerFull { .. })));
}

#[tokio::test]
async fn what_is_no_image_leaves_nothing() {
    let site = Site::start(UploadLimits::default()).await;
    let owner = site.key().await;
    let refused = site.add(owner, b"GIF89a").await.expect_err("no image");
    assert_eq!(refused.to_string(), "is not a PNG, JPEG or WebP file");
    assert!(matches!(site.add(owner, b"").await, Err(UploadError::Rejected(_))));
    let dropped = site.uploads.begin(owner).await.expect("begun");
    assert_eq!(site.files(), 1);
    drop(dropped);
    assert_eq!((site.files(), site.uploads.list(owner).await.expect("listed")), (0, Vec::new()));
}

#[tokio::test]
async fn a_start_removes_what_a_crash_has_left() {
    let site = Site::start(UploadLimits::default()).await;
    let owner = site.key().await;
    let kept = site.add(owner, &file(1)).await.expect("kept");
    let lost = site.add(owner, &file(2)).await.expect("kept");
    std::fs::remove_file(site.folder.path().join(format!("{owner}_{}", lost.id))).expect("there");
    let orphan = format!("{owner}_{}", "a5".repeat(32));
    for name in ["left.part", &orphan, "notes.txt"] {
        std::fs::write(site.folder.path().join(name), "x").expect("written");
    }
    let uploads = site.restarted().await;
    assert_eq!(uploads.list(owner).await.expect("listed"), std::slice::from_ref(&kept), "a row without a file goes");
    let mut names: Vec<_> = std::fs::read_dir(site.folder.path())
        .expect("a folder")
        .map(|entry| entry.expect("one").file_name().into_string().expect("UTF-8"))
        .collect();
    names.sort();
    let mut expected = vec![format!("{owner}_{}", kept.id), "notes.txt".to_owned()];
    expected.sort();
    assert_eq!(names, expected);
    // Later, one that is arriving stays.
    let _arriving = uploads.begin(owner).await.expect("begun");
    assert_eq!(uploads.reconcile(false).await.expect("searched"), 0);
    assert_eq!(site.files(), 3);
}
