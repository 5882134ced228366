//! A panic in a handler is a bug in the worker: it is logged and answered like any internal error.

use std::any::Any;

use axum::response::{IntoResponse, Response};

use crate::http::error::{ApiError, ErrorCode};

#[expect(clippy::needless_pass_by_value, reason = "the signature is the layer's")]
pub(in crate::http) fn answer(panic: Box<dyn Any + Send + 'static>) -> Response {
    let words = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a message");
    ApiError::new(ErrorCode::Internal).with_cause(&format_args!("a handler panicked: {words}")).into_response()
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::body::to_bytes;
    use axum::http::{Request, StatusCode};
    use axum::middleware::from_fn;
    use axum::routing::get;
    use tower::ServiceExt;
    use tower_http::catch_panic::CatchPanicLayer;

    use crate::http::layer::request_id;

    #[tokio::test]
    async fn a_panic_is_a_problem_without_its_message() {
        let router = Router::new()
            .route("/", get(|| async { panic!("the secret of the worker") as () }))
            .layer(CatchPanicLayer::custom(super::answer))
            .layer(from_fn(request_id::attach));
        let request = Request::get("/").body(axum::body::Body::empty()).expect("a request");
        let response = router.oneshot(request).await.expect("a router always answers");
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        let body = to_bytes(response.into_body(), 10_000).await.expect("a body");
        let body = String::from_utf8(body.to_vec()).expect("text");
        assert!(body.contains(r#""code":"internal""#) && !body.contains("secret"), "{body}");
    }
}
