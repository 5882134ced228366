//! A device that fails for good: the process ends with a code of its own, and the next one generates the accepted jobs.

use std::path::PathBuf;
use std::sync::Arc;

use fluxserve::config::{Config, Flags};
use fluxserve::domain::device::DeviceChoice;
use fluxserve::domain::engine::{EngineError, EngineLimits, Slot, StepEngine};
use fluxserve::domain::image::RgbImage;
use fluxserve::domain::spec::GenerateSpec;
use fluxserve::engine::{LoadTimes, failure};
use fluxserve::telemetry::pipe::Pipe;
use fluxserve::{app, cli, shutdown};

use super::*;

/// Names the data folder to the process that has the failing device.
const DATA: &str = "FLUXSERVE_TEST_LOST_DEVICE_DATA";
/// Steps of the image that breaks the device.
const STEPS: u32 = 7;

/// Loses its device at the first step of an image of [`STEPS`], once the file `go` is there.
struct Breaking {
    breaks: bool,
    go: PathBuf,
}

impl StepEngine for Breaking {
    fn limits(&self) -> EngineLimits {
        EngineLimits { images_max: 1, step_tokens_max: 100_000 }
    }

    fn admit(&mut self, spec: &GenerateSpec) -> Result<Slot, EngineError> {
        self.breaks = spec.steps() == STEPS;
        Ok(Slot(0))
    }

    fn step(&mut self, _: &[Slot]) -> Result<(), EngineError> {
        if !self.breaks {
            return Ok(());
        }
        until("the sign to break", || self.go.exists().then_some(()));
        Err(failure("DriverError(CUDA_ERROR_ILLEGAL_ADDRESS, \"an illegal memory access was encountered\")".to_owned()))
    }

    fn finish(&mut self, _: Slot) -> Result<RgbImage, EngineError> {
        Ok(RgbImage::new(64, 64, vec![1; 64 * 64 * 3]).expect("three bytes per pixel"))
    }

    fn release(&mut self, _: Slot) {}
}

/// Not a test of its own: the process in which the device fails.
#[test]
#[ignore = "is started by the other test of this file"]
fn worker() {
    let Some(data) = std::env::var_os(DATA).map(PathBuf::from) else { return };
    let go = data.with_extension("go");
    // Ends the line that the test runner has begun.
    std::io::stdout().write_all(b"\n").expect("standard output");
    let flags = Flags {
        data_dir: Some(data),
        listen: Some("127.0.0.1:0".parse().expect("an address")),
        device: Some(DeviceChoice::Cpu.into()),
        ..Flags::default()
    };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let outcome = runtime.block_on(async {
        let config = Config::load(flags)?;
        let build: Arc<app::EngineBuilder> = Arc::new(move |_, _, _| {
            let engine: Box<dyn StepEngine> = Box::new(Breaking { breaks: false, go: go.clone() });
            Ok((engine, LoadTimes::default()))
        });
        app::serve_with(config, shutdown::on_signals()?, Pipe::start("greeting", std::io::stdout())?, build).await
    });
    std::process::exit(outcome.map_or_else(|error| i32::from(cli::exit_code(&error)), |()| 0));
}

#[test]
fn a_lost_device_ends_the_process_with_its_code_and_the_next_one_generates_the_accepted_jobs() {
    let (_folder, data) = folder();
    let made = run(&data, &["keys", "create", "--name", "test", "--scope", "inference"]);
    let key = text(&made.stdout).trim().to_owned();
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(["--exact", "lost_device::worker", "--ignored", "--nocapture"]).env(DATA, &data).stderr(Stdio::null());
    let mut server = Server::of(&mut command);
    let url = server.url();
    server.line("Generate an image:");
    let ask = |steps: u32| submit(&url, &key, &json!({ "model": MODEL, "prompt": "a fox", "steps": steps, "seed": 1 }));
    let jobs = [ask(STEPS), ask(4)];
    std::fs::write(data.with_extension("go"), "").expect("a file");
    let status = until("the end of the process", || server.child.try_wait().expect("a child"));
    assert_eq!(status.code(), Some(3));
    let mut server = Server::start(&data, &[]);
    let url = server.url();
    for job in jobs {
        let view = || get(&format!("{url}/v1/inference/jobs/{job}"), &key);
        until("it succeeds", || (view()["status"] == "succeeded").then_some(()));
    }
    assert!(server.stop().success());
}
