//! `doctor`: what keeps this machine from serving, and how to mend it.

use std::io::Write;

use anyhow::bail;

use super::models::files_of;
use crate::config::Config;
use crate::domain::device::DeviceChoice;
use crate::domain::model_source::ModelSource;
use crate::engine::{self, Inspection};
use crate::store::Store;

/// What one look found: a fact, or a fault with the way to mend it.
type Finding = Result<String, String>;

/// Writes what is wrong with device, memory, database and models, and how to mend it.
///
/// # Errors
/// When something is wrong that keeps the worker from serving.
pub async fn doctor(config: &Config, out: &mut dyn Write) -> anyhow::Result<()> {
    let models: Vec<Model> = config.models.iter().map(|source| (source, look_at(config, source))).collect();
    let mut findings = vec![
        ("memory".to_owned(), memory(&models)),
        ("database".to_owned(), database(config).await),
        ("address".to_owned(), address(config).await),
    ];
    for device in config.device.iter() {
        findings.insert(0, ("device".to_owned(), look_at_device(device)));
    }
    for model in &models {
        findings.push((format!("model {}", model.0.id), completeness(model)));
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

/// Whether a device answers, and computes what the CPU computes.
fn look_at_device(device: DeviceChoice) -> Finding {
    let description = engine::probe(device).map_err(|error| error.to_string())?;
    let reports = engine::self_test(device).map_err(|error| format!("{description}: {error}"))?;
    let off: Vec<String> = reports
        .iter()
        .filter(|report| !report.is_right())
        .map(|report| format!("{} ({:.2} % off)", report.name, 100.0 * report.error))
        .collect();
    if !off.is_empty() {
        return Err(format!("{description}: does not compute right: {}; use another device", off.join(", ")));
    }
    let worst = reports.iter().map(|report| report.error).fold(0.0, f64::max);
    Ok(format!("{description}; {} operations agree with the CPU's, at most {:.2} % off", reports.len(), 100.0 * worst))
}

/// Free memory against what the weights need on the CPU, where they are kept as f32.
fn memory(models: &[Model]) -> Finding {
    let components = models.iter().filter_map(|(_, look)| look.as_ref().ok()).flat_map(|look| &look.components);
    let weights_bytes: usize = components.map(|component| component.bytes_as_f32).sum();
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

/// A model that is to be served, and what its files look like.
type Model<'a> = (&'a ModelSource, Result<Inspection, String>);

fn look_at(config: &Config, source: &ModelSource) -> Result<Inspection, String> {
    files_of(config, source).map(|files| engine::inspect(&files)).map_err(|error| error.to_string())
}

/// Whether the checkpoint is whole.
fn completeness((source, look): &Model) -> Finding {
    let inspection = look.as_ref().map_err(Clone::clone)?;
    if !inspection.is_sound() {
        return Err(format!("not usable; `fluxserve models check {source}` lists what is wrong"));
    }
    Ok("complete".to_owned())
}
