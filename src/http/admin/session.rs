//! `/v1/session`: sign in, who am I, sign out.

use axum::Json;
use axum::extract::State;
use axum::http::header::SET_COOKIE;
use axum::http::{HeaderName, HeaderValue, StatusCode};

use super::wire::session::{SessionView, SignIn};
use crate::http::HttpState;
use crate::http::error::ApiError;
use crate::http::extract::administrator::Administrator;
use crate::http::extract::caller::ClientAddress;
use crate::http::extract::json::ApiJson;
use crate::http::session_cookie::SessionCookie;

type WithCookie = [(HeaderName, HeaderValue); 1];

pub(in crate::http) async fn sign_in(
    State(state): State<HttpState>,
    ClientAddress(client): ClientAddress,
    ApiJson { value: SignIn { password }, .. }: ApiJson<SignIn>,
) -> Result<(StatusCode, WithCookie, Json<SessionView>), ApiError> {
    let new = state.admin.sign_in(&password, client).await?;
    let cookie = SessionCookie::of(&state.settings).set(&new.token);
    Ok((StatusCode::CREATED, [(SET_COOKIE, cookie)], Json(new.session.into())))
}

pub(in crate::http) async fn show(administrator: Administrator) -> Json<SessionView> {
    Json(administrator.session.into())
}

pub(in crate::http) async fn sign_out(
    State(state): State<HttpState>,
    administrator: Administrator,
) -> Result<(StatusCode, WithCookie), ApiError> {
    state.admin.sign_out(administrator.session.id, &administrator.actor()).await?;
    let cookie = SessionCookie::of(&state.settings).clear();
    Ok((StatusCode::NO_CONTENT, [(SET_COOKIE, cookie)]))
}
