//! The cluster's API server, and the few things that are asked of it. The only place that names the client library.
//!
//! Every call has a deadline, so nothing here waits for long for a cluster that is away.

mod error;
mod pod_security;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use k8s_openapi::api::core::v1::{Namespace as KubernetesNamespace, Secret, ServiceAccount};
use k8s_openapi::api::rbac::v1::RoleBinding;
use kube::api::{Api, DeleteParams, PostParams};
use kube::config::{AuthInfo, KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use time::OffsetDateTime;

pub use error::ClusterError;
use error::with_sources;

use super::manifest::{BINDING, Server, USER_ROLE, WORKER_ACCOUNT, account_of};
use super::namespace::{Missing, Standing};
use super::token::{MintedToken, Token};
use crate::domain::namespace::NamespaceName;

/// Longest that one call may take, with what it is sent again.
const CALL_DEADLINE: Duration = Duration::from_secs(5);
/// Longest wait for a connection.
const CONNECT_DEADLINE: Duration = Duration::from_secs(3);
/// Life of a token that a key gets: the shortest that Kubernetes makes.
const TOKEN_SECONDS: i64 = 600;
/// Life of the worker's own token.
const WORKER_TOKEN_SECONDS: i64 = 7 * 24 * 60 * 60;

/// Where a cluster is, and who the worker is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClusterAccess {
    /// As a kubeconfig says.
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// Which of its contexts; `None` for its current one.
        context: Option<String>,
        /// Whether programs are run that it names as its user's way in.
        allow_exec_plugins: bool,
    },
    /// The cluster that the worker runs in, as its pod's account.
    InCluster,
}

/// What is known of a cluster before it is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterSettings {
    /// How to get there.
    pub access: ClusterAccess,
    /// Where clients find its API server, if not where the worker does. Begins with `https://`.
    pub server: Option<String>,
    /// The namespace that the worker owns there.
    pub holder: NamespaceName,
}

/// A cluster that cannot be asked, because nothing says properly where it is.
#[derive(Debug, thiserror::Error)]
#[error("{place}: {reason}")]
pub struct NoCluster {
    place: String,
    reason: String,
}

/// Something in the cluster that keys' tokens hang on, or that a namespace was opened with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Secret,
    ServiceAccount,
    RoleBinding,
}

/// A right, as the API server is asked for it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Right<'a> {
    pub(super) verb: &'static str,
    /// With its subresource after a slash.
    pub(super) resource: &'static str,
    pub(super) group: &'static str,
    /// `None`: everywhere.
    pub(super) namespace: Option<&'a str>,
    pub(super) name: Option<&'static str>,
}

impl fmt::Display for Right<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.verb, self.resource)?;
        match (self.name, self.namespace) {
            (Some(name), _) => write!(f, " `{name}`"),
            (None, Some(namespace)) => write!(f, " in `{namespace}`"),
            (None, None) => f.write_str(" everywhere"),
        }
    }
}

/// A cluster, seen by one of its accounts.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
    config: Config,
    server: Server,
    holder: NamespaceName,
    token_file: Option<PathBuf>,
}

impl Cluster {
    /// Learns where the cluster is; asks it nothing yet. Needs a tokio runtime around it.
    ///
    /// # Errors
    /// When that is not said properly.
    pub async fn open(settings: &ClusterSettings) -> Result<Self, NoCluster> {
        let ClusterSettings { access, server, holder } = settings;
        let place = match access {
            ClusterAccess::Kubeconfig { path, .. } => format!("kubeconfig `{}`", path.display()),
            ClusterAccess::InCluster => "the cluster around this pod".to_owned(),
        };
        let refuse = |reason: String| NoCluster { place: place.clone(), reason };
        let mut config = match access {
            ClusterAccess::Kubeconfig { path, context, allow_exec_plugins } => {
                read_kubeconfig(path, context.clone(), *allow_exec_plugins).await
            }
            ClusterAccess::InCluster => Config::incluster().map_err(|error| with_sources(&error)),
        }
        .map_err(refuse)?;
        if config.cluster_url.scheme_str() != Some("https") {
            // kubectl sends no credentials over anything else.
            return Err(refuse(format!(
                "the API server's address must begin with https://, not `{}`",
                config.cluster_url
            )));
        }
        config.connect_timeout = Some(CONNECT_DEADLINE);
        let token_file = match access {
            ClusterAccess::Kubeconfig { .. } if config.auth_info.token.is_none() => config.auth_info.token_file.clone(),
            // The kubelet renews a pod's token.
            _ => None,
        };
        let url = config.cluster_url.to_string();
        let server = Server {
            url: server.clone().unwrap_or_else(|| url.trim_end_matches('/').to_owned()),
            authority: config.root_cert.as_ref().map(|certificates| pem(certificates)),
            is_unverified: config.accept_invalid_certs,
        };
        let client = Client::try_from(config.clone()).map_err(|error| refuse(with_sources(&error)))?;
        Ok(Self { client, config, server, holder: holder.clone(), token_file: token_file.map(PathBuf::from) })
    }

    pub(super) fn server(&self) -> &Server {
        &self.server
    }

    pub(super) fn holder(&self) -> &NamespaceName {
        &self.holder
    }

    /// Where the worker's own token stands, when it is the worker's to renew.
    pub(super) fn token_file(&self) -> Option<&Path> {
        self.token_file.as_deref()
    }

    /// Which Kubernetes it is: `v1.32.3`.
    pub(super) async fn version(&self) -> Result<String, ClusterError> {
        Ok(in_time(self.client.apiserver_version()).await?.git_version)
    }

    /// A token for a namespace, bound to the Secret `secret` of the worker's namespace: it dies with it.
    pub(super) async fn mint(&self, namespace: &NamespaceName, secret: &str) -> Result<MintedToken, ClusterError> {
        let bound = BoundObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Secret".to_owned()),
            name: Some(secret.to_owned()),
            uid: None,
        };
        self.token_of(&account_of(namespace), TOKEN_SECONDS, Some(bound)).await
    }

    /// A token of the worker itself.
    pub(super) async fn mint_own(&self) -> Result<MintedToken, ClusterError> {
        self.token_of(WORKER_ACCOUNT, WORKER_TOKEN_SECONDS, None).await
    }

    async fn token_of(
        &self,
        account: &str,
        seconds: i64,
        bound: Option<BoundObjectReference>,
    ) -> Result<MintedToken, ClusterError> {
        let spec =
            TokenRequestSpec { audiences: Vec::new(), expiration_seconds: Some(seconds), bound_object_ref: bound };
        let request = TokenRequest { spec, ..TokenRequest::default() };
        let accounts: Api<ServiceAccount> = self.own();
        let made = in_time(accounts.create_token_request(account, &PostParams::default(), &request)).await?;
        let status = made.status.ok_or_else(|| ClusterError::Refused("a token without a token".to_owned()))?;
        let expires_at = moment(&status.expiration_timestamp)
            .ok_or_else(|| ClusterError::Refused("a token whose end has no date".to_owned()))?;
        Ok(MintedToken { token: Token::new(status.token), expires_at })
    }

    /// Makes the Secret that tokens are bound to. It is empty. One that is there already is as good.
    pub(super) async fn make_secret(&self, name: &str) -> Result<(), ClusterError> {
        let labels = json!({ "app.kubernetes.io/managed-by": "fluxserve" });
        let secret = object(json!({ "metadata": { "name": name, "labels": labels }, "type": "Opaque" }));
        let secrets: Api<Secret> = self.own();
        unless_there(in_time(secrets.create(&PostParams::default(), &secret)).await)
    }

    /// Takes something away. What is not there is as good.
    pub(super) async fn remove(&self, kind: Kind, name: &str, namespace: &str) -> Result<(), ClusterError> {
        let parameters = DeleteParams::default();
        let outcome = match kind {
            Kind::Secret => in_time(self.own::<Secret>().delete(name, &parameters)).await.map(drop),
            Kind::ServiceAccount => in_time(self.own::<ServiceAccount>().delete(name, &parameters)).await.map(drop),
            Kind::RoleBinding => {
                let bindings: Api<RoleBinding> = Api::namespaced(self.client.clone(), namespace);
                in_time(bindings.delete(name, &parameters)).await.map(drop)
            }
        };
        match outcome {
            Err(ClusterError::Missing { .. }) => Ok(()),
            outcome => outcome,
        }
    }

    /// Makes the two objects that open a namespace; those that are there stay as they are. Before that its pods are kept
    /// from their node. Needs the rights of `manifest --auto-open`.
    pub(super) async fn open_namespace(&self, namespace: &NamespaceName) -> Result<(), ClusterError> {
        pod_security::restrict(&self.client, namespace).await?;
        let account = account_of(namespace);
        let labels = json!({ "app.kubernetes.io/managed-by": "fluxserve" });
        let metadata = json!({ "name": account, "labels": labels });
        let service_account = object(json!({ "metadata": metadata, "automountServiceAccountToken": false }));
        let accounts: Api<ServiceAccount> = self.own();
        unless_there(in_time(accounts.create(&PostParams::default(), &service_account)).await)?;
        let binding = object(json!({
            "metadata": { "name": BINDING, "labels": labels },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": USER_ROLE },
            "subjects": [{ "kind": "ServiceAccount", "name": account, "namespace": self.holder }],
        }));
        let bindings: Api<RoleBinding> = Api::namespaced(self.client.clone(), namespace.as_str());
        unless_there(in_time(bindings.create(&PostParams::default(), &binding)).await)
    }

    /// Which object a namespace is: another one of the same name has another. Needs the rights of `manifest --auto-open`.
    pub(super) async fn uid_of(&self, namespace: &NamespaceName) -> Result<String, ClusterError> {
        let namespaces: Api<KubernetesNamespace> = Api::all(self.client.clone());
        let found = in_time(namespaces.get(namespace.as_str())).await?;
        found.metadata.uid.ok_or_else(|| ClusterError::Refused("a namespace without a uid".to_owned()))
    }

    /// How a namespace stands. The worker has no right to look into it, so it looks with a token that a key would get.
    pub(super) async fn look_at(&self, namespace: &NamespaceName) -> Result<Standing, ClusterError> {
        let missing = |what| Standing { is_open: false, missing: vec![what], problem: None };
        let token = match self.token_of(&account_of(namespace), TOKEN_SECONDS, None).await {
            Ok(minted) => minted.token,
            Err(ClusterError::Missing { kind, .. }) if kind == "serviceaccounts" => {
                return Ok(missing(Missing::ServiceAccount));
            }
            Err(error) => return Err(error),
        };
        let mut config = self.config.clone();
        config.auth_info = object(json!({ "token": token.reveal() }));
        let client = Client::try_from(config)?;
        let right = Right { verb: "get", resource: "pods", group: "", namespace: Some(namespace.as_str()), name: None };
        if may(&client, right).await? {
            // The account may read the namespace that it stands for, which the worker itself may not.
            let problem = pod_security::fault(&client, namespace).await?;
            Ok(Standing { is_open: true, problem, ..Standing::default() })
        } else {
            Ok(missing(Missing::RoleBinding))
        }
    }

    /// Whether the worker itself has a right.
    pub(super) async fn may(&self, right: Right<'_>) -> Result<bool, ClusterError> {
        may(&self.client, right).await
    }

    /// Objects of the worker's own namespace.
    fn own<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = kube::core::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), self.holder.as_str())
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the configuration, which has credentials in it.
        f.debug_struct("Cluster")
            .field("server", &self.server.url)
            .field("holder", &self.holder)
            .finish_non_exhaustive()
    }
}

async fn read_kubeconfig(path: &Path, context: Option<String>, allow_exec_plugins: bool) -> Result<Config, String> {
    let kubeconfig = Kubeconfig::read_from(path).map_err(|error| with_sources(&error))?;
    let options = KubeConfigOptions { context, ..KubeConfigOptions::default() };
    let config = Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(|error| with_sources(&error))?;
    let AuthInfo { exec, auth_provider, .. } = &config.auth_info;
    if !allow_exec_plugins && (exec.is_some() || auth_provider.is_some()) {
        let program = exec.as_ref().and_then(|exec| exec.command.as_deref()).unwrap_or("its auth-provider");
        return Err(format!(
            "its user gets in by a program, `{program}`, which is run only where `kubernetes.allow_exec_plugins` is true; \
             better give the worker an account of its own: `fluxserve kubernetes connect --kubeconfig {}`",
            path.display()
        ));
    }
    Ok(config)
}

async fn in_time<T>(call: impl Future<Output = Result<T, kube::Error>>) -> Result<T, ClusterError> {
    match tokio::time::timeout(CALL_DEADLINE, call).await {
        Ok(outcome) => Ok(outcome?),
        Err(_) => Err(ClusterError::Unreachable(format!("no answer within {} s", CALL_DEADLINE.as_secs()))),
    }
}

async fn may(client: &Client, right: Right<'_>) -> Result<bool, ClusterError> {
    let (resource, subresource) = right.resource.split_once('/').unwrap_or((right.resource, ""));
    let attributes = ResourceAttributes {
        verb: Some(right.verb.to_owned()),
        group: Some(right.group.to_owned()),
        resource: Some(resource.to_owned()),
        subresource: Some(subresource.to_owned()),
        namespace: right.namespace.map(str::to_owned),
        name: right.name.map(str::to_owned),
        ..ResourceAttributes::default()
    };
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec {
            resource_attributes: Some(attributes),
            ..SelfSubjectAccessReviewSpec::default()
        },
        ..SelfSubjectAccessReview::default()
    };
    let reviews: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let review = in_time(reviews.create(&PostParams::default(), &review)).await?;
    Ok(review.status.is_some_and(|status| status.allowed))
}

fn unless_there<T>(outcome: Result<T, ClusterError>) -> Result<(), ClusterError> {
    match outcome {
        Err(ClusterError::Exists) => Ok(()),
        outcome => outcome.map(drop),
    }
}

/// An object that is written down here, and so can be read.
fn object<T: DeserializeOwned>(fields: Value) -> T {
    serde_json::from_value(fields).expect("as the cluster has it")
}

fn moment(time: &k8s_openapi::apimachinery::pkg::apis::meta::v1::Time) -> Option<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp(time.0.as_second()).ok()
}

/// Certificates as text.
fn pem(certificates: &[Vec<u8>]) -> Vec<u8> {
    let mut text = String::new();
    for certificate in certificates {
        let body = STANDARD.encode(certificate);
        text.push_str("-----BEGIN CERTIFICATE-----\n");
        // Base64 is ASCII: every byte is a character.
        for line in body.as_bytes().chunks(64) {
            text.push_str(&String::from_utf8_lossy(line));
            text.push('\n');
        }
        text.push_str("-----END CERTIFICATE-----\n");
    }
    text.into_bytes()
}
