//! Where models are downloaded from, and where to. The variables are those of Hugging Face's own tools, so that all share
//! one cache and one token.

use std::fmt;
use std::path::PathBuf;

use crate::domain::hub_token::HubToken;

/// The default hub.
pub const DEFAULT_HUB: &str = "https://huggingface.co";

/// The hub of models.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubConfig {
    /// Whether missing models are downloaded before serving.
    pub download: bool,
    /// Scheme and host, with a port and a path if it has them. Without a slash at the end.
    pub endpoint: String,
    /// `None`: the token in [`HubConfig::token_file`], or no token.
    pub token: Option<HubToken>,
    /// A file with a token. It may be missing. `None`: no home folder is known.
    pub token_file: Option<PathBuf>,
    /// Folder of downloaded models. `None`: no home folder is known.
    pub cache_dir: Option<PathBuf>,
    /// Whether requests to the hub are forbidden.
    pub is_offline: bool,
    /// Proxies on the way to the hub.
    pub proxy: ProxyConfig,
}

/// Proxies on the way to the hub.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProxyConfig {
    /// For https.
    pub https: Option<ProxyUrl>,
    /// For plain http.
    pub http: Option<ProxyUrl>,
    /// Hosts that are reached without a proxy, separated by commas.
    pub except: Option<String>,
}

/// A proxy's address. It may contain a password, so it is not shown.
#[derive(Clone, PartialEq, Eq)]
pub struct ProxyUrl(String);

impl ProxyUrl {
    pub(super) fn new(url: String) -> Self {
        Self(url)
    }

    /// The address itself.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for ProxyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ProxyUrl(…)")
    }
}

impl Default for HubConfig {
    fn default() -> Self {
        Self {
            download: false,
            endpoint: DEFAULT_HUB.to_owned(),
            token: None,
            token_file: None,
            cache_dir: None,
            is_offline: false,
            proxy: ProxyConfig::default(),
        }
    }
}
