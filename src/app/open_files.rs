//! Limit of open files. Each connection takes one, and a worker without free ones stores no image and answers no
//! request, health checks included.

use anyhow::anyhow;

use super::surface::{client_connections, other_connections};
use crate::config::{Config, MetricsListen, ResultStore};
use crate::objects::REQUESTS_MAX;

/// Maximum files that a worker opens besides connections: database, models, images, standard output and log, connections
/// to the cluster, the hub and a collector.
const OWN_FILES: u64 = 128;
/// The limit set on systems without one: child processes inherit it, and some of them close every possible file one by
/// one.
const RAISED_MAX: u64 = 1 << 20;

/// Raises the limit as far as the system allows, and checks that it is enough.
///
/// # Errors
/// When it is not.
pub(super) fn make_room(config: &Config) -> anyhow::Result<()> {
    let (had, has) = raised(needed(config));
    if has > had {
        tracing::debug!(had, has, "raised the limit of open files");
    }
    check(config, has).map_err(|reason| anyhow!(reason))
}

/// Whether as many files may be open as the worker can need.
pub(super) fn look_at(config: &Config) -> Result<String, String> {
    let needed = needed(config);
    let (_, may) = raised(needed);
    check(config, may).map(|()| match may {
        u64::MAX => format!("there is no limit; at most {needed} are needed"),
        _ => format!("the limit is {may}; at most {needed} are needed"),
    })
}

/// Maximum files of all connections and the worker itself.
fn needed(config: &Config) -> u64 {
    let other_addresses =
        u64::from(config.admin_listen.is_some()) + u64::from(config.metrics_listen != MetricsListen::Off);
    let of = |limits: crate::http::ConnectionLimits| limits.files_max() as u64;
    let bucket = match config.results.store {
        ResultStore::Bucket(_) => REQUESTS_MAX as u64,
        ResultStore::DataFolder | ResultStore::Folder(_) => 0,
    };
    OWN_FILES + bucket + of(client_connections(config)) + other_addresses * of(other_connections(config))
}

fn check(config: &Config, may: u64) -> Result<(), String> {
    /// Fewest connections that the configuration accepts.
    const CONNECTIONS_MIN: u64 = 2;

    let needed = needed(config);
    if needed <= may {
        return Ok(());
    }
    let connections = config.http.connections_max;
    let raise = format!("raise the limit (`ulimit -n {needed}`, or `LimitNOFILE={needed}` in a systemd unit)");
    let remedy = match connections.checked_sub(needed - may) {
        Some(fit) if fit >= CONNECTIONS_MIN => format!("set `http.connections_max` to at most {fit}, or {raise}"),
        _ => raise,
    };
    Err(format!(
        "this process may open {may} files, but can need {needed} with the {connections} connections of \
         `http.connections_max`: {remedy}"
    ))
}

/// Raises the limit if possible; returns the limit before and now.
#[cfg(unix)]
fn raised(needed: u64) -> (u64, u64) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    let limit = getrlimit(Resource::Nofile);
    let had = limit.current.unwrap_or(u64::MAX);
    let wanted = limit.maximum.unwrap_or(u64::MAX).min(RAISED_MAX.max(needed));
    if wanted <= had {
        return (had, had);
    }
    let new = Rlimit { current: Some(wanted), ..limit };
    match setrlimit(Resource::Nofile, new) {
        Ok(()) => (had, wanted),
        // Some systems have a maximum that they do not report.
        Err(error) => {
            tracing::warn!(%error, had, wanted, "the limit of open files cannot be raised");
            (had, had)
        }
    }
}

/// There is no such limit except on Unix.
#[cfg(not(unix))]
fn raised(_needed: u64) -> (u64, u64) {
    (u64::MAX, u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_fit_the_usual_limit_and_a_refusal_names_a_number_that_fits() {
        let mut config =
            Config { admin_listen: Some("127.0.0.1:8081".parse().expect("an address")), ..Config::default() };
        assert_eq!(check(&config, 1024), Ok(()), "{}", needed(&config));
        config.http.connections_max = 2000;
        let refused = check(&config, 1024).expect_err("too many");
        let fit: u64 = refused
            .split("`http.connections_max` to at most ")
            .nth(1)
            .and_then(|rest| rest.split(',').next())
            .and_then(|number| number.parse().ok())
            .unwrap_or_else(|| panic!("{refused}"));
        assert!(refused.contains("ulimit -n") && refused.contains("1024"), "{refused}");
        config.http.connections_max = fit;
        assert_eq!(check(&config, 1024), Ok(()));
        config.http.connections_max = fit + 1;
        check(&config, 1024).expect_err("one too many");
        // No number of connections would fit.
        let refused = check(&config, 64).expect_err("too few");
        assert!(refused.contains("ulimit -n") && !refused.contains("at most"), "{refused}");
    }

    #[test]
    fn an_address_that_is_off_needs_no_files() {
        let with = |config: Config| needed(&config);
        let off = with(Config { metrics_listen: MetricsListen::Off, ..Config::default() });
        assert!(off < with(Config::default()));
    }
}
