//! Tokens for keys.
//!
//! A key can lose its permission at any moment, also while its token is made. So the grant is stored before the token is
//! made, and the permission is checked again after: either this check sees the withdrawal or the withdrawal sees the grant,
//! and the token is invalidated.

use time::{Duration, OffsetDateTime};

use super::cluster::{Cluster, ClusterError};
use super::error::KubernetesError;
use super::namespaces::reserved;
use super::rights::Holder;
use super::service::{Inner, Kubernetes};
use super::store::Grant;
use super::token::{CREDENTIALS_PER_MINUTE, MintedToken, Token};
use crate::domain::clock::to_the_millisecond;
use crate::domain::ids::NamespaceId;
use crate::domain::namespace::NamespaceName;

/// Longest lifetime of a token, with a margin: its grant is kept for as long.
pub(super) const TOKEN_LIFE: Duration = Duration::minutes(11);
/// How long before its token expires kubectl requests a new one, so that no request fails.
const EARLIER: Duration = Duration::seconds(30);

/// A token for kubectl.
#[derive(Debug)]
pub struct Credential {
    /// The token.
    pub token: Token,
    /// When kubectl requests a new one: a little before the token expires.
    pub expires_at: OffsetDateTime,
    /// Description of the token, for the audit log.
    pub record: CredentialRecord,
}

/// Description of a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CredentialRecord {
    /// Its namespace.
    pub namespace: NamespaceName,
    /// The namespace's id.
    pub namespace_id: NamespaceId,
    /// Its id, also in the cluster's audit log. Kubernetes before 1.29 gives none.
    pub jti: Option<String>,
    /// The Secret that it is bound to.
    pub secret: String,
    /// Its expiry.
    pub expires_at: OffsetDateTime,
}

impl Kubernetes {
    /// Makes a token for `holder`. The caller has checked that its scope covers the namespace.
    ///
    /// # Errors
    /// Every one but [`KubernetesError::NameTaken`] and [`KubernetesError::TooManyNamespaces`].
    pub async fn issue(&self, holder: &Holder, namespace: NamespaceId) -> Result<Credential, KubernetesError> {
        self.0.issue(holder, namespace).await
    }
}

impl Inner {
    async fn issue(&self, holder: &Holder, id: NamespaceId) -> Result<Credential, KubernetesError> {
        let cluster = self.cluster()?;
        let namespace = self.namespace(id).await?;
        self.rates
            .take(holder.key, CREDENTIALS_PER_MINUTE, self.clock.uptime())
            .map_err(|retry_after_seconds| KubernetesError::RateLimited { retry_after_seconds })?;
        // Reserved: added before such names were refused.
        let is_reserved = reserved(&namespace.name, cluster.holder()).is_some();
        if is_reserved || (!namespace.standing.is_open && !self.check(cluster, &namespace).await?.is_open) {
            return Err(KubernetesError::Pending(namespace.name));
        }
        // The namespace may have been renamed during the check: the token is for its name at the time of the grant. A later
        // rename withdraws the grant.
        let grant = self.store.take_grant(holder, id, self.now() + TOKEN_LIFE).await?;
        if reserved(&grant.namespace_name, cluster.holder()).is_some() {
            return Err(KubernetesError::Pending(grant.namespace_name));
        }
        self.granted.unused_for(&grant, self.clock.uptime());
        let minted = match mint(cluster, &grant).await {
            Ok(minted) => minted,
            Err(ClusterError::Missing { kind, .. }) if kind == "serviceaccounts" => {
                self.check(cluster, &self.namespace(id).await?).await?;
                return Err(KubernetesError::Pending(grant.namespace_name));
            }
            Err(error) => return Err(error.into()),
        };
        let has_right = self.rights.covers(holder, id).await;
        if !matches!(has_right, Ok(true)) || !self.store.has_grant(&grant).await? {
            self.store.withdraw(&grant, self.now()).await?;
            has_right?;
            return Err(KubernetesError::RightEnded);
        }
        let MintedToken { token, expires_at } = minted;
        let expires_at = to_the_millisecond(expires_at);
        let record = CredentialRecord {
            secret: grant.secret(),
            namespace: grant.namespace_name,
            namespace_id: id,
            jti: token.claims().and_then(|claims| claims.jti),
            expires_at,
        };
        Ok(Credential { token, expires_at: expires_at - EARLIER, record })
    }
}

/// Makes a token bound to the grant's Secret, which is created if it is missing.
async fn mint(cluster: &Cluster, grant: &Grant) -> Result<MintedToken, ClusterError> {
    let (namespace, secret) = (&grant.namespace_name, grant.secret());
    match cluster.mint(namespace, &secret).await {
        Err(ClusterError::Missing { kind, .. }) if kind == "secrets" => {
            cluster.make_secret(&secret).await?;
            cluster.mint(namespace, &secret).await
        }
        outcome => outcome,
    }
}
