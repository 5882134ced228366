//! Keys that let kubectl into namespaces: what the administrator sets up, who gets tokens, and when these die.

use std::time::{Duration, Instant};

use axum::http::StatusCode;
use fluxserve::kubernetes::{self, Cluster, ClusterAccess, ClusterSettings};
use serde_json::{Value, json};

use crate::app::{Answer, Options, TestApp, managing, request};
use crate::stub_cluster::{HOLDER, StubCluster};

const V1: &str = "client.authentication.k8s.io/v1";
const V1BETA1: &str = "client.authentication.k8s.io/v1beta1";
/// Longest that a test waits for what happens by itself.
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

    /// Enters a namespace that is open in the cluster; its id.
    pub(crate) async fn namespace(&self, name: &str) -> String {
        self.cluster.open(name);
        let made = self.manage("POST", "/v1/kubernetes/namespaces", Some(&json!({ "name": name }))).await;
        assert_eq!(made.status, StatusCode::CREATED, "{}", made.text());
        assert_eq!(made.json()["state"], "open", "{}", made.text());
        made.json()["id"].as_str().expect("an id").to_owned()
    }

    /// Makes a key; its id and its value.
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

    /// A token that must be given.
    async fn token(&self, key: &str, namespace: &str) -> String {
        let answer = self.ask(key, namespace).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
        answer.json()["status"]["token"].as_str().expect("a token").to_owned()
    }

    async fn cluster_view(&self) -> Value {
        self.manage("GET", "/v1/kubernetes", None).await.json()
    }

    /// Waits until a token is good for nothing.
    async fn until_dead(&self, token: &str) {
        until("the token dies", async || self.cluster.reach(token).is_none()).await;
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

#[tokio::test]
async fn a_namespace_is_open_when_the_cluster_has_what_it_takes() {
    let site = Site::start().await;
    let made = site.manage("POST", "/v1/kubernetes/namespaces", Some(&json!({ "name": "team-a" }))).await;
    assert_eq!(made.status, StatusCode::CREATED);
    let made = made.json();
    assert_eq!((&made["state"], &made["missing"]), (&json!("pending"), &json!(["service_account"])));
    let objects = made["objects"].as_str().expect("YAML");
    assert!(objects.contains("name: ns-team-a") && objects.contains("namespace: team-a"), "{objects}");
    let id = made["id"].as_str().expect("an id").to_owned();
    let (_, key) = site.key(&in_namespaces(&[&id])).await;
    let state = async || {
        let list = site.manage("GET", "/v1/kubernetes/namespaces", None).await.json();
        (list["data"][0]["state"].clone(), list["data"][0]["missing"].clone())
    };
    site.cluster.apply_account("team-a");
    let refused = site.ask(&key, &id).await;
    assert_eq!((refused.status, refused.terminal_code().as_str()), (StatusCode::CONFLICT, "namespace_pending"));
    // The refusal has looked once more.
    assert_eq!(state().await, (json!("pending"), json!(["role_binding"])));
    site.cluster.apply_binding("team-a");
    until("the worker sees it by itself", async || state().await.0 == "open").await;
    assert_eq!(state().await.1, json!([]));
    site.token(&key, &id).await;
    let view = site.cluster_view().await;
    assert_eq!(
        (&view["reachable"], &view["version"], &view["namespace"]),
        (&json!(true), &json!("v1.32.3"), &json!(HOLDER))
    );
    assert_eq!((&view["server"], &view["problem"]), (&json!(site.cluster.url), &Value::Null));
}

#[tokio::test]
async fn names_are_the_clusters_and_there_is_one_of_each() {
    let site = Site::start().await;
    let create =
        async |name: &Value| site.manage("POST", "/v1/kubernetes/namespaces", Some(&json!({ "name": name }))).await;
    for bad in [json!("all"), json!("Team"), json!("a.b"), json!("-a"), json!("x".repeat(64)), json!(7), Value::Null] {
        assert_eq!(create(&bad).await.fields(), ["name"], "{bad}");
    }
    let first = site.namespace("team-a").await;
    let second = site.namespace("team-b").await;
    assert_eq!(create(&json!("team-a")).await.code(), "namespace_exists");
    let rename = async |name: &str| {
        let path = format!("/v1/kubernetes/namespaces/{second}");
        site.manage("PATCH", &path, Some(&json!({ "name": name }))).await
    };
    assert_eq!(rename("team-a").await.code(), "namespace_exists");
    assert_eq!(rename("team-b").await.status, StatusCode::OK);
    let (_, key) = site.key(&in_namespaces(&[&second])).await;
    let token = site.token(&key, &second).await;
    assert_eq!(site.cluster.reach(&token).as_deref(), Some("team-b"));
    let renamed = rename("team-c").await.json();
    assert_eq!(
        (&renamed["id"], &renamed["name"], &renamed["state"]),
        (&json!(second), &json!("team-c"), &json!("pending"))
    );
    site.until_dead(&token).await;
    for missing in ["018f3c1e-9d5b-7a2c-8e4f-6a1b2c3d4e5f", "nothing"] {
        let path = format!("/v1/kubernetes/namespaces/{missing}");
        assert_eq!(site.manage("DELETE", &path, None).await.code(), "namespace_not_found");
    }
    let (_, everywhere) = site.key(&json!({ "all": true })).await;
    let path = format!("/v1/kubernetes/namespaces/{first}");
    assert_eq!(site.manage("DELETE", &path, None).await.status, StatusCode::NO_CONTENT);
    assert_eq!(site.ask(&everywhere, &first).await.terminal_code(), "namespace_not_found");
    let unknown = json!({ "name": "k", "scope": in_namespaces(&[&first]) });
    assert_eq!(site.manage("POST", "/v1/api-keys", Some(&unknown)).await.fields(), ["scope"]);
}

#[tokio::test]
async fn a_namespace_that_keys_name_is_not_deleted_unless_that_is_meant() {
    let site = Site::start().await;
    let (first, second) = (site.namespace("team-a").await, site.namespace("team-b").await);
    let (one, one_value) = site.key(&in_namespaces(&[&first])).await;
    let (both, both_value) = site.key(&in_namespaces(&[&first, &second])).await;
    let tokens = [site.token(&one_value, &first).await, site.token(&both_value, &first).await];
    let kept = site.token(&both_value, &second).await;
    let path = format!("/v1/kubernetes/namespaces/{first}");
    let refused = site.manage("DELETE", &path, None).await;
    assert_eq!(refused.code(), "namespace_in_use");
    let keys: Vec<Value> = refused.json()["errors"].as_array().expect("a list").clone();
    assert_eq!(keys.iter().map(|key| key["field"].clone()).collect::<Vec<_>>(), [json!(one), json!(both)]);
    let reason = keys[0]["reason"].as_str().expect("a text");
    assert!(reason.starts_with("kubectl (rgpu_"), "{reason}");
    let forced = format!("{path}?force=true");
    assert_eq!(site.manage("DELETE", &forced, None).await.status, StatusCode::NO_CONTENT);
    for token in tokens {
        site.until_dead(&token).await;
    }
    assert_eq!(site.cluster.reach(&kept).as_deref(), Some("team-b"));
    let key = async |id: &str| site.manage("GET", &format!("/v1/api-keys/{id}"), None).await.json();
    assert_eq!(key(&one).await["state"], "revoked");
    assert_eq!(key(&both).await["scope"], in_namespaces(&[&second]));
}

#[tokio::test]
async fn a_token_is_given_to_whose_scope_covers_the_namespace() {
    let site = Site::start().await;
    let (first, second) = (site.namespace("team-a").await, site.namespace("team-b").await);
    let (id, one) = site.key(&in_namespaces(&[&first])).await;
    let (_, every) = site.key(&json!({ "kubernetes_exec": { "all_namespaces": true } })).await;
    let (_, all) = site.key(&json!({ "all": true })).await;
    let (_, none) = site.key(&json!({ "inference": true })).await;
    for (key, namespace, name) in [(&one, &first, "team-a"), (&every, &second, "team-b"), (&all, &second, "team-b")] {
        let token = site.token(key, namespace).await;
        assert_eq!(site.cluster.reach(&token).as_deref(), Some(name));
    }
    for (key, namespace) in [(&one, second.as_str()), (&none, &first), (&none, "nothing")] {
        let refused = site.ask(key, namespace).await;
        assert_eq!((refused.status, refused.terminal_code().as_str()), (StatusCode::FORBIDDEN, "scope_forbidden"));
    }
    assert_eq!(site.ask("nonsense", &first).await.terminal_code(), "unauthorized");
    for version in [V1, V1BETA1] {
        let answer = site.ask_in(&one, &first, version).await;
        assert_eq!(answer.json()["apiVersion"], version);
        assert_eq!(answer.json()["kind"], "ExecCredential");
        assert_eq!(answer.header("cache-control"), "no-store");
    }
    let answer = site.ask_in(&one, &first, "client.authentication.k8s.io/v1alpha1").await;
    assert_eq!(answer.terminal_code(), "invalid_request");
    assert!(answer.json()["error"].as_str().is_some_and(|error| error.contains(V1BETA1)), "{}", answer.text());
    assert!(!answer.text().contains('\n'), "one line: {}", answer.text());

    let entries = site.manage("GET", "/v1/audit", None).await.json()["data"].clone();
    let issued: Vec<&Value> = entries.as_array().expect("a list").iter().collect();
    let issued: Vec<&&Value> = issued.iter().filter(|entry| entry["action"] == "credential_issued").collect();
    assert_eq!(issued.len(), 5);
    let last = issued[0];
    assert_eq!(
        (&last["actor"], &last["key_id"], &last["address"]),
        (&json!("key_holder"), &json!(id), &json!("127.0.0.1"))
    );
    assert_eq!((&last["detail"]["namespace"], &last["detail"]["namespace_id"]), (&json!("team-a"), &json!(first)));
    assert!(last["detail"]["jti"].is_string() && last["detail"]["expires_at"].is_string(), "{last}");
    assert_eq!(site.cluster.secrets().len(), 3, "one for each key and namespace");
}

#[tokio::test]
async fn tokens_die_with_the_right_they_were_given_for() {
    let site = Site::start().await;
    let (first, second) = (site.namespace("team-a").await, site.namespace("team-b").await);
    let edit = async |id: &str, body: Value| {
        assert_eq!(site.manage("PATCH", &format!("/v1/api-keys/{id}"), Some(&body)).await.status, StatusCode::OK);
    };

    let (revoked, value) = site.key(&in_namespaces(&[&first])).await;
    let (_, bystander_value) = site.key(&in_namespaces(&[&first])).await;
    let (token, bystander) = (site.token(&value, &first).await, site.token(&bystander_value, &first).await);
    site.manage("DELETE", &format!("/v1/api-keys/{revoked}"), None).await;
    site.until_dead(&token).await;
    assert_eq!(site.ask(&value, &first).await.terminal_code(), "unauthorized");

    let (edited, value) = site.key(&in_namespaces(&[&first, &second])).await;
    let (lost, kept) = (site.token(&value, &first).await, site.token(&value, &second).await);
    edit(&edited, json!({ "scope": in_namespaces(&[&second]) })).await;
    site.until_dead(&lost).await;
    assert!(site.cluster.reach(&kept).is_some(), "what the scope still covers goes on");
    edit(&edited, json!({ "scope": in_namespaces(&[&first, &second]) })).await;
    let again = site.token(&value, &first).await;
    assert!(site.cluster.reach(&again).is_some() && site.cluster.reach(&lost).is_none());

    let (rotated, old) = site.key(&in_namespaces(&[&first])).await;
    let of_old = site.token(&old, &first).await;
    let path = format!("/v1/api-keys/{rotated}/rotate");
    let new = site.manage("POST", &path, Some(&json!({ "grace_seconds": 60 }))).await.json();
    let of_new = site.token(new["key"].as_str().expect("a value"), &first).await;
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert!(site.cluster.reach(&of_old).is_some(), "in its grace");
    site.app.clock.advance(time::Duration::seconds(60));
    site.until_dead(&of_old).await;
    assert!(site.cluster.reach(&of_new).is_some());

    let (expiring, value) = site.key(&in_namespaces(&[&first])).await;
    let token = site.token(&value, &first).await;
    let end = site.app.clock_now() + time::Duration::seconds(30);
    let end = end.format(&time::format_description::well_known::Rfc3339).expect("a date");
    edit(&expiring, json!({ "expires_at": end })).await;
    site.app.clock.advance(time::Duration::seconds(31));
    site.until_dead(&token).await;
    assert!(site.cluster.reach(&bystander).is_some(), "nobody else's dies");

    site.app.clock.advance(time::Duration::minutes(11));
    until("nothing is left of keys that are not used", async || site.cluster.secrets().is_empty()).await;
}

#[tokio::test]
async fn tokens_live_as_long_as_they_were_given_for_whatever_the_clock_is_set_to() {
    let site = Site::start().await;
    let namespace = site.namespace("team-a").await;
    let (_, value) = site.key(&in_namespaces(&[&namespace])).await;
    let far = time::Duration::days(400);
    for step in [far, -far, -far, far] {
        let token = site.token(&value, &namespace).await;
        site.app.clock.set_by(step);
        tokio::time::sleep(Duration::from_millis(1200)).await;
        assert!(site.cluster.reach(&token).is_some(), "{step}: no time has passed");
    }
    site.app.clock.set_by(-far);
    site.app.clock.advance(time::Duration::minutes(11));
    until("nothing is left of keys that are not used", async || site.cluster.secrets().is_empty()).await;
}

#[tokio::test]
async fn a_revocation_outlives_an_outage_and_a_crash() {
    let site = Site::start().await;
    let namespace = site.namespace("team-a").await;
    let (id, value) = site.key(&in_namespaces(&[&namespace])).await;
    let token = site.token(&value, &namespace).await;
    site.cluster.set_away(true);
    site.manage("DELETE", &format!("/v1/api-keys/{id}"), None).await;
    let pending = async || site.cluster_view().await["pending_removals"][0].clone();
    until("what has to go is shown", async || pending().await["attempts"].as_u64().is_some_and(|count| count > 0))
        .await;
    let shown = pending().await;
    assert_eq!((&shown["key_id"], &shown["namespace"]), (&json!(id), &json!("team-a")));
    assert!(shown["last_error"].is_string() && shown["tokens_end_at"].is_string(), "{shown}");
    let view = site.cluster_view().await;
    assert_eq!((&view["reachable"], &view["version"]), (&json!(false), &Value::Null));
    assert!(view["problem"].is_string());
    assert!(site.cluster.reach(&token).is_some(), "the cluster has not heard of it");

    site.app.crash().await;
    let Site { app, cluster, .. } = site;
    let options = Options { cluster: Some(cluster.settings()), ..Options::default() };
    let app = app.restart(options).await;
    cluster.set_away(false);
    until("the token dies in the next life", async || cluster.reach(&token).is_none()).await;
    let cookie = app.sign_in().await;
    let removals =
        async || app.send(managing(&cookie, "GET", "/v1/kubernetes", None)).await.json()["pending_removals"].clone();
    until("nothing is left to do", async || removals().await == json!([])).await;
}

#[tokio::test]
async fn a_key_that_is_revoked_while_its_token_is_made_gets_none() {
    let site = Site::start().await;
    let namespace = site.namespace("team-a").await;
    let (id, value) = site.key(&in_namespaces(&[&namespace])).await;
    site.cluster.hold();
    let (answer, ()) = tokio::join!(site.ask(&value, &namespace), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        site.manage("DELETE", &format!("/v1/api-keys/{id}"), None).await;
        // Also the part of it that goes on by itself.
        tokio::time::sleep(Duration::from_millis(1500)).await;
        site.cluster.release();
    });
    assert_eq!((answer.status, answer.terminal_code().as_str()), (StatusCode::UNAUTHORIZED, "unauthorized"));
    assert_eq!(site.cluster.minted(), 1, "it was made");
    until("and what it hangs on goes", async || site.cluster.secrets().is_empty()).await;
}

#[tokio::test]
async fn a_namespace_that_is_renamed_while_it_is_looked_at_gets_no_token_for_its_old_name() {
    let site = Site::start().await;
    let made = site.manage("POST", "/v1/kubernetes/namespaces", Some(&json!({ "name": "team-a" }))).await.json();
    let id = made["id"].as_str().expect("an id").to_owned();
    let (_, value) = site.key(&in_namespaces(&[&id])).await;
    site.cluster.hold_reviews(true);
    site.cluster.open("team-a");
    site.cluster.open("team-b");
    let path = format!("/v1/kubernetes/namespaces/{id}");
    let renamed = json!({ "name": "team-b" });
    let (answer, renamed, ()) = tokio::join!(
        site.ask(&value, &id),
        async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            site.manage("PATCH", &path, Some(&renamed)).await
        },
        async {
            tokio::time::sleep(Duration::from_millis(800)).await;
            site.cluster.hold_reviews(false);
        }
    );
    assert_eq!(renamed.status, StatusCode::OK, "{}", renamed.text());
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    let token = answer.json()["status"]["token"].as_str().expect("a token").to_owned();
    assert_eq!(site.cluster.reach(&token).as_deref(), Some("team-b"));
}

#[tokio::test]
async fn nobody_is_let_into_the_workers_own_namespace_or_the_clusters() {
    let site = Site::start().await;
    let id = site.namespace("team-a").await;
    for name in [HOLDER, "kube-system", "kube-public", "kube-x"] {
        let body = json!({ "name": name });
        let entered = site.manage("POST", "/v1/kubernetes/namespaces", Some(&body)).await;
        assert_eq!(entered.fields(), ["name"], "{name}");
        assert!(entered.json()["errors"][0]["reason"].as_str().is_some_and(|reason| reason.contains(name)));
        let path = format!("/v1/kubernetes/namespaces/{id}");
        assert_eq!(site.manage("PATCH", &path, Some(&body)).await.fields(), ["name"], "{name}");
    }
}

#[tokio::test]
async fn a_namespace_made_anew_is_not_opened_for_the_keys_of_before() {
    let cluster = StubCluster::start().await;
    cluster.allow_auto_open();
    let site = Site::with(cluster, true).await;
    let body = json!({ "name": "team-a" });
    let made = site.manage("POST", "/v1/kubernetes/namespaces", Some(&body)).await.json();
    assert_eq!(made["state"], "open", "{made}");
    let id = made["id"].as_str().expect("an id").to_owned();
    site.cluster.make_anew("team-a");
    // Open ones are looked at once a minute, and at the start.
    let (_, value) = site.key(&in_namespaces(&[&id])).await;
    let token = site.token(&value, &id).await;
    assert_eq!(site.cluster.reach(&token), None, "it is good for nothing there");
    let Site { app, cluster, .. } = site;
    app.crash().await;
    let app = app.restart(Options { cluster: Some(cluster.settings()), auto_open: true, ..Options::default() }).await;
    let cookie = app.sign_in().await;
    let site = Site { app, cluster, cookie };
    let shown = async || site.manage("GET", "/v1/kubernetes/namespaces", None).await.json()["data"][0].clone();
    until("the worker sees it", async || shown().await["state"] == "pending").await;
    assert!(shown().await["problem"].as_str().is_some_and(|problem| problem.contains("recreated")));
    assert!(!site.cluster.is_open("team-a"));
    let path = format!("/v1/kubernetes/namespaces/{id}?force=true");
    assert_eq!(site.manage("DELETE", &path, None).await.status, StatusCode::NO_CONTENT);
    until("what it was opened with goes", async || site.cluster_view().await["pending_removals"] == json!([])).await;
    let again = site.manage("POST", "/v1/kubernetes/namespaces", Some(&json!({ "name": "team-a" }))).await.json();
    assert_eq!(again["state"], "open", "{again}");
}

#[tokio::test]
async fn tokens_are_few_a_minute() {
    let site = Site::start().await;
    let namespace = site.namespace("team-a").await;
    let (_, value) = site.key(&in_namespaces(&[&namespace])).await;
    for _ in 0..kubernetes::CREDENTIALS_PER_MINUTE {
        site.token(&value, &namespace).await;
    }
    let refused = site.ask(&value, &namespace).await;
    assert_eq!((refused.status, refused.terminal_code().as_str()), (StatusCode::TOO_MANY_REQUESTS, "rate_limited"));
    assert_eq!(refused.header("retry-after"), "1");
    site.app.clock.advance(time::Duration::seconds(1));
    site.token(&value, &namespace).await;
}

#[tokio::test]
async fn a_cluster_that_is_away_is_said_to_be() {
    let site = Site::start().await;
    let namespace = site.namespace("team-a").await;
    let (_, value) = site.key(&in_namespaces(&[&namespace])).await;
    site.cluster.set_away(true);
    let refused = site.ask(&value, &namespace).await;
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(refused.terminal_code(), "kubernetes_unavailable");
    assert_ne!(refused.header("retry-after"), "");
    let entered = site.manage("POST", "/v1/kubernetes/namespaces", Some(&json!({ "name": "team-b" }))).await;
    assert_eq!(entered.status, StatusCode::CREATED, "it is entered all the same");
    let entered = entered.json();
    assert_eq!(entered["state"], "pending");
    assert!(entered["problem"].is_string(), "{entered}");
}

#[tokio::test]
async fn with_auto_open_the_worker_opens_and_closes() {
    let cluster = StubCluster::start().await;
    cluster.allow_auto_open();
    let site = Site::with(cluster, true).await;
    let create = async |name: &str| {
        let made = site.manage("POST", "/v1/kubernetes/namespaces", Some(&json!({ "name": name }))).await;
        assert_eq!(made.status, StatusCode::CREATED);
        made.json()
    };
    let made = create("team-a").await;
    assert_eq!(made["state"], "open");
    assert!(site.cluster.is_open("team-a"));
    let id = made["id"].as_str().expect("an id");
    let renamed =
        site.manage("PATCH", &format!("/v1/kubernetes/namespaces/{id}"), Some(&json!({ "name": "team-b" }))).await;
    assert_eq!(renamed.json()["state"], "open");
    until("the old one is closed", async || !site.cluster.is_open("team-a")).await;
    assert!(site.cluster.is_open("team-b"));
    let path = format!("/v1/kubernetes/namespaces/{}", made["id"].as_str().expect("an id"));
    assert_eq!(site.manage("DELETE", &path, None).await.status, StatusCode::NO_CONTENT);
    until("it is closed again", async || !site.cluster.is_open("team-b")).await;
    let made = create("nowhere").await;
    assert_eq!(made["state"], "pending");
    assert!(made["problem"].as_str().is_some_and(|problem| problem.contains("namespaces")), "{made}");
}

#[tokio::test]
async fn pods_that_may_take_over_their_node_are_told_of_with_what_to_do() {
    let site = Site::start().await;
    let enter = async |name: &str| {
        let made = site.manage("POST", "/v1/kubernetes/namespaces", Some(&json!({ "name": name }))).await.json();
        assert_eq!(made["state"], "open", "it is open all the same: {made}");
        made
    };
    for (name, level, is_told) in [
        ("team-a", Some("restricted"), false),
        ("team-b", Some("baseline"), false),
        ("team-c", Some("privileged"), true),
        ("team-d", None, true),
    ] {
        site.cluster.open(name);
        site.cluster.set_pod_security(name, level);
        let made = enter(name).await;
        let command =
            format!("kubectl label --overwrite namespace {name} pod-security.kubernetes.io/enforce=restricted");
        let problem = made["problem"].as_str().unwrap_or_default();
        assert_eq!((made["problem"].is_null(), problem.contains(&command)), (!is_told, is_told), "{made}");
        assert!(made["objects"].as_str().is_some_and(|objects| objects.contains(&command)), "{made}");
    }
    // With the role of before the update nobody can tell.
    site.cluster.hide_namespaces();
    site.cluster.open("team-e");
    let made = enter("team-e").await;
    assert!(made["problem"].as_str().is_some_and(|problem| problem.contains("kubernetes manifest")), "{made}");
    let rights = kubernetes::manifest(&HOLDER.parse().expect("a name"), false);
    let (_, of_keys) = rights.split_once("name: fluxserve-namespace-user").expect("the role");
    assert!(of_keys.contains("resources: [namespaces]\n  verbs: [get]\n"), "{of_keys}");
}

#[tokio::test]
async fn a_namespace_that_the_worker_opens_keeps_its_pods_from_their_node() {
    let cluster = StubCluster::start().await;
    cluster.allow_auto_open();
    let site = Site::with(cluster, true).await;
    for (name, before, after) in [
        ("team-a", None, "restricted"),
        ("team-b", Some("baseline"), "baseline"),
        ("team-c", Some("privileged"), "privileged"),
    ] {
        site.cluster.set_pod_security(name, before);
        let made = site.manage("POST", "/v1/kubernetes/namespaces", Some(&json!({ "name": name }))).await.json();
        assert_eq!(made["state"], "open", "{made}");
        assert_eq!(site.cluster.pod_security(name).as_deref(), Some(after), "what it says already counts");
        assert_eq!(made["problem"].is_null(), after != "privileged", "{made}");
    }
    let rights = kubernetes::manifest(&HOLDER.parse().expect("a name"), true);
    assert!(rights.contains("resources: [namespaces]\n  verbs: [get, patch]\n"), "{rights}");
}

#[tokio::test]
async fn the_kubeconfig_holds_no_secret_and_says_where_the_worker_is() {
    let site = Site::start().await;
    let id = site.namespace("team-a").await;
    let path = format!("/v1/kubernetes/namespaces/{id}/kubeconfig");
    let answer = site.manage("GET", &path, None).await.json();
    assert_eq!((&answer["namespace"], &answer["filename"]), (&json!("team-a"), &json!("team-a.kubeconfig")));
    let text = answer["kubeconfig"].as_str().expect("YAML");
    assert!(text.contains(&format!("http://worker.test/v1/kubernetes/namespaces/{id}/exec-credential")), "{text}");
    assert!(text.contains(&site.cluster.url) && text.contains(V1) && text.contains("interactiveMode"), "{text}");
    assert!(!text.contains('@') || text.contains("-H @-"), "nothing is left to fill in: {text}");
    let old = site.manage("GET", &format!("{path}?api_version=v1beta1"), None).await.json();
    let old = old["kubeconfig"].as_str().expect("YAML");
    assert!(old.contains(V1BETA1) && !old.contains("interactiveMode"), "{old}");
    assert_eq!(site.manage("GET", &format!("{path}?api_version=v2"), None).await.fields(), ["api_version"]);
}

#[tokio::test]
async fn that_anything_is_taken_for_the_api_server_is_not_passed_on_without_a_word() {
    let cluster = StubCluster::start().await;
    let trusting = std::fs::read_to_string(cluster.kubeconfig()).expect("a file");
    let mut config: Value = serde_json::from_str(&trusting).expect("JSON");
    config["clusters"][0]["cluster"] = json!({ "server": cluster.url, "insecure-skip-tls-verify": true });
    let folder = cluster.folder().join("data");
    for (text, is_unverified) in [(trusting, false), (config.to_string(), true)] {
        std::fs::write(cluster.kubeconfig(), text).expect("written");
        let connected = kubernetes::connect(&cluster.settings(), &folder).await.expect("connected");
        assert_eq!(connected.is_unverified, is_unverified);
        let access = ClusterAccess::Kubeconfig { path: connected.kubeconfig, context: None, allow_exec_plugins: false };
        let own = Cluster::open(&ClusterSettings { access, ..cluster.settings() }).await.expect("a cluster");
        let lines = kubernetes::check(&own, false, time::OffsetDateTime::now_utc()).await;
        let certificate = lines.iter().find(|line| line.subject == "server's certificate").expect("looked at");
        assert_eq!(certificate.found.is_err(), is_unverified, "{lines:?}");

        let site = Site::with(cluster.clone(), false).await;
        let id = site.namespace("team-a").await;
        let answer = site.manage("GET", &format!("/v1/kubernetes/namespaces/{id}/kubeconfig"), None).await.json();
        let kubeconfig = answer["kubeconfig"].as_str().expect("YAML");
        assert_eq!(kubeconfig.contains("insecure-skip-tls-verify: true"), is_unverified, "{kubeconfig}");
        assert_eq!(kubeconfig.contains("# WARNING: the API server's certificate"), is_unverified, "{kubeconfig}");
    }
}

#[tokio::test]
async fn the_worker_gets_in_by_way_of_an_administrator_and_renews_its_token() {
    let cluster = StubCluster::start().await;
    let folder = cluster.folder().join("data");
    let connected = kubernetes::connect(&cluster.settings(), &folder).await.expect("connected");
    for file in ["kubeconfig", "token"] {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = std::fs::metadata(folder.join(file)).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    let access = ClusterAccess::Kubeconfig { path: connected.kubeconfig, context: None, allow_exec_plugins: false };
    let own = Cluster::open(&ClusterSettings { access, ..cluster.settings() }).await.expect("a cluster");
    let lines = kubernetes::check(&own, false, time::OffsetDateTime::now_utc()).await;
    assert!(lines.iter().all(|line| line.found.is_ok()), "{lines:?}");
    let lines = kubernetes::check(&own, true, time::OffsetDateTime::now_utc() + Duration::from_mins(1)).await;
    let faults: Vec<_> = lines.iter().filter(|line| line.found.is_err()).map(|line| line.subject).collect();
    assert_eq!(faults, ["account and clock", "own rights"], "{lines:?}");

    let old = cluster.age_own_token();
    let site = Site::with(cluster, false).await;
    let token = || std::fs::read_to_string(site.cluster.token_file()).expect("there");
    until("a token past its middle is renewed", async || token() != old).await;
    site.namespace("team-a").await;
}

#[test]
fn what_deploys_the_worker_has_the_rights_that_the_program_prints() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/kubernetes/rbac.yaml");
    let deployed = std::fs::read_to_string(path).expect("a file");
    let printed = kubernetes::manifest(&HOLDER.parse().expect("a name"), false);
    assert_eq!(deployed, printed, "fluxserve kubernetes manifest > deploy/kubernetes/rbac.yaml");
}

#[tokio::test]
async fn without_a_cluster_everything_says_so() {
    let app = TestApp::start().await;
    let cookie = app.sign_in().await;
    let id = "018f3c1e-9d5b-7a2c-8e4f-6a1b2c3d4e5f";
    let name = json!({ "name": "team-a" });
    for (method, path, body) in [
        ("GET", "/v1/kubernetes".to_owned(), None),
        ("GET", "/v1/kubernetes/namespaces".into(), None),
        ("POST", "/v1/kubernetes/namespaces".into(), Some(&name)),
        ("PATCH", format!("/v1/kubernetes/namespaces/{id}"), Some(&name)),
        ("DELETE", format!("/v1/kubernetes/namespaces/{id}"), None),
        ("GET", format!("/v1/kubernetes/namespaces/{id}/kubeconfig"), None),
    ] {
        let answer = app.send(managing(&cookie, method, &path, body)).await;
        assert_eq!(answer.code(), "kubernetes_not_configured", "{method} {path}");
    }
    let body = json!({ "kind": "ExecCredential", "apiVersion": V1 });
    let path = format!("/v1/kubernetes/namespaces/{id}/exec-credential");
    let answer = app.send(request("POST", &path, Some(&app.keys.all), Some(&body))).await;
    assert_eq!(answer.terminal_code(), "kubernetes_not_configured");
}

#[tokio::test]
async fn no_program_is_run_that_a_kubeconfig_names_unless_that_is_allowed() {
    let cluster = StubCluster::start().await;
    let folder = cluster.folder();
    let proof = folder.join("was-run");
    let text = std::fs::read_to_string(cluster.kubeconfig()).expect("a file");
    let with_user = |user: &Value| {
        let mut config: Value = serde_json::from_str(&text).expect("JSON");
        config["users"][0]["user"] = user.clone();
        let path = folder.join("with-plugin");
        std::fs::write(&path, config.to_string()).expect("written");
        path
    };
    let script = format!(
        "touch '{}'; echo '{{\"apiVersion\":\"client.authentication.k8s.io/v1\",\"kind\":\"ExecCredential\",\"status\":{{\"token\":\"x\"}}}}'",
        proof.display()
    );
    let exec =
        json!({ "exec": { "apiVersion": V1, "command": "sh", "args": ["-c", script], "interactiveMode": "Never" } });
    let provider = json!({ "auth-provider": { "name": "gcp", "config": { "cmd-path": "touch", "cmd-args": proof } } });
    let open = async |user: &Value, allow_exec_plugins| {
        let access = ClusterAccess::Kubeconfig { path: with_user(user), context: None, allow_exec_plugins };
        Cluster::open(&ClusterSettings { access, ..cluster.settings() }).await
    };
    for user in [&exec, &provider] {
        let error = open(user, false).await.expect_err("a program").to_string();
        for part in ["with-plugin", "kubernetes.allow_exec_plugins", "fluxserve kubernetes connect"] {
            assert!(error.contains(part), "{part:?} in {error}");
        }
        assert!(!proof.exists(), "{user}");
    }
    open(&exec, true).await.expect("it is allowed");
    assert!(proof.exists(), "and was run");
}
