//! The caller: the API key in `x-api-key` or `Authorization: Bearer`.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use axum::extract::{ConnectInfo, FromRequestParts};
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use axum::http::{Extensions, HeaderMap};

use crate::auth::Principal;
use crate::domain::ids::NamespaceId;
use crate::domain::scope::{Product, Scope};
use crate::http::error::{ApiError, ErrorCode};
use crate::http::extract::body::BodyOwner;
use crate::http::extract::path::NamespacePath;
use crate::http::state::HttpState;

const API_KEY: &str = "x-api-key";
const BEARER: &str = "bearer";

/// A caller whose key allows inference.
#[derive(Debug)]
pub(in crate::http) struct InferenceCaller(pub(in crate::http) Principal);

impl FromRequestParts<HttpState> for InferenceCaller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &HttpState) -> Result<Self, ApiError> {
        let (principal, _) = principal(parts, state).await?;
        Self::permitted(principal)
    }
}

impl InferenceCaller {
    fn permitted(principal: Principal) -> Result<Self, ApiError> {
        if principal.scope.permits(Product::Inference) {
            Ok(Self(principal))
        } else {
            Err(ApiError::new(ErrorCode::ScopeForbidden).with_detail("the key's scope does not include inference"))
        }
    }

    /// Checks what the key may do now. A body may take a minute to arrive, and its images wait to be decoded: a key
    /// that has lost the right meanwhile must be refused.
    pub(in crate::http) async fn recheck(&self, state: &HttpState) -> Result<Principal, ApiError> {
        let Self(principal) = Self::permitted(state.authenticator.again(&self.0).await?)?;
        Ok(principal)
    }
}

/// A caller whose key allows the namespace in the path.
#[derive(Debug)]
pub(in crate::http) struct KubernetesCaller {
    pub(in crate::http) principal: Principal,
    pub(in crate::http) namespace: NamespaceId,
    pub(in crate::http) address: IpAddr,
}

impl FromRequestParts<HttpState> for KubernetesCaller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &HttpState) -> Result<Self, ApiError> {
        let (principal, address) = principal(parts, state).await?;
        if principal.scope == Scope::Inference {
            return Err(forbidden("the key's scope is inference, not Kubernetes"));
        }
        let NamespacePath(namespace) = NamespacePath::from_request_parts(parts, state).await?;
        Self { principal, namespace, address }.permitted()
    }
}

impl KubernetesCaller {
    fn permitted(self) -> Result<Self, ApiError> {
        if !self.principal.scope.permits(Product::KubernetesExec(self.namespace)) {
            return Err(forbidden("the key's scope does not include this namespace"));
        }
        Ok(self)
    }

    /// As [`InferenceCaller::recheck`].
    pub(in crate::http) async fn recheck(self, state: &HttpState) -> Result<Self, ApiError> {
        let principal = state.authenticator.again(&self.principal).await?;
        Self { principal, ..self }.permitted()
    }
}

fn forbidden(detail: &str) -> ApiError {
    ApiError::new(ErrorCode::ScopeForbidden).with_detail(detail)
}

/// The owner of the presented key, and the client's address.
async fn principal(parts: &mut Parts, state: &HttpState) -> Result<(Principal, IpAddr), ApiError> {
    let Ok(ClientAddress(client)) = ClientAddress::from_request_parts(parts, state).await;
    let presented = presented_key(&parts.headers).ok_or_else(|| ApiError::new(ErrorCode::Unauthorized))?;
    let principal = state.authenticator.authenticate(presented, client).await?;
    parts.extensions.insert(BodyOwner(principal.key_id));
    Ok((principal, client))
}

/// The client's address; all zeros if unknown.
#[derive(Debug, Clone, Copy)]
pub(in crate::http) struct ClientAddress(pub(in crate::http) IpAddr);

impl FromRequestParts<HttpState> for ClientAddress {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &HttpState) -> Result<Self, Infallible> {
        Ok(Self(peer_address(&parts.extensions).unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED))))
    }
}

/// The client's address.
pub(in crate::http) fn peer_address(extensions: &Extensions) -> Option<IpAddr> {
    extensions.get::<ConnectInfo<SocketAddr>>().map(|info| info.0.ip().to_canonical())
}

/// The presented key. Two different keys count as none: it is unknown which one is meant.
fn presented_key(headers: &HeaderMap) -> Option<&str> {
    let named = headers.get_all(API_KEY).iter().map(|value| value.to_str().ok());
    let bearer = headers.get_all(AUTHORIZATION).iter().filter_map(|value| bearer_token(value.to_str().ok()));
    let mut keys = named.chain(bearer);
    let first = keys.next()??;
    keys.all(|other| other == Some(first)).then_some(first)
}

/// The token of a bearer credential: `None` for other schemes, `Some(None)` for an unreadable value.
#[expect(clippy::option_option, reason = "another scheme and an unreadable value are different cases")]
fn bearer_token(credential: Option<&str>) -> Option<Option<&str>> {
    let Some(credential) = credential else {
        return Some(None);
    };
    let (scheme, token) = credential.split_once(' ')?;
    scheme.eq_ignore_ascii_case(BEARER).then(|| Some(token.trim()))
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderName, HeaderValue};

    use super::*;

    fn presented(headers: &[(&'static str, &'static str)]) -> Option<String> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        presented_key(&map).map(str::to_owned)
    }

    #[test]
    fn either_header_counts_and_both_if_they_agree() {
        assert_eq!(presented(&[]), None);
        assert_eq!(presented(&[("x-api-key", "k")]).as_deref(), Some("k"));
        assert_eq!(presented(&[("authorization", "Bearer k")]).as_deref(), Some("k"));
        assert_eq!(presented(&[("authorization", "bearer  k ")]).as_deref(), Some("k"));
        assert_eq!(presented(&[("x-api-key", "k"), ("authorization", "Bearer k")]).as_deref(), Some("k"));
    }

    #[test]
    fn two_keys_count_as_none() {
        assert_eq!(presented(&[("x-api-key", "k"), ("authorization", "Bearer l")]), None);
        assert_eq!(presented(&[("x-api-key", "k"), ("x-api-key", "l")]), None);
    }

    #[test]
    fn other_schemes_are_not_keys() {
        assert_eq!(presented(&[("authorization", "Basic k")]), None);
        assert_eq!(presented(&[("authorization", "k")]), None);
        assert_eq!(presented(&[("x-api-key", "k"), ("authorization", "Basic l")]).as_deref(), Some("k"));
    }
}
