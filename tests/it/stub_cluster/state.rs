//! The state of the stub: accounts, bindings, Secrets and tokens, and what these permit.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::HOLDER;

/// An issued token.
#[derive(Clone)]
pub(super) struct Made {
    pub(super) account: String,
    /// The Secret that it is bound to.
    pub(super) secret: Option<String>,
    pub(super) ends_at: OffsetDateTime,
}

#[derive(Default)]
pub(super) struct ClusterState {
    /// Accounts in the worker's namespace.
    pub(super) accounts: BTreeSet<String>,
    /// Namespaces whose account is bound in them.
    pub(super) bound: BTreeSet<String>,
    pub(super) secrets: BTreeSet<String>,
    pub(super) tokens: BTreeMap<String, Made>,
    /// Tokens issued for keys: those bound to a Secret.
    pub(super) minted: usize,
    pub(super) is_away: bool,
    pub(super) auto_open: bool,
    /// The uids of recreated namespaces.
    pub(super) recreated: BTreeMap<String, String>,
    /// Pod Security labels other than `restricted`. `None`: no label.
    pub(super) pod_security: BTreeMap<String, Option<String>>,
    /// Whether accounts may not read the namespace that they are bound in, as with the old role.
    pub(super) hides_namespaces: bool,
    /// The lifetime of tokens, if not as requested.
    pub(super) token_seconds: Option<i64>,
}

pub(super) fn jwt(payload: &Value) -> String {
    let part = |text: String| URL_SAFE_NO_PAD.encode(text);
    format!("{}.{}.{}", part("{}".into()), part(payload.to_string()), part("signed".into()))
}

impl ClusterState {
    pub(super) fn make(&mut self, account: &str, secret: Option<String>, seconds: i64) -> String {
        let now = OffsetDateTime::now_utc();
        let ends_at = now + time::Duration::seconds(seconds);
        let payload = json!({
            "jti": uuid::Uuid::new_v4(),
            "sub": format!("system:serviceaccount:{HOLDER}:{account}"),
            "iat": now.unix_timestamp(),
            "exp": ends_at.unix_timestamp(),
        });
        let token = jwt(&payload);
        self.minted += usize::from(secret.is_some());
        self.tokens.insert(token.clone(), Made { account: account.to_owned(), secret, ends_at });
        token
    }

    pub(super) fn account_of(&self, token: &str) -> Option<String> {
        let made = self.tokens.get(token)?;
        let is_bound = made.secret.as_ref().is_none_or(|secret| self.secrets.contains(secret));
        (is_bound && made.ends_at > OffsetDateTime::now_utc()).then(|| made.account.clone())
    }
}

impl ClusterState {
    /// Whether an account has the right in a review.
    pub(super) fn may(&self, account: &str, right: &Value) -> bool {
        let field = |name: &str| right[name].as_str().unwrap_or_default();
        let (verb, namespace) = (field("verb"), field("namespace"));
        if let Some(own) = account.strip_prefix("ns-") {
            return own == namespace && self.bound.contains(own) && field("resource") == "pods";
        }
        let resource = match field("subresource") {
            "" => field("resource").to_owned(),
            sub => format!("{}/{sub}", field("resource")),
        };
        match (verb, resource.as_str()) {
            ("create", "serviceaccounts/token") | ("create" | "delete", "secrets") => namespace == HOLDER,
            ("create" | "delete", "serviceaccounts" | "rolebindings")
            | ("bind", "clusterroles")
            | ("get" | "patch", "namespaces") => self.auto_open,
            _ => false,
        }
    }

    pub(super) fn pod_security_of(&self, namespace: &str) -> Option<String> {
        self.pod_security.get(namespace).cloned().unwrap_or_else(|| Some("restricted".to_owned()))
    }
}
