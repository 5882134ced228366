//! Keys that give kubectl access to namespaces.

mod connection;
mod namespaces;
mod tokens;

use std::time::{Duration, Instant};

use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::app::{Answer, Options, TestApp, managing, request};
use crate::stub_cluster::StubCluster;

const V1: &str = "client.authentication.k8s.io/v1";
const V1BETA1: &str = "client.authentication.k8s.io/v1beta1";
/// Longest wait for background work.
const PATIENCE: Duration = Duration::from_secs(20);

/// A worker with a cluster, and its administrator.
pub(crate) struct Site {
    pub(crate) app: TestApp,
    pub(crate) cluster: StubCluster,
    cookie: String,
}

impl Site {
    pub(crate) async fn start() -> Self {
        Self::with(StubCluster::start().await, false).await
    }

    async fn with(cluster: StubCluster, auto_open: bool) -> Self {
        let options = Options { cluster: Some(cluster.settings()), auto_open, ..Options::default() };
        let app = TestApp::with(options).await;
        let cookie = app.sign_in().await;
        Self { app, cluster, cookie }
    }

    pub(crate) async fn manage(&self, method: &str, path: &str, body: Option<&Value>) -> Answer {
        self.app.send(managing(&self.cookie, method, path, body)).await
    }

    /// Adds a namespace that is open in the cluster; returns its id.
    pub(crate) async fn namespace(&self, name: &str) -> String {
        self.cluster.open(name);
        let made = self.manage("POST", "/v1/kubernetes/namespaces", Some(&json!({ "name": name }))).await;
        assert_eq!(made.status, StatusCode::CREATED, "{}", made.text());
        assert_eq!(made.json()["state"], "open", "{}", made.text());
        made.json()["id"].as_str().expect("an id").to_owned()
    }

    /// Creates a key; returns its id and value.
    pub(crate) async fn key(&self, scope: &Value) -> (String, String) {
        let body = json!({ "name": "kubectl", "scope": scope });
        let made = self.manage("POST", "/v1/api-keys", Some(&body)).await;
        assert_eq!(made.status, StatusCode::CREATED, "{}", made.text());
        let text = |field: &str| made.json()[field].as_str().expect("a text").to_owned();
        (text("id"), text("key"))
    }

    async fn ask_in(&self, key: &str, namespace: &str, version: &str) -> Answer {
        let body = json!({ "kind": "ExecCredential", "apiVersion": version, "spec": { "interactive": false } });
        let path = format!("/v1/kubernetes/namespaces/{namespace}/exec-credential");
        self.app.send(request("POST", &path, Some(key), Some(&body))).await
    }

    async fn ask(&self, key: &str, namespace: &str) -> Answer {
        self.ask_in(key, namespace, V1).await
    }

    /// A token; fails if it is refused.
    async fn token(&self, key: &str, namespace: &str) -> String {
        let answer = self.ask(key, namespace).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
        answer.json()["status"]["token"].as_str().expect("a token").to_owned()
    }

    async fn cluster_view(&self) -> Value {
        self.manage("GET", "/v1/kubernetes", None).await.json()
    }

    /// Waits until a token is invalid.
    async fn until_dead(&self, token: &str) {
        until("the token ends", async || self.cluster.namespace_of(token).is_none()).await;
    }
}

pub(crate) async fn until(what: &str, is_so: impl AsyncFn() -> bool) {
    let started = Instant::now();
    while !is_so().await {
        assert!(started.elapsed() < PATIENCE, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn in_namespaces(ids: &[&str]) -> Value {
    json!({ "kubernetes_exec": { "namespace_ids": ids } })
}
