//! Tokens: which keys get them, and when they end.

use std::time::Duration;

use axum::http::StatusCode;
use fluxserve::kubernetes;
use serde_json::{Value, json};

use super::{Site, V1, V1BETA1, in_namespaces, until};
use crate::app::{Options, managing};

#[tokio::test]
async fn a_token_requires_a_scope_with_the_namespace() {
    let site = Site::start().await;
    let (first, second) = (site.namespace("team-a").await, site.namespace("team-b").await);
    let (id, one) = site.key(&in_namespaces(&[&first])).await;
    let (_, every) = site.key(&json!({ "kubernetes_exec": { "all_namespaces": true } })).await;
    let (_, all) = site.key(&json!({ "all": true })).await;
    let (_, none) = site.key(&json!({ "inference": true })).await;
    for (key, namespace, name) in [(&one, &first, "team-a"), (&every, &second, "team-b"), (&all, &second, "team-b")] {
        let token = site.token(key, namespace).await;
        assert_eq!(site.cluster.namespace_of(&token).as_deref(), Some(name));
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
async fn tokens_end_with_the_right_they_were_issued_for() {
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
    assert!(site.cluster.namespace_of(&kept).is_some(), "a namespace still in scope keeps its token");
    edit(&edited, json!({ "scope": in_namespaces(&[&first, &second]) })).await;
    let again = site.token(&value, &first).await;
    assert!(site.cluster.namespace_of(&again).is_some() && site.cluster.namespace_of(&lost).is_none());

    let (rotated, old) = site.key(&in_namespaces(&[&first])).await;
    let of_old = site.token(&old, &first).await;
    let path = format!("/v1/api-keys/{rotated}/rotate");
    let new = site.manage("POST", &path, Some(&json!({ "grace_seconds": 60 }))).await.json();
    let of_new = site.token(new["key"].as_str().expect("a value"), &first).await;
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert!(site.cluster.namespace_of(&of_old).is_some(), "in its grace period");
    site.app.clock.advance(time::Duration::seconds(60));
    site.until_dead(&of_old).await;
    assert!(site.cluster.namespace_of(&of_new).is_some());

    let (expiring, value) = site.key(&in_namespaces(&[&first])).await;
    let token = site.token(&value, &first).await;
    let end = site.app.clock_now() + time::Duration::seconds(30);
    let end = end.format(&time::format_description::well_known::Rfc3339).expect("a date");
    edit(&expiring, json!({ "expires_at": end })).await;
    site.app.clock.advance(time::Duration::seconds(31));
    site.until_dead(&token).await;
    assert!(site.cluster.namespace_of(&bystander).is_some(), "tokens of other keys stay valid");

    site.app.clock.advance(time::Duration::minutes(11));
    until("no Secrets are left of unused keys", async || site.cluster.secrets().is_empty()).await;
}

#[tokio::test]
async fn tokens_keep_their_lifetime_whatever_the_clock_is_set_to() {
    let site = Site::start().await;
    let namespace = site.namespace("team-a").await;
    let (_, value) = site.key(&in_namespaces(&[&namespace])).await;
    let far = time::Duration::days(400);
    for step in [far, -far, -far, far] {
        let token = site.token(&value, &namespace).await;
        site.app.clock.set_by(step);
        tokio::time::sleep(Duration::from_millis(1200)).await;
        assert!(site.cluster.namespace_of(&token).is_some(), "{step}: no time has passed");
    }
    site.app.clock.set_by(-far);
    site.app.clock.advance(time::Duration::minutes(11));
    until("no Secrets are left of unused keys", async || site.cluster.secrets().is_empty()).await;
}

#[tokio::test]
async fn a_revocation_survives_an_outage_and_a_crash() {
    let site = Site::start().await;
    let namespace = site.namespace("team-a").await;
    let (id, value) = site.key(&in_namespaces(&[&namespace])).await;
    let token = site.token(&value, &namespace).await;
    site.cluster.set_away(true);
    site.manage("DELETE", &format!("/v1/api-keys/{id}"), None).await;
    let pending = async || site.cluster_view().await["pending_removals"][0].clone();
    until("the pending removal is shown", async || pending().await["attempts"].as_u64().is_some_and(|count| count > 0))
        .await;
    let shown = pending().await;
    assert_eq!((&shown["key_id"], &shown["namespace"]), (&json!(id), &json!("team-a")));
    assert!(shown["last_error"].is_string() && shown["tokens_end_at"].is_string(), "{shown}");
    let view = site.cluster_view().await;
    assert_eq!((&view["reachable"], &view["version"]), (&json!(false), &Value::Null));
    assert!(view["problem"].is_string());
    assert!(site.cluster.namespace_of(&token).is_some(), "the cluster does not know yet");

    site.app.crash().await;
    let Site { app, cluster, .. } = site;
    let options = Options { cluster: Some(cluster.settings()), ..Options::default() };
    let app = app.restart(options).await;
    cluster.set_away(false);
    until("the token ends after the restart", async || cluster.namespace_of(&token).is_none()).await;
    let cookie = app.sign_in().await;
    let removals =
        async || app.send(managing(&cookie, "GET", "/v1/kubernetes", None)).await.json()["pending_removals"].clone();
    until("no removals are left", async || removals().await == json!([])).await;
}

#[tokio::test]
async fn a_key_revoked_while_its_token_is_issued_gets_none() {
    let site = Site::start().await;
    let namespace = site.namespace("team-a").await;
    let (id, value) = site.key(&in_namespaces(&[&namespace])).await;
    site.cluster.hold();
    let (answer, ()) = tokio::join!(site.ask(&value, &namespace), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        site.manage("DELETE", &format!("/v1/api-keys/{id}"), None).await;
        // Including its background work.
        tokio::time::sleep(Duration::from_millis(1500)).await;
        site.cluster.release();
    });
    assert_eq!((answer.status, answer.terminal_code().as_str()), (StatusCode::UNAUTHORIZED, "unauthorized"));
    assert_eq!(site.cluster.minted(), 1, "it was issued");
    until("its Secret is removed", async || site.cluster.secrets().is_empty()).await;
}

#[tokio::test]
async fn a_namespace_renamed_during_a_check_gets_no_token_for_its_old_name() {
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
    assert_eq!(site.cluster.namespace_of(&token).as_deref(), Some("team-b"));
}

#[tokio::test]
async fn tokens_per_minute_are_limited() {
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
async fn an_unreachable_cluster_is_reported() {
    let site = Site::start().await;
    let namespace = site.namespace("team-a").await;
    let (_, value) = site.key(&in_namespaces(&[&namespace])).await;
    site.cluster.set_away(true);
    let refused = site.ask(&value, &namespace).await;
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(refused.terminal_code(), "kubernetes_unavailable");
    assert_ne!(refused.header("retry-after"), "");
    let entered = site.manage("POST", "/v1/kubernetes/namespaces", Some(&json!({ "name": "team-b" }))).await;
    assert_eq!(entered.status, StatusCode::CREATED, "it is added anyway");
    let entered = entered.json();
    assert_eq!(entered["state"], "pending");
    assert!(entered["problem"].is_string(), "{entered}");
}
