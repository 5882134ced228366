//! One engine's queue from outside, with a pretended engine that steps when the test lets it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::event::{JobEvents, JobFailure, QueueEvent};
use super::{CancelCause, EngineFactory, EngineState, Queue, QueueSettings, ReserveError, Terms};
use crate::domain::engine::{EngineError, EngineLimits, RgbImage, Slot, StepEngine};
use crate::domain::ids::{JobId, KeyId, ModelId};
use crate::domain::spec::{GenerateParams, GenerateSpec};

/// Longest a test waits for something to happen.
const PATIENCE: Duration = Duration::from_secs(20);

fn spec() -> GenerateSpec {
    let card = crate::catalog::card_or_flux_dev(&ModelId::new("test/model"));
    let params = GenerateParams { prompt: "a fox".into(), width: Some(64), height: Some(64), ..Default::default() };
    GenerateSpec::new(params, &card).expect("valid")
}

/// Steps once for each message, as soon as it is shut; without a sender, as often as it is told to.
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

/// Steps and parts of decodings that take so long.
const SPELL: Duration = Duration::from_millis(4);
const PARTS: u32 = 12;

/// Decodes in parts, and notes what it does.
struct InParts {
    calls: Arc<Mutex<Vec<&'static str>>>,
    parts_left: BTreeMap<Slot, u32>,
    slots: u64,
}

impl InParts {
    fn spend(&self, call: &'static str) {
        std::thread::sleep(SPELL);
        self.calls.lock().expect("not poisoned").push(call);
    }
}

impl StepEngine for InParts {
    fn limits(&self) -> EngineLimits {
        EngineLimits { images_max: 2, step_tokens_max: 100_000 }
    }

    fn admit(&mut self, _: &GenerateSpec) -> Result<Slot, EngineError> {
        self.slots += 1;
        self.parts_left.insert(Slot(self.slots), PARTS);
        Ok(Slot(self.slots))
    }

    fn step(&mut self, _: &[Slot]) -> Result<(), EngineError> {
        self.spend("step");
        Ok(())
    }

    fn decode_part(&mut self, slot: Slot) -> Result<bool, EngineError> {
        self.spend("part");
        let left = self.parts_left.get_mut(&slot).expect("admitted");
        *left -= 1;
        Ok(*left == 0)
    }

    fn finish(&mut self, slot: Slot) -> Result<RgbImage, EngineError> {
        let left = self.parts_left.remove(&slot).expect("admitted");
        (0..left).for_each(|_| self.spend("part"));
        Ok(RgbImage::new(1, 1, vec![1; 3]).expect("three bytes"))
    }

    fn release(&mut self, slot: Slot) {
        self.parts_left.remove(&slot);
    }
}

#[tokio::test]
async fn a_decoding_holds_up_others_for_a_step_at_a_time() {
    let calls: Arc<Mutex<Vec<&'static str>>> = Arc::default();
    let made = Arc::clone(&calls);
    let make = move || -> Result<Box<dyn StepEngine>, EngineError> {
        Ok(Box::new(InParts { calls: Arc::clone(&made), parts_left: BTreeMap::new(), slots: 0 }))
    };
    let queue = Queue::start(&settings(), vec![Box::new(make)]).expect("a thread");
    ready(&queue).await;
    calls.lock().expect("not poisoned").clear();
    let submit = |steps: u32| {
        let card = crate::catalog::card_or_flux_dev(&ModelId::new("test/model"));
        let params = GenerateParams {
            prompt: "a fox".into(),
            width: Some(64),
            height: Some(64),
            steps: Some(steps),
            ..Default::default()
        };
        let spec = GenerateSpec::new(params, &card).expect("valid");
        queue.reserve(KeyId::generate()).expect("a reservation").submit(JobId::generate(), spec, Terms::default())
    };
    let (mut long, mut short) = (submit(40), submit(2));
    for events in [&mut short, &mut long] {
        while next(events).await.is_some_and(|event| !matches!(event, QueueEvent::Finished(_))) {}
    }
    let calls = calls.lock().expect("not poisoned").clone();
    // The last image is alone, and is decoded at once.
    let last_step = calls.iter().rposition(|call| *call == "step").expect("steps");
    assert_eq!(calls[last_step + 1..], ["part"; PARTS as usize]);
    let parts = calls[..last_step].split(|call| *call == "step").map(<[_]>::len);
    assert_eq!(parts.clone().sum::<usize>(), PARTS as usize, "{calls:?}");
    // What the wait is cut by is known from the warm-up, which a busy machine may have drawn out.
    assert!(parts.max().is_some_and(|parts| parts <= PARTS as usize / 2), "{calls:?}");
}

/// Decodes in one go, which takes as long as so many steps.
struct InOneGo(u64);

impl StepEngine for InOneGo {
    fn limits(&self) -> EngineLimits {
        EngineLimits { images_max: 4, step_tokens_max: 100_000 }
    }

    fn admit(&mut self, _: &GenerateSpec) -> Result<Slot, EngineError> {
        self.0 += 1;
        Ok(Slot(self.0))
    }

    fn step(&mut self, _: &[Slot]) -> Result<(), EngineError> {
        std::thread::sleep(SPELL);
        Ok(())
    }

    fn finish(&mut self, _: Slot) -> Result<RgbImage, EngineError> {
        std::thread::sleep(SPELL * PARTS);
        Ok(RgbImage::new(1, 1, vec![1; 3]).expect("three bytes"))
    }

    fn release(&mut self, _: Slot) {}
}

#[tokio::test]
async fn who_asks_for_single_steps_takes_no_more_of_the_engine_than_others() {
    const STEPS: u32 = 60;
    let make = || -> Result<Box<dyn StepEngine>, EngineError> { Ok(Box::new(InOneGo(0))) };
    let queue = Queue::start(&QueueSettings { jobs_max: 16, ..settings() }, vec![Box::new(make)]).expect("a thread");
    ready(&queue).await;
    let draw = async |owner: KeyId, steps: u32| {
        let card = crate::catalog::card_or_flux_dev(&ModelId::new("test/model"));
        let params = GenerateParams {
            prompt: "a fox".into(),
            width: Some(64),
            height: Some(64),
            steps: Some(steps),
            ..Default::default()
        };
        let spec = GenerateSpec::new(params, &card).expect("valid");
        let mut events = queue.reserve(owner).expect("a reservation").submit(JobId::generate(), spec, Terms::default());
        while next(&mut events).await.is_some_and(|event| !matches!(event, QueueEvent::Finished(_))) {}
    };
    let (owner, rival) = (KeyId::generate(), KeyId::generate());
    let drawn = AtomicU32::new(0);
    let single = async || {
        loop {
            draw(rival, 1).await;
            drawn.fetch_add(1, Ordering::Relaxed);
        }
    };
    let singles = async { tokio::join!(single(), single(), single()) };
    let theirs = tokio::select! {
        _ = singles => unreachable!("they never end"),
        theirs = async {
            until("the rival is served", || drawn.load(Ordering::Relaxed) > 0).await;
            let before = drawn.load(Ordering::Relaxed);
            draw(owner, STEPS).await;
            drawn.load(Ordering::Relaxed) - before
        } => theirs,
    };
    // As many as take the time that the one image takes. Without a share of the time there would be one for each step.
    let fair = (STEPS + PARTS) / (1 + PARTS);
    assert!(theirs <= 2 * fair + 2, "{theirs} images beside one, where {fair} take as long");
    queue.close();
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

/// A factory of gated engines, and what opens their gate.
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

#[tokio::test]
async fn a_cancelled_image_stands_nowhere_while_the_engine_idles() {
    let (queue, steps) = gated().await;
    let id = JobId::generate();
    let mut events = queue.reserve(KeyId::generate()).expect("a reservation").submit(id, spec(), Terms::default());
    assert_eq!(next(&mut events).await, Some(QueueEvent::Started));
    assert!(queue.standing(id).is_some());
    queue.cancel(id, CancelCause::Request);
    steps.send(()).expect("an engine");
    while next(&mut events).await.is_some_and(|event| event != QueueEvent::Canceled) {}
    until("it has left", || queue.standing(id).is_none()).await;
    queue.close();
}

/// A queue whose engine cannot be built for the first `failures` times.
fn reluctant(settings: &QueueSettings, failures: u32) -> Queue {
    let (gate, _) = gate();
    let tries = AtomicU32::new(0);
    let build = move || {
        if tries.fetch_add(1, Ordering::Relaxed) < failures {
            return Err(EngineError::Fatal("the device fell off the bus".into()));
        }
        Ok(gated_engine(&gate))
    };
    Queue::start(settings, vec![Box::new(build)]).expect("a thread")
}

#[tokio::test]
async fn an_engine_is_built_until_it_stands_and_jobs_wait_for_it() {
    let queue = reluctant(&settings(), 20);
    let mut events =
        queue.reserve(KeyId::generate()).expect("a reservation").submit(JobId::generate(), spec(), Terms::default());
    let mut state = queue.state();
    let failed = state.wait_for(|state| matches!(state, EngineState::Rebuilding { builds_failed: 5.., .. })).await;
    let EngineState::Rebuilding { cause, .. } = failed.expect("a queue").clone() else { unreachable!() };
    assert!(cause.contains("the device fell off the bus"), "{cause}");
    ready(&queue).await;
    while next(&mut events).await.is_some_and(|event| !matches!(event, QueueEvent::Finished(_))) {}
    queue.close();
}

#[tokio::test]
async fn jobs_do_not_wait_for_ever_for_an_engine_that_cannot_be_built() {
    let queue = reluctant(&QueueSettings { outage_max: Duration::from_millis(50), ..settings() }, u32::MAX);
    let mut events =
        queue.reserve(KeyId::generate()).expect("a reservation").submit(JobId::generate(), spec(), Terms::default());
    let Some(QueueEvent::Failed(failure)) = next(&mut events).await else { panic!("it must fail") };
    assert_eq!(failure.code, JobFailure::ENGINE_UNAVAILABLE);
    queue.close();
}

#[tokio::test]
async fn a_place_is_held_until_the_listener_is_done() {
    let (queue, steps) = gated().await;
    let mut all: Vec<JobEvents> = (0..4)
        .map(|_| {
            queue.reserve(KeyId::generate()).expect("a reservation").submit(JobId::generate(), spec(), Terms::default())
        })
        .collect();
    drop(steps);
    for events in &mut all {
        while next(events).await.is_some() {}
    }
    assert!(queue.reserve(KeyId::generate()).is_err(), "four ends are not yet written down");
    all.pop();
    until("a reservation is free", || queue.reserve(KeyId::generate()).is_ok()).await;
    queue.close();
}

#[tokio::test]
async fn nobody_holds_more_places_than_are_left_for_others() {
    let (queue, _steps) = gated().await;
    let (greedy, modest) = (KeyId::generate(), KeyId::generate());
    let first = queue.reserve(greedy).expect("a reservation");
    let second = queue.reserve(greedy).expect("a reservation");
    assert!(matches!(queue.reserve(greedy), Err(ReserveError::Full { .. })));
    let others =
        [queue.reserve(modest).expect("a reservation"), queue.reserve(KeyId::generate()).expect("the last one")];
    drop(first);
    let accepted_before = queue.reserve_again(modest).expect("the share was asked for then");
    assert!(queue.reserve_again(greedy).is_err(), "all places are taken");
    drop(others);
    let again = queue.reserve(greedy).expect("a reservation");
    drop((second, accepted_before, again));
    queue.close();
}

/// How many engines have an image.
fn drawing(queue: &Queue) -> usize {
    queue.load().drawing
}

#[tokio::test]
async fn two_engines_draw_from_one_line_and_one_that_is_dead_harms_nobody() {
    let (gate, steps) = gate();
    let shut = Arc::clone(&gate);
    let sound = move || Ok(gated_engine(&gate));
    let dead = || Err(EngineError::Fatal("the device fell off the bus".into()));
    let factories: Vec<EngineFactory> = vec![Box::new(sound.clone()), Box::new(dead), Box::new(sound)];
    let queue = Queue::start(&settings(), factories).expect("threads");
    until("two are ready", || queue.engines() == (2, 3)).await;
    shut.is_shut.store(true, Ordering::Relaxed);
    let submit =
        || queue.reserve(KeyId::generate()).expect("a reservation").submit(JobId::generate(), spec(), Terms::default());
    let (mut first, mut second) = (submit(), submit());
    for events in [&mut first, &mut second] {
        assert_eq!(next(events).await, Some(QueueEvent::Started), "one each, before anybody has stepped");
    }
    assert_eq!(drawing(&queue), 2);
    drop(steps);
    for events in [&mut first, &mut second] {
        while next(events).await.is_some_and(|event| !matches!(event, QueueEvent::Finished(_))) {}
    }
    assert_eq!(*queue.state().borrow(), EngineState::Ready, "with one of three dead");
    queue.close();
}

#[tokio::test]
async fn a_deadline_ends_a_job_that_waits_and_one_that_is_drawn() {
    let (queue, steps) = gated().await;
    let terms = Terms { deadline: Some(Instant::now() + Duration::from_millis(100)), ..Terms::default() };
    let submit =
        |terms| queue.reserve(KeyId::generate()).expect("a reservation").submit(JobId::generate(), spec(), terms);
    let mut drawn = submit(terms);
    assert_eq!(next(&mut drawn).await, Some(QueueEvent::Started));
    let mut waits = submit(terms);
    let mut patient = submit(Terms::default());
    tokio::time::sleep(Duration::from_millis(120)).await;
    steps.send(()).expect("an engine");
    for events in [&mut drawn, &mut waits] {
        let failure = loop {
            match next(events).await {
                Some(QueueEvent::Failed(failure)) => break failure,
                Some(QueueEvent::Started | QueueEvent::Step { .. }) => {}
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(failure.code, JobFailure::DEADLINE_PASSED);
    }
    drop(steps);
    while next(&mut patient).await.is_some_and(|event| !matches!(event, QueueEvent::Finished(_))) {}
    queue.close();
}

#[tokio::test]
async fn a_deadline_passes_also_while_there_is_no_engine() {
    let queue = reluctant(&settings(), u32::MAX);
    let terms = Terms { deadline: Some(Instant::now() + Duration::from_millis(20)), ..Terms::default() };
    let mut events = queue.reserve(KeyId::generate()).expect("a reservation").submit(JobId::generate(), spec(), terms);
    let Some(QueueEvent::Failed(failure)) = next(&mut events).await else { panic!("it must fail") };
    assert_eq!(failure.code, JobFailure::DEADLINE_PASSED);
    queue.close();
}

#[tokio::test]
async fn a_list_of_jobs_takes_one_forecast_and_one_who_comes_is_in_the_next() {
    let (queue, _steps) = gated().await;
    let reservation = || queue.reserve_again(KeyId::generate()).expect("a reservation");
    let first = JobId::generate();
    let mut events = reservation().submit(first, spec(), Terms::default());
    assert_eq!(next(&mut events).await, Some(QueueEvent::Started));
    let is_shared = (0..20).any(|_| {
        let (one, other) = (queue.shared.forecast(), queue.shared.forecast());
        Arc::ptr_eq(&one, &other)
    });
    assert!(is_shared, "worked out anew for each job of a list");
    let second = JobId::generate();
    let _waiting = reservation().submit(second, spec(), Terms::default());
    assert!(queue.standing(first).is_some() && queue.standing(second).is_some());
    queue.cancel(second, CancelCause::Request);
    until("it has left", || queue.standing(second).is_none()).await;
    queue.close();
}
