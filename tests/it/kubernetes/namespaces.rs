//! Namespaces: adding, opening, renaming and deleting them, and what their pods may do.

use axum::http::StatusCode;
use fluxserve::kubernetes;
use serde_json::{Value, json};

use super::{Site, in_namespaces, until};
use crate::app::Options;
use crate::stub_cluster::{HOLDER, StubCluster};

#[tokio::test]
async fn a_namespace_is_open_when_the_cluster_has_its_objects() {
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
    // The refused request has checked again.
    assert_eq!(state().await, (json!("pending"), json!(["role_binding"])));
    site.cluster.apply_binding("team-a");
    until("the worker notices by itself", async || state().await.0 == "open").await;
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
async fn names_are_valid_in_the_cluster_and_unique() {
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
    assert_eq!(site.cluster.namespace_of(&token).as_deref(), Some("team-b"));
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
async fn a_namespace_in_use_is_deleted_only_by_force() {
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
    assert_eq!(site.cluster.namespace_of(&kept).as_deref(), Some("team-b"));
    let key = async |id: &str| site.manage("GET", &format!("/v1/api-keys/{id}"), None).await.json();
    assert_eq!(key(&one).await["state"], "revoked");
    assert_eq!(key(&both).await["scope"], in_namespaces(&[&second]));
}

#[tokio::test]
async fn the_workers_own_and_the_clusters_namespaces_are_refused() {
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
async fn a_recreated_namespace_is_not_opened_for_earlier_keys() {
    let cluster = StubCluster::start().await;
    cluster.allow_auto_open();
    let site = Site::with(cluster, true).await;
    let body = json!({ "name": "team-a" });
    let made = site.manage("POST", "/v1/kubernetes/namespaces", Some(&body)).await.json();
    assert_eq!(made["state"], "open", "{made}");
    let id = made["id"].as_str().expect("an id").to_owned();
    site.cluster.recreate("team-a");
    // Open namespaces are checked once a minute, and at the start.
    let (_, value) = site.key(&in_namespaces(&[&id])).await;
    let token = site.token(&value, &id).await;
    assert_eq!(site.cluster.namespace_of(&token), None, "it gives no access there");
    let Site { app, cluster, .. } = site;
    app.crash().await;
    let app = app.restart(Options { cluster: Some(cluster.settings()), auto_open: true, ..Options::default() }).await;
    let cookie = app.sign_in().await;
    let site = Site { app, cluster, cookie };
    let shown = async || site.manage("GET", "/v1/kubernetes/namespaces", None).await.json()["data"][0].clone();
    until("the worker notices", async || shown().await["state"] == "pending").await;
    assert!(shown().await["problem"].as_str().is_some_and(|problem| problem.contains("recreated")));
    assert!(!site.cluster.is_open("team-a"));
    let path = format!("/v1/kubernetes/namespaces/{id}?force=true");
    assert_eq!(site.manage("DELETE", &path, None).await.status, StatusCode::NO_CONTENT);
    until("its objects are removed", async || site.cluster_view().await["pending_removals"] == json!([])).await;
    let again = site.manage("POST", "/v1/kubernetes/namespaces", Some(&json!({ "name": "team-a" }))).await.json();
    assert_eq!(again["state"], "open", "{again}");
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
    until("the old namespace is closed", async || !site.cluster.is_open("team-a")).await;
    assert!(site.cluster.is_open("team-b"));
    let path = format!("/v1/kubernetes/namespaces/{}", made["id"].as_str().expect("an id"));
    assert_eq!(site.manage("DELETE", &path, None).await.status, StatusCode::NO_CONTENT);
    until("it is closed again", async || !site.cluster.is_open("team-b")).await;
    let made = create("nowhere").await;
    assert_eq!(made["state"], "pending");
    assert!(made["problem"].as_str().is_some_and(|problem| problem.contains("namespaces")), "{made}");
}

#[tokio::test]
async fn insecure_pod_settings_are_reported_with_the_fix() {
    let site = Site::start().await;
    let enter = async |name: &str| {
        let made = site.manage("POST", "/v1/kubernetes/namespaces", Some(&json!({ "name": name }))).await.json();
        assert_eq!(made["state"], "open", "it is open anyway: {made}");
        made
    };
    for (name, level, is_reported) in [
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
        assert_eq!((made["problem"].is_null(), problem.contains(&command)), (!is_reported, is_reported), "{made}");
        assert!(made["objects"].as_str().is_some_and(|objects| objects.contains(&command)), "{made}");
    }
    // With the role from before the update it is unknown.
    site.cluster.hide_namespaces();
    site.cluster.open("team-e");
    let made = enter("team-e").await;
    assert!(made["problem"].as_str().is_some_and(|problem| problem.contains("kubernetes manifest")), "{made}");
    let rights = kubernetes::manifest(&HOLDER.parse().expect("a name"), false);
    let (_, of_keys) = rights.split_once("name: fluxserve-namespace-user").expect("the role");
    assert!(of_keys.contains("resources: [namespaces]\n  verbs: [get]\n"), "{of_keys}");
}

#[tokio::test]
async fn a_namespace_opened_by_the_worker_restricts_its_pods() {
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
        assert_eq!(site.cluster.pod_security(name).as_deref(), Some(after), "an existing label is kept");
        assert_eq!(made["problem"].is_null(), after != "privileged", "{made}");
    }
    let rights = kubernetes::manifest(&HOLDER.parse().expect("a name"), true);
    assert!(rights.contains("resources: [namespaces]\n  verbs: [get, patch]\n"), "{rights}");
}
