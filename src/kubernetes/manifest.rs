//! Generated files: the objects that a cluster needs, and kubeconfigs.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::namespace::Namespace;
use crate::domain::namespace::NamespaceName;

const WORKER: &str = include_str!("manifests/worker.yaml");
const AUTO_OPEN: &str = include_str!("manifests/auto-open.yaml");
const NAMESPACE: &str = include_str!("manifests/namespace.yaml");
const KUBECONFIG: &str = include_str!("manifests/kubeconfig.yaml");

/// In a kubeconfig if the worker's own has it, as a warning to its user.
const UNVERIFIED: &str = "    # WARNING: the API server's certificate is not verified, so whatever answers at this address gets your tokens. To fix
    # this, the worker's operator names the API server's certificate authority in the worker's own kubeconfig.
    insecure-skip-tls-verify: true
";

/// The worker's own account, in the namespace that it owns.
pub(super) const WORKER_ACCOUNT: &str = "worker";
/// The role of keys in an open namespace.
pub(super) const USER_ROLE: &str = "fluxserve-namespace-user";
/// The binding of that role in the namespace.
pub(super) const BINDING: &str = "fluxserve";

/// The service account of a namespace, whose tokens keys get.
pub(super) fn account_of(namespace: &NamespaceName) -> String {
    format!("ns-{namespace}")
}

/// Objects that a cluster needs once, as YAML: the worker's own namespace `holder` and its rights there. `auto_open` adds
/// the rights to open any namespace.
#[must_use]
pub fn manifest(holder: &NamespaceName, auto_open: bool) -> String {
    let more = if auto_open { AUTO_OPEN } else { "" };
    format!("{WORKER}{more}").replace("@HOLDER@", holder.as_str())
}

/// Objects that open a namespace, as YAML: its service account and the account's rights in it.
#[must_use]
pub fn namespace_objects(holder: &NamespaceName, namespace: &NamespaceName) -> String {
    NAMESPACE.replace("@HOLDER@", holder.as_str()).replace("@NAMESPACE@", namespace.as_str())
}

/// Version of the protocol between kubectl and its credential plugin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ExecVersion {
    /// Since kubectl 1.22.
    #[default]
    V1,
    /// For kubectl before 1.22; later ones understand it too.
    V1Beta1,
}

/// A text that is no [`ExecVersion`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be `v1` or `v1beta1`")]
pub struct UnknownExecVersion;

impl ExecVersion {
    /// Every version.
    pub const ALL: [Self; 2] = [Self::V1, Self::V1Beta1];

    /// Its short name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V1 => "v1",
            Self::V1Beta1 => "v1beta1",
        }
    }

    /// Its name in objects.
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

/// The API server's address for clients, and how they verify it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Server {
    /// Begins with `https://`.
    pub(super) url: String,
    /// Its certificate authorities, PEM. `None` for those that the client's system trusts.
    pub(super) authority: Option<Vec<u8>>,
    /// Whether its certificate is not verified.
    pub(super) is_unverified: bool,
}

/// The kubeconfig for clients. `worker` is this worker's address for clients: scheme, host and port.
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

/// The worker's own kubeconfig; its token is in the file `token` beside it.
pub(super) fn worker_kubeconfig(server: &Server, holder: &NamespaceName) -> String {
    let mut cluster = serde_json::json!({ "server": server.url });
    if server.is_unverified {
        cluster["insecure-skip-tls-verify"] = true.into();
    } else if let Some(pem) = &server.authority {
        cluster["certificate-authority-data"] = STANDARD.encode(pem).into();
    }
    // JSON is YAML, and escapes all texts.
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
