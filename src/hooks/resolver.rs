//! Names to addresses, for each connection anew: only those that the rules permit, and the connection goes to exactly these. So a
//! name that means another address a moment later leads nowhere else.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use futures_util::future::BoxFuture;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use super::Lookup;
use super::target::Rules;

/// Maximum addresses of a name that are tried.
const ADDRESSES_MAX: usize = 8;

/// Every address of a name is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the host has no address that is allowed")]
pub(super) struct Refused;

/// Finds the addresses of a name, and leaves out those that are not permitted.
pub(super) struct GuardedResolver {
    lookup: Arc<Lookup>,
    rules: Arc<Rules>,
}

impl GuardedResolver {
    pub(super) fn new(lookup: Arc<Lookup>, rules: Arc<Rules>) -> Self {
        Self { lookup, rules }
    }
}

impl Resolve for GuardedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let finding = (self.lookup)(name.as_str().to_owned());
        Box::pin(permitted(name, finding, Arc::clone(&self.rules)))
    }
}

async fn permitted(
    name: Name,
    finding: BoxFuture<'static, io::Result<Vec<IpAddr>>>,
    rules: Arc<Rules>,
) -> Result<Addrs, Box<dyn std::error::Error + Send + Sync>> {
    let found = finding.await?;
    let permitted = found.into_iter().filter(|address| rules.permits(name.as_str(), *address));
    // The port is the URL's.
    let permitted: Vec<SocketAddr> = permitted.take(ADDRESSES_MAX).map(|address| SocketAddr::new(address, 0)).collect();
    if permitted.is_empty() {
        return Err(Refused.into());
    }
    Ok(Box::new(permitted.into_iter()))
}

/// Finds addresses as this machine does.
pub(super) fn of_system(name: String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
    Box::pin(async move {
        let found = tokio::net::lookup_host((name, 0)).await?;
        Ok(found.map(|address| address.ip()).collect())
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::domain::webhook::AllowedHosts;
    use crate::hooks::WebhookSettings;

    fn resolver(allowed: &[&str], answers: &'static [&'static [&'static str]]) -> GuardedResolver {
        let allowed_hosts = AllowedHosts::of(&allowed.iter().map(ToString::to_string).collect::<Vec<_>>());
        let settings = WebhookSettings {
            is_enabled: true,
            allows_http: false,
            allowed_hosts: allowed_hosts.expect("a list"),
            only_allowed_hosts: false,
            secret_path: "unused".into(),
            origin: String::new(),
            alerts: None,
        };
        let asked = AtomicUsize::new(0);
        let lookup = move |_: String| -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
            let answer = answers[asked.fetch_add(1, Ordering::Relaxed) % answers.len()];
            let answer = answer.iter().map(|address| address.parse().expect("an address")).collect();
            Box::pin(async move { Ok(answer) })
        };
        GuardedResolver::new(Arc::new(lookup), Arc::new(Rules::of(&settings)))
    }

    /// The addresses of a name; none if all are refused.
    async fn addresses(resolver: &GuardedResolver, name: &str) -> Vec<String> {
        match resolver.resolve(name.parse().expect("a name")).await {
            Ok(addresses) => addresses.map(|address| address.ip().to_string()).collect(),
            Err(error) => {
                assert!(error.downcast_ref::<Refused>().is_some(), "{error}");
                Vec::new()
            }
        }
    }

    #[tokio::test]
    async fn an_address_of_the_inside_is_left_out_also_when_the_answer_changes() {
        let rebinding =
            resolver(&[], &[&["203.0.114.7"], &["127.0.0.1"], &["169.254.169.254", "::1"], &["203.0.114.8"]]);
        assert_eq!(addresses(&rebinding, "hooks.example.org").await, ["203.0.114.7"]);
        assert!(addresses(&rebinding, "hooks.example.org").await.is_empty());
        assert!(addresses(&rebinding, "hooks.example.org").await.is_empty());
        assert_eq!(addresses(&rebinding, "hooks.example.org").await, ["203.0.114.8"]);
        let mixed = resolver(&[], &[&["10.0.0.1", "203.0.114.7", "::ffff:10.0.0.1", "2606:4700::1", "64:ff9b::a00:1"]]);
        assert_eq!(addresses(&mixed, "hooks.example.org").await, ["203.0.114.7", "2606:4700::1"]);
        let none = resolver(&[], &[&[]]);
        assert!(addresses(&none, "hooks.example.org").await.is_empty());
    }

    #[tokio::test]
    async fn what_the_operator_allows_is_kept() {
        let allowed = resolver(&["hooks.internal", "10.1.0.0/16"], &[&["10.1.2.3", "10.2.2.3"]]);
        assert_eq!(addresses(&allowed, "hooks.internal").await, ["10.1.2.3", "10.2.2.3"]);
        assert_eq!(addresses(&allowed, "other.internal").await, ["10.1.2.3"]);
    }
}
