//! Settings of the HTTP surface, from the configuration.

use std::net::SocketAddr;
use std::time::Duration;

use crate::config::{Config, CorsOrigins, HostNames, PublicUrl};
use crate::domain::networks::Networks;
use crate::http::{ConnectionLimits, Hosts, HttpSettings, Sharing};

/// Added to the longest allowed wait: the deadline of a request.
const REQUEST_MARGIN: Duration = Duration::from_mins(1);

/// Maximum connections at the management and metrics addresses: they have few users, and must leave files for clients.
const OTHER_CONNECTIONS_MAX: usize = 64;

/// Addresses of the HTTP surface.
pub(super) struct Addresses {
    pub(super) clients: SocketAddr,
    /// The console and management routes, if they have an address of their own.
    pub(super) management: Option<SocketAddr>,
    /// The metrics.
    pub(super) metrics: Option<SocketAddr>,
}

pub(super) fn http_settings(config: &Config, addresses: &Addresses) -> HttpSettings {
    let wait_max = Duration::from_secs(config.http.wait_seconds_max);
    HttpSettings {
        body_bytes_max: usize::try_from(config.http.body_limit_bytes).unwrap_or(usize::MAX),
        bodies_bytes_max: usize::try_from(config.http.bodies_bytes_max).unwrap_or(usize::MAX),
        key_bodies_bytes_max: usize::try_from(config.http.key_bodies_bytes_max).unwrap_or(usize::MAX),
        wait_max,
        request_deadline: wait_max + REQUEST_MARGIN,
        reads_loras_in_prompt: config.loras.in_prompt,
        allows_caches: !config.engine.is_deterministic,
        has_sdapi: config.sdapi,
        public_url: config.http.public_url.as_ref().map(ToString::to_string),
        has_tls: config.tls.is_some(),
        has_own_management: addresses.management.is_some(),
        sharing: match &config.http.cors_origins {
            CorsOrigins::Any => Sharing::Any,
            CorsOrigins::These(origins) if origins.is_empty() => Sharing::None,
            CorsOrigins::These(origins) => Sharing::With(origins.clone()),
        },
        trusted_proxies: config.http.trusted_proxies.clone(),
        hosts: hosts_at(addresses.clients, config),
        management_hosts: addresses.management.map_or(Hosts::Any, |address| hosts_at(address, config)),
        // Scrapers connect by IP address, so the host names of clients do not apply.
        metrics_hosts: match addresses.metrics {
            Some(address) if address.ip().is_loopback() => Hosts::named([]),
            _ => Hosts::Any,
        },
        ..HttpSettings::default()
    }
}

/// Host names that clients may use at an address.
fn hosts_at(address: SocketAddr, config: &Config) -> Hosts {
    let public = config.http.public_url.as_ref().map(PublicUrl::host).map(str::to_owned);
    match &config.http.hosts {
        Some(HostNames::These(names)) => Hosts::named(names.iter().cloned().chain(public)),
        // Only this machine's own names are plausible on loopback.
        None if address.ip().is_loopback() => Hosts::named(public),
        // The names that remote clients use cannot be guessed.
        Some(HostNames::Any) | None => Hosts::Any,
    }
}

/// A warning when the network can read requests and responses.
pub(super) fn in_the_clear(config: &Config, addresses: &Addresses) -> Option<String> {
    let is_elsewhere = |address: &SocketAddr| !address.ip().to_canonical().is_loopback();
    let is_secured = |url: &PublicUrl| url.to_string().to_ascii_lowercase().starts_with("https://");
    // Either setting implies an HTTPS proxy.
    let has_proxy =
        config.http.public_url.as_ref().is_some_and(is_secured) || config.http.trusted_proxies != Networks::default();
    if config.tls.is_some() || has_proxy {
        return None;
    }
    let open = [Some(addresses.clients), addresses.management].into_iter().flatten().filter(is_elsewhere);
    let open: Vec<String> = open.map(|address| address.to_string()).collect();
    if open.is_empty() {
        return None;
    }
    let console = match addresses.management {
        None => {
            ", including the administrator's password, which `--admin-listen 127.0.0.1:8081` would keep on this machine"
        }
        Some(address) if is_elsewhere(&address) => ", including the administrator's password",
        Some(_) => "",
    };
    Some(format!(
        "other machines reach {} without https: the network can read keys, prompts and images{console}; set \
         `tls.certificate` and `tls.private_key` for https, or `http.public_url` and `http.trusted_proxies` for a \
         proxy with https",
        open.join(" and ")
    ))
}

/// Connection limits of the management and metrics addresses.
pub(super) fn other_connections(config: &Config) -> ConnectionLimits {
    let limits = client_connections(config);
    let connections_max = limits.connections_max.min(OTHER_CONNECTIONS_MAX);
    ConnectionLimits { connections_max, connections_per_peer_max: connections_max / 2, ..limits }
}

/// Limits at the clients' address.
pub(super) fn client_connections(config: &Config) -> ConnectionLimits {
    let connections_max = usize::try_from(config.http.connections_max).unwrap_or(usize::MAX);
    ConnectionLimits {
        connections_max,
        // One peer must leave room for others.
        connections_per_peer_max: connections_max / 2,
        trusted_proxies: config.http.trusted_proxies.clone(),
        header_deadline: Duration::from_secs(config.http.header_deadline_seconds),
        ..ConnectionLimits::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::TlsConfig;

    #[test]
    fn listening_for_other_machines_without_https_is_warned_about() {
        let told = |clients: &str, management: Option<&str>, config: &Config| {
            let address = |text: &str| text.parse().expect("an address");
            let addresses = Addresses { clients: address(clients), management: management.map(address), metrics: None };
            in_the_clear(config, &addresses)
        };
        let plain = Config::default();
        for local in ["127.0.0.1:8080", "127.8.8.8:80", "[::1]:8080", "[::ffff:127.0.0.1]:8080"] {
            assert_eq!(told(local, None, &plain), None, "{local}");
            assert_eq!(told(local, Some("127.0.0.1:8081"), &plain), None, "{local}");
        }
        for open in ["0.0.0.0:8080", "[::]:8080", "192.0.2.7:80"] {
            let note = told(open, None, &plain).expect("told");
            assert!(
                note.contains(open) && note.contains("--admin-listen") && note.contains("tls.certificate"),
                "{note}"
            );
            let note = told(open, Some("127.0.0.1:8081"), &plain).expect("told");
            assert!(note.contains(open) && !note.contains("password") && !note.contains("8081"), "{note}");
            let note = told("127.0.0.1:8080", Some(open), &plain).expect("told");
            assert!(note.contains(open) && note.contains("password") && !note.contains("127.0.0.1"), "{note}");
        }
        let with = |change: fn(&mut Config)| {
            let mut config = Config::default();
            change(&mut config);
            told("0.0.0.0:8080", None, &config)
        };
        let https = |config: &mut Config| config.http.public_url = "https://images.example.org".parse().ok();
        let http = |config: &mut Config| config.http.public_url = "http://images.example.org".parse().ok();
        let proxies = |config: &mut Config| {
            config.http.trusted_proxies = Networks::of(&["10.0.0.0/8".to_owned()]).expect("networks");
        };
        let tls = |config: &mut Config| {
            config.tls = Some(TlsConfig { certificate: "c.pem".into(), private_key: "k.pem".into() });
        };
        assert_eq!((with(https), with(proxies), with(tls)), (None, None, None));
        assert!(with(http).is_some());
    }

    #[test]
    fn a_loopback_address_accepts_only_its_own_names() {
        let at = |address: &str, config: &Config| hosts_at(address.parse().expect("an address"), config);
        let mut config = Config::default();
        for local in ["127.0.0.1:8080", "[::1]:8080"] {
            assert_eq!(at(local, &config), Hosts::named([]), "{local}");
        }
        assert_eq!(at("0.0.0.0:8080", &config), Hosts::Any);
        config.http.public_url = Some("https://images.example.org:8443".parse().expect("an URL"));
        assert_eq!(at("127.0.0.1:8080", &config), Hosts::named(["images.example.org".to_owned()]));
        assert_eq!(at("0.0.0.0:8080", &config), Hosts::Any);
        config.http.hosts = Some(HostNames::These(vec!["a.b".to_owned()]));
        for address in ["127.0.0.1:8080", "0.0.0.0:8080"] {
            assert_eq!(at(address, &config), Hosts::named(["a.b".to_owned(), "images.example.org".to_owned()]));
        }
        config.http.hosts = Some(HostNames::Any);
        assert_eq!(at("127.0.0.1:8080", &config), Hosts::Any);
    }
}
