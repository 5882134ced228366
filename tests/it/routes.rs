//! Every route with every kind of caller. A missing route fails the test.

use axum::http::StatusCode;
use fluxserve::auth::{Actor, NewKey, NewProject};
use fluxserve::domain::limits::{GroupLimits, KeyLimits};
use fluxserve::domain::scope::Scope;
use fluxserve::http::{Access, routes};
use serde_json::{Value, json};

use crate::app::{Keys, MODEL, NAMESPACE, Options, PASSWORD, TestApp, image, managing, request};
use crate::edits::{data_url, png};
use crate::stub_cluster::StubCluster;

/// The expected status of one route for each kind of caller.
struct Expected {
    method: &'static str,
    path: &'static str,
    access: Access,
    /// The status for a permitted caller, at the clients' address.
    allowed: u16,
}

const fn expect(access: Access, method: &'static str, path: &'static str, allowed: u16) -> Expected {
    Expected { method, path, access, allowed }
}

const MATRIX: [Expected; 82] = [
    expect(Access::Inference, "POST", "/v1/inference/image", 202),
    expect(Access::Inference, "GET", "/v1/inference/jobs", 200),
    expect(Access::Inference, "GET", "/v1/inference/jobs/{job_id}", 200),
    expect(Access::Inference, "DELETE", "/v1/inference/jobs/{job_id}", 200),
    expect(Access::Inference, "GET", "/v1/inference/jobs/{job_id}/events", 200),
    expect(Access::InferenceOrLink, "GET", "/v1/inference/jobs/{job_id}/result", 200),
    expect(Access::Inference, "GET", "/v1/inference/loras", 200),
    expect(Access::Inference, "GET", "/v1/inference/uploads", 200),
    // Without a body there is no file.
    expect(Access::Inference, "POST", "/v1/inference/uploads", 415),
    // There is no upload.
    expect(Access::Inference, "DELETE", "/v1/inference/uploads/{upload_id}", 404),
    expect(Access::Inference, "GET", "/v1/inference/deliveries", 200),
    // There is no delivery.
    expect(Access::Inference, "POST", "/v1/inference/deliveries/{delivery_id}/resend", 404),
    expect(Access::Anyone, "GET", "/v1/inference/models", 200),
    expect(Access::Anyone, "GET", "/v1/inference/runtime/models", 200),
    expect(Access::Inference, "POST", "/v1/images/generations", 200),
    expect(Access::Inference, "POST", "/v1/images/edits", 200),
    // Without a body there is no image.
    expect(Access::Inference, "POST", "/v1/images/variations", 415),
    expect(Access::Anyone, "GET", "/v1/models", 200),
    expect(Access::Anyone, "GET", "/v1/models/{*model}", 200),
    expect(Access::SignIn, "POST", "/v1/session", 201),
    expect(Access::Session, "GET", "/v1/session", 200),
    expect(Access::Session, "DELETE", "/v1/session", 204),
    expect(Access::Session, "GET", "/v1/api-keys", 200),
    expect(Access::Session, "POST", "/v1/api-keys", 201),
    expect(Access::Session, "GET", "/v1/api-keys/{key_id}", 200),
    expect(Access::Session, "PATCH", "/v1/api-keys/{key_id}", 200),
    expect(Access::Session, "DELETE", "/v1/api-keys/{key_id}", 200),
    expect(Access::Session, "POST", "/v1/api-keys/{key_id}/rotate", 200),
    expect(Access::Session, "GET", "/v1/api-keys/{key_id}/usage", 200),
    expect(Access::Session, "GET", "/v1/usage", 200),
    expect(Access::Session, "GET", "/v1/projects", 200),
    // The name is taken.
    expect(Access::Session, "POST", "/v1/projects", 409),
    expect(Access::Session, "GET", "/v1/projects/{project_id}", 200),
    expect(Access::Session, "PATCH", "/v1/projects/{project_id}", 200),
    // A key belongs to it.
    expect(Access::Session, "DELETE", "/v1/projects/{project_id}", 409),
    expect(Access::Session, "GET", "/v1/api-keys/{key_id}/webhook", 200),
    expect(Access::Session, "PATCH", "/v1/api-keys/{key_id}/webhook", 200),
    expect(Access::Session, "POST", "/v1/api-keys/{key_id}/webhook/secret", 200),
    // It has no URL.
    expect(Access::Session, "POST", "/v1/api-keys/{key_id}/webhook/test", 409),
    expect(Access::Session, "GET", "/v1/api-keys/{key_id}/deliveries", 200),
    // There is no delivery.
    expect(Access::Session, "POST", "/v1/api-keys/{key_id}/deliveries/{delivery_id}/resend", 404),
    expect(Access::Session, "GET", "/v1/loras", 200),
    // Without a body there is no file.
    expect(Access::Session, "POST", "/v1/loras", 415),
    // There is no LoRA.
    expect(Access::Session, "GET", "/v1/loras/{lora_id}", 404),
    expect(Access::Session, "DELETE", "/v1/loras/{lora_id}", 404),
    expect(Access::Session, "GET", "/v1/loras/{lora_id}/thumbnail", 404),
    expect(Access::Session, "GET", "/v1/kubernetes", 200),
    expect(Access::Session, "GET", "/v1/kubernetes/namespaces", 200),
    // The name is taken.
    expect(Access::Session, "POST", "/v1/kubernetes/namespaces", 409),
    expect(Access::Session, "PATCH", "/v1/kubernetes/namespaces/{namespace_id}", 200),
    // A key has it in scope.
    expect(Access::Session, "DELETE", "/v1/kubernetes/namespaces/{namespace_id}", 409),
    expect(Access::Session, "GET", "/v1/kubernetes/namespaces/{namespace_id}/kubeconfig", 200),
    expect(Access::Kubernetes, "POST", "/v1/kubernetes/namespaces/{namespace_id}/exec-credential", 200),
    expect(Access::Session, "GET", "/v1/audit", 200),
    expect(Access::Session, "GET", "/v1/overview", 200),
    expect(Access::Session, "POST", "/v1/playground/image", 202),
    expect(Access::Session, "GET", "/v1/jobs", 200),
    expect(Access::Session, "GET", "/v1/jobs/{job_id}", 200),
    expect(Access::Session, "DELETE", "/v1/jobs/{job_id}", 200),
    expect(Access::Session, "GET", "/v1/jobs/{job_id}/events", 200),
    // The job has ended: it has no preview.
    expect(Access::Session, "GET", "/v1/jobs/{job_id}/preview", 404),
    expect(Access::Session, "GET", "/v1/jobs/{job_id}/result", 200),
    expect(Access::Page, "GET", "/admin", 200),
    expect(Access::Page, "GET", "/admin/assets/{file}", 200),
    expect(Access::Anyone, "GET", "/openapi.json", 200),
    expect(Access::Anyone, "GET", "/healthz", 200),
    expect(Access::Anyone, "GET", "/readyz", 200),
    expect(Access::Metrics, "GET", "/metrics", 404),
    expect(Access::Inference, "POST", "/sdapi/v1/txt2img", 200),
    expect(Access::Inference, "POST", "/sdapi/v1/img2img", 200),
    expect(Access::Inference, "GET", "/sdapi/v1/progress", 200),
    expect(Access::Inference, "POST", "/sdapi/v1/interrupt", 200),
    expect(Access::Inference, "GET", "/sdapi/v1/options", 200),
    expect(Access::Inference, "POST", "/sdapi/v1/options", 200),
    expect(Access::Inference, "GET", "/sdapi/v1/cmd-flags", 200),
    expect(Access::Inference, "GET", "/sdapi/v1/sd-models", 200),
    expect(Access::Inference, "GET", "/sdapi/v1/sd-vae", 200),
    expect(Access::Inference, "GET", "/sdapi/v1/samplers", 200),
    expect(Access::Inference, "GET", "/sdapi/v1/schedulers", 200),
    expect(Access::Inference, "GET", "/sdapi/v1/upscalers", 200),
    expect(Access::Inference, "GET", "/sdapi/v1/latent-upscale-modes", 200),
    expect(Access::Inference, "GET", "/sdapi/v1/loras", 200),
];

/// The id of no delivery.
const DELIVERY: &str = "msg_018f3c1e9d5b7a2c8e4f6a1b2c3d4e5f";

#[test]
fn the_matrix_lists_every_route() {
    let listed: Vec<_> = MATRIX.iter().map(|row| (row.method, row.path, row.access)).collect();
    let there: Vec<_> = routes().iter().map(|route| (route.method, route.path, route.access)).collect();
    assert_eq!(listed, there);
}

/// A kind of caller.
#[derive(Debug, Clone, Copy)]
enum Caller {
    NoKey,
    Malformed,
    Unknown,
    Expired,
    Revoked,
    Inference,
    KubernetesOne,
    KubernetesAll,
    All,
    OtherInference,
    Session,
    /// A session's cookie and a key.
    SessionAndKey,
}

const CALLERS: [Caller; 12] = [
    Caller::NoKey,
    Caller::Malformed,
    Caller::Unknown,
    Caller::Expired,
    Caller::Revoked,
    Caller::Inference,
    Caller::KubernetesOne,
    Caller::KubernetesAll,
    Caller::All,
    Caller::OtherInference,
    Caller::Session,
    Caller::SessionAndKey,
];

impl Caller {
    fn key(self, keys: &Keys) -> Option<&str> {
        match self {
            Self::NoKey | Self::Session => None,
            Self::Malformed => Some("nonsense"),
            Self::Unknown => Some("rgpu_00000000aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa000000"),
            Self::Expired => Some(&keys.expired),
            Self::Revoked => Some(&keys.revoked),
            Self::Inference | Self::SessionAndKey => Some(&keys.inference),
            Self::KubernetesOne => Some(&keys.kubernetes_one),
            Self::KubernetesAll => Some(&keys.kubernetes),
            Self::All => Some(&keys.all),
            Self::OtherInference => Some(&keys.other_inference),
        }
    }

    /// The expected status for this caller. The job belongs to the inference key.
    fn expected(self, row: &Expected) -> u16 {
        match row.access {
            Access::Anyone | Access::Page | Access::Metrics | Access::SignIn => row.allowed,
            Access::Session => match self {
                Self::Session | Self::SessionAndKey => row.allowed,
                _ => 401,
            },
            Access::Kubernetes => match self {
                Self::NoKey | Self::Malformed | Self::Unknown | Self::Expired | Self::Revoked | Self::Session => 401,
                Self::Inference | Self::SessionAndKey | Self::OtherInference => 403,
                Self::All | Self::KubernetesOne | Self::KubernetesAll => row.allowed,
            },
            Access::Inference | Access::InferenceOrLink => match self {
                Self::NoKey | Self::Malformed | Self::Unknown | Self::Expired | Self::Revoked | Self::Session => 401,
                Self::KubernetesOne | Self::KubernetesAll => 403,
                Self::All | Self::OtherInference if row.path.contains("{job_id}") => 404,
                Self::Inference | Self::SessionAndKey | Self::All | Self::OtherInference => row.allowed,
            },
        }
    }
}

fn body_of(row: &Expected) -> Option<Value> {
    match (row.method, row.path) {
        ("POST", "/v1/inference/image" | "/v1/playground/image") => Some(image(2)),
        ("POST", "/v1/images/generations") => Some(json!({ "model": MODEL, "prompt": "a fox", "steps": 2 })),
        ("POST", "/v1/images/edits") => {
            let images = [json!({ "image_url": data_url(&png([9, 9, 9, 255])) })];
            Some(json!({ "model": MODEL, "prompt": "a fox", "steps": 2, "images": images }))
        }
        ("POST", "/sdapi/v1/txt2img") => Some(json!({ "prompt": "a fox", "steps": 2, "width": 64, "height": 64 })),
        ("POST", "/sdapi/v1/img2img") => {
            Some(json!({ "prompt": "a fox", "steps": 4, "init_images": [data_url(&png([9, 9, 9, 255]))] }))
        }
        ("POST", "/sdapi/v1/options") => Some(json!({ "sd_model_checkpoint": MODEL })),
        ("POST", "/v1/session") => Some(json!({ "password": PASSWORD })),
        ("POST", "/v1/api-keys") => Some(json!({ "name": "new", "scope": { "all": true } })),
        ("POST", "/v1/kubernetes/namespaces") | ("PATCH", "/v1/kubernetes/namespaces/{namespace_id}") => {
            Some(json!({ "name": "team-a" }))
        }
        ("POST", "/v1/projects") | ("PATCH", "/v1/projects/{project_id}") => Some(json!({ "name": "shop" })),
        ("POST", path) if path.ends_with("/exec-credential") => {
            Some(json!({ "kind": "ExecCredential", "apiVersion": "client.authentication.k8s.io/v1" }))
        }
        ("PATCH", "/v1/api-keys/{key_id}/webhook") => Some(json!({ "events": ["job.failed"] })),
        ("PATCH", _) => Some(json!({ "name": "other" })),
        _ => None,
    }
}

#[tokio::test]
async fn every_route_accepts_only_its_callers() {
    let cluster = StubCluster::start().await;
    cluster.open("team-a");
    let app = TestApp::with(Options { cluster: Some(cluster.settings()), ..Options::default() }).await;
    // The namespace of the key for one namespace.
    let insert = "INSERT INTO kubernetes_namespaces (id, name, created_at_ms, is_open) VALUES (?, 'team-a', 0, 1)";
    sqlx::query(insert).bind(NAMESPACE).execute(app.store.pool()).await.expect("a row");
    let job = app.submit(&image(1)).await;
    app.until_status(&job, "succeeded").await;
    let shop = NewProject { name: "shop".into(), limits: GroupLimits::default() };
    let shop = app.service.create_project(shop, &Actor::CommandLine).await.expect("a project").id;
    let member =
        NewKey { name: "member".into(), scope: Scope::Inference, expires_at: None, limits: KeyLimits::default() };
    app.service.create_in(member, Some(shop), &Actor::CommandLine).await.expect("a key");
    for row in MATRIX {
        for caller in CALLERS {
            let new = NewKey {
                name: "worked on".into(),
                scope: Scope::Inference,
                expires_at: None,
                limits: KeyLimits::default(),
            };
            let subject = app.service.create(new, &Actor::CommandLine).await.expect("a key").id;
            let path = row.path.replace("{job_id}", &job).replace("{key_id}", &subject.to_string());
            let path = path.replace("{namespace_id}", NAMESPACE);
            let path = path.replace("{lora_id}", "pen").replace("{upload_id}", &"a5".repeat(32));
            let path = path.replace("{project_id}", &shop.to_string()).replace("{delivery_id}", DELIVERY);
            let path = path.replace("{file}", "app.js").replace("{*model}", MODEL);
            let mut request = request(row.method, &path, caller.key(&app.keys), body_of(&row).as_ref());
            if matches!(caller, Caller::Session | Caller::SessionAndKey) {
                let cookie = app.sign_in().await;
                request.headers_mut().insert("cookie", cookie.parse().expect("a value"));
            }
            let answer = app.send(request).await;
            let name = format!("{} {} for {caller:?}: {}", row.method, row.path, answer.text());
            assert_eq!(answer.status, caller.expected(&row), "{name}");
            let is_management = matches!(row.access, Access::SignIn | Access::Session);
            let is_token = row.access == Access::Kubernetes && answer.status == StatusCode::OK;
            let content_type = answer.header("content-type");
            // A stored copy would outlive the right to see it.
            let is_private = content_type == "text/event-stream" || content_type.starts_with("image/");
            let is_never_kept = is_management || is_token || is_private;
            assert_eq!(answer.header("cache-control") == "no-store", is_never_kept, "{name}");
        }
    }
}

#[tokio::test]
async fn without_a_password_there_are_no_management_routes() {
    let app = TestApp::with(Options { has_password: false, ..Options::default() }).await;
    let nothing = app.send(request("GET", "/v1/nothing", None, None)).await;
    for row in MATRIX.iter().filter(|row| matches!(row.access, Access::SignIn | Access::Session)) {
        for method in [row.method, "PUT"] {
            let path = row.path.replace("{key_id}", "018f3c1e-9d5b-7a2c-8e4f-6a1b2c3d4e5f");
            let path = path.replace("{namespace_id}", NAMESPACE).replace("{lora_id}", "pen");
            let path = path.replace("{job_id}", "job_018f3c1e9d5b7a2c8e4f6a1b2c3d4e5f");
            let path = path.replace("{project_id}", NAMESPACE).replace("{delivery_id}", DELIVERY);
            let mut request = managing("fluxserve_session=guess", method, &path, body_of(row).as_ref());
            request.headers_mut().insert("origin", "http://evil.test".parse().expect("a value"));
            let answer = app.send(request).await;
            assert_eq!((answer.status, answer.code()), (nothing.status, nothing.code()), "{method} {path}");
        }
    }
    let password = PASSWORD.parse().expect("long enough");
    app.admin.set_password(&password, &Actor::CommandLine).await.expect("set");
    app.sign_in().await;
}

#[tokio::test]
async fn a_refusal_is_the_same_whatever_is_wrong_with_the_key() {
    let app = TestApp::start().await;
    let mut bodies = Vec::new();
    for key in [None, Some("nonsense"), Some("rgpu_00000000aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa000000")] {
        let mut request = request("GET", "/v1/inference/jobs", key, None);
        request.headers_mut().insert("x-request-id", "same".parse().expect("a value"));
        let answer = app.send(request).await;
        assert_eq!(answer.code(), "unauthorized");
        assert!(answer.header("www-authenticate").starts_with("Bearer"));
        bodies.push(answer.text());
    }
    assert!(bodies.iter().all(|body| *body == bodies[0]), "{bodies:?}");
}

#[tokio::test]
async fn either_header_counts_and_two_different_keys_do_not() {
    let app = TestApp::start().await;
    let bearer = format!("Bearer {}", app.keys.inference);
    let other = format!("Bearer {}", app.keys.all);
    let status = async |key: Option<&str>, authorization: &str| {
        let mut request = request("GET", "/v1/inference/jobs", key, None);
        request.headers_mut().insert("authorization", authorization.parse().expect("a value"));
        app.send(request).await.status
    };
    assert_eq!(status(None, &bearer).await, StatusCode::OK);
    assert_eq!(status(Some(&app.keys.inference), &bearer).await, StatusCode::OK);
    assert_eq!(status(Some(&app.keys.inference), &other).await, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn unknown_paths_and_methods_are_problems_too() {
    let app = TestApp::start().await;
    let nothing = app.get("/v1/nothing").await;
    assert_eq!((nothing.status, nothing.code().as_str()), (StatusCode::NOT_FOUND, "not_found"));
    let wrong = app.send(request("PUT", "/v1/inference/image", Some(&app.keys.inference), None)).await;
    assert_eq!((wrong.status, wrong.code().as_str()), (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed"));
    assert_eq!(wrong.header("allow"), "POST");
}

#[tokio::test]
async fn a_request_id_is_accepted_only_if_it_is_one_word() {
    let app = TestApp::start().await;
    let id = async |sent: &str| {
        let mut request = request("GET", "/healthz", None, None);
        request.headers_mut().insert("x-request-id", sent.parse().expect("a value"));
        app.send(request).await.header("x-request-id").to_owned()
    };
    assert_eq!(id("my-request.1_a").await, "my-request.1_a");
    assert_ne!(id("two words").await, "two words");
    assert_ne!(id(&"x".repeat(65)).await, "x".repeat(65));
}
