//! Https, and separate addresses for management and metrics.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::{Request, StatusCode};
use fluxserve::http::{Access, ConnectionLimits, HttpSettings, Tls, routes, serve};
use rcgen::generate_simple_self_signed;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tower::ServiceExt;

use crate::app::{Options, PASSWORD, TestApp, image, managing, request};

pub(crate) const HOST: &str = "worker.test";

/// A certificate for [`HOST`] in a folder, and a client that trusts it.
pub(crate) fn certified(folder: &Path) -> (Tls, Arc<ClientConfig>) {
    let pair = generate_simple_self_signed(vec![HOST.to_owned()]).expect("a certificate");
    let (certificate, key) = (folder.join("certificate.pem"), folder.join("key.pem"));
    std::fs::write(&certificate, pair.cert.pem()).expect("written");
    std::fs::write(&key, pair.signing_key.serialize_pem()).expect("written");
    let mut roots = RootCertStore::empty();
    roots.add(pair.cert.der().clone()).expect("a certificate");
    let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .expect("usual versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    (Tls::load(certificate, key).expect("a pair"), Arc::new(config))
}

/// A TLS connection to [`HOST`].
pub(crate) async fn secured(stream: TcpStream, client: &Arc<ClientConfig>) -> TlsStream<TcpStream> {
    let name = ServerName::try_from(HOST).expect("a name");
    TlsConnector::from(Arc::clone(client)).connect(name, stream).await.expect("agreement")
}

async fn status(router: &Router, request: Request<axum::body::Body>) -> StatusCode {
    router.clone().oneshot(request).await.expect("a router always answers").status()
}

#[tokio::test]
async fn with_their_own_address_management_routes_are_not_at_the_other() {
    let http = HttpSettings { has_own_management: true, ..Options::default().http };
    let app = TestApp::with(Options { http, ..Options::default() }).await;
    let management = app.management.as_ref().expect("a second router");
    let ids = |path: &str| {
        let path = path.replace("{job_id}", "job_x").replace("{key_id}", "x").replace("{file}", "app.js");
        path.replace("{namespace_id}", "x")
    };
    let (mut clients, mut administrators) = (BTreeSet::new(), BTreeSet::new());
    for route in routes() {
        // A method that no route has: its status differs from that of an unknown path.
        let knock = || request("PUT", &ids(route.path), None, None);
        if status(&app.router, knock()).await == StatusCode::METHOD_NOT_ALLOWED {
            clients.insert(route.path);
        }
        if status(management, knock()).await == StatusCode::METHOD_NOT_ALLOWED {
            administrators.insert(route.path);
        }
        let is_management = matches!(route.access, Access::SignIn | Access::Session | Access::Page);
        let is_of_clients = !is_management && route.access != Access::Metrics;
        assert_eq!(clients.contains(route.path), is_of_clients, "{route:?}");
        let is_there = is_management || route.access == Access::Anyone;
        assert_eq!(administrators.contains(route.path), is_there, "{route:?}");
    }
    let body = serde_json::json!({ "password": PASSWORD });
    let sign_in = || request("POST", "/v1/session", None, Some(&body));
    assert_eq!(status(&app.router, sign_in()).await, StatusCode::NOT_FOUND);
    assert_eq!(status(management, sign_in()).await, StatusCode::CREATED);
}

#[tokio::test]
async fn management_at_its_own_address_names_that_of_the_clients() {
    let local_url = Some("http://clients.test:8471".to_owned());
    let http = HttpSettings { has_own_management: true, local_url, ..Options::default().http };
    let mut app = TestApp::with(Options { http, ..Options::default() }).await;
    app.router = app.management.clone().expect("a second router");
    let cookie = app.sign_in().await;
    let session = app.send(managing(&cookie, "GET", "/v1/session", None)).await.json();
    assert_eq!(session["clients_url"], "http://clients.test:8471");
    let job = app.send(managing(&cookie, "POST", "/v1/playground/image", Some(&image(1)))).await.json();
    let listed = app.send(managing(&cookie, "GET", "/v1/jobs", None)).await.json();
    for view in [&job, &listed["data"][0]] {
        let url = view["status_url"].as_str().expect("a URL");
        assert!(url.starts_with("http://clients.test:8471/v1/inference/jobs/"), "{url}");
    }
}

#[tokio::test]
async fn metrics_can_have_their_own_address_with_nothing_else_at_it() {
    let app = TestApp::start().await;
    let from = |path: &str| {
        let mut request = request("GET", path, Some(&app.keys.all), None);
        let elsewhere: std::net::SocketAddr = "192.0.2.1:40000".parse().expect("an address");
        request.extensions_mut().insert(axum::extract::ConnectInfo(elsewhere));
        request
    };
    assert_eq!(status(&app.metrics, from("/metrics")).await, StatusCode::OK);
    assert_eq!(status(&app.router, from("/metrics")).await, StatusCode::NOT_FOUND);
    for path in ["/healthz", "/readyz"] {
        assert_eq!(status(&app.metrics, from(path)).await, StatusCode::OK, "{path}");
    }
    for path in ["/v1/inference/jobs", "/v1/api-keys", "/admin", "/openapi.json"] {
        assert_eq!(status(&app.metrics, from(path)).await, StatusCode::NOT_FOUND, "{path}");
    }
}

#[tokio::test]
async fn https_is_served_and_plain_http_is_refused_there() {
    let folder = tempfile::tempdir().expect("a folder");
    let (tls, client) = certified(folder.path());
    let http = HttpSettings { has_tls: true, ..Options::default().http };
    let app = TestApp::with(Options { http, ..Options::default() }).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    let limits = ConnectionLimits { header_deadline: Duration::from_secs(2), ..ConnectionLimits::default() };
    let server = tokio::spawn(serve(listener, app.router.clone(), std::future::pending(), limits, Some(tls)));

    let mut secured = secured(TcpStream::connect(address).await.expect("a connection"), &client).await;
    let body = format!("{{\"password\": \"{PASSWORD}\"}}");
    let head = format!(
        "POST /v1/session HTTP/1.1\r\nhost: {HOST}\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    secured.write_all(head.as_bytes()).await.expect("written");
    let mut answer = Vec::new();
    // The end comes without close_notify, which an HTTP client does not need: it has the length.
    drop(secured.read_to_end(&mut answer).await);
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    assert!(answer.contains("__Host-fluxserve_session=") && answer.contains("Secure"), "{answer}");

    let mut plain = TcpStream::connect(address).await.expect("a connection");
    plain.write_all(b"GET /healthz HTTP/1.1\r\nhost: worker.test\r\n\r\n").await.expect("written");
    let mut answer = Vec::new();
    drop(plain.read_to_end(&mut answer).await);
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    server.abort();
}

#[test]
fn supervisors_use_an_address_without_clients() {
    let deployment = include_str!("../../deploy/kubernetes/deployment.yaml");
    let probes: Vec<&str> = deployment.split("httpGet:").skip(1).collect();
    assert_eq!(probes.len(), 3);
    for probe in probes {
        let port = probe.lines().find_map(|line| line.trim().strip_prefix("port: "));
        assert_eq!(port, Some("health"), "{probe}");
    }
    assert!(deployment.contains("name: health\n          containerPort: 9090"));
    let settings = include_str!("../../deploy/kubernetes/config.env");
    assert!(settings.contains("\nFLUXSERVE_METRICS_LISTEN=0.0.0.0:9090\n"));
    assert!(settings.contains("\nFLUXSERVE_ADMIN_LISTEN=127.0.0.1:8081\n"));
    let image = include_str!("../../Dockerfile.cuda");
    assert!(image.contains("FLUXSERVE_ADMIN_LISTEN=0.0.0.0:8081") && image.contains("-p 127.0.0.1:8081:8081"));
    let (_, check) = image.split_once("HEALTHCHECK").expect("one");
    let check = check.split("ENTRYPOINT").next().expect("before the entry point");
    assert!(check.contains("127.0.0.1:8081/readyz") && !check.contains("8080"), "{check}");
}
