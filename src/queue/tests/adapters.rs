//! Jobs whose adapters are still loading, or cannot be used.

use super::*;
use crate::domain::adapter::{AdapterId, AdapterUse};

/// The digit of the id of an adapter that cannot be used.
const BAD: u8 = 0xbd;

/// Has adapters once it is told so.
struct Preparing {
    engine: Box<dyn StepEngine>,
    is_loaded: Arc<AtomicBool>,
}

impl StepEngine for Preparing {
    fn limits(&self) -> EngineLimits {
        self.engine.limits()
    }

    fn prepare(&mut self, spec: &GenerateSpec) -> Result<bool, EngineError> {
        match spec.loras().first() {
            Some(lora) if lora.id == AdapterId::of_sha256([BAD; 32]) => {
                Err(EngineError::Request("the adapter is broken".to_owned()))
            }
            Some(_) => Ok(self.is_loaded.load(Ordering::Relaxed)),
            None => Ok(true),
        }
    }

    fn admit(&mut self, spec: &GenerateSpec) -> Result<Slot, EngineError> {
        assert!(self.prepare(spec)?, "it was passed");
        self.engine.admit(spec)
    }

    fn step(&mut self, slots: &[Slot]) -> Result<(), EngineError> {
        self.engine.step(slots)
    }

    fn finish(&mut self, slot: Slot) -> Result<RgbImage, EngineError> {
        self.engine.finish(slot)
    }

    fn release(&mut self, slot: Slot) {
        self.engine.release(slot);
    }
}

/// Has room for the cold adapter once it was asked for many times in a row, without the hot one between.
struct Crowded {
    engine: Box<dyn StepEngine>,
    /// How often the cold adapter was asked for since the hot one was; `None` before that.
    calm: Option<u32>,
    /// Whether each admitted image with an adapter has the cold one.
    admitted: Arc<Mutex<Vec<bool>>>,
}

const HOT: u8 = 1;
const COLD: u8 = 2;

impl StepEngine for Crowded {
    fn limits(&self) -> EngineLimits {
        self.engine.limits()
    }

    fn prepare(&mut self, spec: &GenerateSpec) -> Result<bool, EngineError> {
        let Some(is_cold) = is_cold(spec) else { return Ok(true) };
        self.calm = if is_cold { self.calm.map(|looks| looks + 1) } else { Some(0) };
        Ok(!is_cold || self.calm.is_some_and(|looks| looks > 50))
    }

    fn admit(&mut self, spec: &GenerateSpec) -> Result<Slot, EngineError> {
        self.admitted.lock().expect("one thread").extend(is_cold(spec));
        self.engine.admit(spec)
    }

    fn step(&mut self, slots: &[Slot]) -> Result<(), EngineError> {
        self.engine.step(slots)
    }

    fn finish(&mut self, slot: Slot) -> Result<RgbImage, EngineError> {
        self.engine.finish(slot)
    }

    fn release(&mut self, slot: Slot) {
        self.engine.release(slot);
    }
}

/// Whether an image has the cold adapter, if it has one.
fn is_cold(spec: &GenerateSpec) -> Option<bool> {
    spec.loras().first().map(|lora| lora.id == AdapterId::of_sha256([COLD; 32]))
}

/// A queue whose engine steps freely, and what tells it that adapters are loaded.
async fn preparing() -> (Queue, Arc<AtomicBool>) {
    let (gate, _) = gate();
    let is_loaded = Arc::new(AtomicBool::new(false));
    let loaded = Arc::clone(&is_loaded);
    let build = move || -> Result<Box<dyn StepEngine>, EngineError> {
        Ok(Box::new(Preparing { engine: gated_engine(&gate), is_loaded: Arc::clone(&loaded) }))
    };
    let queue = Queue::start(&settings(), vec![Box::new(build)]).expect("a thread");
    ready(&queue).await;
    (queue, is_loaded)
}

fn spec_with(adapter: u8) -> GenerateSpec {
    let card = crate::catalog::card_or_flux_dev(&ModelId::new("test/model"));
    let file = std::path::Path::new("an adapter").into();
    let loras = vec![AdapterUse { id: AdapterId::of_sha256([adapter; 32]), file, scale: 1.0 }];
    let (width, height) = (Some(64), Some(64));
    let steps = Some(1);
    let params = GenerateParams { prompt: "a fox".into(), width, height, steps, loras, ..Default::default() };
    GenerateSpec::new(params, &card).expect("valid")
}

fn submit(queue: &Queue, spec: GenerateSpec) -> JobEvents {
    let reservation = queue.reserve(KeyId::generate()).expect("a reservation");
    reservation.submit(JobId::generate(), spec, Terms::default())
}

async fn finishes(events: &mut JobEvents) {
    loop {
        match next(events).await.expect("an outcome") {
            QueueEvent::Finished(_) => return,
            event => assert!(!matches!(event, QueueEvent::Failed(_)), "{event:?}"),
        }
    }
}

#[tokio::test]
async fn others_pass_a_job_whose_adapters_are_loading_and_it_runs_when_they_are_there() {
    let (queue, is_loaded) = preparing().await;
    let mut loading: Vec<JobEvents> = (1..4).map(|adapter| submit(&queue, spec_with(adapter))).collect();
    let mut plain = submit(&queue, spec());
    finishes(&mut plain).await;
    // The engine is idle then, and still finds out.
    until("it has left", || (queue.load().waiting, queue.load().running) == (3, 0)).await;
    is_loaded.store(true, Ordering::Relaxed);
    for events in &mut loading {
        finishes(events).await;
    }
    queue.close();
}

/// Has room for one adapter, which is there when it was asked for three times in a row.
struct OneAtATime {
    engine: Box<dyn StepEngine>,
    latest: Option<AdapterId>,
    asked: usize,
}

impl StepEngine for OneAtATime {
    fn limits(&self) -> EngineLimits {
        self.engine.limits()
    }

    fn prepare(&mut self, spec: &GenerateSpec) -> Result<bool, EngineError> {
        let Some(lora) = spec.loras().first() else { return Ok(true) };
        if self.latest.as_ref() != Some(&lora.id) {
            (self.latest, self.asked) = (Some(lora.id.clone()), 0);
        }
        self.asked += 1;
        Ok(self.asked >= 3)
    }

    fn admit(&mut self, spec: &GenerateSpec) -> Result<Slot, EngineError> {
        self.engine.admit(spec)
    }

    fn step(&mut self, slots: &[Slot]) -> Result<(), EngineError> {
        self.engine.step(slots)
    }

    fn finish(&mut self, slot: Slot) -> Result<RgbImage, EngineError> {
        self.engine.finish(slot)
    }

    fn release(&mut self, slot: Slot) {
        self.engine.release(slot);
    }
}

#[tokio::test]
async fn jobs_whose_adapters_do_not_fit_together_come_one_after_the_other() {
    let (gate, _) = gate();
    let build = move || -> Result<Box<dyn StepEngine>, EngineError> {
        Ok(Box::new(OneAtATime { engine: gated_engine(&gate), latest: None, asked: 0 }))
    };
    let queue = Queue::start(&settings(), vec![Box::new(build)]).expect("a thread");
    ready(&queue).await;
    let mut jobs: Vec<JobEvents> = (1..4).map(|adapter| submit(&queue, spec_with(adapter))).collect();
    for events in &mut jobs {
        finishes(events).await;
    }
    queue.close();
}

#[tokio::test]
async fn jobs_that_pass_do_not_keep_the_room_that_another_waits_for() {
    const JOBS: usize = 100;
    let ((gate, steps), admitted) = (gate(), Arc::new(Mutex::new(Vec::new())));
    let (shut, log) = (Arc::clone(&gate), Arc::clone(&admitted));
    let build = move || -> Result<Box<dyn StepEngine>, EngineError> {
        Ok(Box::new(Crowded { engine: gated_engine(&gate), calm: None, admitted: Arc::clone(&log) }))
    };
    let settings = QueueSettings { jobs_max: 4 * JOBS, ..settings() };
    let queue = Queue::start(&settings, vec![Box::new(build)]).expect("a thread");
    ready(&queue).await;
    // All of them are there before the first can pass.
    shut.is_shut.store(true, Ordering::Relaxed);
    let mut first = submit(&queue, spec_in(Some(1)));
    until("it is admitted", || queue.load().running == 1).await;
    let owner = KeyId::generate();
    let of_owner = |adapter: u8| {
        let reservation = queue.reserve(owner).expect("a reservation");
        reservation.submit(JobId::generate(), spec_with(adapter), Terms::default())
    };
    let mut cold = of_owner(COLD);
    let mut hot: Vec<JobEvents> = (0..JOBS).map(|_| of_owner(HOT)).collect();
    drop(steps);
    finishes(&mut first).await;
    finishes(&mut cold).await;
    for events in &mut hot {
        finishes(events).await;
    }
    let admitted = admitted.lock().expect("ended").clone();
    let place = admitted.iter().position(|is_cold| *is_cold).expect("admitted");
    assert!((1..JOBS).contains(&place), "after {place} of {JOBS}: some pass it, and not all");
    queue.close();
}

#[tokio::test]
async fn a_job_whose_adapter_cannot_be_used_fails_alone() {
    let (queue, _) = preparing().await;
    let (mut bad, mut plain) = (submit(&queue, spec_with(BAD)), submit(&queue, spec()));
    let event = next(&mut bad).await.expect("an outcome");
    let QueueEvent::Failed(JobFailure { code, reason }) = event else { panic!("another outcome") };
    assert_eq!((code, reason.as_str()), (JobFailure::REFUSED_BY_ENGINE, "the adapter is broken"));
    finishes(&mut plain).await;
    assert_eq!(queue.engines(), (1, 1), "the engine is unharmed");
    queue.close();
}

#[tokio::test]
async fn a_job_that_waits_for_its_adapters_can_be_canceled() {
    let (queue, is_loaded) = preparing().await;
    let id = JobId::generate();
    let reservation = queue.reserve(KeyId::generate()).expect("a reservation");
    let mut canceled = reservation.submit(id, spec_with(1), Terms::default());
    let mut other = submit(&queue, spec_with(2));
    queue.cancel(id, CancelCause::Request);
    assert_eq!(next(&mut canceled).await, Some(QueueEvent::Canceled));
    is_loaded.store(true, Ordering::Relaxed);
    finishes(&mut other).await;
    queue.close();
}
