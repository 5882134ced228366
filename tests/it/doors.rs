//! Requests at the edge: wrong base URLs, links with appended parameters, foreign host names, proxies and browsers.

use axum::body::Body;
use axum::http::{Request, StatusCode};
use fluxserve::domain::networks::Networks;
use fluxserve::http::{Hosts, HttpSettings, Sharing};

use crate::app::{Answer, Options, PASSWORD, TestApp, image, request};

/// A link to an image, without scheme and host.
async fn link(app: &TestApp) -> String {
    let job = app.post_with(&image(1), &[("prefer", "wait=20")]).await.json();
    let url = job["result_url"].as_str().expect("a link");
    url.strip_prefix("http://worker.test").expect("ours").to_owned()
}

async fn open(app: &TestApp, path: &str) -> Answer {
    app.send(request("GET", path, None, None)).await
}

#[tokio::test]
async fn parameters_appended_to_a_link_are_ignored() {
    let app = TestApp::start().await;
    let link = link(&app).await;
    for more in ["", "&utm_source=mail", "&fbclid=1&fbclid=2", "&x", "&", "&%ff=1"] {
        let answer = open(&app, &format!("{link}{more}")).await;
        assert_eq!(answer.status, StatusCode::OK, "{more}: {}", answer.text());
        assert_eq!(answer.header("content-type"), "image/png");
    }
    let (path, query) = link.split_once('?').expect("a query");
    assert_eq!(open(&app, &format!("{path}?utm_source=mail&{query}")).await.status, StatusCode::OK);
    for twice in ["expires=1", "signature=00"] {
        let answer = open(&app, &format!("{link}&{twice}")).await;
        assert_eq!(answer.fields(), [twice.split_once('=').expect("a name").0]);
    }
    // Unknown parameters are still refused elsewhere, and with a key.
    assert_eq!(app.get(&format!("{path}?utm_source=mail")).await.fields(), ["utm_source"]);
}

#[tokio::test]
async fn a_wrong_base_url_is_told_from_an_unknown_path() {
    let app = TestApp::start().await;
    for path in [
        "//v1/images/generations",
        "/images/generations",
        "/v1/v1/images/generations",
        "/v1//images/generations",
        "/models",
        "//v1/models",
        "/chat/completions",
    ] {
        let answer = app.send(request("POST", path, Some(&app.keys.inference), Some(&image(1)))).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{path}");
        let error = answer.openai_error();
        assert_eq!(error["code"], "not_found", "{path}");
        let message = error["message"].as_str().expect("a message");
        assert!(message.contains("the base URL must be `http://worker.test/v1`"), "{path}: {message}");
    }
    let answer = app.send(request("POST", "//v1/inference/image", None, None)).await;
    assert_eq!(answer.code(), "not_found");
    assert!(answer.text().contains("makes the path `/v1/inference/image`"), "{}", answer.text());
    // Paths that this worker does not have are not a matter of the base URL.
    for path in ["/v1/images/upscale", "/v1/chat/completions"] {
        let error = app.send(request("POST", path, None, None)).await.openai_error();
        assert!(!error.to_string().contains("base URL"), "{error}");
    }
    let answer = app.get("/nothing").await;
    assert!(!answer.text().contains("base URL"), "{}", answer.text());
}

#[tokio::test]
async fn browsers_are_told_not_to_sniff_media_types() {
    for has_tls in [false, true] {
        let http = HttpSettings { has_tls, ..Options::default().http };
        let app = TestApp::with(Options { http, ..Options::default() }).await;
        for path in ["/healthz", "/nothing", "/admin", "/v1/inference/models", "/v1/inference/jobs", "/openapi.json"] {
            let answer = app.get(path).await;
            assert_eq!(answer.header("x-content-type-options"), "nosniff", "{path}");
            assert_eq!(answer.header("strict-transport-security").starts_with("max-age="), has_tls, "{path}");
        }
        let image = app.post_with(&image(1), &[("accept", "image/png")]).await;
        assert_eq!(image.header("x-content-type-options"), "nosniff");
    }
}

/// A page of another site whose name points to this machine.
#[tokio::test]
async fn a_request_for_a_foreign_host_name_is_refused() {
    let hosts = || Hosts::named(["images.test".to_owned()]);
    let http = HttpSettings {
        hosts: hosts(),
        management_hosts: hosts(),
        metrics_hosts: Hosts::named([]),
        has_own_management: true,
        ..Options::default().http
    };
    let app = TestApp::with(Options { http, ..Options::default() }).await;
    let management = app.management.as_ref().expect("a second router");
    let said = |path: &str, hosts: &[&str]| {
        let mut request = request("GET", path, None, None);
        request.headers_mut().remove("host");
        for host in hosts {
            request.headers_mut().append("host", host.parse().expect("a value"));
        }
        request
    };
    let from = "127.0.0.1:40000";
    for (router, path) in [(&app.router, "/v1/models"), (management, "/admin"), (&app.metrics, "/metrics")] {
        for host in ["localhost:8080", "127.0.0.1", "[::1]:1"] {
            assert_eq!(app.send_to(router, from, said(path, &[host])).await.status, StatusCode::OK, "{path} {host}");
        }
        let answer = app.send_to(router, from, said(path, &["evil.test:8080"])).await;
        assert_eq!((answer.status.as_u16(), answer.any_code().as_str()), (421, "misdirected_request"), "{path}");
        for hosts in [&[][..], &["localhost", "localhost"], &["localhost", "evil.test"]] {
            let answer = app.send_to(router, from, said(path, hosts)).await;
            assert_eq!((answer.status.as_u16(), answer.any_code().as_str()), (400, "invalid_host"), "{path} {hosts:?}");
        }
        for health in ["/healthz", "/readyz"] {
            for hosts in [&[][..], &["10.1.2.3:8080"]] {
                assert_eq!(app.send_to(router, from, said(health, hosts)).await.status, StatusCode::OK, "{health}");
            }
        }
    }
    assert_eq!(app.send(said("/v1/models", &["images.test"])).await.status, StatusCode::OK);
}

/// Behind a trusted proxy, throttling applies to each client's own address, not to the proxy's.
#[tokio::test]
async fn behind_a_trusted_proxy_each_client_has_its_own_address() {
    let trusted_proxies = Networks::of(&["10.0.0.0/8".to_owned(), "127.0.0.1".to_owned()]).expect("networks");
    let http = HttpSettings { trusted_proxies, ..Options::default().http };
    let app = TestApp::with(Options { http, ..Options::default() }).await;
    let sign_in = |password: &str, forwarded: Option<&str>| {
        let body = serde_json::json!({ "password": password });
        let mut request = request("POST", "/v1/session", None, Some(&body));
        if let Some(forwarded) = forwarded {
            request.headers_mut().insert("x-forwarded-for", forwarded.parse().expect("a value"));
        }
        request
    };
    let proxy = "10.0.0.1:40000";
    let guess = async |peer: &str, forwarded: Option<&str>| {
        for _ in 0..6 {
            app.send_from(peer, sign_in("a wrong password", forwarded)).await;
        }
        app.send_from(peer, sign_in(PASSWORD, forwarded)).await.status
    };
    assert_eq!(guess(proxy, Some("192.0.2.1")).await, StatusCode::TOO_MANY_REQUESTS);
    let invented = app.send_from(proxy, sign_in(PASSWORD, Some("198.51.100.9, 192.0.2.1"))).await;
    assert_eq!(invented.status, StatusCode::TOO_MANY_REQUESTS, "what the client itself has written is ignored");
    let neighbour = app.send_from(proxy, sign_in(PASSWORD, Some("192.0.2.2"))).await;
    assert_eq!(neighbour.status, StatusCode::CREATED, "{}", neighbour.text());
    // Other peers are not trusted.
    assert_eq!(guess("192.0.2.3:1", Some("192.0.2.4")).await, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(app.send_from("192.0.2.4:1", sign_in(PASSWORD, None)).await.status, StatusCode::CREATED);
    let entries = app.admin.audit_page(None, 100).await.expect("read").entries;
    let shown = format!("{entries:?}");
    assert!(shown.contains("192.0.2.1") && !shown.contains("10.0.0.1"), "{shown}");
    // A client that claims to be this machine does not get its privileges: a proxy may run here, too.
    assert_eq!(guess("127.0.0.1:40000", Some("127.0.0.1")).await, StatusCode::TOO_MANY_REQUESTS);
    assert!(app.send_from("127.0.0.1:40000", sign_in(PASSWORD, None)).await.status.is_success());
}

const PAGE: &str = "https://pages.example.org";

/// A browser's request for a page: a preflight or the request itself.
fn of_page(method: &str, path: &str, key: Option<&str>, origin: &str) -> Request<Body> {
    let mut request = request(method, path, key, None);
    let headers = request.headers_mut();
    headers.insert("origin", origin.parse().expect("a value"));
    if method == "OPTIONS" {
        headers.insert("access-control-request-method", "POST".parse().expect("a value"));
        headers.insert("access-control-request-headers", "content-type,x-api-key".parse().expect("a value"));
    }
    request
}

#[tokio::test]
async fn pages_of_listed_sites_may_use_the_api_but_no_management_routes() {
    let http = HttpSettings { sharing: Sharing::With(vec![PAGE.to_owned()]), ..Options::default().http };
    let app = TestApp::with(Options { http, ..Options::default() }).await;
    let allowed = "access-control-allow-origin";
    let asked = |path: &str, origin: &str| app.send_undocumented(of_page("OPTIONS", path, None, origin));
    for path in ["/v1/inference/image", "/v1/images/generations", "/v1/models", "/v1/inference/jobs/x/events"] {
        let answer = asked(path, PAGE).await;
        assert_eq!((answer.status.as_u16(), answer.header(allowed)), (200, PAGE), "{path}: without a key");
        assert_eq!(answer.header("access-control-allow-headers"), "content-type,x-api-key", "{path}");
        assert_eq!(answer.header("access-control-allow-methods"), "POST", "{path}");
        assert_eq!(answer.header("access-control-allow-credentials"), "", "{path}");
        assert_eq!(asked(path, "https://evil.test").await.header(allowed), "", "{path}");
    }
    for path in ["/v1/session", "/v1/api-keys", "/v1/jobs", "/v1/playground/image", "/admin", "/nothing"] {
        let answer = asked(path, PAGE).await;
        assert!(answer.status.is_client_error() && answer.header(allowed).is_empty(), "{path}: {}", answer.status);
        let answer = app.send(of_page("GET", path, None, PAGE)).await;
        assert_eq!(answer.header(allowed), "", "{path}");
    }
    // Pages may also read errors, with the time to retry after.
    let key = Some(app.keys.inference.as_str());
    for (path, key, status) in [("/v1/inference/jobs", key, 200), ("/v1/inference/jobs", None, 401)] {
        let answer = app.send(of_page("GET", path, key, PAGE)).await;
        assert_eq!((answer.status.as_u16(), answer.header(allowed)), (status, PAGE));
        let exposed = answer.header("access-control-expose-headers").to_owned();
        for name in ["x-request-id", "retry-after", "location", "ratelimit", "ratelimit-policy"] {
            assert!(exposed.split(',').any(|word| word.trim() == name), "{name}: {exposed}");
        }
        let other = app.send(of_page("GET", path, key, "https://evil.test")).await;
        assert_eq!(other.header(allowed), "");
    }
}

#[tokio::test]
async fn by_default_no_page_of_another_site_may_read_anything() {
    let app = TestApp::start().await;
    let answer = app.send(of_page("OPTIONS", "/v1/inference/image", None, PAGE)).await;
    assert_eq!((answer.status.as_u16(), answer.header("access-control-allow-origin")), (405, ""));
    assert_eq!(app.send(of_page("GET", "/v1/models", None, PAGE)).await.header("access-control-allow-origin"), "");
}
