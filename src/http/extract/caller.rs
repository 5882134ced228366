//! The caller: the API key in `x-api-key` or `Authorization: Bearer`, on the routes of AUTOMATIC1111's API also in
//! `Authorization: Basic`, the only way that its clients know. No answer asks for that: a browser that keeps a password would send it
//! for pages of other sites, too.

use std::borrow::Cow;
use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use axum::extract::{ConnectInfo, FromRequestParts};
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use axum::http::{Extensions, HeaderMap};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::auth::Principal;
use crate::domain::ids::NamespaceId;
use crate::domain::scope::{Product, Scope};
use crate::http::error::{ApiError, ErrorCode};
use crate::http::extract::body::BodyOwner;
use crate::http::extract::path::NamespacePath;
use crate::http::route::is_of_sdapi;
use crate::http::state::HttpState;

const API_KEY: &str = "x-api-key";
const BEARER: &str = "bearer";
const BASIC: &str = "basic";

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
    let principal = {
        let presented = presented_key(&parts.headers, is_of_sdapi(parts.uri.path()));
        let presented = presented.ok_or_else(|| ApiError::new(ErrorCode::Unauthorized))?;
        state.authenticator.authenticate(&presented, client).await?
    };
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

/// Whether a request brings a credential, valid or not.
pub(in crate::http) fn has_credential(headers: &HeaderMap) -> bool {
    headers.contains_key(API_KEY) || headers.contains_key(AUTHORIZATION)
}

/// The presented key. Two different keys count as none: it is unknown which one is meant.
fn presented_key(headers: &HeaderMap, takes_basic: bool) -> Option<Cow<'_, str>> {
    let named = headers.get_all(API_KEY).iter().map(|value| value.to_str().ok().map(Cow::Borrowed));
    let credentials = headers.get_all(AUTHORIZATION).iter();
    let credentials = credentials.filter_map(|value| key_of(value.to_str().ok(), takes_basic));
    let mut keys = named.chain(credentials);
    let first = keys.next()??;
    let is_only_one = keys.all(|other| other.as_deref() == Some(&*first));
    is_only_one.then_some(first)
}

/// The key of a credential: `None` for other schemes, `Some(None)` for an unreadable value.
#[expect(clippy::option_option, reason = "another scheme and an unreadable value are different cases")]
fn key_of(credential: Option<&str>, takes_basic: bool) -> Option<Option<Cow<'_, str>>> {
    let Some(credential) = credential else {
        return Some(None);
    };
    let (scheme, content) = credential.split_once(' ')?;
    if scheme.eq_ignore_ascii_case(BEARER) {
        return Some(Some(Cow::Borrowed(content.trim())));
    }
    (takes_basic && scheme.eq_ignore_ascii_case(BASIC)).then(|| key_of_pair(content.trim()).map(Cow::Owned))
}

/// The key of a basic credential: the password, whoever the user is, or the user if there is no password.
fn key_of_pair(content: &str) -> Option<String> {
    let pair = String::from_utf8(STANDARD.decode(content).ok()?).ok()?;
    let (user, password) = pair.split_once(':').unwrap_or((pair.as_str(), ""));
    Some(if password.is_empty() { user } else { password }.to_owned())
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderName, HeaderValue};

    use super::*;

    fn presented_to(takes_basic: bool, headers: &[(&'static str, &str)]) -> Option<String> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(HeaderName::from_static(name), HeaderValue::from_str(value).expect("a value"));
        }
        presented_key(&map, takes_basic).map(Cow::into_owned)
    }

    fn presented(headers: &[(&'static str, &str)]) -> Option<String> {
        presented_to(false, headers)
    }

    #[test]
    fn a_basic_credential_has_the_key_as_password_or_as_user() {
        let basic = |pair: &str| format!("Basic {}", STANDARD.encode(pair));
        for pair in ["anyone:k", ":k", "k:", "k"] {
            let credential = basic(pair);
            assert_eq!(presented_to(true, &[("authorization", &credential)]).as_deref(), Some("k"), "{pair}");
            assert_eq!(presented(&[("authorization", &credential)]), None, "on other routes it is no key");
        }
        let colons = basic("me:k:l");
        assert_eq!(presented_to(true, &[("authorization", &colons)]).as_deref(), Some("k:l"));
        let credential = basic(":k");
        let both = |key: &str| presented_to(true, &[("authorization", &credential), ("x-api-key", key)]);
        assert_eq!((both("k").as_deref(), both("l")), (Some("k"), None));
        // The last but one is no UTF-8.
        for unreadable in ["Basic", "Basic k", "Basic /w==", "Digest aw=="] {
            assert_eq!(presented_to(true, &[("authorization", unreadable)]), None, "{unreadable}");
        }
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
