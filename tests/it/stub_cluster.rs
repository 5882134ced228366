//! A small API server for tests: https, tokens that hang on Secrets, and the answers of a real one, whose bodies were
//! recorded. It has no roles: the worker may what its manifest says, and an account may its namespace, once it is bound.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::serve::Listener;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use fluxserve::kubernetes::{ClusterAccess, ClusterSettings};
use rcgen::generate_simple_self_signed;
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::server::TlsStream;

pub(crate) const HOLDER: &str = "fluxserve";
const POD_SECURITY: &str = "pod-security.kubernetes.io/enforce";
const SHORTEST_TOKEN_SECONDS: i64 = 600;

/// A token that was made.
#[derive(Clone)]
struct Made {
    account: String,
    /// The Secret that it hangs on.
    secret: Option<String>,
    ends_at: OffsetDateTime,
}

#[derive(Default)]
struct Inside {
    /// Accounts in the worker's namespace.
    accounts: BTreeSet<String>,
    /// Namespaces whose account is bound in them.
    bound: BTreeSet<String>,
    secrets: BTreeSet<String>,
    tokens: BTreeMap<String, Made>,
    /// Tokens made for keys: those that hang on a Secret.
    minted: usize,
    is_away: bool,
    auto_open: bool,
    /// Which object each namespace is, where that has changed.
    made_anew: BTreeMap<String, String>,
    /// What namespaces say of their pods, where that is not `restricted`. `None`: nothing.
    pod_security: BTreeMap<String, Option<String>>,
    /// Whether accounts may read the namespace that they are bound in, which they could not always.
    hides_namespaces: bool,
    /// Life of tokens, where it is not as asked.
    token_seconds: Option<i64>,
}

/// The API server, and how the worker finds it.
#[derive(Clone)]
pub(crate) struct StubCluster {
    inside: Arc<Mutex<Inside>>,
    hold: Arc<watch::Sender<bool>>,
    hold_reviews: Arc<watch::Sender<bool>>,
    pub(crate) url: String,
    folder: Arc<tempfile::TempDir>,
}

impl StubCluster {
    pub(crate) async fn start() -> Self {
        let pair = generate_simple_self_signed(vec!["localhost".into(), "127.0.0.1".into()]).expect("a certificate");
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pair.signing_key.serialize_der()));
        let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .expect("usual versions")
            .with_no_client_auth()
            .with_single_cert(vec![pair.cert.der().clone()], key)
            .expect("a pair");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("https://127.0.0.1:{}", listener.local_addr().expect("an address").port());
        let stub = Self {
            inside: Arc::default(),
            hold: Arc::new(watch::channel(false).0),
            hold_reviews: Arc::new(watch::channel(false).0),
            url,
            folder: Arc::new(tempfile::tempdir().expect("a folder")),
        };
        let worker = stub.inside().make("worker", None, 7 * 24 * 60 * 60);
        stub.inside().accounts.insert("worker".into());
        std::fs::write(stub.token_file(), worker).expect("written");
        let ca = base64::engine::general_purpose::STANDARD.encode(pair.cert.pem());
        let kubeconfig = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "c", "cluster": { "server": stub.url, "certificate-authority-data": ca } }],
            "users": [{ "name": "u", "user": { "tokenFile": "token" } }],
            "contexts": [{ "name": "x", "context": { "cluster": "c", "user": "u" } }],
            "current-context": "x",
        });
        std::fs::write(stub.kubeconfig(), kubeconfig.to_string()).expect("written");
        let router = Router::new().fallback(answer).with_state(stub.clone());
        let listener = TlsListener { listener, acceptor: TlsAcceptor::from(Arc::new(config)) };
        tokio::spawn(async move { axum::serve(listener, router).await });
        stub
    }

    /// The worker's own kubeconfig.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("kubeconfig")
    }

    pub(crate) fn token_file(&self) -> PathBuf {
        self.folder.path().join("token")
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn settings(&self) -> ClusterSettings {
        let access = ClusterAccess::Kubeconfig { path: self.kubeconfig(), context: None, allow_exec_plugins: false };
        ClusterSettings { access, server: None, holder: HOLDER.parse().expect("a name") }
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What an administrator applies: the account that stands for a namespace.
    pub(crate) fn apply_account(&self, namespace: &str) {
        self.inside().accounts.insert(format!("ns-{namespace}"));
    }

    /// And its rights there.
    pub(crate) fn apply_binding(&self, namespace: &str) {
        self.inside().bound.insert(namespace.to_owned());
    }

    pub(crate) fn open(&self, namespace: &str) {
        self.apply_account(namespace);
        self.apply_binding(namespace);
    }

    pub(crate) fn is_open(&self, namespace: &str) -> bool {
        let inside = self.inside();
        inside.accounts.contains(&format!("ns-{namespace}")) && inside.bound.contains(namespace)
    }

    /// A namespace is deleted with all in it, and somebody makes one of the same name.
    pub(crate) fn make_anew(&self, namespace: &str) {
        let mut inside = self.inside();
        inside.bound.remove(namespace);
        inside.made_anew.insert(namespace.to_owned(), uuid::Uuid::new_v4().to_string());
    }

    /// What a namespace says of its pods by the label of Pod Security. `None`: nothing.
    pub(crate) fn set_pod_security(&self, namespace: &str, level: Option<&str>) {
        self.inside().pod_security.insert(namespace.to_owned(), level.map(str::to_owned));
    }

    pub(crate) fn pod_security(&self, namespace: &str) -> Option<String> {
        self.inside().pod_security_of(namespace)
    }

    /// As with the role of before: accounts may not read the namespace that they are bound in.
    pub(crate) fn hide_namespaces(&self) {
        self.inside().hides_namespaces = true;
    }

    pub(crate) fn allow_auto_open(&self) {
        self.inside().auto_open = true;
    }

    /// From now on it answers nothing of use; or does again.
    pub(crate) fn set_away(&self, is_away: bool) {
        self.inside().is_away = is_away;
    }

    pub(crate) fn set_token_seconds(&self, seconds: i64) {
        self.inside().token_seconds = Some(seconds);
    }

    pub(crate) fn secrets(&self) -> Vec<String> {
        self.inside().secrets.iter().cloned().collect()
    }

    pub(crate) fn minted(&self) -> usize {
        self.inside().minted
    }

    /// The namespaces that a token lets into. `None`: it is good for nothing.
    pub(crate) fn reach(&self, token: &str) -> Option<String> {
        let inside = self.inside();
        let account = inside.account_of(token)?;
        let namespace = account.strip_prefix("ns-")?;
        inside.bound.contains(namespace).then(|| namespace.to_owned())
    }

    /// Holds back tokens for keys that are asked for, until the sender is told `false`.
    pub(crate) fn hold(&self) {
        self.hold.send_replace(true);
    }

    pub(crate) fn release(&self) {
        self.hold.send_replace(false);
    }

    /// Holds back answers to whether somebody has a right, or lets go of them.
    pub(crate) fn hold_reviews(&self, is_held: bool) {
        self.hold_reviews.send_replace(is_held);
    }

    /// Makes the worker's own token one that is past its middle.
    pub(crate) fn age_own_token(&self) -> String {
        let mut inside = self.inside();
        let now = OffsetDateTime::now_utc().unix_timestamp();
        let payload =
            json!({ "sub": format!("system:serviceaccount:{HOLDER}:worker"), "iat": now - 100, "exp": now + 50 });
        let token = jwt(&payload);
        let ends_at = OffsetDateTime::now_utc() + Duration::from_secs(50);
        inside.tokens.insert(token.clone(), Made { account: "worker".into(), secret: None, ends_at });
        std::fs::write(self.token_file(), &token).expect("written");
        token
    }
}

fn jwt(payload: &Value) -> String {
    let part = |text: String| URL_SAFE_NO_PAD.encode(text);
    format!("{}.{}.{}", part("{}".into()), part(payload.to_string()), part("signed".into()))
}

impl Inside {
    fn make(&mut self, account: &str, secret: Option<String>, seconds: i64) -> String {
        let now = OffsetDateTime::now_utc();
        let ends_at = now + time::Duration::seconds(seconds);
        let payload = json!({
            "jti": uuid::Uuid::new_v4(),
            "sub": format!("system:serviceaccount:{HOLDER}:{account}"),
            "iat": now.unix_timestamp(),
            "exp": ends_at.unix_timestamp(),
        });
        let token = jwt(&payload);
        self.minted += usize::from(secret.is_some());
        self.tokens.insert(token.clone(), Made { account: account.to_owned(), secret, ends_at });
        token
    }

    fn account_of(&self, token: &str) -> Option<String> {
        let made = self.tokens.get(token)?;
        let hangs = made.secret.as_ref().is_none_or(|secret| self.secrets.contains(secret));
        (hangs && made.ends_at > OffsetDateTime::now_utc()).then(|| made.account.clone())
    }
}

/// Https for the server.
struct TlsListener {
    listener: TcpListener,
    acceptor: TlsAcceptor,
}

impl Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            if let Ok((stream, address)) = self.listener.accept().await
                && let Ok(secured) = self.acceptor.accept(stream).await
            {
                return (secured, address);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

fn said(status: StatusCode, body: &Value) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}

/// A refusal, as the real server writes it.
fn refused(status: StatusCode, reason: &str, message: &str, kind: &str) -> Response {
    let details = json!({ "kind": kind });
    let code = status.as_u16();
    said(
        status,
        &json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message,
                 "reason": reason, "details": details, "code": code }),
    )
}

fn missing(kind: &str, name: &str) -> Response {
    refused(StatusCode::NOT_FOUND, "NotFound", &format!("{kind} \"{name}\" not found"), kind)
}

fn forbidden(account: &str, verb: &str, resource: &str, namespace: &str) -> Response {
    let message = format!(
        "{resource} is forbidden: User \"system:serviceaccount:{HOLDER}:{account}\" cannot {verb} resource \"{resource}\" \
         in API group \"\" in the namespace \"{namespace}\""
    );
    refused(StatusCode::FORBIDDEN, "Forbidden", &message, resource)
}

async fn answer(
    State(stub): State<StubCluster>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    if stub.inside().is_away {
        return StatusCode::BAD_GATEWAY.into_response();
    }
    let path: Vec<&str> = uri.path().trim_matches('/').split('/').collect();
    if path == ["version"] {
        return said(
            StatusCode::OK,
            &json!({
                "major": "1", "minor": "32", "gitVersion": "v1.32.3", "gitCommit": "", "gitTreeState": "", "buildDate": "",
                "goVersion": "", "compiler": "", "platform": "linux/amd64",
            }),
        );
    }
    let token = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    let account = token.and_then(|token| stub.inside().account_of(token.trim()));
    let Some(account) = account else {
        return refused(StatusCode::UNAUTHORIZED, "Unauthorized", "Unauthorized", "");
    };
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    match (method.as_str(), path.as_slice()) {
        ("POST", ["api", "v1", "namespaces", HOLDER, "serviceaccounts", name, "token"]) if account == "worker" => {
            stub.token(name, &body).await
        }
        ("GET", ["api", "v1", "namespaces", namespace, "pods"]) => {
            if account == format!("ns-{namespace}") && stub.inside().bound.contains(*namespace) {
                let list = json!({ "kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": [pod(namespace)] });
                said(StatusCode::OK, &list)
            } else {
                forbidden(&account, "list", "pods", namespace)
            }
        }
        ("GET", ["api", "v1", "namespaces", namespace]) if account == format!("ns-{namespace}") => {
            let inside = stub.inside();
            if inside.bound.contains(*namespace) && !inside.hides_namespaces {
                inside.namespace(namespace)
            } else {
                forbidden(&account, "get", "namespaces", namespace)
            }
        }
        ("POST", ["apis", "authorization.k8s.io", "v1", "selfsubjectaccessreviews"]) => {
            stub.reviews_are_let_go().await;
            let mut review = body;
            let allowed = stub.inside().may(&account, &review["spec"]["resourceAttributes"]);
            review["status"] = json!({ "allowed": allowed });
            said(StatusCode::CREATED, &review)
        }
        ("GET", ["api"]) => said(StatusCode::OK, &json!({ "kind": "APIVersions", "versions": ["v1"] })),
        ("GET", ["apis"]) => said(StatusCode::OK, &json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": [] })),
        ("GET", ["api", "v1"]) => {
            let pods = json!({ "name": "pods", "singularName": "pod", "namespaced": true, "kind": "Pod",
                               "verbs": ["get", "list"], "shortNames": ["po"] });
            let list = json!({ "kind": "APIResourceList", "groupVersion": "v1", "resources": [pods] });
            said(StatusCode::OK, &list)
        }
        (_, path) if account == "worker" => stub.inside().change(&method, path, &body),
        _ => forbidden(&account, method.as_str(), "things", ""),
    }
}

fn pod(namespace: &str) -> Value {
    json!({ "kind": "Pod", "apiVersion": "v1",
            "metadata": { "name": format!("{namespace}-pod"), "namespace": namespace,
                          "creationTimestamp": "2026-01-01T00:00:00Z" } })
}

impl StubCluster {
    async fn reviews_are_let_go(&self) {
        let mut hold = self.hold_reviews.subscribe();
        hold.wait_for(|is_held| !is_held).await.expect("a sender");
    }

    async fn token(&self, account: &str, body: &Value) -> Response {
        let bound = body["spec"]["boundObjectRef"]["name"].as_str().map(str::to_owned);
        if bound.is_some() {
            let mut hold = self.hold.subscribe();
            hold.wait_for(|is_held| !is_held).await.expect("a sender");
        }
        let mut inside = self.inside();
        if !inside.accounts.contains(account) {
            return missing("serviceaccounts", account);
        }
        if let Some(secret) = &bound
            && !inside.secrets.contains(secret)
        {
            return missing("secrets", secret);
        }
        let asked = body["spec"]["expirationSeconds"].as_i64().unwrap_or(3600);
        if asked < SHORTEST_TOKEN_SECONDS {
            let message = format!(
                "TokenRequest.authentication.k8s.io \"\" is invalid: spec.expirationSeconds: Invalid value: {asked}: may \
                 not specify a duration less than 10 minutes"
            );
            return refused(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", &message, "TokenRequest");
        }
        let seconds = inside.token_seconds.filter(|_| bound.is_some()).unwrap_or(asked);
        let token = inside.make(account, bound, seconds);
        let now = OffsetDateTime::now_utc();
        let text = |moment: OffsetDateTime| {
            let moment = moment.replace_nanosecond(0).expect("zero is one");
            moment.format(&time::format_description::well_known::Rfc3339).expect("a date")
        };
        let ends_at = text(now + time::Duration::seconds(seconds));
        said(
            StatusCode::CREATED,
            &json!({
                "kind": "TokenRequest",
                "apiVersion": "authentication.k8s.io/v1",
                "metadata": { "name": account, "namespace": HOLDER, "creationTimestamp": text(now) },
                "spec": { "audiences": ["https://kubernetes.default.svc"], "expirationSeconds": seconds,
                          "boundObjectRef": body["spec"]["boundObjectRef"] },
                "status": { "token": token, "expirationTimestamp": ends_at },
            }),
        )
    }
}

impl Inside {
    /// Whether an account has a right that a review asks for.
    fn may(&self, account: &str, right: &Value) -> bool {
        let field = |name: &str| right[name].as_str().unwrap_or_default();
        let (verb, namespace) = (field("verb"), field("namespace"));
        if let Some(own) = account.strip_prefix("ns-") {
            return own == namespace && self.bound.contains(own) && field("resource") == "pods";
        }
        let resource = match field("subresource") {
            "" => field("resource").to_owned(),
            sub => format!("{}/{sub}", field("resource")),
        };
        match (verb, resource.as_str()) {
            ("create", "serviceaccounts/token") | ("create" | "delete", "secrets") => namespace == HOLDER,
            ("create" | "delete", "serviceaccounts" | "rolebindings")
            | ("bind", "clusterroles")
            | ("get" | "patch", "namespaces") => self.auto_open,
            _ => false,
        }
    }

    fn pod_security_of(&self, namespace: &str) -> Option<String> {
        self.pod_security.get(namespace).cloned().unwrap_or_else(|| Some("restricted".to_owned()))
    }

    fn namespace(&self, name: &str) -> Response {
        let uid = self.made_anew.get(name).map_or("the first", String::as_str);
        let mut metadata = json!({ "name": name, "uid": uid, "labels": { "kubernetes.io/metadata.name": name } });
        if let Some(level) = self.pod_security_of(name) {
            metadata["labels"][POD_SECURITY] = level.into();
        }
        said(StatusCode::OK, &json!({ "kind": "Namespace", "apiVersion": "v1", "metadata": metadata }))
    }

    /// What the worker makes and takes away.
    fn change(&mut self, method: &Method, path: &[&str], body: &Value) -> Response {
        let name = body["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let created = |is_new: bool, kind: &str| {
            if is_new {
                said(StatusCode::CREATED, body)
            } else {
                refused(StatusCode::CONFLICT, "AlreadyExists", &format!("{kind} \"{name}\" already exists"), kind)
            }
        };
        let deleted = |was_there: bool, kind: &str, name: &str| {
            let done = json!({ "kind": "Status", "apiVersion": "v1", "status": "Success" });
            if was_there { said(StatusCode::OK, &done) } else { missing(kind, name) }
        };
        match (method.as_str(), path) {
            ("POST", ["api", "v1", "namespaces", HOLDER, "secrets"]) => {
                created(self.secrets.insert(name.clone()), "secrets")
            }
            ("DELETE", ["api", "v1", "namespaces", HOLDER, "secrets", name]) => {
                deleted(self.secrets.remove(*name), "secrets", name)
            }
            ("POST", ["api", "v1", "namespaces", HOLDER, "serviceaccounts"]) if self.auto_open => {
                created(self.accounts.insert(name.clone()), "serviceaccounts")
            }
            ("DELETE", ["api", "v1", "namespaces", HOLDER, "serviceaccounts", name]) if self.auto_open => {
                deleted(self.accounts.remove(*name), "serviceaccounts", name)
            }
            ("GET", ["api", "v1", "namespaces", "nowhere"]) if self.auto_open => missing("namespaces", "nowhere"),
            ("GET", ["api", "v1", "namespaces", namespace]) if self.auto_open => self.namespace(namespace),
            ("PATCH", ["api", "v1", "namespaces", namespace]) if self.auto_open => {
                let level = body["metadata"]["labels"][POD_SECURITY].as_str().map(str::to_owned);
                self.pod_security.insert((*namespace).to_owned(), level);
                self.namespace(namespace)
            }
            ("POST", ["apis", "rbac.authorization.k8s.io", "v1", "namespaces", namespace, "rolebindings"])
                if self.auto_open =>
            {
                if *namespace == "nowhere" {
                    return missing("namespaces", namespace);
                }
                created(self.bound.insert((*namespace).to_owned()), "rolebindings")
            }
            ("DELETE", ["apis", "rbac.authorization.k8s.io", "v1", "namespaces", namespace, "rolebindings", name])
                if self.auto_open =>
            {
                deleted(self.bound.remove(*namespace), "rolebindings", name)
            }
            _ => forbidden("worker", method.as_str(), path.last().copied().unwrap_or_default(), ""),
        }
    }
}
