//! Settings of the HTTP API.

use std::time::Duration;

use super::cors::Sharing;
use super::hosts::Hosts;
use crate::domain::networks::Networks;

/// Settings of the HTTP API.
#[derive(Debug, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "each is an independent switch, named where it is set")]
pub struct HttpSettings {
    /// Largest request body.
    pub body_bytes_max: usize,
    /// Maximum memory for all large bodies at one time, in bytes.
    pub bodies_bytes_max: usize,
    /// Most of it for the bodies of one key, which may always have one body.
    pub key_bodies_bytes_max: usize,
    /// Longest time a client may take to send its body.
    pub body_deadline: Duration,
    /// Longest wait with `Prefer: wait`, and the wait for an image as the answer.
    pub wait_max: Duration,
    /// Longest time any request may take; above `wait_max`.
    pub request_deadline: Duration,
    /// Longest time that the upload of a LoRA may take.
    pub upload_deadline: Duration,
    /// Whether a prompt may ask for LoRAs: `<lora:NAME:0.8>`.
    pub reads_loras_in_prompt: bool,
    /// Whether a request may ask for a cache between steps. No, where images are to be deterministic.
    pub allows_caches: bool,
    /// Whether the routes of AUTOMATIC1111's API exist.
    pub has_sdapi: bool,
    /// Longest duration of one event stream; its client reconnects for the rest.
    pub event_stream_max: Duration,
    /// Longest silence of an event stream.
    pub event_heartbeat: Duration,
    /// Where clients reach this worker, such as `https://images.example.org`. `None`: taken from the `Host` header.
    pub public_url: Option<String>,
    /// Where clients on this machine reach this worker. Used when management has its own address.
    pub local_url: Option<String>,
    /// Whether it is served over https.
    pub has_tls: bool,
    /// Whether the console and management routes have their own address.
    pub has_own_management: bool,
    /// Which pages of other sites may use the routes with a key.
    pub sharing: Sharing,
    /// Proxies whose forwarded client addresses are trusted.
    pub trusted_proxies: Networks,
    /// Host names for clients.
    pub hosts: Hosts,
    /// Host names for the administrator, at the management address.
    pub management_hosts: Hosts,
    /// Host names for metrics.
    pub metrics_hosts: Hosts,
}

impl HttpSettings {
    /// Where clients reach this worker, without a slash at the end. `None`: at the address that a request was sent to.
    pub(super) fn clients_url(&self) -> Option<&str> {
        let own = self.local_url.as_deref().filter(|_| self.has_own_management);
        self.public_url.as_deref().or(own).map(|url| url.trim_end_matches('/'))
    }
}

impl Default for HttpSettings {
    fn default() -> Self {
        Self {
            body_bytes_max: 2 * 1024 * 1024,
            bodies_bytes_max: 256 * 1024 * 1024,
            key_bodies_bytes_max: 64 * 1024 * 1024,
            body_deadline: Duration::from_secs(30),
            wait_max: Duration::from_mins(5),
            request_deadline: Duration::from_mins(6),
            upload_deadline: Duration::from_hours(2),
            reads_loras_in_prompt: false,
            allows_caches: true,
            has_sdapi: false,
            event_stream_max: Duration::from_mins(5),
            event_heartbeat: Duration::from_secs(15),
            public_url: None,
            local_url: None,
            has_tls: false,
            has_own_management: false,
            sharing: Sharing::None,
            trusted_proxies: Networks::default(),
            hosts: Hosts::Any,
            management_hosts: Hosts::Any,
            metrics_hosts: Hosts::Any,
        }
    }
}
