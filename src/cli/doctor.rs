//! `fluxserve doctor`: what keeps this machine from serving, and the test of each operation of a device.

use std::io::Write;

use clap::Args;
use serde_json::json;

use crate::app::{self, OperationEvent, OperationReport};
use crate::config::{Config, Flags};
use crate::domain::byte_size::ByteSize;
use crate::domain::device::{DeviceChoice, Kernels};
use crate::domain::operation_group::OperationGroup;

/// Options of `doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Test each operation of the device by itself, compared with the CPU, instead of the machine; of all groups or of these:
    /// `portable`, `attention-hopper`, `convolution-hopper`, `doubled-hopper`, `products`, `autoencoder`, `fp8`. The exit code
    /// is the number of faulty operations, 100 at most
    #[arg(long, value_name = "GROUP", num_args = 0..)]
    pub operations: Option<Vec<OperationGroup>>,
    /// Say instead how each model would be kept on a GPU with so much memory free: 12GiB
    #[arg(long, value_name = "SIZE", conflicts_with_all = ["operations", "device", "kernels"])]
    pub for_memory: Option<ByteSize>,
    /// Print a JSON object for each operation
    #[arg(long, requires = "operations")]
    pub json: bool,
    /// Device: auto, cpu, cuda or cuda:N [default: auto]
    #[arg(long)]
    pub device: Option<DeviceChoice>,
    /// Kernels to test: `auto` for all that the device has, `portable` for those that run on every device [default: auto]
    #[arg(long, value_name = "KERNELS")]
    pub kernels: Option<Kernels>,
}

/// Operations of a device, of which some are faulty.
#[derive(Debug, Default, thiserror::Error)]
#[error("{faulty} of {tested} operations are faulty")]
pub struct FaultyOperations {
    faulty: usize,
    tested: usize,
}

/// Largest exit code that counts operations: shells use those above 125.
const EXIT_CODE_MAX: usize = 100;

impl FaultyOperations {
    /// The exit code.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        self.faulty.min(EXIT_CODE_MAX) as u8
    }

    fn count(&mut self, event: &OperationEvent) {
        if let OperationEvent::Done(report) = event {
            self.tested += 1;
            self.faulty += usize::from(report.failure.is_some());
        }
    }

    fn outcome(self) -> anyhow::Result<()> {
        if self.faulty > 0 { Err(self.into()) } else { Ok(()) }
    }
}

impl DoctorArgs {
    pub(super) fn apply(&self, flags: &mut Flags) {
        flags.device = self.device.map(Into::into);
        flags.kernels = self.kernels;
    }
}

/// Runs the command.
pub(super) async fn run(arguments: DoctorArgs, config: &Config, out: &mut dyn Write) -> anyhow::Result<()> {
    if let Some(ByteSize(free)) = arguments.for_memory {
        return app::doctor_for_memory(config, free, out);
    }
    let Some(groups) = arguments.operations else { return app::doctor(config, out).await };
    let groups = if groups.is_empty() { OperationGroup::ALL.to_vec() } else { groups };
    let mut counts = FaultyOperations::default();
    app::test_operations(config, &groups, &mut |event| {
        counts.count(event);
        let line = if arguments.json { json_of(event)? } else { line_of(event) };
        writeln!(out, "{line}")?;
        // The next operation may hang.
        Ok(out.flush()?)
    })?;
    counts.outcome()
}

fn line_of(event: &OperationEvent) -> String {
    match event {
        OperationEvent::Done(OperationReport { group, name, error, tolerance, milliseconds, failure }) => {
            let verdict = if failure.is_some() { "FAULT" } else { "ok" };
            let number = |number: &Option<f64>, digits| {
                number.map_or_else(|| "-".to_owned(), |number| format!("{number:.digits$}"))
            };
            let error = error.map_or_else(|| "-".to_owned(), |error| format!("{error:.2e}"));
            let milliseconds = number(milliseconds, 3);
            let line =
                format!("{verdict:<5}  {group:<18}  {name:<48}  {error:>8}  {tolerance:>6.0e}  {milliseconds:>9} ms");
            failure.as_ref().map_or_else(|| line.clone(), |failure| format!("{line}  {failure}"))
        }
        OperationEvent::Skipped { group, reason } => format!("skipped  {group}: {reason}"),
        OperationEvent::Stopped { reason, left, .. } => {
            let left: Vec<String> = left.iter().map(|(group, name)| format!("{group}: {name}")).collect();
            format!("stopped: the device answers no more: {reason}; not tested: {}", left.join("; "))
        }
    }
}

fn json_of(event: &OperationEvent) -> anyhow::Result<String> {
    Ok(match event {
        OperationEvent::Done(report) => serde_json::to_string(report)?,
        OperationEvent::Skipped { group, reason } => json!({ "group": group, "skipped": reason }).to_string(),
        OperationEvent::Stopped { group, reason, left } => {
            let left: Vec<_> = left.iter().map(|(group, name)| json!({ "group": group, "operation": name })).collect();
            json!({ "group": group, "stopped": reason, "not_tested": left }).to_string()
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(error: Option<f64>, failure: Option<&str>) -> OperationEvent {
        OperationEvent::Done(OperationReport {
            group: OperationGroup::AttentionHopper,
            name: "attention",
            error,
            tolerance: 0.01,
            milliseconds: error.map(|_| 1.5),
            failure: failure.map(str::to_owned),
        })
    }

    fn stopped() -> OperationEvent {
        let left = vec![(OperationGroup::Portable, "SiLU"), (OperationGroup::Fp8, "linear in fp8")];
        OperationEvent::Stopped { group: OperationGroup::Portable, reason: "CUDA_ERROR".to_owned(), left }
    }

    fn words(event: &OperationEvent) -> Vec<String> {
        line_of(event).split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn a_line_says_what_was_found() {
        let right = words(&report(Some(0.001_25), None));
        assert_eq!(right, ["ok", "attention-hopper", "attention", "1.25e-3", "1e-2", "1.500", "ms"]);
        let failed = words(&report(None, Some("no launch")));
        assert_eq!(failed, ["FAULT", "attention-hopper", "attention", "-", "1e-2", "-", "ms", "no", "launch"]);
        let nan = words(&report(Some(f64::NAN), Some("3 values are not finite")));
        assert_eq!(nan[..5], ["FAULT", "attention-hopper", "attention", "NaN", "1e-2"]);
        let skipped = OperationEvent::Skipped { group: OperationGroup::Fp8, reason: "too old".to_owned() };
        assert_eq!(line_of(&skipped), "skipped  fp8: too old");
        let expected =
            "stopped: the device answers no more: CUDA_ERROR; not tested: portable: SiLU; fp8: linear in fp8";
        assert_eq!(line_of(&stopped()), expected);
    }

    #[test]
    fn each_line_of_json_is_one_object() {
        let parse = |event: &OperationEvent| -> serde_json::Value {
            serde_json::from_str(&json_of(event).expect("JSON")).expect("JSON")
        };
        let wrong = parse(&report(Some(0.5), Some("wrong")));
        assert_eq!(
            wrong,
            json!({ "group": "attention-hopper", "operation": "attention", "error": 0.5,
            "tolerance": 0.01, "milliseconds": 1.5, "failure": "wrong" })
        );
        let failed = parse(&report(None, Some("no launch")));
        assert_eq!((&failed["error"], &failed["milliseconds"]), (&json!(null), &json!(null)));
        assert_eq!(parse(&report(Some(0.0), None))["failure"], json!(null));
        let skipped = OperationEvent::Skipped { group: OperationGroup::Fp8, reason: "too old".to_owned() };
        assert_eq!(parse(&skipped), json!({ "group": "fp8", "skipped": "too old" }));
        let left =
            json!([{ "group": "portable", "operation": "SiLU" }, { "group": "fp8", "operation": "linear in fp8" }]);
        assert_eq!(parse(&stopped()), json!({ "group": "portable", "stopped": "CUDA_ERROR", "not_tested": left }));
    }

    #[test]
    fn the_exit_code_counts_faulty_operations() {
        let mut counts = FaultyOperations::default();
        counts.count(&report(Some(0.001), None));
        counts.count(&OperationEvent::Skipped { group: OperationGroup::Fp8, reason: "too old".to_owned() });
        counts.outcome().expect("no fault");
        let mut counts = FaultyOperations { faulty: 0, tested: 1 };
        for event in [report(Some(0.5), Some("wrong")), report(Some(0.0), None), report(None, Some("no")), stopped()] {
            counts.count(&event);
        }
        let error = counts.outcome().expect_err("two faults");
        assert_eq!(error.to_string(), "2 of 4 operations are faulty");
        assert_eq!(super::super::exit_code(&error), 2);
        let of = |faulty| FaultyOperations { faulty, tested: 300 }.exit_code();
        assert_eq!([of(1), of(7), of(100), of(101), of(256)], [1, 7, 100, 100, 100]);
        assert_eq!(super::super::exit_code(&anyhow::anyhow!("something else")), 1);
    }
}
