//! `fluxserve links`: the links to images that need no key.

use std::io::Write;

use clap::Subcommand;

use crate::app;
use crate::config::Config;

/// Commands on links.
#[derive(Debug, Subcommand)]
pub enum LinksCommand {
    /// Revoke all existing links; a running server refuses them at once, and issues new ones
    Rotate,
}

/// Runs the command.
pub(super) fn run(command: &LinksCommand, config: &Config, notes: &mut dyn Write) -> anyhow::Result<()> {
    match command {
        LinksCommand::Rotate => {
            app::rotate_links(config)?;
            writeln!(notes, "revoked all links to images; a job's response has a new one")?;
        }
    }
    Ok(())
}
