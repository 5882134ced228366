//! `/v1/session`: sign in, show the session, sign out.

use axum::Json;
use axum::extract::State;
use axum::http::header::SET_COOKIE;
use axum::http::{HeaderName, HeaderValue, StatusCode};
use serde_json::json;

use super::wire::session::{SessionView, SignIn};
use crate::http::error::{ApiError, ErrorCode};
use crate::http::extract::administrator::Administrator;
use crate::http::extract::caller::ClientAddress;
use crate::http::extract::json::ApiJson;
use crate::http::openapi::{Operation, Tag};
use crate::http::session_cookie::SessionCookie;
use crate::http::state::HttpState;

type WithCookie = [(HeaderName, HeaderValue); 1];

pub(in crate::http) async fn sign_in(
    State(state): State<HttpState>,
    ClientAddress(client): ClientAddress,
    ApiJson { value: SignIn { password }, .. }: ApiJson<SignIn>,
) -> Result<(StatusCode, WithCookie, Json<SessionView>), ApiError> {
    let new = state.admin.sign_in(&password, client).await?;
    let cookie = SessionCookie::of(&state.settings).set(&new.token);
    Ok((StatusCode::CREATED, [(SET_COOKIE, cookie)], Json(SessionView::new(&new.session, &state.settings))))
}

pub(in crate::http) fn sign_in_operation() -> Operation {
    Operation::new(Tag::Session, "sign_in", "Sign in as the administrator")
        .description("Sets the session cookie, which the other management routes require.")
        .body::<SignIn>(json!({ "password": "the administrator's password" }))
        .answers::<SessionView>(StatusCode::CREATED, "Signed in.")
        .refuses([ErrorCode::WrongPassword, ErrorCode::TooManySignIns])
}

pub(in crate::http) async fn show(State(state): State<HttpState>, administrator: Administrator) -> Json<SessionView> {
    Json(SessionView::new(&administrator.session, &state.settings))
}

pub(in crate::http) fn show_operation() -> Operation {
    Operation::new(Tag::Session, "get_session", "Get the session")
        .answers::<SessionView>(StatusCode::OK, "The session.")
}

pub(in crate::http) async fn sign_out(
    State(state): State<HttpState>,
    administrator: Administrator,
) -> Result<(StatusCode, WithCookie), ApiError> {
    state.admin.sign_out(administrator.session.id, &administrator.actor()).await?;
    let cookie = SessionCookie::of(&state.settings).clear();
    Ok((StatusCode::NO_CONTENT, [(SET_COOKIE, cookie)]))
}

pub(in crate::http) fn sign_out_operation() -> Operation {
    Operation::new(Tag::Session, "sign_out", "Sign out")
        .answers_nothing(StatusCode::NO_CONTENT, "The session has ended, and the cookie is deleted.")
}
