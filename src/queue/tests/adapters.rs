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
    let params = GenerateParams { prompt: "a fox".into(), width, height, loras, ..Default::default() };
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
