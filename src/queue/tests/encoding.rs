//! Images of requests, which are encoded in parts between the steps of others.

use super::*;
use crate::domain::conditioning::{GivenImage, ImageRole};
use crate::domain::model::ModelCard;

/// Parts of the encoding of a request with images.
const PARTS: u32 = 6;
/// Duration of a part.
const PART: Duration = Duration::from_millis(8);
/// Duration of a step, of however many images: so the warm-up learns that packing pays.
const STEP: Duration = Duration::from_millis(1);

/// A call, with the image's slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    Part(Slot),
    /// Of a step, for each of its images.
    Step(Slot),
    Release(Slot),
}

/// What a test decides, and sees.
#[derive(Default)]
struct Control {
    calls: Mutex<Vec<Call>>,
    /// What the next part does instead of its work.
    error: Mutex<Option<EngineError>>,
    /// Parts wait for a message.
    gate: Mutex<Option<mpsc::Receiver<()>>>,
}

impl Control {
    fn calls(&self) -> Vec<Call> {
        self.calls.lock().expect("not poisoned").clone()
    }

    fn parts(&self) -> usize {
        self.calls().iter().filter(|call| matches!(call, Call::Part(_))).count()
    }
}

/// Encodes in parts, for requests with images.
struct InParts {
    engine: Box<dyn StepEngine>,
    control: Arc<Control>,
    parts_left: BTreeMap<Slot, u32>,
}

impl InParts {
    fn note(&self, call: Call) {
        self.control.calls.lock().expect("not poisoned").push(call);
    }
}

impl StepEngine for InParts {
    fn limits(&self) -> EngineLimits {
        EngineLimits { images_max: 4, ..self.engine.limits() }
    }

    fn admit(&mut self, spec: &GenerateSpec) -> Result<Slot, EngineError> {
        let slot = self.engine.admit(spec)?;
        if spec.input_image().is_some() {
            self.parts_left.insert(slot, PARTS);
        }
        Ok(slot)
    }

    fn encode_part(&mut self, slot: Slot) -> Result<bool, EngineError> {
        let Some(left) = self.parts_left.get(&slot).copied() else { return Ok(true) };
        self.note(Call::Part(slot));
        if let Some(gate) = &*self.control.gate.lock().expect("not poisoned") {
            let _ = gate.recv();
        }
        if let Some(error) = self.control.error.lock().expect("not poisoned").take() {
            self.parts_left.remove(&slot);
            self.engine.release(slot);
            return Err(error);
        }
        std::thread::sleep(PART);
        self.parts_left.insert(slot, left - 1);
        Ok(left == 1)
    }

    fn step(&mut self, slots: &[Slot]) -> Result<(), EngineError> {
        for slot in slots {
            assert_eq!(self.parts_left.get(slot).copied().unwrap_or(0), 0, "no step before all is encoded");
            self.note(Call::Step(*slot));
        }
        std::thread::sleep(STEP);
        self.engine.step(slots)
    }

    fn finish(&mut self, slot: Slot) -> Result<RgbImage, EngineError> {
        self.parts_left.remove(&slot);
        self.engine.finish(slot)
    }

    fn release(&mut self, slot: Slot) {
        self.note(Call::Release(slot));
        self.parts_left.remove(&slot);
        self.engine.release(slot);
    }
}

/// A queue whose engine is warmed up, what controls its parts, the gate of its steps, and what opens that.
async fn in_parts() -> (Queue, Arc<Control>, Arc<Gate>, mpsc::Sender<()>) {
    let ((gate, steps), control) = (gate(), Arc::new(Control::default()));
    let (shut, controlled) = (Arc::clone(&gate), Arc::clone(&control));
    let build = move || -> Result<Box<dyn StepEngine>, EngineError> {
        let (engine, control) = (gated_engine(&gate), Arc::clone(&controlled));
        Ok(Box::new(InParts { engine, control, parts_left: BTreeMap::new() }))
    };
    let settings = QueueSettings { jobs_max: 16, ..settings() };
    let queue = Queue::start(&settings, vec![Box::new(build)]).expect("a thread");
    ready(&queue).await;
    control.calls.lock().expect("not poisoned").clear();
    (queue, control, shut, steps)
}

/// A request with an image, in so many steps.
fn spec_with_image(steps: u32) -> GenerateSpec {
    let card = crate::catalog::card_or_flux_dev(&ModelId::new("test/model"));
    let card = ModelCard { input_images_max: 1, ..card };
    let image = RgbImage::new(64, 64, vec![7; 64 * 64 * 3]).expect("three bytes per pixel");
    let params = GenerateParams {
        prompt: "a fox".into(),
        width: Some(64),
        height: Some(64),
        steps: Some(steps),
        images: vec![GivenImage::new("image", ImageRole::Input, Arc::new(image))],
        strength: Some(1.0),
        ..Default::default()
    };
    GenerateSpec::new(params, &card).expect("valid")
}

fn submit(queue: &Queue, owner: KeyId, spec: GenerateSpec, terms: Terms) -> (JobId, JobEvents) {
    let id = JobId::generate();
    (id, queue.reserve(owner).expect("a reservation").submit(id, spec, terms))
}

/// The outcome.
async fn ended(events: &mut JobEvents) -> QueueEvent {
    loop {
        match next(events).await.expect("an outcome") {
            QueueEvent::Started | QueueEvent::PutBack | QueueEvent::Step { .. } => {}
            outcome => return outcome,
        }
    }
}

fn failure(event: QueueEvent) -> &'static str {
    match event {
        QueueEvent::Failed(failure) => failure.code,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_image_is_encoded_between_the_steps_of_others_and_steps_with_them_then() {
    let (queue, control, gate, steps) = in_parts().await;
    gate.is_shut.store(true, Ordering::Relaxed);
    let owner = KeyId::generate();
    let (_, mut plain) = submit(&queue, owner, spec_in(Some(40)), Terms::default());
    until("it steps", || !control.calls().is_empty()).await;
    let (_, mut with_image) = submit(&queue, owner, spec_with_image(2), Terms::default());
    // All further steps pass.
    drop(steps);
    assert!(matches!(ended(&mut with_image).await, QueueEvent::Finished(_)));
    assert!(matches!(ended(&mut plain).await, QueueEvent::Finished(_)));
    let calls = control.calls();
    let parts = calls.iter().filter(|call| matches!(call, Call::Part(_))).count();
    assert_eq!(parts, PARTS as usize, "{calls:?}");
    let between_steps = calls.split(|call| matches!(call, Call::Step(_))).map(<[_]>::len);
    // A part takes longer than a step, and so one at a time; the warm-up may have been disturbed.
    assert!(between_steps.max().is_some_and(|parts| parts <= PARTS as usize / 2), "{calls:?}");
    queue.close();
}

#[tokio::test]
async fn a_job_that_is_canceled_between_two_parts_leaves_the_engine() {
    let (queue, control, ..) = in_parts().await;
    let (parts, gate) = mpsc::channel();
    *control.gate.lock().expect("not poisoned") = Some(gate);
    let (id, mut events) = submit(&queue, KeyId::generate(), spec_with_image(2), Terms::default());
    until("its first part", || control.parts() == 1).await;
    queue.cancel(id, CancelCause::Request);
    drop(parts);
    assert_eq!(ended(&mut events).await, QueueEvent::Canceled);
    let is_freed = |calls: &[Call]| matches!(calls, [Call::Part(slot), Call::Release(freed)] if slot == freed);
    until("its slot is free", || is_freed(&control.calls())).await;
    queue.close();
}

#[tokio::test]
async fn a_job_whose_deadline_passes_between_two_parts_stops() {
    let (queue, control, ..) = in_parts().await;
    let (parts, gate) = mpsc::channel();
    *control.gate.lock().expect("not poisoned") = Some(gate);
    let deadline = Instant::now() + Duration::from_millis(300);
    let terms = Terms { deadline: Some(deadline), ..Terms::default() };
    let (_, mut events) = submit(&queue, KeyId::generate(), spec_with_image(2), terms);
    until("its first part, and the deadline", || control.parts() == 1 && Instant::now() > deadline).await;
    drop(parts);
    assert_eq!(failure(ended(&mut events).await), JobFailure::DEADLINE_PASSED);
    assert_eq!(control.parts(), 1);
    queue.close();
}

#[tokio::test]
async fn a_job_whose_image_cannot_be_encoded_fails_alone() {
    let (queue, control, ..) = in_parts().await;
    for (error, code) in [
        (EngineError::Request("it does not fit".into()), JobFailure::REFUSED_BY_ENGINE),
        (EngineError::OutOfMemory("told to".into()), JobFailure::OUT_OF_MEMORY),
    ] {
        *control.error.lock().expect("not poisoned") = Some(error);
        let (_, mut events) = submit(&queue, KeyId::generate(), spec_with_image(2), Terms::default());
        assert_eq!(failure(ended(&mut events).await), code);
    }
    let (_, mut events) = submit(&queue, KeyId::generate(), spec_with_image(2), Terms::default());
    assert!(matches!(ended(&mut events).await, QueueEvent::Finished(_)));
    assert_eq!(queue.engines(), (1, 1), "the engine is unharmed");
    queue.close();
}

#[tokio::test]
async fn without_memory_for_its_image_a_job_waits_until_another_has_left() {
    let (queue, control, gate, steps) = in_parts().await;
    gate.is_shut.store(true, Ordering::Relaxed);
    let owner = KeyId::generate();
    let (_, mut plain) = submit(&queue, owner, spec_in(Some(4)), Terms::default());
    until("it steps", || !control.calls().is_empty()).await;
    *control.error.lock().expect("not poisoned") = Some(EngineError::OutOfMemory("told to".into()));
    let (_, mut with_image) = submit(&queue, owner, spec_with_image(2), Terms::default());
    drop(steps);
    assert!(matches!(ended(&mut plain).await, QueueEvent::Finished(_)));
    assert!(matches!(ended(&mut with_image).await, QueueEvent::Finished(_)), "the second time");
    assert_eq!(control.parts(), 1 + PARTS as usize);
    queue.close();
}

#[tokio::test]
async fn an_engine_that_breaks_while_it_encodes_is_rebuilt_and_the_job_runs_again() {
    let (queue, control, ..) = in_parts().await;
    *control.error.lock().expect("not poisoned") = Some(EngineError::Fatal("told to".into()));
    let (_, mut events) = submit(&queue, KeyId::generate(), spec_with_image(2), Terms::default());
    assert!(matches!(ended(&mut events).await, QueueEvent::Finished(_)));
    assert_eq!(control.parts(), 1 + PARTS as usize);
    queue.close();
}
