//! `fluxserve completions` and `fluxserve man`: made from the definition of the command line, so that they agree with it.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, CommandFactory as _};
use clap_complete::Shell;
use clap_mangen::Man;

use super::Cli;

/// Options of `completions`.
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell that reads the script
    #[arg(value_enum, value_name = "SHELL")]
    pub shell: Shell,
}

/// Options of `man`.
#[derive(Debug, Args)]
pub struct ManArgs {
    /// Folder for a page of each command [default: the program's own page, to standard output]
    #[arg(value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

pub(super) fn completions(arguments: &CompletionsArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    let mut script = Vec::new();
    // Into memory first: writing to a pipe that breaks would be a panic there.
    clap_complete::generate(arguments.shell, &mut Cli::command(), "fluxserve", &mut script);
    Ok(out.write_all(&script)?)
}

pub(super) fn man(arguments: &ManArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    match &arguments.dir {
        Some(dir) => write_pages(dir).with_context(|| format!("writing manual pages to `{}`", dir.display())),
        None => Ok(Man::new(described()).render(out)?),
    }
}

fn write_pages(dir: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(dir)?;
    clap_mangen::generate_to(described(), dir)
}

/// The command line as the pages describe it: the same for every build of a version.
fn described() -> clap::Command {
    let mut command = Cli::command().disable_help_subcommand(true).long_version(env!("CARGO_PKG_VERSION"));
    command.build();
    command
}
