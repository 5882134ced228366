//! What a key may do. Always explicit: nothing means "everything" by being left out.

use crate::domain::ids::NamespaceId;

/// A thing that a key can be allowed to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Product {
    /// The image routes.
    Inference,
    /// The Kubernetes credential route, in one namespace.
    KubernetesExec(NamespaceId),
}

/// What a key may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// Everything that a key can be allowed.
    All,
    /// The image routes alone.
    Inference,
    /// kubectl, in every namespace of this account.
    KubernetesAll,
    /// kubectl, in these namespaces: at least one, none twice.
    KubernetesNamespaces(Vec<NamespaceId>),
}

impl Scope {
    /// Whether the scope allows `product`.
    #[must_use]
    pub fn permits(&self, product: Product) -> bool {
        match (self, product) {
            (Self::All, _)
            | (Self::Inference, Product::Inference)
            | (Self::KubernetesAll, Product::KubernetesExec(_)) => true,
            (Self::KubernetesNamespaces(ids), Product::KubernetesExec(id)) => ids.contains(&id),
            (Self::Inference, Product::KubernetesExec(_))
            | (Self::KubernetesAll | Self::KubernetesNamespaces(_), Product::Inference) => false,
        }
    }
}
