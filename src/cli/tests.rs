//! Running commands in the tests.

mod bench;
mod files;
mod keys;
mod loras;
mod parsing;
mod shell;

use clap::error::ErrorKind;

use super::*;
use crate::domain::byte_size::ByteSize;
use crate::domain::conditioning::{ControlMode, ImageOptions, Preprocess};
use crate::domain::device::{DeviceChoice, Kernels, Offload};
use crate::domain::model::Attachments;
use crate::domain::precision::Precision;
use crate::domain::spec::GenerateParams;
use crate::domain::step_cache::StepCache;
use crate::domain::weight_storage::WeightStorage;

fn parse(arguments: &[&str]) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(std::iter::once("fluxserve").chain(arguments.iter().copied()))
}

fn parse_error(arguments: &[&str]) -> clap::Error {
    parse(arguments).expect_err("a mistake")
}

/// Runs a command with its own data folder. Returns what it wrote to `out` and to `notes`.
async fn run_in(data_dir: &std::path::Path, arguments: &[&str]) -> anyhow::Result<(String, String)> {
    run_with_input(data_dir, arguments, "").await
}

async fn run_with_input(
    data_dir: &std::path::Path,
    arguments: &[&str],
    input: &str,
) -> anyhow::Result<(String, String)> {
    let mut input = input.as_bytes();
    let mut cli = parse(arguments)?;
    cli.shared.data_dir = Some(data_dir.to_owned());
    let (mut out, mut notes) = (Vec::new(), Vec::new());
    run(cli, PasswordInput::Line(&mut input), &mut out, &mut notes, CommandLogs::none).await?;
    Ok((String::from_utf8(out)?, String::from_utf8(notes)?))
}
