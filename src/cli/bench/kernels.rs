//! `fluxserve bench kernels`: its options and its table.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;

use super::{complete, write_json, write_table};
use crate::app::{self, KernelTiming, KernelTimings};
use crate::config::Config;
use crate::domain::device::{DeviceChoice, Kernels};

/// Options of `bench kernels`.
#[derive(Debug, Args)]
pub struct KernelsArgs {
    /// Device: auto, cpu, cuda or cuda:N [default: auto]
    #[arg(long)]
    pub device: Option<DeviceChoice>,
    /// Kernels to time: `auto` for all that the device has, `portable` for those that run on every device [default: auto]
    #[arg(long, value_name = "KERNELS")]
    pub kernels: Option<Kernels>,
    /// Side of the image whose shapes are timed, in pixels [default: 1024; on a CPU small shapes of no model]
    #[arg(long, value_name = "PIXELS", value_parser = side)]
    pub side: Option<u32>,
    /// Also write the report into a file, updated after each kernel
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// The largest side that is timed.
const SIDE_MAX: u32 = 2048;

/// Eight images of half the side are timed as well, so that has whole tokens, too.
fn side(text: &str) -> Result<u32, String> {
    let side = text.parse().ok().filter(|side| (64..=SIDE_MAX).contains(side) && side % 32 == 0);
    side.ok_or_else(|| format!("use a multiple of 32 from 64 to {SIDE_MAX}"))
}

/// Runs the command.
pub(super) fn run(
    arguments: &KernelsArgs,
    config: &Config,
    out: &mut dyn Write,
    notes: &mut dyn Write,
) -> anyhow::Result<()> {
    let report = app::kernels(config, arguments.side, &mut |report| {
        if let Some(file) = &arguments.out {
            write_json(file, report)?;
        }
        if let Some(timing) = report.kernels.last() {
            writeln!(notes, "{}, {}: {}", timing.kernel, timing.shape, in_short(timing))?;
        }
        Ok(())
    })?;
    write_report(&report, out)?;
    complete(report.stopped)
}

fn in_short(timing: &KernelTiming) -> String {
    let measured = timing.milliseconds.map(|milliseconds| format!("{milliseconds:.3} ms"));
    measured.or_else(|| note_of(timing)).unwrap_or_default()
}

/// Why it was not timed.
fn note_of(timing: &KernelTiming) -> Option<String> {
    let failed = timing.failure.as_ref().map(|failure| format!("failed: {failure}"));
    failed.or_else(|| timing.skipped.as_ref().map(|reason| format!("skipped: {reason}")))
}

fn write_report(report: &KernelTimings, out: &mut dyn Write) -> anyhow::Result<()> {
    let KernelTimings { device, shapes, launches, .. } = report;
    writeln!(out, "{device}, {shapes} shapes, {launches} launches of each")?;
    let number = |number: Option<f64>, digits| number.map_or_else(|| "-".to_owned(), |it| format!("{it:.digits$}"));
    let row = |timing: &KernelTiming| {
        [
            timing.kernel.clone(),
            timing.shape.clone(),
            number(timing.milliseconds, 3),
            // A CPU's are below one.
            number(timing.tflops, if timing.tflops.is_some_and(|rate| rate < 10.0) { 3 } else { 1 }),
            number(timing.gigabytes_per_second, 0),
            note_of(timing).unwrap_or_default(),
        ]
    };
    let rows: Vec<[String; 6]> = report.kernels.iter().map(row).collect();
    Ok(write_table(out, ["KERNEL", "SHAPE", "MS", "TFLOP/S", "GB/S", "NOTE"], &rows)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_side_has_whole_tokens_as_its_half_has() {
        assert_eq!((side("256"), side("2048")), (Ok(256), Ok(2048)));
        for refused in ["48", "32", "2080", "-64", "256x256"] {
            assert_eq!(side(refused), Err("use a multiple of 32 from 64 to 2048".to_owned()));
        }
    }

    #[test]
    fn what_was_not_timed_says_why() {
        let timing = |milliseconds: Option<f64>, failure: Option<&str>, skipped: Option<&str>| KernelTiming {
            kernel: "attention, hopper".to_owned(),
            shape: "1 × 72 tokens".to_owned(),
            milliseconds,
            tflops: milliseconds.map(|_| 512.25),
            gigabytes_per_second: None,
            failure: failure.map(str::to_owned),
            skipped: skipped.map(str::to_owned),
        };
        let report = KernelTimings {
            version: "0.0.0",
            device: "cuda:0".to_owned(),
            shapes: "flux",
            launches: 20,
            kernels: vec![
                timing(Some(0.5), None, None),
                timing(None, Some("no launch"), None),
                timing(None, None, Some("too old")),
            ],
            stopped: None,
        };
        let mut out = Vec::new();
        write_report(&report, &mut out).expect("written");
        let text = String::from_utf8(out).expect("text");
        let lines: Vec<Vec<&str>> =
            text.lines().map(|line| line.split("  ").filter(|cell| !cell.is_empty()).collect()).collect();
        assert_eq!(lines[0], ["cuda:0, flux shapes, 20 launches of each"]);
        assert_eq!(lines[2], ["attention, hopper", "1 × 72 tokens", "0.500", "512.2", "-"]);
        assert_eq!(lines[3].last().map(|cell| cell.trim()), Some("failed: no launch"));
        assert_eq!(lines[4].last().map(|cell| cell.trim()), Some("skipped: too old"));
    }
}
