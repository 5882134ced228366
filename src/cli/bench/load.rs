//! `fluxserve bench load`: how long loading takes, beside reading the same files alone.

use std::io::Write;

use super::{LoadArgs, write_json};
use crate::app::{self, LoadReport, LoadRequest, Moved};
use crate::cli::load_bar::LoadBar;
use crate::cli::table::write_table;
use crate::config::Config;

/// Runs the command.
pub(super) fn run(arguments: LoadArgs, config: &Config, out: &mut dyn Write) -> anyhow::Result<()> {
    let engine = config.engine_settings(config.device.first());
    let request = LoadRequest { model: arguments.parts.of(arguments.model), engine, reads_before: !arguments.at_once };
    let report = app::load(config, &request, LoadBar::new()?)?;
    if let Some(file) = &arguments.json {
        write_json(file, &report)?;
    }
    write_report(&report, out)
}

fn write_report(report: &LoadReport, out: &mut dyn Write) -> anyhow::Result<()> {
    let LoadReport { model, device, readers, buffer_bytes, share_of_reading, seconds, .. } = report;
    writeln!(out, "{model} on {device}, {readers} threads read {} MiB at a time", buffer_bytes >> 20)?;
    let moved = |name: &str, moved: Moved| {
        let Moved { bytes, seconds, gigabytes_per_second } = moved;
        [
            name.to_owned(),
            format!("{:.2}", bytes as f64 / 1e9),
            format!("{seconds:.3}"),
            format!("{gigabytes_per_second:.2}"),
        ]
    };
    let before = report.reading_before.map(|before| moved("reading alone, before", before));
    let after = [moved("weights onto the device", report.weights), moved("reading alone, after", report.reading_after)];
    let rows: Vec<[String; 4]> = before.into_iter().chain(after).collect();
    write_table(out, ["WHAT", "GB", "SECONDS", "GB/S"], &rows)?;
    writeln!(out, "loaded at {:.0} % of the rate of reading alone, after\n", 100.0 * share_of_reading)?;
    let parts = report.parts.iter().map(|part| [part.name.to_owned(), format!("{:.3}", part.seconds)]);
    let rows: Vec<[String; 2]> = parts.chain([["ready".to_owned(), format!("{seconds:.3}")]]).collect();
    write_table(out, ["PART", "SECONDS"], &rows)?;
    if let Some(bytes) = report.resident_bytes_max {
        writeln!(out, "at most {:.2} GB of memory in use", bytes as f64 / 1e9)?;
    }
    Ok(())
}
