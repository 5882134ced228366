//! A stub of the Kubernetes API server: https, tokens bound to Secrets, and recorded answers of a real server. It has
//! no roles: the worker has the rights of its manifest, and an account those of its namespace, once it is bound.

mod api;
mod state;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use base64::Engine as _;
use fluxserve::kubernetes::{ClusterAccess, ClusterSettings};
use rcgen::generate_simple_self_signed;
use serde_json::json;
use time::OffsetDateTime;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use api::{TlsListener, answer};
use state::{ClusterState, Made, jwt};

pub(crate) const HOLDER: &str = "fluxserve";

/// The stub API server and the worker's access to it.
#[derive(Clone)]
pub(crate) struct StubCluster {
    state: Arc<Mutex<ClusterState>>,
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
            state: Arc::default(),
            hold: Arc::new(watch::channel(false).0),
            hold_reviews: Arc::new(watch::channel(false).0),
            url,
            folder: Arc::new(tempfile::tempdir().expect("a folder")),
        };
        let worker = stub.state().make("worker", None, 7 * 24 * 60 * 60);
        stub.state().accounts.insert("worker".into());
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

    fn state(&self) -> MutexGuard<'_, ClusterState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Applies an administrator's first object: the account of a namespace.
    pub(crate) fn apply_account(&self, namespace: &str) {
        self.state().accounts.insert(format!("ns-{namespace}"));
    }

    /// Applies the second one: its role binding.
    pub(crate) fn apply_binding(&self, namespace: &str) {
        self.state().bound.insert(namespace.to_owned());
    }

    pub(crate) fn open(&self, namespace: &str) {
        self.apply_account(namespace);
        self.apply_binding(namespace);
    }

    pub(crate) fn is_open(&self, namespace: &str) -> bool {
        let state = self.state();
        state.accounts.contains(&format!("ns-{namespace}")) && state.bound.contains(namespace)
    }

    /// Deletes a namespace with everything in it, and creates one with the same name.
    pub(crate) fn recreate(&self, namespace: &str) {
        let mut state = self.state();
        state.bound.remove(namespace);
        state.recreated.insert(namespace.to_owned(), uuid::Uuid::new_v4().to_string());
    }

    /// Sets the Pod Security label of a namespace. `None`: no label.
    pub(crate) fn set_pod_security(&self, namespace: &str, level: Option<&str>) {
        self.state().pod_security.insert(namespace.to_owned(), level.map(str::to_owned));
    }

    pub(crate) fn pod_security(&self, namespace: &str) -> Option<String> {
        self.state().pod_security_of(namespace)
    }

    /// As with the old role: accounts may not read the namespace that they are bound in.
    pub(crate) fn hide_namespaces(&self) {
        self.state().hides_namespaces = true;
    }

    pub(crate) fn allow_auto_open(&self) {
        self.state().auto_open = true;
    }

    /// Makes every request fail, or work again.
    pub(crate) fn set_away(&self, is_away: bool) {
        self.state().is_away = is_away;
    }

    pub(crate) fn set_token_seconds(&self, seconds: i64) {
        self.state().token_seconds = Some(seconds);
    }

    pub(crate) fn secrets(&self) -> Vec<String> {
        self.state().secrets.iter().cloned().collect()
    }

    pub(crate) fn minted(&self) -> usize {
        self.state().minted
    }

    /// The namespace that a token gives access to. `None`: it is invalid.
    pub(crate) fn namespace_of(&self, token: &str) -> Option<String> {
        let state = self.state();
        let account = state.account_of(token)?;
        let namespace = account.strip_prefix("ns-")?;
        state.bound.contains(namespace).then(|| namespace.to_owned())
    }

    /// Holds back requested tokens for keys, until [`Self::release`].
    pub(crate) fn hold(&self) {
        self.hold.send_replace(true);
    }

    pub(crate) fn release(&self) {
        self.hold.send_replace(false);
    }

    /// Holds back the answers to access reviews, or releases them.
    pub(crate) fn hold_reviews(&self, is_held: bool) {
        self.hold_reviews.send_replace(is_held);
    }

    /// Replaces the worker's own token with one past half of its lifetime.
    pub(crate) fn age_own_token(&self) -> String {
        let mut state = self.state();
        let now = OffsetDateTime::now_utc().unix_timestamp();
        let payload =
            json!({ "sub": format!("system:serviceaccount:{HOLDER}:worker"), "iat": now - 100, "exp": now + 50 });
        let token = jwt(&payload);
        let ends_at = OffsetDateTime::now_utc() + Duration::from_secs(50);
        state.tokens.insert(token.clone(), Made { account: "worker".into(), secret: None, ends_at });
        std::fs::write(self.token_file(), &token).expect("written");
        token
    }
}
