//! `fluxserve backup`: a snapshot of the database in one file.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;

use crate::app::Keys;
use crate::config::Config;

/// Options of `backup`.
#[derive(Debug, Args)]
pub struct BackupArgs {
    /// The new file; must not exist yet
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
}

/// Writes the copy.
pub(super) async fn run(arguments: &BackupArgs, config: &Config, notes: &mut dyn Write) -> anyhow::Result<()> {
    let keys = Keys::open_existing(config).await?;
    let outcome = keys.store.backup(&arguments.file).await;
    keys.store.close().await;
    let bytes = outcome?;
    writeln!(
        notes,
        "wrote `{}`: {bytes} bytes; it does not contain the images of the data folder",
        arguments.file.display()
    )?;
    Ok(())
}
