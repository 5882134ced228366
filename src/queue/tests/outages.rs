//! Engines that cannot be built.

use super::*;

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
async fn an_engine_is_rebuilt_until_it_is_ready_and_jobs_wait_for_it() {
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

/// What the driver says after a kernel has read where it must not, and after each call from then on.
fn lost() -> EngineError {
    EngineError::DeviceLost("DriverError(CUDA_ERROR_ILLEGAL_ADDRESS)".into())
}

async fn is_lost(queue: &Queue) {
    let mut state = queue.state();
    let reached = state.wait_for(|state| matches!(state, EngineState::DeviceLost { .. }));
    tokio::time::timeout(PATIENCE, reached).await.expect("in time").expect("a queue");
}

#[tokio::test]
async fn an_engine_is_not_built_again_on_a_device_that_is_lost() {
    let tries = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&tries);
    let build = move || {
        counted.fetch_add(1, Ordering::Relaxed);
        Err(lost())
    };
    let queue = Queue::start(&settings(), vec![Box::new(build)]).expect("a thread");
    let mut events =
        queue.reserve(KeyId::generate()).expect("a reservation").submit(JobId::generate(), spec(), Terms::default());
    is_lost(&queue).await;
    // Longer than the wait before a rebuild.
    assert!(tokio::time::timeout(Duration::from_millis(50), events.next()).await.is_err(), "the job waits");
    assert_eq!(tries.load(Ordering::Relaxed), 1);
    queue.close();
}

/// Steps of the image that breaks a device. The warm-up's has others.
const BREAKING_STEPS: u32 = 7;

/// Loses its device at the first step of an image of [`BREAKING_STEPS`].
struct Losing {
    breaks: bool,
}

impl StepEngine for Losing {
    fn limits(&self) -> EngineLimits {
        EngineLimits { images_max: 2, step_tokens_max: 100_000 }
    }

    fn admit(&mut self, spec: &GenerateSpec) -> Result<Slot, EngineError> {
        self.breaks |= spec.steps() == BREAKING_STEPS;
        Ok(Slot(0))
    }

    fn step(&mut self, _: &[Slot]) -> Result<(), EngineError> {
        if self.breaks { Err(lost()) } else { Ok(()) }
    }

    fn finish(&mut self, _: Slot) -> Result<RgbImage, EngineError> {
        Ok(RgbImage::new(64, 64, vec![1; 64 * 64 * 3]).expect("three bytes per pixel"))
    }

    fn release(&mut self, _: Slot) {}
}

#[tokio::test]
async fn a_lost_device_is_told_although_another_engine_is_ready_and_costs_no_job() {
    let (gate, _steps) = gate();
    let shut = Arc::clone(&gate);
    let losing: EngineFactory = Box::new(|| Ok(Box::new(Losing { breaks: false }) as Box<dyn StepEngine>));
    let queue = Queue::start(&settings(), vec![losing, Box::new(move || Ok(gated_engine(&gate)))]).expect("threads");
    ready(&queue).await;
    until("both are ready", || queue.engines().0 == 2).await;
    shut.is_shut.store(true, Ordering::Relaxed);
    // One for each engine.
    let submit = || {
        let reservation = queue.reserve(KeyId::generate()).expect("a reservation");
        reservation.submit(JobId::generate(), spec_in(Some(BREAKING_STEPS)), Terms::default())
    };
    let mut jobs = [submit(), submit()];
    is_lost(&queue).await;
    for events in &mut jobs {
        while let Ok(event) = tokio::time::timeout(Duration::from_millis(50), events.next()).await {
            assert!(!matches!(event, Some(QueueEvent::Failed(_)) | None), "{event:?}");
        }
    }
    queue.close();
}

#[tokio::test]
async fn jobs_do_not_wait_forever_for_an_engine_that_cannot_be_built() {
    let queue = reluctant(&QueueSettings { outage_max: Duration::from_millis(50), ..settings() }, u32::MAX);
    let mut events =
        queue.reserve(KeyId::generate()).expect("a reservation").submit(JobId::generate(), spec(), Terms::default());
    let Some(QueueEvent::Failed(failure)) = next(&mut events).await else { panic!("it must fail") };
    assert_eq!(failure.code, JobFailure::ENGINE_UNAVAILABLE);
    queue.close();
}

#[tokio::test]
async fn a_deadline_also_passes_while_there_is_no_engine() {
    let queue = reluctant(&settings(), u32::MAX);
    let terms = Terms { deadline: Some(Instant::now() + Duration::from_millis(20)), ..Terms::default() };
    let mut events = queue.reserve(KeyId::generate()).expect("a reservation").submit(JobId::generate(), spec(), terms);
    let Some(QueueEvent::Failed(failure)) = next(&mut events).await else { panic!("it must fail") };
    assert_eq!(failure.code, JobFailure::DEADLINE_PASSED);
    queue.close();
}

/// Breaks in the middle of its first step of a job, when told to.
struct Breaking {
    told: Arc<Gate>,
    is_stepping: Arc<AtomicBool>,
}

impl StepEngine for Breaking {
    fn limits(&self) -> EngineLimits {
        EngineLimits { images_max: 2, step_tokens_max: 100_000 }
    }

    fn admit(&mut self, _: &GenerateSpec) -> Result<Slot, EngineError> {
        Ok(Slot(0))
    }

    fn step(&mut self, _: &[Slot]) -> Result<(), EngineError> {
        if !self.told.is_shut.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.is_stepping.store(true, Ordering::Relaxed);
        let _ = self.told.messages.lock().expect("one engine").recv();
        Err(EngineError::Fatal("told to break".into()))
    }

    fn finish(&mut self, _: Slot) -> Result<RgbImage, EngineError> {
        Ok(RgbImage::new(64, 64, vec![1; 64 * 64 * 3]).expect("three bytes per pixel"))
    }

    fn release(&mut self, _: Slot) {}
}

#[tokio::test]
async fn a_job_that_is_canceled_while_its_engine_breaks_ends_before_the_engine_is_there_again() {
    let (gate, steps) = gate();
    let (told, is_built) = (Arc::clone(&gate), AtomicBool::new(false));
    let is_stepping = Arc::new(AtomicBool::new(false));
    let stepping = Arc::clone(&is_stepping);
    let build = move || {
        if is_built.swap(true, Ordering::Relaxed) {
            return Err(EngineError::Fatal("the device fell off the bus".into()));
        }
        let (told, is_stepping) = (Arc::clone(&told), Arc::clone(&stepping));
        Ok(Box::new(Breaking { told, is_stepping }) as Box<dyn StepEngine>)
    };
    let queue = Queue::start(&settings(), vec![Box::new(build)]).expect("a thread");
    ready(&queue).await;
    gate.is_shut.store(true, Ordering::Relaxed);
    let id = JobId::generate();
    let mut events = queue.reserve(KeyId::generate()).expect("a reservation").submit(id, spec(), Terms::default());
    until("it steps", || is_stepping.load(Ordering::Relaxed)).await;
    queue.cancel(id, CancelCause::Request);
    steps.send(()).expect("an engine");
    loop {
        match next(&mut events).await {
            Some(QueueEvent::Canceled) => break,
            Some(QueueEvent::Failed(_)) | None => panic!("it is not canceled"),
            Some(_) => {}
        }
    }
    assert!(!matches!(*queue.state().borrow(), EngineState::Ready));
    queue.close();
}
