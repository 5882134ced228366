//! Trials of the faster kernels of a device, each in a process of its own, before an engine opens the device: a kernel that
//! breaks or hangs costs that process alone, and the engine uses the portable one.

use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::domain::device::{DeviceChoice, EngineSettings, FasterKernel, KernelFault, KernelFaults, Kernels};
use crate::engine::{self, KernelTrial};

/// Longest trial. Opening a device and compiling kernels for it, at the first start with a new driver, takes half a minute.
const TRIAL_SECONDS_MAX: u64 = 90;

/// How long a killed process may take to end. One whose kernel hangs may never do.
const END_MAX: Duration = Duration::from_secs(5);

/// Time between two looks at a process.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// Runs one trial in this process, which is ended if it takes too long. This is what the processes of [`with_faults`] do.
///
/// # Errors
/// When the device is not available, a kernel fails, or the kernels disagree.
pub fn try_kernel(device: DeviceChoice, kernel: FasterKernel) -> anyhow::Result<()> {
    // If the process that started this one is killed, nothing else would end a kernel that hangs.
    std::thread::Builder::new().spawn(|| {
        std::thread::sleep(Duration::from_secs(TRIAL_SECONDS_MAX));
        std::process::abort();
    })?;
    match engine::try_kernel(device, kernel)? {
        KernelTrial::Agrees | KernelTrial::Missing => Ok(()),
        KernelTrial::Disagrees => Err(KernelFault::Disagrees.into()),
    }
}

/// The settings, with the faults of faster kernels. On devices that cannot have any, nothing is tried.
pub(super) fn with_faults(settings: EngineSettings) -> EngineSettings {
    if settings.kernels == Kernels::Portable || !engine::may_have_faster_kernels(settings.device) {
        return settings;
    }
    let trial = |kernel: FasterKernel| {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("probe-kernel").arg(kernel.to_string()).arg("--device").arg(settings.device.to_string());
        Ok(command)
    };
    EngineSettings { kernel_faults: faults(&trial, Duration::from_secs(TRIAL_SECONDS_MAX)), ..settings }
}

/// Runs a trial of each kernel, at the same time.
fn faults(trial: &dyn Fn(FasterKernel) -> std::io::Result<Command>, time_max: Duration) -> KernelFaults {
    let until = Instant::now() + time_max;
    // Its last words are the operator's.
    let started = FasterKernel::ALL
        .map(|kernel| trial(kernel).and_then(|mut command| command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()));
    let mut outcomes = FasterKernel::ALL.into_iter().zip(started).map(|(kernel, child)| {
        let fault = match child {
            Ok(child) => fault_of(child, until),
            Err(error) => {
                tracing::warn!(%kernel, %error, "the faster kernel cannot be tried: no process");
                Some(KernelFault::Fails)
            }
        };
        if let Some(fault) = fault {
            tracing::warn!(%kernel, "{fault}: the portable one is used, which is slower; `kernels = \"portable\"` skips the trial");
        }
        fault
    });
    let (attention, convolution) = (outcomes.next().flatten(), outcomes.next().flatten());
    KernelFaults { attention, convolution }
}

fn fault_of(mut child: Child, until: Instant) -> Option<KernelFault> {
    if let Some(status) = end_of(&mut child, until) {
        return (!status.success()).then_some(match status.code() {
            Some(code) if code == i32::from(DISAGREES) => KernelFault::Disagrees,
            _ => KernelFault::Fails,
        });
    }
    // It is dropped unwaited if the driver does not let go of it.
    let _ = child.kill();
    let _ = end_of(&mut child, Instant::now() + END_MAX);
    Some(KernelFault::Hangs)
}

/// The exit code of a trial whose kernels disagree. Other failures have other codes, or a signal.
pub const DISAGREES: u8 = 4;

fn end_of(child: &mut Child, until: Instant) -> Option<ExitStatus> {
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if Instant::now() < until => std::thread::sleep(LOOK_INTERVAL),
            _ => return None,
        }
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    /// Outcomes of a shell's lines, one in place of each trial.
    fn outcomes(lines: [&str; 2], time_max: Duration) -> [Option<KernelFault>; 2] {
        let trial = |kernel: FasterKernel| {
            let mut command = Command::new("sh");
            command.arg("-c").arg(lines[usize::from(kernel == FasterKernel::Convolution)]);
            Ok(command)
        };
        let KernelFaults { attention, convolution } = faults(&trial, time_max);
        [attention, convolution]
    }

    const PATIENCE: Duration = Duration::from_mins(1);

    #[test]
    fn a_trial_says_by_its_exit_whether_a_kernel_is_fit() {
        assert_eq!(outcomes(["exit 0", "exit 4"], PATIENCE), [None, Some(KernelFault::Disagrees)]);
        let fails = Some(KernelFault::Fails);
        assert_eq!(outcomes(["kill -SEGV $$", "exit 1"], PATIENCE), [fails, fails]);
        assert_eq!(outcomes(["exit 101", "exit 0"], PATIENCE), [fails, None]);
    }

    #[test]
    fn without_a_process_the_portable_kernel_is_used() {
        let none = |_| Err(std::io::Error::other("no such program"));
        let fails = Some(KernelFault::Fails);
        assert_eq!(faults(&none, PATIENCE), KernelFaults { attention: fails, convolution: fails });
    }

    /// Long enough for a shell to start and end on a busy machine.
    const HANGS_AFTER: Duration = Duration::from_secs(3);

    #[test]
    fn a_trial_that_hangs_or_dies_leaves_the_portable_kernel_and_a_line_in_the_log() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let writer = file.reopen().expect("the same file");
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(writer).finish();
        // With a single subscriber, a thread that has none may disable the event.
        let _second = tracing::Dispatch::new(tracing_subscriber::registry());
        // The shell becomes the sleep: nothing is left behind.
        let lines = ["trap '' TERM; exec sleep 600", "kill -ILL $$"];
        let found = tracing::subscriber::with_default(subscriber, || outcomes(lines, HANGS_AFTER));
        assert_eq!(found, [Some(KernelFault::Hangs), Some(KernelFault::Fails)]);
        let log = std::fs::read_to_string(file.path()).expect("readable");
        let line = |kernel: &str| log.lines().find(|line| line.contains(kernel)).unwrap_or_default();
        assert!(line("kernel=attention").contains("does not end: the portable one is used"), "{log}");
        assert!(line("kernel=convolution").contains("does not run: the portable one is used"), "{log}");
    }

    #[test]
    fn the_cpu_has_nothing_to_try() {
        let settings = EngineSettings::from(DeviceChoice::Cpu);
        assert_eq!(with_faults(settings), settings);
    }
}
