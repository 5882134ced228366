//! What is written for others to use: the objects that a cluster needs, and the file for kubectl.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::namespace::Namespace;
use crate::domain::namespace::NamespaceName;

const WORKER: &str = include_str!("manifests/worker.yaml");
const AUTO_OPEN: &str = include_str!("manifests/auto-open.yaml");
const NAMESPACE: &str = include_str!("manifests/namespace.yaml");
const KUBECONFIG: &str = include_str!("manifests/kubeconfig.yaml");

/// Where the worker's own kubeconfig says so: who uses the file is to know.
const UNVERIFIED: &str = "    # WARNING: whatever answers at this address is taken for the API server, and gets your tokens. Whoever runs the worker
    # can mend that: its own kubeconfig says so, and should name the API server's certificate authority instead.
    insecure-skip-tls-verify: true
";

/// The worker's own account, in the namespace that it owns.
pub(super) const WORKER_ACCOUNT: &str = "worker";
/// What a key may do in an open namespace.
pub(super) const USER_ROLE: &str = "fluxserve-namespace-user";
/// The binding of that role, in the namespace.
pub(super) const BINDING: &str = "fluxserve";

/// The account that stands for a namespace. Its tokens are what keys get.
pub(super) fn account_of(namespace: &NamespaceName) -> String {
    format!("ns-{namespace}")
}

/// What a cluster needs once, as YAML: the namespace `holder`, which the worker owns, and its rights there. `auto_open`
/// adds the rights to open any namespace.
#[must_use]
pub fn manifest(holder: &NamespaceName, auto_open: bool) -> String {
    let more = if auto_open { AUTO_OPEN } else { "" };
    format!("{WORKER}{more}").replace("@HOLDER@", holder.as_str())
}

/// What a cluster needs for one namespace, as YAML: the account that stands for it, and its rights there.
#[must_use]
pub fn namespace_objects(holder: &NamespaceName, namespace: &NamespaceName) -> String {
    NAMESPACE.replace("@HOLDER@", holder.as_str()).replace("@NAMESPACE@", namespace.as_str())
}

/// How kubectl and its plugin speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ExecVersion {
    /// Since kubectl 1.22.
    #[default]
    V1,
    /// What kubectl before 1.22 speaks, and later ones understand.
    V1Beta1,
}

/// A text that is no [`ExecVersion`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be `v1` or `v1beta1`")]
pub struct UnknownExecVersion;

impl ExecVersion {
    /// Every version.
    pub const ALL: [Self; 2] = [Self::V1, Self::V1Beta1];

    /// The short word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V1 => "v1",
            Self::V1Beta1 => "v1beta1",
        }
    }

    /// The word in objects.
    #[must_use]
    pub fn api_version(self) -> &'static str {
        match self {
            Self::V1 => "client.authentication.k8s.io/v1",
            Self::V1Beta1 => "client.authentication.k8s.io/v1beta1",
        }
    }
}

impl std::str::FromStr for ExecVersion {
    type Err = UnknownExecVersion;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|version| version.as_str() == text).ok_or(UnknownExecVersion)
    }
}

/// How clients find the API server, and by what they know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Server {
    /// Begins with `https://`.
    pub(super) url: String,
    /// The certificates it is known by, PEM. `None`: those that the client's system trusts.
    pub(super) authority: Option<Vec<u8>>,
    /// Whether anything is taken for it.
    pub(super) is_unverified: bool,
}

/// The file for kubectl. `worker` is where clients reach this worker: scheme, host and port.
pub(super) fn kubeconfig(server: &Server, namespace: &Namespace, worker: &str, version: ExecVersion) -> String {
    let trust = match &server.authority {
        _ if server.is_unverified => UNVERIFIED.to_owned(),
        Some(pem) => format!("    certificate-authority-data: {}\n", STANDARD.encode(pem)),
        None => String::new(),
    };
    // Required by v1, and not known to kubectl before 1.22.
    let interactive = if version == ExecVersion::V1 { "      interactiveMode: Never\n" } else { "" };
    let fields = [
        ("@NAMESPACE@", namespace.name.as_str()),
        ("@ID@", &namespace.id.to_string()),
        ("@SERVER@", &server.url),
        ("@TRUST@", &trust),
        ("@VERSION@", version.as_str()),
        ("@INTERACTIVE@", interactive),
        ("@WORKER@", worker),
    ];
    fields.into_iter().fold(KUBECONFIG.to_owned(), |text, (field, value)| text.replace(field, value))
}

/// The worker's own kubeconfig; its token stands in the file `token` beside it.
pub(super) fn worker_kubeconfig(server: &Server, holder: &NamespaceName) -> String {
    let mut cluster = serde_json::json!({ "server": server.url });
    if server.is_unverified {
        cluster["insecure-skip-tls-verify"] = true.into();
    } else if let Some(pem) = &server.authority {
        cluster["certificate-authority-data"] = STANDARD.encode(pem).into();
    }
    // JSON is YAML, and needs no care for what stands in a text.
    let config = serde_json::json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "cluster", "cluster": cluster }],
        "users": [{ "name": WORKER_ACCOUNT, "user": { "tokenFile": "token" } }],
        "contexts": [{ "name": "worker", "context": { "cluster": "cluster", "user": WORKER_ACCOUNT, "namespace": holder } }],
        "current-context": "worker",
    });
    format!("{config:#}\n")
}
