//! The API of the stub: https, its routes, and the recorded answers of a real API server.

use std::net::SocketAddr;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::serve::Listener;
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::state::ClusterState;
use super::{HOLDER, StubCluster};

const POD_SECURITY: &str = "pod-security.kubernetes.io/enforce";
const SHORTEST_TOKEN_SECONDS: i64 = 600;

/// Https for the server.
pub(super) struct TlsListener {
    pub(super) listener: TcpListener,
    pub(super) acceptor: TlsAcceptor,
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

/// An error in the real server's format.
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

pub(super) async fn answer(
    State(stub): State<StubCluster>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    if stub.state().is_away {
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
    let account = token.and_then(|token| stub.state().account_of(token.trim()));
    let Some(account) = account else {
        return refused(StatusCode::UNAUTHORIZED, "Unauthorized", "Unauthorized", "");
    };
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    match (method.as_str(), path.as_slice()) {
        ("POST", ["api", "v1", "namespaces", HOLDER, "serviceaccounts", name, "token"]) if account == "worker" => {
            stub.token(name, &body).await
        }
        ("GET", ["api", "v1", "namespaces", namespace, "pods"]) => {
            if account == format!("ns-{namespace}") && stub.state().bound.contains(*namespace) {
                let list = json!({ "kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": [pod(namespace)] });
                said(StatusCode::OK, &list)
            } else {
                forbidden(&account, "list", "pods", namespace)
            }
        }
        ("GET", ["api", "v1", "namespaces", namespace]) if account == format!("ns-{namespace}") => {
            let state = stub.state();
            if state.bound.contains(*namespace) && !state.hides_namespaces {
                state.namespace(namespace)
            } else {
                forbidden(&account, "get", "namespaces", namespace)
            }
        }
        ("POST", ["apis", "authorization.k8s.io", "v1", "selfsubjectaccessreviews"]) => {
            stub.until_reviews_are_released().await;
            let mut review = body;
            let allowed = stub.state().may(&account, &review["spec"]["resourceAttributes"]);
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
        (_, path) if account == "worker" => stub.state().change(&method, path, &body),
        _ => forbidden(&account, method.as_str(), "things", ""),
    }
}

fn pod(namespace: &str) -> Value {
    json!({ "kind": "Pod", "apiVersion": "v1",
            "metadata": { "name": format!("{namespace}-pod"), "namespace": namespace,
                          "creationTimestamp": "2026-01-01T00:00:00Z" } })
}

impl StubCluster {
    async fn until_reviews_are_released(&self) {
        let mut hold = self.hold_reviews.subscribe();
        hold.wait_for(|is_held| !is_held).await.expect("a sender");
    }

    async fn token(&self, account: &str, body: &Value) -> Response {
        let bound = body["spec"]["boundObjectRef"]["name"].as_str().map(str::to_owned);
        if bound.is_some() {
            let mut hold = self.hold.subscribe();
            hold.wait_for(|is_held| !is_held).await.expect("a sender");
        }
        let mut state = self.state();
        if !state.accounts.contains(account) {
            return missing("serviceaccounts", account);
        }
        if let Some(secret) = &bound
            && !state.secrets.contains(secret)
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
        let seconds = state.token_seconds.filter(|_| bound.is_some()).unwrap_or(asked);
        let token = state.make(account, bound, seconds);
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

impl ClusterState {
    fn namespace(&self, name: &str) -> Response {
        let uid = self.recreated.get(name).map_or("the first", String::as_str);
        let mut metadata = json!({ "name": name, "uid": uid, "labels": { "kubernetes.io/metadata.name": name } });
        if let Some(level) = self.pod_security_of(name) {
            metadata["labels"][POD_SECURITY] = level.into();
        }
        said(StatusCode::OK, &json!({ "kind": "Namespace", "apiVersion": "v1", "metadata": metadata }))
    }

    /// Handles what the worker creates and deletes.
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
