//! How many files the process may have open. Each connection takes one, and a worker that gets none any more stores no
//! image and answers nobody, not even whether it lives.

use anyhow::anyhow;

use super::surface::{client_connections, other_connections};
use crate::config::{Config, MetricsListen};

/// What a worker has open beside its connections, at most: the database, files of models and of images, standard output
/// and the log, ways to the cluster, the hub and a collector.
const OWN_FILES: u64 = 128;
/// No more is asked for where the system sets no end: programs that the worker starts inherit it, and some of them close
/// each file that there could be, one after the other.
const RAISED_MAX: u64 = 1 << 20;

/// Has the system let this process open as many files as it ever would, and sees that this is enough.
///
/// # Errors
/// When it is not.
pub(super) fn make_room(config: &Config) -> anyhow::Result<()> {
    let (had, has) = raised(needed(config));
    if has > had {
        tracing::debug!(had, has, "more files may be open at one time");
    }
    check(config, has).map_err(|reason| anyhow!(reason))
}

/// Whether as many may be open as the worker can come to need.
pub(super) fn look_at(config: &Config) -> Result<String, String> {
    let needed = needed(config);
    let (_, may) = raised(needed);
    check(config, may).map(|()| match may {
        u64::MAX => format!("any number may be open at one time, {needed} are needed at most"),
        _ => format!("{may} may be open at one time, {needed} are needed at most"),
    })
}

/// What all connections and the worker itself can come to take.
fn needed(config: &Config) -> u64 {
    let other_addresses =
        u64::from(config.admin_listen.is_some()) + u64::from(config.metrics_listen != MetricsListen::Off);
    let of = |limits: crate::http::ConnectionLimits| limits.files_max() as u64;
    OWN_FILES + of(client_connections(config)) + other_addresses * of(other_connections(config))
}

fn check(config: &Config, may: u64) -> Result<(), String> {
    /// Fewest connections that the configuration takes.
    const CONNECTIONS_MIN: u64 = 2;

    let needed = needed(config);
    if needed <= may {
        return Ok(());
    }
    let connections = config.http.connections_max;
    let raise = format!("let more be open (`ulimit -n {needed}`, or `LimitNOFILE={needed}` in a unit of systemd)");
    let mend = match connections.checked_sub(needed - may) {
        Some(fit) if fit >= CONNECTIONS_MIN => format!("set `http.connections_max` to at most {fit}, or {raise}"),
        _ => raise,
    };
    Err(format!(
        "this process may have {may} files open, and can come to need {needed} with the {connections} connections of \
         `http.connections_max`: {mend}"
    ))
}

/// Raises the limit, where it is below what may be set; how many could be open, and how many can be now.
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
        // Some systems have an end that they do not tell of.
        Err(error) => {
            tracing::warn!(%error, had, wanted, "the limit of open files cannot be raised");
            (had, had)
        }
    }
}

/// Elsewhere than on Unix there is no such limit.
#[cfg(not(unix))]
fn raised(_needed: u64) -> (u64, u64) {
    (u64::MAX, u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_fit_into_what_a_process_gets_by_default_and_more_is_refused_with_what_would_fit() {
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
        // No number of connections would do.
        let refused = check(&config, 64).expect_err("too few");
        assert!(refused.contains("ulimit -n") && !refused.contains("at most"), "{refused}");
    }

    #[test]
    fn what_is_not_listened_on_takes_nothing() {
        let with = |config: Config| needed(&config);
        let off = with(Config { metrics_listen: MetricsListen::Off, ..Config::default() });
        assert!(off < with(Config::default()));
    }
}
