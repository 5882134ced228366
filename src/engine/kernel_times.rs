//! Times single kernels in the shapes of a step and of the decoder, without a model: attention, matrix products, convolutions and
//! what is between them.

mod cases;

use std::time::Instant;

use candle_core::{Error, Result};
use serde::Serialize;

use super::device;
use super::error::LoadError;
use crate::domain::device::{DeviceChoice, Kernels};
use cases::{Case, Scale, cases};

/// Untimed launches of each kernel.
const WARM_UPS: usize = 3;
/// Timed launches of each kernel, between two waits for the device.
const LAUNCHES: usize = 20;

/// The side of an image on a GPU, in pixels, if none is asked for.
const SIDE: u32 = 1024;

/// The times of all kernels.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct KernelTimings {
    /// This program's version.
    pub version: &'static str,
    /// The device.
    pub device: String,
    /// `flux`: FLUX.1-dev's, of an image of the side that was asked for, or of 1024×1024 pixels; `small`, on the CPU where none was
    /// asked for: smaller ones, to see that everything runs.
    pub shapes: &'static str,
    /// Timed launches of each.
    pub launches: usize,
    /// Each kernel, in order.
    pub kernels: Vec<KernelTiming>,
    /// Why the rest was not timed, if the device answers no more.
    pub stopped: Option<String>,
}

/// The time of one kernel.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct KernelTiming {
    /// Which operation, by which kernel.
    pub kernel: String,
    /// Its sizes.
    pub shape: String,
    /// Time of one launch; `None` if it failed or was skipped.
    pub milliseconds: Option<f64>,
    /// 10¹² multiplications and additions a second, where that is what limits it.
    pub tflops: Option<f64>,
    /// 10⁹ bytes a second that are read and written, where that is what limits it.
    pub gigabytes_per_second: Option<f64>,
    /// Why it failed.
    pub failure: Option<String>,
    /// Why it was skipped.
    pub skipped: Option<String>,
}

/// Times each kernel, in the shapes of an image of this side in pixels, a multiple of 32. `on_timing` is called before the first one and
/// after each, with all timings so far.
///
/// # Errors
/// When the device is not available, or `on_timing` fails.
pub fn time_kernels<E: From<LoadError>>(
    choice: DeviceChoice,
    kernels: Kernels,
    side: Option<u32>,
    on_timing: &mut dyn FnMut(&KernelTimings) -> std::result::Result<(), E>,
) -> std::result::Result<KernelTimings, E> {
    let device = device::open(choice).map_err(LoadError::from)?;
    let scale = match side {
        None if device.is_cpu() => Scale::SMALL,
        side => Scale::flux(side.unwrap_or(SIDE) as usize),
    };
    let timings = KernelTimings {
        version: env!("CARGO_PKG_VERSION"),
        device: device::describe(&device),
        shapes: scale.name,
        launches: LAUNCHES,
        kernels: Vec::new(),
        stopped: None,
    };
    time_cases(timings, &cases(&device, kernels, &scale), &|| device.synchronize(), on_timing)
}

/// Times the cases until the device answers no more.
fn time_cases<E>(
    mut timings: KernelTimings,
    cases: &[Case],
    wait: &dyn Fn() -> Result<()>,
    on_timing: &mut dyn FnMut(&KernelTimings) -> std::result::Result<(), E>,
) -> std::result::Result<KernelTimings, E> {
    on_timing(&timings)?;
    for case in cases {
        tracing::info!(kernel = case.kernel, shape = case.shape, "timing");
        let timing = timing_of(case, wait);
        let failed = timing.failure.is_some();
        timings.kernels.push(timing);
        // Some faults break all later calls as well.
        if failed && let Err(error) = wait() {
            timings.stopped =
                Some(format!("the device answers no more after `{}`: {}", case.kernel, in_a_line(&error)));
        }
        on_timing(&timings)?;
        if timings.stopped.is_some() {
            break;
        }
    }
    Ok(timings)
}

fn timing_of(case: &Case, wait: &dyn Fn() -> Result<()>) -> KernelTiming {
    let skipped = case.skipped.clone();
    let measured = if skipped.is_some() { None } else { Some(seconds(case, wait)) };
    let (seconds, failure) = match measured {
        Some(Ok(seconds)) => (Some(seconds), None),
        Some(Err(error)) => (None, Some(in_a_line(&error))),
        None => (None, None),
    };
    let rate = |count: Option<f64>, unit: f64| count.zip(seconds).map(|(count, seconds)| count / seconds / unit);
    KernelTiming {
        kernel: case.kernel.clone(),
        shape: case.shape.clone(),
        milliseconds: seconds.map(|seconds| seconds * 1000.0),
        tflops: rate(case.flops, 1e12),
        gigabytes_per_second: rate(case.bytes, 1e9),
        failure,
        skipped,
    }
}

/// An error without its backtrace.
fn in_a_line(error: &Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

/// The time of one launch.
fn seconds(case: &Case, wait: &dyn Fn() -> Result<()>) -> Result<f64> {
    let launch = (case.prepare)()?;
    for _ in 0..WARM_UPS {
        launch()?;
    }
    wait()?;
    let started = Instant::now();
    for _ in 0..LAUNCHES {
        launch()?;
    }
    wait()?;
    Ok(started.elapsed().as_secs_f64() / LAUNCHES as f64)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use candle_core::{Device, bail};

    use super::*;

    fn timed(choice: DeviceChoice) -> (KernelTimings, usize) {
        let mut heard = 0;
        let report = time_kernels(choice, Kernels::Auto, None, &mut |timings| {
            assert_eq!(timings.kernels.len(), heard);
            heard += 1;
            Ok::<(), LoadError>(())
        });
        (report.expect("the CPU is there"), heard)
    }

    #[test]
    fn every_kernel_is_timed_in_small_shapes_on_the_cpu() {
        let (report, heard) = timed(DeviceChoice::Cpu);
        assert_eq!((report.shapes, report.launches, heard), ("small", 20, report.kernels.len() + 1));
        for timing in &report.kernels {
            let is_hopper = timing.kernel.contains("hopper");
            assert_eq!(timing.milliseconds.is_none(), is_hopper, "{timing:?}");
            assert_eq!(timing.skipped.is_some(), is_hopper, "{timing:?}");
            let has_rate = timing.tflops.or(timing.gigabytes_per_second).is_some_and(|rate| rate > 0.0);
            assert!(timing.failure.is_none() && has_rate != is_hopper, "{timing:?}");
        }
    }

    #[test]
    fn the_shapes_on_a_gpu_are_those_of_flux() {
        let cases = cases(&Device::Cpu, Kernels::Auto, &Scale::flux(SIDE as usize));
        let shapes: Vec<(&str, &str)> = cases.iter().map(|case| (case.kernel.as_str(), case.shape.as_str())).collect();
        for expected in [
            ("attention, portable", "1 × 4608 tokens, 24 heads of 128"),
            ("attention, hopper", "8 × 1536 tokens, 24 heads of 128"),
            ("attention, hopper, ordered", "1 × 4608 tokens, 24 heads of 128"),
            ("linear", "4608 rows, 3072 to 9216"),
            ("linear, GELU", "4608 rows, 3072 to 12288"),
            ("linear", "4608 rows, 12288 to 3072"),
            ("linear", "4608 rows, 15360 to 3072"),
            ("linear, e4m3", "4608 rows, 3072 to 21504"),
            ("convolution 3x3, portable", "1024x1024 pixels, 256 to 128 channels"),
            ("convolution, doubled, hopper", "512x512 pixels, 256 to 256 channels"),
            ("group norm, SiLU", "1024x1024 pixels, 256 channels in 32 groups"),
        ] {
            assert!(shapes.contains(&expected), "{expected:?} is not among {shapes:?}");
        }
        let flops = |kernel| cases.iter().find(|case| case.kernel == kernel).and_then(|case| case.flops);
        // 4 × 4608² × 3072, and 2 × 4608 × 3072 × 9216.
        assert_eq!(flops("attention, portable"), Some(260_919_263_232.0));
        assert_eq!(flops("linear"), Some(260_919_263_232.0));
    }

    fn case(kernel: &str, prepare: impl Fn() -> Result<cases::Launch> + 'static) -> Case {
        let (kernel, shape) = (kernel.to_owned(), String::new());
        Case { kernel, shape, flops: Some(2e12), bytes: None, skipped: None, prepare: Box::new(prepare) }
    }

    fn none_yet() -> KernelTimings {
        let (version, device) = ("", String::new());
        KernelTimings { version, device, shapes: "small", launches: LAUNCHES, kernels: Vec::new(), stopped: None }
    }

    #[test]
    fn a_kernel_is_launched_before_it_is_timed_and_waited_for_before_and_after() {
        let launches = Rc::new(Cell::new(0));
        let (counted, seen) = (Rc::clone(&launches), std::cell::RefCell::new(Vec::new()));
        let case = case("counted", move || {
            let counted = Rc::clone(&counted);
            Ok(Box::new(move || {
                counted.set(counted.get() + 1);
                Ok(())
            }))
        });
        let wait = || {
            seen.borrow_mut().push(launches.get());
            Ok(())
        };
        let report = time_cases(none_yet(), &[case], &wait, &mut |_| Ok::<(), LoadError>(())).expect("timed");
        assert_eq!(*seen.borrow(), [3, 23]);
        let KernelTiming { milliseconds: Some(milliseconds), tflops: Some(tflops), .. } = report.kernels[0] else {
            panic!("{report:?}")
        };
        let product = tflops * milliseconds;
        assert!((product - 2000.0).abs() < 1e-6, "2 × 10¹² operations a launch: {report:?}");
    }

    #[test]
    fn a_failed_kernel_leaves_the_others_unless_the_device_answers_no_more() {
        let failing = || case("failing", || bail!("no such launch"));
        let fine = || case("fine", || Ok(Box::new(|| Ok(()))));
        let run = |wait: &dyn Fn() -> Result<()>| {
            time_cases(none_yet(), &[failing(), fine()], wait, &mut |_| Ok::<(), LoadError>(())).expect("timed")
        };
        let report = run(&|| Ok(()));
        assert_eq!(report.kernels[0].failure.as_deref(), Some("no such launch"));
        assert!(report.kernels[1].milliseconds.is_some() && report.stopped.is_none(), "{report:?}");
        let report = run(&|| bail!("CUDA_ERROR_LAUNCH_FAILED"));
        assert_eq!(report.kernels.len(), 1);
        let stopped = report.stopped.expect("stopped");
        assert_eq!(stopped, "the device answers no more after `failing`: CUDA_ERROR_LAUNCH_FAILED");
    }
}
