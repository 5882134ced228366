//! `doctor`: what keeps this machine from serving, and how to fix it.

use std::io::Write;

use anyhow::{Context as _, bail};

use super::cards::{as_served, attachment_lines};
use super::fetching::size;
use super::models::{files_of, in_lines};
use super::{open_files, results_disk};
use crate::catalog::card_of;
use crate::config::Config;
use crate::domain::device::{DeviceChoice, Kernels, Offload};
use crate::domain::model_source::ModelSource;
use crate::domain::operation_group::OperationGroup;
use crate::domain::precision::Precision;
use crate::domain::weight_storage::WeightStorage;
use crate::engine::{
    self, DeviceError, ExaminedDevice, Inspection, KeptAs, OperationEvent, OperationReport, why_bf16_is_no_faster,
};
use crate::store::Store;
use crate::telemetry::process::available_bytes;

/// Outcome of one check: a fact, or a fault with a hint.
type Finding = Result<String, String>;

/// Checks devices, memory, database, disk and models; writes what is wrong and how to fix it.
///
/// # Errors
/// When a fault keeps the worker from serving.
pub async fn doctor(config: &Config, out: &mut dyn Write) -> anyhow::Result<()> {
    let models: Vec<Model> = config.models.iter().map(|source| (source, look_at(config, source))).collect();
    let open = |choice| (choice, ExaminedDevice::open(choice));
    let devices: Vec<Device> = config.device.iter().map(open).collect();
    let mut findings = vec![
        ("memory".to_owned(), memory(config, &devices, &models)),
        ("database".to_owned(), database(config).await),
        ("results".to_owned(), results_disk::look_at(config).await),
        ("open files".to_owned(), open_files::look_at(config)),
        ("address".to_owned(), address(config).await),
    ];
    for (_, device) in &devices {
        findings.insert(0, ("device".to_owned(), look_at_device(device, config.engine.kernels)));
    }
    findings.push(("precision".to_owned(), precision(config, &devices)));
    for model in &models {
        findings.push((format!("model {}", model.0.id), completeness(config, &devices, model)));
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

/// Writes how each model would be kept on a GPU with so many bytes free.
///
/// # Errors
/// When a model is incomplete, or does not fit.
pub fn doctor_for_memory(config: &Config, free: usize, out: &mut dyn Write) -> anyhow::Result<()> {
    let settings = config.engine_settings(DeviceChoice::Auto);
    let mut faults = 0;
    for source in &config.models {
        let files = files_of(config, source);
        let plan = files
            .as_ref()
            .map_err(|error| format!("{error:#}"))
            .and_then(|files| engine::memory_plan_within(files, free, &settings).map_err(|error| error.to_string()));
        match plan {
            Ok(plan) => writeln!(out, "ok     model {}: {plan}", source.id)?,
            Err(error) => {
                faults += 1;
                writeln!(out, "FAULT  model {}: {error}", source.id)?;
            }
        }
        // What keeps it from being opened is said above.
        let rows = files.ok().and_then(|files| engine::memory_arrangements_within(&files, free, &settings).ok());
        for row in rows.into_iter().flatten() {
            writeln!(out, "       {row}")?;
        }
    }
    if faults > 0 {
        bail!("{faults} of the above cannot be served with {} of a GPU's memory", size(free as u64));
    }
    Ok(())
}

/// Tests the operations of some groups on the device, each on its own. `on_event` is called after each one.
///
/// # Errors
/// When the configuration has several devices, or the device is not available, or `on_event` fails.
pub fn test_operations(
    config: &Config,
    groups: &[OperationGroup],
    on_event: &mut dyn FnMut(&OperationEvent) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut devices = config.device.iter();
    let (Some(device), None) = (devices.next(), devices.next()) else {
        bail!("operations are tested on one device, and `{}` are several: name one with --device", config.device);
    };
    let mut written = Ok(());
    let mut keep_first_error = |event: OperationEvent| {
        if written.is_ok() {
            written = on_event(&event);
        }
    };
    engine::run_operations(device, config.engine.kernels, groups, &mut keep_first_error)?;
    written.context("writing the results")
}

/// What plain `doctor` tests: on the CPU without the largest products, since the CPU is what others are compared with.
fn groups_of(device: &ExaminedDevice) -> Vec<OperationGroup> {
    let is_tested = |group: &OperationGroup| *group != OperationGroup::Products || !device.is_cpu();
    OperationGroup::ALL.into_iter().filter(is_tested).collect()
}

/// Whether a device responds, and its results agree with the CPU's.
fn look_at_device(device: &Result<ExaminedDevice, DeviceError>, kernels: Kernels) -> Finding {
    let device = device.as_ref().map_err(ToString::to_string)?;
    let description = device.description();
    let mut events = Vec::new();
    device.run_operations(kernels, &groups_of(device), &mut |event| events.push(event));
    let outcome = outcome_of(&events);
    outcome.map(|fact| format!("{description}; {fact}")).map_err(|fault| format!("{description}: {fault}"))
}

/// What testing the operations says about a device.
fn outcome_of(events: &[OperationEvent]) -> Finding {
    let (mut right, mut worst, mut faults, mut skipped) = (0_usize, 0.0_f64, Vec::new(), Vec::new());
    for event in events {
        match event {
            OperationEvent::Done(OperationReport { group, name, failure: Some(failure), .. }) => {
                faults.push(format!("{group}: {name}: {failure}"));
            }
            OperationEvent::Done(report) => {
                right += 1;
                worst = worst.max(report.error.unwrap_or_default());
            }
            OperationEvent::Skipped { group, reason } => skipped.push(format!("; {group} skipped: {reason}")),
            OperationEvent::Stopped { reason, left, .. } => {
                faults.push(format!(
                    "{} operations did not run, because the device answers no more: {reason}",
                    left.len()
                ));
            }
        }
    }
    if !faults.is_empty() {
        let hint = "use another device; `fluxserve doctor --operations` shows each operation";
        return Err(format!("operations are wrong: {}; {hint}", faults.join("; ")));
    }
    let skipped = skipped.concat();
    Ok(format!("{right} operations agree with the CPU's, at most {:.2} % off{skipped}", 100.0 * worst))
}

/// Whether the devices support the configured precision, and what it means.
fn precision(config: &Config, devices: &[Device]) -> Finding {
    let precision = config.engine.precision;
    // A device that does not respond is reported by itself.
    for device in devices.iter().filter_map(|(_, device)| device.as_ref().ok()) {
        device.check_precision(precision).map_err(|error| error.to_string())?;
    }
    let lossy = format!("{precision}, which is lossy: images differ a little from those in full precision");
    Ok(match precision {
        Precision::Full => format!("{precision}: nothing is rounded beyond the device's own precision"),
        Precision::Bf16 => format!("{lossy}; {}", why_bf16_is_no_faster().unwrap_or("this processor multiplies bf16")),
        Precision::Fp8 => lossy,
    })
}

/// Free memory, compared with what the weights of all models need on the CPU.
fn memory(config: &Config, devices: &[Device], models: &[Model]) -> Finding {
    let available = available_bytes();
    let free =
        available.map_or_else(|| "free memory cannot be read here".to_owned(), |bytes| format!("{} free", size(bytes)));
    if !devices.iter().any(runs_on_cpu) {
        return Ok(free);
    }
    let looks = models.iter().filter_map(|(_, look)| look.as_ref().ok());
    let (kept_as, words) = kept_on_cpu(config);
    let needed: usize = looks.map(|look| total(look, kept_as)).sum();
    let weights = format!("the weights of all models need {} on the CPU, {words}", size(needed as u64));
    if available.is_none_or(|available| needed as u64 <= available) {
        return Ok(format!("{free}, {weights}"));
    }
    let engine = &config.engine;
    if matches!(engine.offload, Offload::Auto | Offload::Blocks) && !engine.precision.quantizes() {
        let slow = "blocks of the transformer are read from the disk for each step, which is slow";
        return Ok(format!("{weights}, {free}: {slow}"));
    }
    Err(format!("{weights}, {free}: use `--offload blocks`, serve fewer or smaller models, or use a GPU"))
}

/// How weights are kept on the CPU, with words for it.
fn kept_on_cpu(config: &Config) -> (KeptAs, &'static str) {
    match config.engine.weights {
        WeightStorage::Expanded => (KeptAs::F32, "in f32"),
        WeightStorage::Auto | WeightStorage::AsStored => (KeptAs::AsStored, "as stored"),
    }
}

fn runs_on_cpu((_, device): &Device) -> bool {
    device.as_ref().is_ok_and(ExaminedDevice::is_cpu)
}

fn total(inspection: &Inspection, kept_as: KeptAs) -> usize {
    inspection.weights_bytes(kept_as).iter().map(|(_, bytes)| bytes).sum()
}

/// Whether a model fits on each device, by the engine's own memory plan.
fn fits(config: &Config, devices: &[Device], source: &ModelSource, inspection: &Inspection) -> Finding {
    let files = files_of(config, source).map_err(|error| error.to_string())?;
    let (mut words, mut table) = (Vec::new(), Vec::new());
    for (choice, device) in devices {
        // Another check reports it.
        let Ok(device) = device else {
            words.push(format!("{choice} does not respond"));
            continue;
        };
        words.push(match device.memory_plan(&files, &config.engine_settings(*choice)) {
            Ok(Some(plan)) => format!("on {choice}: {plan}"),
            Ok(None) => fits_on_cpu(*choice, inspection, kept_on_cpu(config)),
            Err(error) => return Err(format!("on {choice}: {error}")),
        });
        // What keeps the model from being opened is said by the plan.
        let rows = device.memory_arrangements(&files, &config.engine_settings(*choice)).unwrap_or_default();
        table.extend(rows.into_iter().map(|row| format!("\n       {row}")));
    }
    if devices.iter().all(runs_on_cpu) {
        let narrow = total(inspection, KeptAs::Bf16);
        words.push(format!("on a GPU it would be {} in bf16", size(narrow as u64)));
    }
    Ok(words.join("; ") + &table.concat())
}

fn fits_on_cpu(device: DeviceChoice, inspection: &Inspection, (kept_as, words): (KeptAs, &str)) -> String {
    let parts = inspection.weights_bytes(kept_as).into_iter();
    let parts: Vec<String> = parts.map(|(part, bytes)| format!("{part} {}", size(bytes as u64))).collect();
    let needed = total(inspection, kept_as);
    let fit = match available_bytes() {
        Some(free) if needed as u64 <= free => format!("fits, {} free", size(free)),
        Some(free) => format!("does not fit, {} free", size(free)),
        None => "free memory is unknown".to_owned(),
    };
    format!("on {device} {} {words} ({}): {fit}", size(needed as u64), parts.join(", "))
}

async fn database(config: &Config) -> Finding {
    let path = config.database_path();
    if !path.exists() {
        return Ok(format!("`{}` does not exist yet; `fluxserve serve` creates it", path.display()));
    }
    let store = Store::open_existing(&path).await.map_err(|error| format!("{:#}", anyhow::Error::from(error)))?;
    let outcome = store.check_writable().await;
    store.close().await;
    match outcome {
        Ok(()) => Ok(format!("`{}` accepts writes", path.display())),
        Err(error) => Err(format!("`{}` does not accept writes: {:#}", path.display(), anyhow::Error::from(error))),
    }
}

async fn address(config: &Config) -> Finding {
    match tokio::net::TcpListener::bind(config.listen).await {
        Ok(_) => Ok(format!("{} is free", config.listen)),
        Err(error) => Err(format!("cannot listen on {}: {error}; choose another with --listen", config.listen)),
    }
}

/// A configured device, open if it responds.
type Device = (DeviceChoice, Result<ExaminedDevice, DeviceError>);

/// A model to serve, and the inspection of its files.
type Model<'a> = (&'a ModelSource, Result<Inspection, String>);

fn look_at(config: &Config, source: &ModelSource) -> Result<Inspection, String> {
    files_of(config, source).map(|files| engine::inspect(&files)).map_err(|error| error.to_string())
}

/// Whether the checkpoint is complete, and where it fits.
fn completeness(config: &Config, devices: &[Device], (source, look): &Model) -> Finding {
    let inspection = look.as_ref().map_err(Clone::clone)?;
    if !inspection.is_sound() {
        return Err(format!("not usable; `fluxserve models check {source}` lists what is wrong"));
    }
    let files = files_of(config, source).map_err(|error| error.to_string())?;
    as_served(card_of(source), &files).map_err(|error| error.to_string())?;
    let beside = files.attachments().map(attachment_lines).unwrap_or_default();
    let beside = in_lines(&beside, "\n       ");
    fits(config, devices, source, inspection).map(|fits| format!("complete; {fits}{beside}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn done(name: &'static str, error: f64, failure: Option<&str>) -> OperationEvent {
        OperationEvent::Done(OperationReport {
            group: OperationGroup::Portable,
            name,
            error: Some(error),
            tolerance: 0.01,
            milliseconds: Some(1.0),
            failure: failure.map(str::to_owned),
        })
    }

    #[test]
    fn operations_that_agree_are_counted_and_skipped_groups_named() {
        let skipped = OperationEvent::Skipped { group: OperationGroup::Fp8, reason: "no".to_owned() };
        let fact = outcome_of(&[done("a", 0.001, None), done("b", 0.002, None), skipped]).expect("right");
        assert_eq!(fact, "2 operations agree with the CPU's, at most 0.20 % off; fp8 skipped: no");
    }

    #[test]
    fn each_wrong_operation_is_named_and_those_that_did_not_run_counted() {
        let stopped = OperationEvent::Stopped {
            group: OperationGroup::Portable,
            reason: "CUDA_ERROR_LAUNCH_FAILED".to_owned(),
            left: vec![(OperationGroup::Portable, "c"), (OperationGroup::Fp8, "d")],
        };
        let fault = outcome_of(&[done("a", 0.0, None), done("b", 0.5, Some("is 50 % off")), stopped]);
        let fault = fault.expect_err("wrong");
        let expected = "operations are wrong: portable: b: is 50 % off; 2 operations did not run, because the device \
                        answers no more: CUDA_ERROR_LAUNCH_FAILED; use another device; ";
        assert!(fault.starts_with(expected), "{fault}");
    }
}
