//! What `serve` prints for the person who started it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::engines::NotReady;
use super::{DEMO_KEY_DAYS, Keys};
use crate::catalog::Catalog;
use crate::config::Config;
use crate::domain::ids::ModelId;
use crate::shutdown::Shutdown;
use crate::telemetry::pipe::{Pipe, Written};

/// URLs of the worker on this machine.
pub(super) struct Urls {
    pub(super) clients: String,
    /// Console and management routes.
    pub(super) management: String,
}

/// The URL for clients on this machine of a server that listens on `address`.
pub(super) fn local_url(address: SocketAddr, has_tls: bool) -> String {
    let scheme = if has_tls { "https" } else { "http" };
    format!("{scheme}://{}", reachable(address))
}

/// The address to connect to: wildcards are replaced by the loopback address.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// Prints what can be done now. On the first start it creates the administrator's password and the demo key: only after
/// the earlier output was read, since these are never shown again.
pub(super) async fn greet(
    (out, shutdown): (&Pipe, &Shutdown),
    urls: &Urls,
    catalog: &Catalog,
    not_ready: &[NotReady],
    (config, keys): (&Config, &Keys),
) -> anyhow::Result<()> {
    let (about_models, first_ready) = models(catalog, not_ready);
    out.send(about_models.as_bytes());
    out.send(format!("The console is at {}/admin\n", urls.management).as_bytes());
    if !is_read(out, shutdown).await {
        return Ok(());
    }
    match keys.first_password().await? {
        Some(password) => {
            let shown = format!("The administrator's password, shown this once: {}\n", password.reveal());
            out.send(shown.as_bytes());
            out.send(b"  `fluxserve admin set-password` sets another\n");
        }
        None if !keys.admin.has_password().await? => {
            out.send(b"Nobody can sign in to it yet: `fluxserve admin set-password` sets a password\n");
        }
        None => {}
    }
    if !is_read(out, shutdown).await {
        return Ok(());
    }
    let demo_key = keys.demo_key(config).await?;
    let key = match &demo_key {
        Some(created) => {
            let key = created.plain.reveal();
            let shown = format!("A demo key, shown this once: {key}\n  it is valid for {DEMO_KEY_DAYS} days\n");
            out.send(shown.as_bytes());
            key
        }
        None => "$FLUXSERVE_API_KEY",
    };
    let Some(model) = first_ready else { return Ok(()) };
    let url = &urls.clients;
    let shown = format!(
        "Generate an image:\n\n  curl --fail-with-body -sS {url}/v1/inference/image -H \"x-api-key: {key}\" \
         -H \"content-type: application/json\" -H \"accept: image/png\" -d '{{\"model\": \"{model}\", \"prompt\": \"a red circle on a blue background\"}}' \
         --output image.png\n\n",
    );
    out.send(shown.as_bytes());
    Ok(())
}

/// Lines about the models, and the first one that is ready.
fn models(catalog: &Catalog, not_ready: &[NotReady]) -> (String, Option<ModelId>) {
    let (mut lines, mut first_ready) = (Vec::new(), None);
    for (card, files) in catalog.served() {
        if let Some(NotReady { cause, .. }) = not_ready.iter().find(|other| other.model == card.id) {
            lines.push(format!("{} is not ready, and is retried: {cause}", card.id));
            continue;
        }
        let place = files.path().map_or_else(|| "in the program".to_owned(), |path| path.display().to_string());
        lines.push(format!("{} is ready ({place})", card.id));
        if let Some(notice) = &card.notice {
            lines.push(format!("  note: {notice}"));
            tracing::warn!(model = %card.id, "{notice}");
        }
        first_ready.get_or_insert(card.id.clone());
    }
    // Ends the last line, too.
    lines.push(String::new());
    (lines.join("\n"), first_ready)
}

/// Whether the output so far was read. If not, the worker serves silently, and creates no secrets that no one would
/// see.
async fn is_read(out: &Pipe, shutdown: &Shutdown) -> bool {
    let written = tokio::select! {
        written = out.settled() => written,
        () = shutdown.requested() => return false,
    };
    if let Written::Failed(kind) = written {
        tracing::warn!(
            "standard output is not read ({kind}), so no password and no key were created to be shown there: create them \
             with `fluxserve admin set-password` and `fluxserve keys create`"
        );
    }
    written == Written::All
}
