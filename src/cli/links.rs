//! `fluxserve links`: the links to images that need no key.

use std::io::Write;

use clap::Subcommand;

use crate::app;
use crate::config::Config;

/// What to do with links.
#[derive(Debug, Subcommand)]
pub enum LinksCommand {
    /// Withdraw every link that was given out; a worker that runs refuses them from now on, and gives out new ones
    Rotate,
}

/// Does what `command` says.
pub(super) fn run(command: &LinksCommand, config: &Config, notes: &mut dyn Write) -> anyhow::Result<()> {
    match command {
        LinksCommand::Rotate => {
            app::rotate_links(config)?;
            writeln!(
                notes,
                "all links to images that were given out are withdrawn; each look at a job gives a new one"
            )?;
        }
    }
    Ok(())
}
