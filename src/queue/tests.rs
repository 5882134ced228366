//! A queue from outside, with fake engines that step when the test lets them.

mod adapters;
mod encoding;
mod jobs;
mod outages;
mod sharing;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::event::{JobEvents, JobFailure, QueueEvent};
use super::{CancelCause, DraftMemory, Drafts, EngineFactory, EngineState, Queue, QueueSettings, ReserveError, Terms};
use crate::domain::engine::{Draft, EngineError, EngineLimits, Slot, StepEngine};
use crate::domain::ids::{JobId, KeyId, ModelId};
use crate::domain::image::RgbImage;
use crate::domain::spec::{GenerateParams, GenerateSpec};

/// Longest a test waits for something to happen.
const PATIENCE: Duration = Duration::from_secs(20);

fn spec() -> GenerateSpec {
    spec_in(None)
}

/// A small image, in so many steps.
fn spec_in(steps: Option<u32>) -> GenerateSpec {
    let card = crate::catalog::card_or_flux_dev(&ModelId::new("test/model"));
    let (width, height) = (Some(64), Some(64));
    let params = GenerateParams { prompt: "a fox".into(), width, height, steps, ..Default::default() };
    GenerateSpec::new(params, &card).expect("valid")
}

/// Once its gate is shut, steps once per message; without a sender, freely.
struct Gated {
    gate: Arc<Gate>,
    images: BTreeMap<Slot, GenerateSpec>,
    slots: u64,
}

struct Gate {
    is_shut: AtomicBool,
    messages: Mutex<mpsc::Receiver<()>>,
}

impl StepEngine for Gated {
    fn limits(&self) -> EngineLimits {
        EngineLimits { images_max: 2, step_tokens_max: 100_000 }
    }

    fn admit(&mut self, spec: &GenerateSpec) -> Result<Slot, EngineError> {
        self.slots += 1;
        self.images.insert(Slot(self.slots), spec.clone());
        Ok(Slot(self.slots))
    }

    fn step(&mut self, _: &[Slot]) -> Result<(), EngineError> {
        // The warm-up images pass.
        if self.gate.is_shut.load(Ordering::Relaxed) {
            let _ = self.gate.messages.lock().expect("one engine at a time").recv();
        }
        Ok(())
    }

    fn finish(&mut self, slot: Slot) -> Result<RgbImage, EngineError> {
        let spec = self.images.remove(&slot).expect("admitted");
        let bytes = spec.width() as usize * spec.height() as usize * 3;
        Ok(RgbImage::new(spec.width(), spec.height(), vec![1; bytes]).expect("three bytes per pixel"))
    }

    fn release(&mut self, slot: Slot) {
        self.images.remove(&slot);
    }
}

fn settings() -> QueueSettings {
    QueueSettings {
        model: ModelId::new("test/model"),
        jobs_max: 4,
        warm_up: spec(),
        rebuild_delay: Duration::from_millis(1),
        rebuild_delay_max: Duration::from_millis(4),
        outage_max: PATIENCE,
        stall_min: Duration::from_mins(1),
    }
}

async fn ready(queue: &Queue) {
    let mut state = queue.state();
    let reached = state.wait_for(|state| *state == EngineState::Ready);
    tokio::time::timeout(PATIENCE, reached).await.expect("in time").expect("a queue");
}

/// The gate of gated engines, and the sender that opens it.
fn gate() -> (Arc<Gate>, mpsc::Sender<()>) {
    let (steps, messages) = mpsc::channel();
    (Arc::new(Gate { is_shut: AtomicBool::new(false), messages: Mutex::new(messages) }), steps)
}

fn gated_engine(gate: &Arc<Gate>) -> Box<dyn StepEngine> {
    Box::new(Gated { gate: Arc::clone(gate), images: BTreeMap::new(), slots: 0 })
}

async fn gated() -> (Queue, mpsc::Sender<()>) {
    let (gate, steps) = gate();
    let shut = Arc::clone(&gate);
    let queue = Queue::start(&settings(), vec![Box::new(move || Ok(gated_engine(&gate)))]).expect("a thread");
    ready(&queue).await;
    shut.is_shut.store(true, Ordering::Relaxed);
    (queue, steps)
}

/// The next event; an engine that does nothing fails the test instead of stopping it.
async fn next(events: &mut JobEvents) -> Option<QueueEvent> {
    tokio::time::timeout(PATIENCE, events.next()).await.expect("in time")
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < PATIENCE, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
