//! What `serve` says to the person who started it.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::Keys;
use super::engines::NotReady;
use crate::catalog::Catalog;
use crate::config::Config;
use crate::domain::model::ModelFiles;

/// Where people and clients on this machine find the worker.
pub(super) struct Urls {
    pub(super) clients: String,
    /// Console and management routes.
    pub(super) management: String,
}

/// Where a client on this machine finds what listens on `address`.
pub(super) fn local_url(address: SocketAddr, has_tls: bool) -> String {
    let scheme = if has_tls { "https" } else { "http" };
    format!("{scheme}://{}", reachable(address))
}

/// How a client on this machine reaches an address: the wildcards are not addresses one can connect to.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// Says what can be done now. On the first start it makes the administrator's password and the demo key: not before this
/// is the moment to show them, since they are never shown again.
pub(super) async fn greet(
    out: &mut dyn Write,
    urls: &Urls,
    catalog: &Catalog,
    not_ready: &[NotReady],
    (config, keys): (&Config, &Keys),
) -> anyhow::Result<()> {
    let mut first_ready = None;
    for (card, files) in catalog.served() {
        if let Some(NotReady { cause, .. }) = not_ready.iter().find(|other| other.model == card.id) {
            writeln!(out, "{} is not ready, and is tried again: {cause}", card.id)?;
            continue;
        }
        let place = match files {
            ModelFiles::Directory(directory) => directory.display().to_string(),
            ModelFiles::Embedded(_) => "in the program".to_owned(),
        };
        writeln!(out, "{} is ready ({place})", card.id)?;
        if let Some(notice) = &card.notice {
            writeln!(out, "  note: {notice}")?;
            tracing::warn!(model = %card.id, "{notice}");
        }
        first_ready.get_or_insert(card.id.clone());
    }
    writeln!(out, "The console is at {}/admin", urls.management)?;
    out.flush()?;
    match keys.first_password().await? {
        Some(password) => {
            writeln!(out, "The administrator's password, shown this once: {}", password.reveal())?;
            writeln!(out, "  `fluxserve admin set-password` sets another")?;
        }
        None if !keys.admin.has_password().await? => {
            writeln!(out, "Nobody can sign in to it yet: `fluxserve admin set-password` sets a password")?;
        }
        None => {}
    }
    out.flush()?;
    let demo_key = keys.demo_key(config).await?;
    let key = match &demo_key {
        Some(created) => {
            let key = created.plain.reveal();
            writeln!(out, "A demo key, shown this once: {key}")?;
            key
        }
        None => "$FLUXSERVE_API_KEY",
    };
    let Some(model) = first_ready else { return Ok(()) };
    let url = &urls.clients;
    writeln!(
        out,
        "Draw a picture:\n\n  curl --fail-with-body -sS {url}/v1/inference/image -H \"x-api-key: {key}\" \
         -H \"content-type: application/json\" -H \"accept: image/png\" -d '{{\"model\": \"{model}\", \"prompt\": \"a red circle on a blue background\"}}' \
         --output picture.png\n",
    )?;
    out.flush()?;
    Ok(())
}
