//! Connects `kubernetes` to `auth`, which do not know each other.

use futures_util::future::BoxFuture;

use crate::auth::{KeyService, PublicId};
use crate::domain::ids::NamespaceId;
use crate::domain::scope::Product;
use crate::kubernetes::{Holder, Rights, RightsUnknown};

impl Rights for KeyService {
    fn covers<'a>(&'a self, holder: &'a Holder, namespace: NamespaceId) -> BoxFuture<'a, Result<bool, RightsUnknown>> {
        Box::pin(async move {
            // Not a prefix: there is no such key.
            let Ok(prefix) = holder.prefix.parse::<PublicId>() else { return Ok(false) };
            let permits = self.permits(prefix, Product::KubernetesExec(namespace)).await;
            permits.map_err(|error| RightsUnknown(format!("{:#}", anyhow::Error::from(error))))
        })
    }
}
