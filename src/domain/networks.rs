//! Lists of IP networks.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

/// Networks, as `10.0.0.0/8`, `2001:db8::/32` or one address. Clones share them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Networks(Arc<[IpNet]>);

/// A text that is not a network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a network: write it like 10.0.0.0/8, or like 10.0.0.7 for one address")]
pub struct NotANetwork(String);

impl Networks {
    /// Reads a list.
    ///
    /// # Errors
    /// Names the first entry that is not a network.
    pub fn of(list: &[String]) -> Result<Self, NotANetwork> {
        let network = |text: &String| {
            let network = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
            network.map_err(|_| NotANetwork(text.clone()))
        };
        list.iter().map(network).collect::<Result<_, _>>().map(Self)
    }

    /// Whether one of them contains `address`. An IPv4 address may be written as an IPv6 one.
    #[must_use]
    pub fn contain(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(&address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn networks(list: &[&str]) -> Result<Networks, NotANetwork> {
        Networks::of(&list.iter().map(ToString::to_string).collect::<Vec<_>>())
    }

    #[test]
    fn addresses_are_matched_in_either_notation() {
        let networks = networks(&["10.0.0.0/8", "192.0.2.7", "2001:db8::/32"]).expect("networks");
        for inside in ["10.255.0.1", "::ffff:10.0.0.1", "192.0.2.7", "2001:db8:1::1"] {
            assert!(networks.contain(inside.parse().expect("an address")), "{inside}");
        }
        for outside in ["11.0.0.1", "192.0.2.8", "2001:db9::1", "::1", "127.0.0.1"] {
            assert!(!networks.contain(outside.parse().expect("an address")), "{outside}");
        }
        assert!(!Networks::default().contain("10.0.0.1".parse().expect("an address")));
    }

    #[test]
    fn an_invalid_network_is_named() {
        for bad in ["", "10.0.0.0/33", "example.org", "10.0.0.0/", "10.0.0"] {
            assert_eq!(networks(&["10.0.0.0/8", bad]), Err(NotANetwork(bad.to_owned())), "{bad}");
        }
    }
}
