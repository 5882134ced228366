//! Requests to the cluster's API server. The only module that names the client library.
//!
//! Every call has a deadline, so nothing waits long for a cluster that does not answer.

mod deadline;
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

use deadline::in_time;
pub use error::ClusterError;
use error::with_sources;

use super::manifest::{BINDING, Server, USER_ROLE, WORKER_ACCOUNT, account_of};
use super::namespace::{Missing, Standing};
use super::token::{MintedToken, Token};
use crate::domain::namespace::NamespaceName;

/// Longest time to connect.
const CONNECT_DEADLINE: Duration = Duration::from_secs(3);
/// Lifetime of a key's token: the shortest that Kubernetes permits.
const TOKEN_SECONDS: i64 = 600;
/// Lifetime of the worker's own token.
const WORKER_TOKEN_SECONDS: i64 = 7 * 24 * 60 * 60;

/// Address of a cluster, and the worker's identity there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClusterAccess {
    /// From a kubeconfig.
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// Its context; `None` for the current one.
        context: Option<String>,
        /// Whether its credential plugins may run.
        allow_exec_plugins: bool,
    },
    /// The cluster that the worker runs in, with its pod's account.
    InCluster,
}

/// Settings of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterSettings {
    /// Access to it.
    pub access: ClusterAccess,
    /// Address of its API server for clients, if it differs from the worker's. Begins with `https://`.
    pub server: Option<String>,
    /// The namespace that the worker owns there.
    pub holder: NamespaceName,
}

/// The settings of the cluster are invalid.
#[derive(Debug, thiserror::Error)]
#[error("{place}: {reason}")]
pub struct NoCluster {
    place: String,
    reason: String,
}

/// Kind of an object that keys' tokens are bound to, or that opens a namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Secret,
    ServiceAccount,
    RoleBinding,
}

/// A right, as the API server checks it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Right<'a> {
    pub(super) verb: &'static str,
    /// With the subresource after a slash.
    pub(super) resource: &'static str,
    pub(super) group: &'static str,
    /// `None` for all namespaces.
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

/// A cluster, accessed with one of its accounts.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
    config: Config,
    server: Server,
    holder: NamespaceName,
    token_file: Option<PathBuf>,
}

impl Cluster {
    /// Reads the access to the cluster, without a request. Must run in a tokio runtime.
    ///
    /// # Errors
    /// When the settings are invalid.
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

    /// File of the worker's own token, if the worker renews it.
    pub(super) fn token_file(&self) -> Option<&Path> {
        self.token_file.as_deref()
    }

    /// Version of Kubernetes: `v1.32.3`.
    pub(super) async fn version(&self) -> Result<String, ClusterError> {
        Ok(in_time(self.client.apiserver_version()).await?.git_version)
    }

    /// Makes a token for a namespace, bound to the Secret `secret` of the worker's namespace: deleting it invalidates the token.
    pub(super) async fn mint(&self, namespace: &NamespaceName, secret: &str) -> Result<MintedToken, ClusterError> {
        let bound = BoundObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Secret".to_owned()),
            name: Some(secret.to_owned()),
            uid: None,
        };
        self.token_of(&account_of(namespace), TOKEN_SECONDS, Some(bound)).await
    }

    /// Makes a token of the worker itself.
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
        let status = made.status.ok_or_else(|| ClusterError::Refused("the response has no token".to_owned()))?;
        let expires_at = moment(&status.expiration_timestamp)
            .ok_or_else(|| ClusterError::Refused("the token's expiry is beyond the calendar".to_owned()))?;
        Ok(MintedToken { token: Token::new(status.token), expires_at })
    }

    /// Creates the empty Secret that tokens are bound to, unless it exists.
    pub(super) async fn make_secret(&self, name: &str) -> Result<(), ClusterError> {
        let labels = json!({ "app.kubernetes.io/managed-by": "fluxserve" });
        let secret = object(json!({ "metadata": { "name": name, "labels": labels }, "type": "Opaque" }));
        let secrets: Api<Secret> = self.own();
        unless_there(in_time(secrets.create(&PostParams::default(), &secret)).await)
    }

    /// Deletes an object, if it exists.
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

    /// Isolates the pods of a namespace from their node, then creates the two objects that open it; existing ones stay. Needs
    /// the rights of `manifest --auto-open`.
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

    /// The uid of a namespace, which changes if it is recreated. Needs the rights of `manifest --auto-open`.
    pub(super) async fn uid_of(&self, namespace: &NamespaceName) -> Result<String, ClusterError> {
        let namespaces: Api<KubernetesNamespace> = Api::all(self.client.clone());
        let found = in_time(namespaces.get(namespace.as_str())).await?;
        found.metadata.uid.ok_or_else(|| ClusterError::Refused("the namespace has no uid".to_owned()))
    }

    /// Status of a namespace. The worker itself may not read it, so this uses a token like that of a key.
    pub(super) async fn status_of(&self, namespace: &NamespaceName) -> Result<Standing, ClusterError> {
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
            // The account may read its namespace, which the worker itself may not.
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
        // Not the configuration, which holds credentials.
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
            "its user's credentials come from a program, `{program}`, which runs only if `kubernetes.allow_exec_plugins` is true; \
             better give the worker an account of its own: `fluxserve kubernetes connect --kubeconfig {}`",
            path.display()
        ));
    }
    Ok(config)
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

/// An object from a literal of this module, which always parses.
fn object<T: DeserializeOwned>(fields: Value) -> T {
    serde_json::from_value(fields).expect("a literal of the right shape")
}

fn moment(time: &k8s_openapi::apimachinery::pkg::apis::meta::v1::Time) -> Option<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp(time.0.as_second()).ok()
}

/// Certificates as PEM.
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
