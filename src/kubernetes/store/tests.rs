use time::Duration;
use time::macros::datetime;

use super::*;
use crate::domain::ids::KeyId;

#[tokio::test]
async fn a_grant_that_is_not_committed_is_not_returned() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = Store::open(&folder.path().join("fluxserve.db")).await.expect("a database");
    let grants = KubernetesStore::new(store.clone());
    let now = datetime!(2026-01-01 12:00 UTC);
    let namespace = NamespaceId::generate();
    grants.insert_namespace(namespace, &"team-a".parse().expect("a name"), now).await.expect("entered");
    let holder = Holder { key: KeyId::generate(), prefix: "rgpu_00000000".into() };
    let first = grants.take_grant(&holder, namespace, now + Duration::minutes(10)).await.expect("granted");

    // From here on every COMMIT after a change of a grant fails, as on a full disk: the statements succeed, and the deferred
    // constraint fails at the end.
    let failing = "CREATE TABLE parents (id INTEGER PRIMARY KEY); \
                   CREATE TABLE orphans (parent INTEGER REFERENCES parents (id) DEFERRABLE INITIALLY DEFERRED); \
                   CREATE TRIGGER made AFTER INSERT ON kubernetes_grants BEGIN INSERT INTO orphans VALUES (1); END; \
                   CREATE TRIGGER changed AFTER UPDATE ON kubernetes_grants BEGIN INSERT INTO orphans VALUES (1); END;";
    sqlx::raw_sql(failing).execute(store.pool()).await.expect("triggers");
    let other = Holder { prefix: "rgpu_11111111".into(), ..holder.clone() };
    for holder in [&other, &holder] {
        let outcome = grants.take_grant(holder, namespace, now + Duration::minutes(20)).await;
        assert!(matches!(outcome, Err(KubernetesError::Store(_))), "{outcome:?}");
    }
    assert_eq!(grants.grants().await.expect("readable"), [first], "the existing one, with its old end");
}

#[tokio::test]
async fn a_grant_has_its_namespaces_name_when_it_is_taken() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = Store::open(&folder.path().join("fluxserve.db")).await.expect("a database");
    let grants = KubernetesStore::new(store);
    let now = datetime!(2026-01-01 12:00 UTC);
    let id = NamespaceId::generate();
    let (old, new): (NamespaceName, NamespaceName) = ("old".parse().expect("a name"), "new".parse().expect("a name"));
    grants.insert_namespace(id, &old, now).await.expect("entered");
    let namespace = grants.namespace(id).await.expect("readable").expect("there");
    let holder = Holder { key: KeyId::generate(), prefix: "rgpu_00000000".into() };
    let first = grants.take_grant(&holder, id, now + Duration::minutes(10)).await.expect("granted");
    assert_eq!(first.namespace_name, old);
    assert!(grants.rename_namespace(&namespace, &new, false, now).await.expect("renamed"));
    assert!(!grants.has_grant(&first).await.expect("readable"), "the grant for the old name is withdrawn");
    let second = grants.take_grant(&holder, id, now + Duration::minutes(10)).await.expect("granted");
    assert_eq!(second.namespace_name, new);
    assert_ne!(second.id, first.id);
}
