//! Where models are downloaded from, and where to. The variables are those of Hugging Face's own tools, so that one
//! cache and one token serve them and this program alike.

use std::fmt;
use std::path::PathBuf;

use crate::domain::hub_token::HubToken;

/// The hub that is asked where nothing names another.
pub const DEFAULT_HUB: &str = "https://huggingface.co";

/// The hub of models.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubConfig {
    /// Whether a model that is to be served and is not here is downloaded first.
    pub download: bool,
    /// Where it is: scheme, host, and where it has one a port and a path. Ends in no slash.
    pub endpoint: String,
    /// Who asks. `None`: who [`HubConfig::token_file`] says, or nobody in particular.
    pub token: Option<HubToken>,
    /// A file with a token, which need not be there. `None`: no home folder is known.
    pub token_file: Option<PathBuf>,
    /// Folder of downloaded models. `None`: no home folder is known.
    pub cache_dir: Option<PathBuf>,
    /// Whether the hub must not be asked for anything.
    pub is_offline: bool,
    /// What stands between.
    pub proxy: ProxyConfig,
}

/// Proxies on the way to the hub.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProxyConfig {
    /// For https.
    pub https: Option<ProxyUrl>,
    /// For plain http.
    pub http: Option<ProxyUrl>,
    /// Hosts that are reached without one, separated by commas.
    pub except: Option<String>,
}

/// A proxy's address. A password may stand in it, so it is not shown.
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
