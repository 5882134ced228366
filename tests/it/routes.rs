//! Every route against every kind of key. A route that is missing here fails the test.

use axum::http::StatusCode;
use fluxserve::http::{Access, routes};

use crate::app::{TestApp, picture, request};

/// What each kind of caller gets from one route.
struct Expected {
    method: &'static str,
    path: &'static str,
    access: Access,
    /// What a caller who may gets.
    allowed: u16,
}

const fn expect(access: Access, method: &'static str, path: &'static str, allowed: u16) -> Expected {
    Expected { method, path, access, allowed }
}

const MATRIX: [Expected; 10] = [
    expect(Access::Inference, "POST", "/v1/inference/image", 202),
    expect(Access::Inference, "GET", "/v1/inference/jobs", 200),
    expect(Access::Inference, "GET", "/v1/inference/jobs/{job_id}", 200),
    expect(Access::Inference, "DELETE", "/v1/inference/jobs/{job_id}", 200),
    expect(Access::InferenceOrLink, "GET", "/v1/inference/jobs/{job_id}/result", 200),
    expect(Access::Anyone, "GET", "/v1/inference/models", 200),
    expect(Access::Anyone, "GET", "/v1/inference/runtime/models", 200),
    expect(Access::Anyone, "GET", "/healthz", 200),
    expect(Access::Anyone, "GET", "/readyz", 200),
    expect(Access::Loopback, "GET", "/metrics", 200),
];

#[test]
fn the_matrix_lists_every_route() {
    let listed: Vec<_> = MATRIX.iter().map(|row| (row.method, row.path, row.access)).collect();
    let there: Vec<_> = routes().iter().map(|route| (route.method, route.path, route.access)).collect();
    assert_eq!(listed, there);
}

#[tokio::test]
async fn every_route_opens_to_its_callers_alone() {
    let app = TestApp::start().await;
    let job = app.submit(&picture(1)).await;
    app.until_status(&job, "succeeded").await;
    let keys = &app.keys;
    let strangers = ["", "nonsense", "rgpu_00000000aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa000000"];
    for row in MATRIX {
        let path = row.path.replace("{job_id}", &job);
        let is_post = row.method == "POST";
        let body = is_post.then(|| picture(2));
        let status = async |key: Option<&str>| {
            let mut request = request(row.method, &path, key, body.as_ref());
            if row.access == Access::Loopback {
                request.headers_mut().insert("host", "localhost".parse().expect("a value"));
            }
            app.send(request).await.status
        };
        let needs_key = matches!(row.access, Access::Inference | Access::InferenceOrLink);
        let refused = |status: u16| if needs_key { status } else { row.allowed };
        let name = format!("{} {}", row.method, row.path);
        assert_eq!(status(None).await, refused(401), "{name} without a key");
        for stranger in strangers {
            assert_eq!(status(Some(stranger)).await, refused(401), "{name} with {stranger:?}");
        }
        assert_eq!(status(Some(&keys.kubernetes)).await, refused(403), "{name} with a kubernetes key");
        assert_eq!(status(Some(&keys.inference)).await, row.allowed, "{name} with an inference key");
        let is_job = row.path.contains("{job_id}");
        let of_all = if is_job { 404 } else { row.allowed };
        assert_eq!(status(Some(&keys.all)).await, of_all, "{name} with a key for all");
        assert_eq!(status(Some(&keys.other_inference)).await, of_all, "{name} with another's key");
    }
}

#[tokio::test]
async fn a_refusal_says_the_same_whatever_is_wrong_with_the_key() {
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
async fn either_header_and_never_two_that_differ() {
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
async fn a_request_id_is_taken_over_only_if_it_is_a_word() {
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
