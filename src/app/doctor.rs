//! `doctor`: what keeps this machine from serving, and how to mend it.

use std::io::Write;

use anyhow::bail;

use super::models::files_of;
use crate::config::Config;
use crate::domain::model_source::ModelSource;
use crate::engine;
use crate::store::Store;

/// What one look found: a fact, or a fault with the way to mend it.
type Finding = Result<String, String>;

/// Writes what is wrong with device, memory, database and models, and how to mend it.
///
/// # Errors
/// When something is wrong that keeps the worker from serving.
pub async fn doctor(config: &Config, out: &mut dyn Write) -> anyhow::Result<()> {
    let mut findings = vec![
        ("device".to_owned(), engine::probe(config.device).map_err(|error| error.to_string())),
        ("memory".to_owned(), memory(config)),
        ("database".to_owned(), database(config).await),
        ("address".to_owned(), address(config).await),
    ];
    for source in &config.models {
        findings.push((format!("model {}", source.id), model(source)));
    }
    let mut faults = 0;
    for (name, finding) in findings {
        match finding {
            Ok(fact) => writeln!(out, "ok     {name}: {fact}")?,
            Err(fault) => {
                faults += 1;
                writeln!(out, "FAULT  {name}: {fault}")?;
            }
        }
    }
    if faults > 0 {
        bail!("{faults} of the above keep this machine from serving");
    }
    Ok(())
}

/// Free memory against what the weights need on the CPU, where they are kept as f32.
fn memory(config: &Config) -> Finding {
    let mut weights_bytes = 0;
    for source in &config.models {
        let Ok(files) = files_of(source) else { continue };
        let components = engine::inspect(&files).components;
        weights_bytes += components.iter().map(|component| component.bytes_as_f32).sum::<usize>();
    }
    let needed = weights_bytes.div_ceil(MEBIBYTE);
    let Some(available) = available_memory_mebibytes() else {
        return Ok(format!("weights need {needed} MiB on the CPU; how much is free cannot be read on this system"));
    };
    if needed > available {
        return Err(format!(
            "weights need {needed} MiB on the CPU, {available} MiB are free: serve a smaller model, or use a GPU"
        ));
    }
    Ok(format!("{available} MiB free, weights need {needed} MiB on the CPU"))
}

const MEBIBYTE: usize = 1 << 20;

fn available_memory_mebibytes() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: usize = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes / 1024)
}

async fn database(config: &Config) -> Finding {
    let path = config.database_path();
    if !path.exists() {
        return Ok(format!("`{}` is not there yet; `fluxserve serve` makes it", path.display()));
    }
    let store = Store::open_existing(&path).await.map_err(|error| format!("{:#}", anyhow::Error::from(error)))?;
    let outcome = store.check_writable().await;
    store.close().await;
    match outcome {
        Ok(()) => Ok(format!("`{}` takes writes", path.display())),
        Err(error) => Err(format!("`{}` takes no writes: {:#}", path.display(), anyhow::Error::from(error))),
    }
}

async fn address(config: &Config) -> Finding {
    match tokio::net::TcpListener::bind(config.listen).await {
        Ok(_) => Ok(format!("{} is free", config.listen)),
        Err(error) => Err(format!("{} cannot be listened on: {error}; choose another with --listen", config.listen)),
    }
}

/// Whether the checkpoint is whole.
fn model(source: &ModelSource) -> Finding {
    let files = files_of(source).map_err(|error| error.to_string())?;
    let inspection = engine::inspect(&files);
    if !inspection.is_sound() {
        return Err(format!("not usable; `fluxserve models check {source}` lists what is wrong"));
    }
    Ok("complete".to_owned())
}
