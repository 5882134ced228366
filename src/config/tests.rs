//! Sources of configuration for the tests.

mod errors;
mod hub;
mod password;
mod prices;
mod sources;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::*;
use crate::domain::byte_size::ByteSize;
use crate::domain::device::{DeviceChoice, Kernels, Offload};
use crate::domain::ids::ModelId;
use crate::domain::networks::Networks;
use crate::domain::password::AdminPassword;
use crate::domain::precision::Precision;
use crate::domain::review::OnFailure;
use crate::domain::webhook::AllowedHosts;
use crate::domain::weight_storage::WeightStorage;

struct Sources {
    folder: tempfile::TempDir,
    variables: Vec<(&'static str, &'static str)>,
    flags: Flags,
}

impl Sources {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("a folder"), variables: Vec::new(), flags: Flags::default() }
    }

    fn file(self, text: &str) -> Self {
        std::fs::write(self.default_file(), text).expect("written");
        self
    }

    fn variable(mut self, name: &'static str, value: &'static str) -> Self {
        self.variables.push((name, value));
        self
    }

    fn flags(mut self, flags: Flags) -> Self {
        self.flags = flags;
        self
    }

    fn default_file(&self) -> PathBuf {
        self.folder.path().join(DEFAULT_FILE)
    }

    fn load(self) -> Result<Config, ConfigError> {
        let lookup = |name: &str| {
            let found = self.variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| OsString::from(value))
        };
        Config::from_sources(self.flags.clone(), &self.default_file(), &lookup)
    }

    fn error(self) -> String {
        self.load().expect_err("a mistake").to_string()
    }
}

const COMPLETE_FILE: &str = r#"
listen = "0.0.0.0:9000"
admin_listen = "127.0.0.1:9001"
metrics_listen = "127.0.0.1:9002"
data_dir = "/var/lib/fluxserve"
models = ["black-forest-labs/FLUX.1-dev=/weights", "fluxserve/flux-shapes"]
device = "cuda:1"
max_input_images = { "black-forest-labs/FLUX.1-dev" = 1, "fluxserve/flux-shapes" = 0 }
drain_deadline_seconds = 10
lora_bytes_max = 4194304
lora_in_prompt = true
sdapi = true

[engine]
offload = "text"
deterministic = true
kernels = "portable"
precision = "fp8"
weights = "expanded"
memory_budget = "12GiB"
threads = 3

[http]
body_limit_bytes = 2048
bodies_bytes_max = 8388608
key_bodies_bytes_max = 4194304
wait_seconds_max = 60
connections_max = 64
header_deadline_seconds = 5
public_url = "https://images.example.org/"
hosts = ["images.internal", "10.0.0.7"]
cors_origins = ["https://pages.example.org"]
trusted_proxies = ["10.0.0.0/8"]

[queue]
jobs_max = 8

[results]
retention_seconds = 3600
link_seconds = 600
bytes_max = 1048576
provenance = false

[prices]
per_megapixel_step = "0.0004"
per_engine_second = "0.01"
currency = "EUR"

[moderation]
url = "https://moderation.example.org/review"
before = false
after = true
on_failure = "allow"
timeout_seconds = 3
secret = "hush"

[log]
filter = "warn"
format = "json"

[telemetry]
otlp_endpoint = "http://localhost:4318"

[webhooks]
enabled = false
allow_http = true
allowed_hosts = ["hooks.internal", "10.0.0.0/8"]
only_allowed_hosts = true

[kubernetes]
kubeconfig = "/etc/fluxserve/kubeconfig"
in_cluster = false
server = "https://cluster.example.org:6443"
namespace = "images"
auto_open = true
allow_exec_plugins = true

[tls]
certificate = "/etc/fluxserve/certificate.pem"
private_key = "/etc/fluxserve/key.pem"

[hub]
download = true
"#;
