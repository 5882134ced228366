//! Where finished images are stored: a folder, or a bucket. A bucket's credentials are no part of this: they come from where its
//! tools look for them.

use std::path::PathBuf;

use crate::domain::bucket::BucketLocation;

/// Where finished images are stored.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ResultStore {
    /// In the data folder.
    #[default]
    DataFolder,
    /// In this folder.
    Folder(PathBuf),
    /// In a bucket.
    Bucket(BucketConfig),
}

/// A bucket for finished images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BucketConfig {
    /// The bucket.
    pub location: BucketLocation,
    /// Address of a store that speaks S3: scheme, host, and perhaps a port and a path. `None`: the environment's, or Amazon's.
    pub endpoint: Option<String>,
    /// Its region. `None`: the environment's, or `us-east-1`.
    pub region: Option<String>,
    /// Whether it may be reached without TLS.
    pub allow_http: bool,
    /// For how long a link to an image leads to the bucket itself. `None`: the worker reads the image and answers with it.
    pub redirect_seconds: Option<u64>,
    /// Maximum disk space of images that wait while the bucket does not answer.
    pub spool_bytes_max: u64,
}
