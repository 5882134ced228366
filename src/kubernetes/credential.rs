//! Tokens for keys.
//!
//! A key can lose its right at any moment, also while its token is made. So what the token hangs on is written down before
//! it is made, and whether the right is still there is asked after: either this or whoever takes the right away sees the
//! other, and the token dies.

use time::{Duration, OffsetDateTime};

use super::cluster::ClusterError;
use super::namespaces::reserved;
use super::store::Grant;
use super::token::{MintedToken, Token};
use super::{CREDENTIALS_PER_MINUTE, Cluster, Holder, Inner, Kubernetes, KubernetesError};
use crate::domain::clock::to_the_millisecond;
use crate::domain::ids::NamespaceId;
use crate::domain::namespace::NamespaceName;

/// Longest that a token lives, and then some: what it hangs on is kept for as long.
pub(super) const TOKEN_LIFE: Duration = Duration::minutes(11);
/// Before its token's end kubectl asks for another one, so that no request meets the end.
const EARLIER: Duration = Duration::seconds(30);

/// A token for kubectl.
#[derive(Debug)]
pub struct Credential {
    /// The token.
    pub token: Token,
    /// When kubectl is to ask for another one: a little before the token's end.
    pub expires_at: OffsetDateTime,
    /// What is known of the token, for the log of what was done.
    pub record: CredentialRecord,
}

/// What is known of a token that a key has got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CredentialRecord {
    /// The namespace it is for.
    pub namespace: NamespaceName,
    /// That namespace's id here.
    pub namespace_id: NamespaceId,
    /// Its id, which stands in the cluster's own audit log, too. Kubernetes before 1.29 gives none.
    pub jti: Option<String>,
    /// The Secret that it hangs on.
    pub secret: String,
    /// Its end.
    pub expires_at: OffsetDateTime,
}

impl Kubernetes {
    /// A token for `holder`, whose scope covers the namespace, as the caller has seen.
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
        // Reserved: entered before that was refused.
        let is_reserved = reserved(&namespace.name, cluster.holder()).is_some();
        if is_reserved || (!namespace.standing.is_open && !self.look(cluster, &namespace).await?.is_open) {
            return Err(KubernetesError::Pending(namespace.name));
        }
        // The look may have taken seconds, in which the namespace was renamed: the token is for what it is called when
        // the grant is taken. Who renames it after that withdraws the grant.
        let grant = self.store.take_grant(holder, id, self.now() + TOKEN_LIFE).await?;
        if reserved(&grant.namespace_name, cluster.holder()).is_some() {
            return Err(KubernetesError::Pending(grant.namespace_name));
        }
        self.granted.unused_for(&grant, self.clock.uptime());
        let minted = match mint(cluster, &grant).await {
            Ok(minted) => minted,
            Err(ClusterError::Missing { kind, .. }) if kind == "serviceaccounts" => {
                self.look(cluster, &self.namespace(id).await?).await?;
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

/// A token that hangs on the grant's Secret, which is made where it is not there.
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
