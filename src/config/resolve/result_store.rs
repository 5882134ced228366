//! From the settings to where finished images are stored.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use super::{last, refuse, within};
use crate::config::env;
use crate::config::settings::{Layer, Settings};
use crate::config::{BucketConfig, ConfigError, ResultStore};
use crate::domain::bucket::{BucketKind, BucketLocation, NotABucket};

/// A link to a bucket works without a key, and cannot be taken back.
const REDIRECT_SECONDS: RangeInclusive<u64> = 1..=60;
const SPOOL_BYTES: RangeInclusive<u64> = 1024 * 1024..=1 << 50;
const DEFAULT_SPOOL_BYTES: u64 = 2 * 1024 * 1024 * 1024;
const FOLDER_SCHEME: &str = "file://";

/// Where `layers` (later ones win) store images.
pub(super) fn result_store(layers: &[Layer]) -> Result<ResultStore, ConfigError> {
    let Some((text, origin)) = last(layers, |settings| settings.results.store.as_deref()) else {
        return without_bucket(layers).map(|()| ResultStore::DataFolder);
    };
    if let Some(path) = text.strip_prefix(FOLDER_SCHEME) {
        without_bucket(layers)?;
        let reason = || format!("`{text}` is not the absolute path of a folder: write it like file:///mnt/results");
        return folder(path).map(ResultStore::Folder).ok_or_else(|| origin.error(&env::RESULTS_STORE, reason()));
    }
    // The reason does not repeat the text: it may hold credentials, which do not belong there.
    let location: BucketLocation = text.parse().map_err(|error: NotABucket| {
        let reason = format!("{error}; or a folder, file:///mnt/results. Credentials come from elsewhere");
        origin.error(&env::RESULTS_STORE, reason)
    })?;
    if location.kind != BucketKind::S3 {
        refuse(layers, "is for buckets of S3", |Settings { results, .. }| {
            vec![
                (results.endpoint.is_some(), &env::RESULTS_ENDPOINT),
                (results.region.is_some(), &env::RESULTS_REGION),
                (results.allow_http.is_some(), &env::RESULTS_ALLOW_HTTP),
            ]
        })?;
    }
    let allow_http = last(layers, |settings| settings.results.allow_http).is_some_and(|(allow_http, _)| allow_http);
    let spool_bytes = |settings: &Settings| settings.results.spool_bytes_max;
    Ok(ResultStore::Bucket(BucketConfig {
        location,
        endpoint: endpoint(layers, allow_http)?,
        region: last(layers, |settings| settings.results.region.clone()).map(|(region, _)| region),
        allow_http,
        redirect_seconds: redirect_seconds(layers)?,
        spool_bytes_max: within(layers, &env::RESULTS_SPOOL_BYTES_MAX, spool_bytes, &SPOOL_BYTES, DEFAULT_SPOOL_BYTES)?,
    }))
}

/// The path of a `file:` URL, as it is written. Not the root of a disk: the folder is closed to other users.
fn folder(path: &str) -> Option<PathBuf> {
    // There, a drive follows the slash.
    let path = if cfg!(windows) { path.trim_start_matches('/') } else { path };
    Some(Path::new(path)).filter(|path| path.is_absolute() && path.file_name().is_some()).map(Path::to_path_buf)
}

fn endpoint(layers: &[Layer], allow_http: bool) -> Result<Option<String>, ConfigError> {
    let Some((text, origin)) = last(layers, |settings| settings.results.endpoint.as_deref()) else { return Ok(None) };
    let refuse = |reason: &str| Err(origin.error(&env::RESULTS_ENDPOINT, reason.to_owned()));
    let url = text.trim_end_matches('/');
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    if !rest.is_some_and(|rest| !rest.is_empty() && !rest.contains(['?', '#', '@', ' '])) {
        return refuse("is not a store's address: write it like https://s3.example.org");
    }
    if url.starts_with("http://") && !allow_http {
        let field = env::RESULTS_ALLOW_HTTP.field;
        return refuse(&format!("is without TLS: images could be read on the way; set `{field}` to true to allow it"));
    }
    Ok(Some(url.to_owned()))
}

fn redirect_seconds(layers: &[Layer]) -> Result<Option<u64>, ConfigError> {
    let redirects = match last(layers, |settings| settings.results.links.as_deref()) {
        None | Some(("stream", _)) => false,
        Some(("redirect", _)) => true,
        Some((text, origin)) => {
            let reason = format!("must be `stream` or `redirect`, not `{text}`");
            return Err(origin.error(&env::RESULTS_LINKS, reason));
        }
    };
    if redirects {
        let seconds = |settings: &Settings| settings.results.redirect_seconds;
        let longest = *REDIRECT_SECONDS.end();
        return within(layers, &env::RESULTS_REDIRECT_SECONDS, seconds, &REDIRECT_SECONDS, longest).map(Some);
    }
    refuse(
        layers,
        "is for redirects: set `results.links` to `redirect`, or leave it out",
        |Settings { results, .. }| vec![(results.redirect_seconds.is_some(), &env::RESULTS_REDIRECT_SECONDS)],
    )?;
    Ok(None)
}

/// Refuses what only a bucket needs.
fn without_bucket(layers: &[Layer]) -> Result<(), ConfigError> {
    refuse(layers, "is for a bucket: set `results.store` to one, or leave it out", |Settings { results, .. }| {
        vec![
            (results.endpoint.is_some(), &env::RESULTS_ENDPOINT),
            (results.region.is_some(), &env::RESULTS_REGION),
            (results.allow_http.is_some(), &env::RESULTS_ALLOW_HTTP),
            (results.links.is_some(), &env::RESULTS_LINKS),
            (results.redirect_seconds.is_some(), &env::RESULTS_REDIRECT_SECONDS),
            (results.spool_bytes_max.is_some(), &env::RESULTS_SPOOL_BYTES_MAX),
        ]
    })
}
