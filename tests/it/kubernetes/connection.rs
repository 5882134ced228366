//! The worker's connection to the cluster, and the kubeconfig that it gives to users.

use std::time::Duration;

use fluxserve::kubernetes::{self, Cluster, ClusterAccess, ClusterSettings};
use serde_json::{Value, json};

use super::{Site, V1, V1BETA1, until};
use crate::app::{TestApp, managing, request};
use crate::stub_cluster::{HOLDER, StubCluster};

#[tokio::test]
async fn the_kubeconfig_has_the_workers_url_and_no_secret() {
    let site = Site::start().await;
    let id = site.namespace("team-a").await;
    let path = format!("/v1/kubernetes/namespaces/{id}/kubeconfig");
    let answer = site.manage("GET", &path, None).await.json();
    assert_eq!((&answer["namespace"], &answer["filename"]), (&json!("team-a"), &json!("team-a.kubeconfig")));
    let text = answer["kubeconfig"].as_str().expect("YAML");
    assert!(text.contains(&format!("http://worker.test/v1/kubernetes/namespaces/{id}/exec-credential")), "{text}");
    assert!(text.contains(&site.cluster.url) && text.contains(V1) && text.contains("interactiveMode"), "{text}");
    assert!(!text.contains('@') || text.contains("-H @-"), "no placeholder is left: {text}");
    let old = site.manage("GET", &format!("{path}?api_version=v1beta1"), None).await.json();
    let old = old["kubeconfig"].as_str().expect("YAML");
    assert!(old.contains(V1BETA1) && !old.contains("interactiveMode"), "{old}");
    assert_eq!(site.manage("GET", &format!("{path}?api_version=v2"), None).await.fields(), ["api_version"]);
}

#[tokio::test]
async fn a_kubeconfig_without_tls_verification_carries_a_warning() {
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
        let certificate = lines.iter().find(|line| line.subject == "server's certificate").expect("checked");
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
async fn the_worker_connects_with_an_administrators_kubeconfig_and_renews_its_token() {
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
fn the_deployment_has_the_rights_that_the_program_prints() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/kubernetes/rbac.yaml");
    let deployed = std::fs::read_to_string(path).expect("a file");
    let printed = kubernetes::manifest(&HOLDER.parse().expect("a name"), false);
    assert_eq!(deployed, printed, "fluxserve kubernetes manifest > deploy/kubernetes/rbac.yaml");
}

#[tokio::test]
async fn without_a_cluster_every_route_reports_it() {
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
async fn a_kubeconfigs_program_is_run_only_if_allowed() {
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
    assert!(proof.exists(), "it was run");
}
