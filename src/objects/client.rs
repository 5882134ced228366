//! The HTTP client of object stores: with the TLS of all clients of this program, and no request without an end.

use std::time::Duration;

use object_store::client::{HttpClient, HttpConnector};
use object_store::{ClientConfigKey, ClientOptions, Error};

use crate::outgoing;

/// Timeout of a connection.
const CONNECT_DEADLINE: Duration = Duration::from_secs(3);
/// Timeout of the next bytes of an answer.
const READ_DEADLINE: Duration = Duration::from_secs(10);
/// Timeout of a whole request: of the largest file, over a slow line.
const REQUEST_DEADLINE: Duration = Duration::from_mins(2);
/// Connections that are kept open while nothing needs them.
const IDLE_CONNECTIONS_MAX: usize = 8;

/// Makes the clients of a store: of its bucket, and of what gives out its credentials.
#[derive(Debug)]
pub(super) struct Connector;

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let allows_http = options.get_config_value(&ClientConfigKey::AllowHttp).is_some_and(|value| is_yes(&value));
        let client = reqwest::Client::builder()
            .user_agent(concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION")))
            // A signature is good for one host.
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_DEADLINE)
            .read_timeout(READ_DEADLINE)
            .timeout(REQUEST_DEADLINE)
            .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
            .http1_only()
            .https_only(!allows_http)
            .tls_backend_preconfigured(outgoing::tls(!allows_http).map_err(unusable)?)
            .build()
            .map_err(unusable)?;
        Ok(HttpClient::new(client))
    }
}

/// Whether a setting from the environment is on.
fn is_yes(value: &str) -> bool {
    ["1", "true", "yes", "on", "y"].contains(&value.to_ascii_lowercase().as_str())
}

fn unusable(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Generic { store: "https", source: Box::new(error) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_made_for_https_and_http() {
        for allows_http in [true, false] {
            let options = ClientOptions::new().with_allow_http(allows_http);
            assert!(Connector.connect(&options).is_ok(), "http allowed: {allows_http}");
        }
    }

    #[test]
    fn only_clear_words_allow_http() {
        assert!(["true", "TRUE", "1", "yes"].into_iter().all(is_yes));
        assert!(!["", "false", "0", "no", "maybe"].into_iter().any(is_yes));
    }
}
