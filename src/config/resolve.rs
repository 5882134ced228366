//! From the settings of all sources to one checked [`Config`].

mod moderation;
mod result_store;
mod served;
mod webhooks;

use std::fmt::Display;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::str::FromStr;

use crate::config::env::{self, Variable};
use crate::config::prices::prices;
use crate::config::settings::{Layer, Origin, Settings};
use crate::config::{
    Config, ConfigError, CorsOrigins, EngineConfig, HostNames, HttpConfig, HubConfig, KubernetesConfig, LogConfig,
    LoraConfig, PublicUrl, QueueConfig, ResultsConfig, THREADS, TelemetryConfig, TlsConfig,
};
use crate::domain::byte_size::ByteSize;
use crate::domain::networks::Networks;
use result_store::result_store;

pub(super) use served::check_models;
use served::{max_input_images, models};

// Ranges of numbers. Beyond them, a value is a mistaken unit rather than unusual.
const DRAIN_DEADLINE_SECONDS: RangeInclusive<u64> = 0..=3600;
const BODY_LIMIT_BYTES: RangeInclusive<u64> = 1024..=1024 * 1024 * 1024;
const BODIES_BYTES: RangeInclusive<u64> = 1024 * 1024..=1024 * 1024 * 1024 * 1024;
const WAIT_SECONDS_MAX: RangeInclusive<u64> = 0..=3600;
const CONNECTIONS_MAX: RangeInclusive<u64> = 2..=100_000;
const HEADER_DEADLINE_SECONDS: RangeInclusive<u64> = 1..=300;
const JOBS_MAX: RangeInclusive<u64> = 1..=100_000;
const RETENTION_SECONDS: RangeInclusive<u64> = 60..=366 * 24 * 60 * 60;
const LINK_SECONDS: RangeInclusive<u64> = 60..=366 * 24 * 60 * 60;
const BYTES_MAX: RangeInclusive<u64> = 1024 * 1024..=1 << 50;

/// The value of the last layer that has one, and the layer's origin.
fn last<'a, T>(layers: &'a [Layer], get: impl Fn(&'a Settings) -> Option<T>) -> Option<(T, &'a Origin)> {
    layers.iter().rev().find_map(|layer| get(&layer.settings).map(|value| (value, &layer.origin)))
}

/// Refuses settings that would have no effect: `set` says which of them a layer has.
fn refuse(
    layers: &[Layer],
    reason: &str,
    set: impl Fn(&Settings) -> Vec<(bool, &'static Variable)>,
) -> Result<(), ConfigError> {
    for layer in layers.iter().rev() {
        if let Some((_, variable)) = set(&layer.settings).into_iter().find(|(is_set, _)| *is_set) {
            return Err(layer.origin.error(variable, reason.to_owned()));
        }
    }
    Ok(())
}

fn parsed<'a, T: FromStr<Err: Display>>(
    layers: &'a [Layer],
    variable: &Variable,
    get: impl Fn(&'a Settings) -> Option<&'a String>,
    default: T,
) -> Result<T, ConfigError> {
    match last(layers, get) {
        None => Ok(default),
        Some((text, origin)) => text.parse().map_err(|error| origin.error(variable, format!("`{text}`: {error}"))),
    }
}

fn within(
    layers: &[Layer],
    variable: &Variable,
    get: impl Fn(&Settings) -> Option<u64>,
    range: &RangeInclusive<u64>,
    default: u64,
) -> Result<u64, ConfigError> {
    match last(layers, get) {
        None => Ok(default),
        Some((number, _)) if range.contains(&number) => Ok(number),
        Some((number, origin)) => {
            let reason = format!("must be from {} to {}, not {number}", range.start(), range.end());
            Err(origin.error(variable, reason))
        }
    }
}

fn log(layers: &[Layer], default: LogConfig) -> Result<LogConfig, ConfigError> {
    let filter = |default| parsed(layers, &env::LOG_FILTER, |settings| settings.log.filter.as_ref(), default);
    Ok(LogConfig {
        filter: filter(default.filter)?,
        command_filter: filter(default.command_filter)?,
        format: parsed(layers, &env::LOG_FORMAT, |settings| settings.log.format.as_ref(), default.format)?,
    })
}

/// The configuration of `layers` (later ones win) over the defaults.
pub(super) fn resolve(layers: &[Layer]) -> Result<Config, ConfigError> {
    let default = Config::default();
    let number =
        |variable, get: fn(&Settings) -> Option<u64>, range, default| within(layers, variable, get, range, default);
    Ok(Config {
        listen: address(layers, &env::LISTEN, |settings| settings.listen.as_ref())?.unwrap_or(default.listen),
        admin_listen: address(layers, &env::ADMIN_LISTEN, |settings| settings.admin_listen.as_ref())?,
        metrics_listen: parsed(
            layers,
            &env::METRICS_LISTEN,
            |settings| settings.metrics_listen.as_ref(),
            default.metrics_listen,
        )?,
        tls: tls(layers)?,
        data_dir: last(layers, |settings| settings.data_dir.clone()).map_or(default.data_dir, |(path, _)| path),
        models: models(layers, default.models)?,
        max_input_images: max_input_images(layers)?,
        device: parsed(layers, &env::DEVICE, |settings| settings.device.as_ref(), default.device)?,
        engine: engine(layers, default.engine)?,
        admin_password: default.admin_password,
        drain_deadline_seconds: number(
            &env::DRAIN_DEADLINE_SECONDS,
            |settings| settings.drain_deadline_seconds,
            &DRAIN_DEADLINE_SECONDS,
            default.drain_deadline_seconds,
        )?,
        http: http(layers, default.http)?,
        queue: QueueConfig {
            jobs_max: number(
                &env::QUEUE_JOBS_MAX,
                |settings| settings.queue.jobs_max,
                &JOBS_MAX,
                default.queue.jobs_max,
            )?,
        },
        results: results(layers, &default.results)?,
        loras: loras(layers, &default.loras)?,
        prices: prices(layers)?,
        sdapi: last(layers, |settings| settings.sdapi).is_some_and(|(is_served, _)| is_served),
        moderation: moderation::resolved(layers, &default.moderation)?,
        log: log(layers, default.log)?,
        telemetry: TelemetryConfig { otlp_endpoint: otlp_endpoint(layers)? },
        webhooks: webhooks::resolve(layers, default.webhooks)?,
        kubernetes: kubernetes(layers, default.kubernetes)?,
        hub: HubConfig {
            download: last(layers, |settings| settings.hub.download).is_some_and(|(download, _)| download),
            ..default.hub
        },
    })
}

fn results(layers: &[Layer], default: &ResultsConfig) -> Result<ResultsConfig, ConfigError> {
    let number =
        |variable, get: fn(&Settings) -> Option<u64>, range, default| within(layers, variable, get, range, default);
    Ok(ResultsConfig {
        store: result_store(layers)?,
        retention_seconds: number(
            &env::RESULTS_RETENTION_SECONDS,
            |settings| settings.results.retention_seconds,
            &RETENTION_SECONDS,
            default.retention_seconds,
        )?,
        link_seconds: number(
            &env::RESULTS_LINK_SECONDS,
            |settings| settings.results.link_seconds,
            &LINK_SECONDS,
            default.link_seconds,
        )?,
        bytes_max: number(
            &env::RESULTS_BYTES_MAX,
            |settings| settings.results.bytes_max,
            &BYTES_MAX,
            default.bytes_max,
        )?,
        provenance: last(layers, |settings| settings.results.provenance)
            .map_or(default.provenance, |(provenance, _)| provenance),
    })
}

fn loras(layers: &[Layer], default: &LoraConfig) -> Result<LoraConfig, ConfigError> {
    let bytes_max = |settings: &Settings| settings.lora_bytes_max;
    Ok(LoraConfig {
        file_bytes_max: within(layers, &env::LORA_BYTES_MAX, bytes_max, &BYTES_MAX, default.file_bytes_max)?,
        in_prompt: last(layers, |settings| settings.lora_in_prompt).is_some_and(|(is_allowed, _)| is_allowed),
    })
}

fn kubernetes(layers: &[Layer], default: KubernetesConfig) -> Result<KubernetesConfig, ConfigError> {
    let kubeconfig = last(layers, |settings| settings.kubernetes.kubeconfig.clone());
    let in_cluster = last(layers, |settings| settings.kubernetes.in_cluster).filter(|(in_cluster, _)| *in_cluster);
    let server = server(layers)?;
    if let Some((_, origin)) = in_cluster {
        let refuse = |reason: &str| Err(origin.error(&env::KUBERNETES_IN_CLUSTER, reason.to_owned()));
        if kubeconfig.is_some() {
            return refuse("cannot be true beside `kubernetes.kubeconfig`: there is only one cluster");
        }
        if server.is_none() {
            // A pod's address of the API server works only inside the cluster.
            return refuse("needs `kubernetes.server`: the API server's address outside the cluster");
        }
    }
    let namespace = |settings: &'_ Settings| settings.kubernetes.namespace.clone();
    let namespace = match last(layers, namespace) {
        None => default.namespace,
        Some((text, origin)) => {
            text.parse().map_err(|error| origin.error(&env::KUBERNETES_NAMESPACE, format!("`{text}` {error}")))?
        }
    };
    Ok(KubernetesConfig {
        kubeconfig: kubeconfig.map(|(path, _)| path),
        in_cluster: in_cluster.is_some(),
        server,
        namespace,
        auto_open: last(layers, |settings| settings.kubernetes.auto_open).is_some_and(|(auto_open, _)| auto_open),
        allow_exec_plugins: last(layers, |settings| settings.kubernetes.allow_exec_plugins)
            .is_some_and(|(are_allowed, _)| are_allowed),
    })
}

/// The API server's address for clients, safe in a kubeconfig.
fn server(layers: &[Layer]) -> Result<Option<String>, ConfigError> {
    let Some((text, origin)) = last(layers, |settings| settings.kubernetes.server.as_ref()) else { return Ok(None) };
    let url = text.trim_end_matches('/');
    let is_fit = |character: char| character.is_ascii_alphanumeric() || "-._:/[]".contains(character);
    let has_host = url.strip_prefix("https://").is_some_and(|rest| !rest.is_empty() && rest.chars().all(is_fit));
    if has_host {
        return Ok(Some(url.to_owned()));
    }
    let reason = "is not an https URL of host and port: write it like https://cluster.example.org:6443";
    Err(origin.error(&env::KUBERNETES_SERVER, format!("`{text}` {reason}")))
}

fn otlp_endpoint(layers: &[Layer]) -> Result<Option<String>, ConfigError> {
    let Some((text, origin)) = last(layers, |settings| settings.telemetry.otlp_endpoint.as_ref()) else {
        return Ok(None);
    };
    // Of the same form as `public_url`; the protocol defines the path.
    let url: PublicUrl = text.parse().map_err(|_| {
        let reason = "is not a URL of scheme, host and port alone: write it like http://localhost:4318";
        origin.error(&env::TELEMETRY_OTLP_ENDPOINT, format!("`{text}` {reason}"))
    })?;
    Ok(Some(url.to_string()))
}

fn engine(layers: &[Layer], default: EngineConfig) -> Result<EngineConfig, ConfigError> {
    Ok(EngineConfig {
        offload: parsed(layers, &env::ENGINE_OFFLOAD, |settings| settings.engine.offload.as_ref(), default.offload)?,
        is_deterministic: last(layers, |settings| settings.engine.deterministic)
            .map_or(default.is_deterministic, |(is_deterministic, _)| is_deterministic),
        kernels: parsed(layers, &env::ENGINE_KERNELS, |settings| settings.engine.kernels.as_ref(), default.kernels)?,
        precision: parsed(
            layers,
            &env::ENGINE_PRECISION,
            |settings| settings.engine.precision.as_ref(),
            default.precision,
        )?,
        weights: parsed(layers, &env::ENGINE_WEIGHTS, |settings| settings.engine.weights.as_ref(), default.weights)?,
        memory_budget: match last(layers, |settings| settings.engine.memory_budget.as_ref()) {
            None => default.memory_budget,
            Some((text, origin)) => {
                let size = text.parse::<ByteSize>();
                Some(size.map_err(|error| origin.error(&env::ENGINE_MEMORY_BUDGET, format!("`{text}`: {error}")))?)
            }
        },
        uses_graphs: default.uses_graphs,
        threads: match within(layers, &env::ENGINE_THREADS, |settings| settings.engine.threads, &THREADS, 0)? {
            0 => default.threads,
            threads => Some(threads),
        },
    })
}

fn http(layers: &[Layer], default: HttpConfig) -> Result<HttpConfig, ConfigError> {
    let number =
        |variable, get: fn(&Settings) -> Option<u64>, range, default| within(layers, variable, get, range, default);
    let public_url = match last(layers, |settings| settings.http.public_url.as_ref()) {
        None => default.public_url,
        Some((text, origin)) => {
            let url =
                text.parse().map_err(|error| origin.error(&env::HTTP_PUBLIC_URL, format!("`{text}`: {error}")))?;
            Some(url)
        }
    };
    Ok(HttpConfig {
        body_limit_bytes: number(
            &env::HTTP_BODY_LIMIT_BYTES,
            |settings| settings.http.body_limit_bytes,
            &BODY_LIMIT_BYTES,
            default.body_limit_bytes,
        )?,
        bodies_bytes_max: number(
            &env::HTTP_BODIES_BYTES_MAX,
            |settings| settings.http.bodies_bytes_max,
            &BODIES_BYTES,
            default.bodies_bytes_max,
        )?,
        key_bodies_bytes_max: number(
            &env::HTTP_KEY_BODIES_BYTES_MAX,
            |settings| settings.http.key_bodies_bytes_max,
            &BODIES_BYTES,
            default.key_bodies_bytes_max,
        )?,
        wait_seconds_max: number(
            &env::HTTP_WAIT_SECONDS_MAX,
            |settings| settings.http.wait_seconds_max,
            &WAIT_SECONDS_MAX,
            default.wait_seconds_max,
        )?,
        connections_max: number(
            &env::HTTP_CONNECTIONS_MAX,
            |settings| settings.http.connections_max,
            &CONNECTIONS_MAX,
            default.connections_max,
        )?,
        header_deadline_seconds: number(
            &env::HTTP_HEADER_DEADLINE_SECONDS,
            |settings| settings.http.header_deadline_seconds,
            &HEADER_DEADLINE_SECONDS,
            default.header_deadline_seconds,
        )?,
        public_url,
        hosts: hosts(layers)?,
        cors_origins: cors_origins(layers, default.cors_origins)?,
        trusted_proxies: trusted_proxies(layers)?,
    })
}

fn hosts(layers: &[Layer]) -> Result<Option<HostNames>, ConfigError> {
    let Some((list, origin)) = last(layers, |settings| settings.http.hosts.as_ref()) else { return Ok(None) };
    HostNames::of(list).map(Some).map_err(|error| origin.error(&env::HTTP_HOSTS, error.to_string()))
}

fn cors_origins(layers: &[Layer], default: CorsOrigins) -> Result<CorsOrigins, ConfigError> {
    let Some((list, origin)) = last(layers, |settings| settings.http.cors_origins.as_ref()) else {
        return Ok(default);
    };
    CorsOrigins::of(list).map_err(|error| origin.error(&env::HTTP_CORS_ORIGINS, error.to_string()))
}

fn trusted_proxies(layers: &[Layer]) -> Result<Networks, ConfigError> {
    let Some((list, origin)) = last(layers, |settings| settings.http.trusted_proxies.as_ref()) else {
        return Ok(Networks::default());
    };
    Networks::of(list).map_err(|error| origin.error(&env::HTTP_TRUSTED_PROXIES, error.to_string()))
}

fn address<'a>(
    layers: &'a [Layer],
    variable: &Variable,
    get: impl Fn(&'a Settings) -> Option<&'a String>,
) -> Result<Option<SocketAddr>, ConfigError> {
    let Some((text, origin)) = last(layers, get) else { return Ok(None) };
    let like = Config::default().listen;
    text.parse()
        .map(Some)
        .map_err(|_| origin.error(variable, format!("`{text}` is not an address and a port: write it like {like}")))
}

/// Certificate and key; either is an error without the other.
fn tls(layers: &[Layer]) -> Result<Option<TlsConfig>, ConfigError> {
    let certificate = last(layers, |settings| settings.tls.certificate.as_ref());
    let private_key = last(layers, |settings| settings.tls.private_key.as_ref());
    match (certificate, private_key) {
        (None, None) => Ok(None),
        (Some((certificate, _)), Some((private_key, _))) => {
            Ok(Some(TlsConfig { certificate: certificate.clone(), private_key: private_key.clone() }))
        }
        (Some((_, origin)), None) => {
            let reason =
                format!("needs its private key: `{}` or {}", env::TLS_PRIVATE_KEY.field, env::TLS_PRIVATE_KEY.name);
            Err(origin.error(&env::TLS_CERTIFICATE, reason))
        }
        (None, Some((_, origin))) => {
            let reason =
                format!("needs its certificate: `{}` or {}", env::TLS_CERTIFICATE.field, env::TLS_CERTIFICATE.name);
            Err(origin.error(&env::TLS_PRIVATE_KEY, reason))
        }
    }
}
