//! Scopes that name namespaces: which keys have one, and their change when a namespace is removed. Knows namespaces only
//! by id.

use crate::auth::audit::Actor;
use crate::auth::key::PublicId;
use crate::auth::record::{KeyEdit, KeyError, KeyRecord, KeyRef, KeyState};
use crate::auth::service::KeyService;
use crate::domain::ids::NamespaceId;
use crate::domain::scope::{Product, Scope};

/// Keys read in one query.
const KEYS_AT_ONCE_MAX: u32 = 100;

impl KeyService {
    /// Whether the value with this prefix works and its key's scope permits `product`. `false` for a missing key.
    ///
    /// # Errors
    /// [`KeyError::Unavailable`].
    pub async fn permits(&self, prefix: PublicId, product: Product) -> Result<bool, KeyError> {
        let row = self.keys.find(KeyRef::Prefix(prefix)).await?;
        let now = self.now();
        Ok(row.is_some_and(|row| row.state_of(prefix, now) == KeyState::Active && row.scope.permits(product)))
    }

    /// Keys that are not revoked and whose scope names the namespace, the oldest first: at most [`KEYS_AT_ONCE_MAX`].
    ///
    /// # Errors
    /// [`KeyError::Unavailable`].
    pub async fn naming(&self, namespace: NamespaceId) -> Result<Vec<KeyRecord>, KeyError> {
        let now = self.now();
        let rows = self.keys.naming(namespace, KEYS_AT_ONCE_MAX).await?;
        Ok(rows.into_iter().map(|row| row.into_record(now)).collect())
    }

    /// Removes the namespace from every scope that names it, and revokes keys that are left with none. Can be repeated after
    /// an interruption.
    ///
    /// # Errors
    /// [`KeyError::Unavailable`].
    pub async fn withdraw_namespace(&self, namespace: NamespaceId, by: &Actor) -> Result<(), KeyError> {
        loop {
            let keys = self.naming(namespace).await?;
            if keys.is_empty() {
                return Ok(());
            }
            for key in keys {
                match without(&key.scope, namespace) {
                    Some(scope) => {
                        let edit = KeyEdit { scope: Some(scope), ..KeyEdit::default() };
                        match self.edit(key.id, edit, by).await {
                            // Revoked meanwhile: its scope does not matter.
                            Ok(_) | Err(KeyError::Ended(_)) => {}
                            Err(error) => return Err(error),
                        }
                    }
                    None => drop(self.revoke(key.id, by).await?),
                }
            }
        }
    }
}

/// The scope without a namespace, or `None` if nothing is left.
fn without(scope: &Scope, namespace: NamespaceId) -> Option<Scope> {
    let Scope::KubernetesNamespaces(ids) = scope else { return Some(scope.clone()) };
    let left: Vec<NamespaceId> = ids.iter().copied().filter(|id| *id != namespace).collect();
    (!left.is_empty()).then_some(Scope::KubernetesNamespaces(left))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use time::Duration;
    use time::macros::datetime;

    use super::*;
    use crate::auth::record::NewKey;
    use crate::domain::clock::ManualClock;
    use crate::domain::limits::KeyLimits;
    use crate::store::Store;

    #[tokio::test]
    async fn a_permission_ends_with_the_key_its_value_or_its_scope() {
        let clock = ManualClock::new(datetime!(2030-01-01 12:00 UTC));
        let store = Store::open_in_memory().await.expect("opens");
        let service = KeyService::new(store, Arc::new(clock.clone()));
        let (first, second) = (NamespaceId::generate(), NamespaceId::generate());
        let make = async |name: &str, scope| {
            let new = NewKey { name: name.into(), scope, expires_at: None, limits: KeyLimits::default() };
            service.create(new, &Actor::CommandLine).await.expect("made").record
        };
        let both = make("both", Scope::KubernetesNamespaces(vec![first, second])).await;
        let one = make("one", Scope::KubernetesNamespaces(vec![first])).await;
        let all = make("all", Scope::All).await;
        let may =
            async |prefix, namespace| service.permits(prefix, Product::KubernetesExec(namespace)).await.expect("told");
        for (key, expected) in [(&both, [true, true]), (&one, [true, false]), (&all, [true, true])] {
            assert_eq!([may(key.prefix, first).await, may(key.prefix, second).await], expected, "{}", key.name);
        }
        let rotated = service.rotate(both.id, 60, &Actor::CommandLine).await.expect("rotated").record;
        assert!(may(both.prefix, first).await && may(rotated.prefix, first).await, "in the grace both do");
        clock.advance(Duration::seconds(60));
        assert!(!may(both.prefix, first).await && may(rotated.prefix, first).await);

        let naming = service.naming(first).await.expect("told");
        assert_eq!(naming.iter().map(|key| key.id).collect::<Vec<_>>(), [both.id, one.id]);
        service.withdraw_namespace(first, &Actor::CommandLine).await.expect("done");
        let left = service.get(both.id).await.expect("there");
        assert_eq!((left.state, left.scope), (KeyState::Active, Scope::KubernetesNamespaces(vec![second])));
        assert_eq!(service.get(one.id).await.expect("there").state, KeyState::Revoked);
        assert_eq!(service.get(all.id).await.expect("there").state, KeyState::Active);
        assert!(!may(one.prefix, first).await && !may(rotated.prefix, first).await);
        assert!(service.naming(first).await.expect("told").is_empty());
    }
}
