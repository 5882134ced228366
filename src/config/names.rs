//! Host names of the worker, origins of other sites, and the address of metrics.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

use crate::config::public_url::{PublicUrl, is_host};

/// Stands for every name.
const ANY: &str = "*";
/// Stands for no address.
const OFF: &str = "off";

/// Default address of metrics.
pub const DEFAULT_METRICS_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9090);

/// Address of metrics, plain http.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum MetricsListen {
    /// At [`DEFAULT_METRICS_LISTEN`], unless the port is taken.
    #[default]
    IfFree,
    /// At this address.
    At(SocketAddr),
    /// Not served.
    Off,
}

/// A text that is neither an address nor `off`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an address and a port: write it like {DEFAULT_METRICS_LISTEN}, or `{OFF}`")]
pub struct NotAListener;

impl FromStr for MetricsListen {
    type Err = NotAListener;

    fn from_str(text: &str) -> Result<Self, NotAListener> {
        if text == OFF {
            return Ok(Self::Off);
        }
        text.parse().map(Self::At).map_err(|_| NotAListener)
    }
}

/// Other sites whose pages may use the API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CorsOrigins {
    /// All sites.
    Any,
    /// These origins, as browsers write them.
    These(Vec<String>),
}

/// A list with an entry that is no origin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not scheme, host and port alone: write it like https://images.example.org, or `{ANY}` for all")]
pub struct NotAnOrigin(String);

impl CorsOrigins {
    pub(super) fn of(list: &[String]) -> Result<Self, NotAnOrigin> {
        if list.iter().any(|origin| origin == ANY) {
            return Ok(Self::Any);
        }
        let origin =
            |text: &String| text.parse().map(|url: PublicUrl| url.origin()).map_err(|_| NotAnOrigin(text.clone()));
        list.iter().map(origin).collect::<Result<_, _>>().map(Self::These)
    }
}

/// Host names that requests may have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostNames {
    /// Any name.
    Any,
    /// These, without ports, beside those that are always permitted.
    These(Vec<String>),
}

/// A list with an entry that is no host name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a name without a port: write it like images.example.org, or `{ANY}` for any")]
pub struct NotAHost(String);

impl HostNames {
    pub(super) fn of(list: &[String]) -> Result<Self, NotAHost> {
        if list.iter().any(|name| name == ANY) {
            return Ok(Self::Any);
        }
        match list.iter().find(|name| !is_host(name)) {
            Some(other) => Err(NotAHost(other.clone())),
            None => Ok(Self::These(list.to_vec())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_at_an_address_or_nowhere() {
        assert_eq!("off".parse(), Ok(MetricsListen::Off));
        assert_eq!("0.0.0.0:9090".parse(), Ok(MetricsListen::At(([0, 0, 0, 0], 9090).into())));
        for bad in ["", "OFF", "9090", "localhost:9090"] {
            assert_eq!(bad.parse::<MetricsListen>(), Err(NotAListener), "{bad}");
        }
    }

    #[test]
    fn origins_are_written_as_browsers_write_them() {
        let list = |origins: &[&str]| CorsOrigins::of(&origins.iter().map(ToString::to_string).collect::<Vec<_>>());
        let origins = ["https://Images.example.org:443/", "http://localhost:5173", "http://a.b:80", "https://a.b:80"];
        let written = ["https://images.example.org", "http://localhost:5173", "http://a.b", "https://a.b:80"];
        assert_eq!(list(&origins), Ok(CorsOrigins::These(written.map(str::to_owned).to_vec())));
        assert_eq!(list(&["https://a.b", "*"]), Ok(CorsOrigins::Any));
        for bad in ["", "null", "a.b", "https://a.b/c", "https://*.a.b", "file://"] {
            assert_eq!(list(&[bad]), Err(NotAnOrigin(bad.to_owned())), "{bad}");
        }
    }

    #[test]
    fn hosts_are_names_without_ports() {
        let list = |names: &[&str]| HostNames::of(&names.iter().map(ToString::to_string).collect::<Vec<_>>());
        let good = ["images.example.org", "192.0.2.7", "[2001:db8::1]"];
        assert_eq!(list(&good), Ok(HostNames::These(good.map(str::to_owned).to_vec())));
        assert_eq!(list(&["a.b", "*"]), Ok(HostNames::Any));
        assert_eq!(list(&[]), Ok(HostNames::These(Vec::new())));
        for bad in ["", "a.b:80", "https://a.b", "*.a.b", "a/b", "a b", "2001:db8::1"] {
            assert_eq!(list(&["a.b", bad]), Err(NotAHost(bad.to_owned())), "{bad}");
        }
    }
}
