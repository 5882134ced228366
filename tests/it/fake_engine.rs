//! An engine without a model: an image's color follows from its seed or its input image. The test decides when it
//! steps, fails or panics, and sees its calls.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use fluxserve::domain::adapter::AdapterUse;
use fluxserve::domain::engine::{Draft, EngineError, EngineLimits, Slot, StepEngine};
use fluxserve::domain::image::RgbImage;
use fluxserve::domain::spec::GenerateSpec;

/// Longest a test waits for something to happen.
const PATIENCE: Duration = Duration::from_secs(20);

/// How much redder a preview gets with every step.
pub(crate) const PREVIEW_RED_PER_STEP: u8 = 40;

/// A call to an engine; images are identified by their seeds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Call {
    Build,
    Admit(u64),
    Step(Vec<u64>),
    /// A part of a draft.
    Draft(u64),
    Finish(u64),
    Release(u64),
}

/// What the next call of a kind does instead of its work.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    Error(EngineError),
    Panic,
    /// For a finish only: every pixel is black.
    Black,
}

#[derive(Default)]
struct State {
    calls: Vec<Call>,
    /// The last admitted request with a seed.
    specs: BTreeMap<u64, GenerateSpec>,
    is_held: bool,
    /// The warm-up's steps wait, too.
    holds_warm_up: bool,
    /// Steps that pass although it is held.
    free_steps: u32,
    waits_at_gate: bool,
    failing_builds: u32,
    next_admit: Option<Fault>,
    next_step: Option<Fault>,
    next_finish: Option<Fault>,
    next_draft: Option<Fault>,
    /// Every step of the image with this seed panics.
    poison: Option<u64>,
    limits: Option<EngineLimits>,
    step_images_max: Option<usize>,
    /// Receives what is logged on the engine's thread.
    listener: Option<tracing::Dispatch>,
}

impl State {
    /// Whether a step has to wait.
    fn is_shut(&self) -> bool {
        self.is_held && self.free_steps == 0
    }
}

/// The test's control of the engine.
#[derive(Clone, Default)]
pub(crate) struct EngineControl(Arc<(Mutex<State>, Condvar)>);

impl EngineControl {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.0.lock().expect("no panic under this lock")
    }

    /// Every step but the warm-up's waits from now on, until `release`.
    pub(crate) fn hold(&self) {
        self.lock().is_held = true;
    }

    /// Like `hold`, from the warm-up on.
    pub(crate) fn hold_from_the_start(&self) {
        let mut state = self.lock();
        (state.is_held, state.holds_warm_up) = (true, true);
    }

    /// The next `steps` steps pass, including one that waits.
    pub(crate) fn let_pass(&self, steps: u32) {
        self.lock().free_steps = steps;
        self.0.1.notify_all();
    }

    pub(crate) fn release(&self) {
        self.lock().is_held = false;
        self.0.1.notify_all();
    }

    /// Waits until the engine is about to step.
    pub(crate) async fn held(&self) {
        self.until(|state| state.waits_at_gate).await;
    }

    pub(crate) async fn until_called(&self, call: Call) {
        self.until(|state| state.calls.contains(&call)).await;
    }

    async fn until(&self, condition: impl Fn(&State) -> bool) {
        let started = Instant::now();
        while !condition(&self.lock()) {
            assert!(started.elapsed() < PATIENCE, "not in time; calls: {:?}", self.lock().calls);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    pub(crate) fn calls(&self) -> Vec<Call> {
        self.lock().calls.clone()
    }

    /// The LoRAs of the last image with this seed.
    pub(crate) fn loras_of(&self, seed: u64) -> Vec<AdapterUse> {
        self.spec_of(seed).loras().to_vec()
    }

    /// The last admitted image with this seed.
    pub(crate) fn spec_of(&self, seed: u64) -> GenerateSpec {
        self.lock().specs.get(&seed).cloned().expect("an admitted image")
    }

    pub(crate) fn forget_calls(&self) {
        self.lock().calls.clear();
    }

    /// Receives what is logged on the thread of the next engine that is built.
    pub(crate) fn listen(&self, listener: tracing::Dispatch) {
        self.lock().listener = Some(listener);
    }

    pub(crate) fn fail_builds(&self, builds: u32) {
        self.lock().failing_builds = builds;
    }

    pub(crate) fn on_next_admit(&self, fault: Fault) {
        self.lock().next_admit = Some(fault);
    }

    pub(crate) fn on_next_step(&self, fault: Fault) {
        self.lock().next_step = Some(fault);
    }

    /// Every step of the image with this seed panics.
    pub(crate) fn panic_at_every_step_of(&self, seed: u64) {
        self.lock().poison = Some(seed);
    }

    pub(crate) fn on_next_finish(&self, fault: Fault) {
        self.lock().next_finish = Some(fault);
    }

    pub(crate) fn on_next_draft(&self, fault: Fault) {
        self.lock().next_draft = Some(fault);
    }

    pub(crate) fn set_limits(&self, limits: EngineLimits) {
        self.lock().limits = Some(limits);
    }

    /// Steps of more images than this run out of memory.
    pub(crate) fn set_step_images_max(&self, images: usize) {
        self.lock().step_images_max = Some(images);
    }

    pub(crate) fn build(&self) -> Result<Box<dyn StepEngine>, EngineError> {
        let mut state = self.lock();
        state.calls.push(Call::Build);
        if state.failing_builds > 0 {
            state.failing_builds -= 1;
            return Err(EngineError::Fatal("told not to start".into()));
        }
        let listener = state.listener.take();
        drop(state);
        if let Some(listener) = listener {
            // For as long as the thread lives, which does nothing but the queue's work.
            std::mem::forget(tracing::dispatcher::set_default(&listener));
        }
        Ok(Box::new(FakeEngine { control: self.clone(), images: BTreeMap::new(), next_slot: 0 }))
    }
}

struct Image {
    spec: GenerateSpec,
    step: u32,
    draft_parts: u32,
}

struct FakeEngine {
    control: EngineControl,
    images: BTreeMap<Slot, Image>,
    next_slot: u64,
}

fn act(fault: Option<Fault>) -> Result<(), EngineError> {
    match fault {
        None | Some(Fault::Black) => Ok(()),
        Some(Fault::Error(error)) => Err(error),
        Some(Fault::Panic) => panic!("told to panic"),
    }
}

impl FakeEngine {
    fn do_steps(&mut self, slots: &[Slot]) {
        for slot in slots {
            let image = self.images.get_mut(slot).expect("an admitted slot");
            assert!(image.step < image.spec.steps(), "an image must not step beyond its end");
            image.step += 1;
        }
    }
}

impl StepEngine for FakeEngine {
    fn limits(&self) -> EngineLimits {
        self.control.lock().limits.unwrap_or(EngineLimits { images_max: 4, step_tokens_max: 100_000 })
    }

    fn admit(&mut self, spec: &GenerateSpec) -> Result<Slot, EngineError> {
        let fault = {
            let mut state = self.control.lock();
            state.calls.push(Call::Admit(spec.seed()));
            state.specs.insert(spec.seed(), spec.clone());
            state.next_admit.take()
        };
        act(fault)?;
        let slot = Slot(self.next_slot);
        self.next_slot += 1;
        self.images.insert(slot, Image { spec: spec.clone(), step: 0, draft_parts: 0 });
        Ok(slot)
    }

    fn step(&mut self, slots: &[Slot]) -> Result<(), EngineError> {
        let mut seeds: Vec<u64> = slots.iter().map(|slot| self.images[slot].spec.seed()).collect();
        // The order within a step makes no difference.
        seeds.sort_unstable();
        let is_warm_up = slots.iter().all(|slot| self.images[slot].spec.prompt() == "warm-up");
        let (fault, images_max) = {
            let mut state = self.control.lock();
            if state.poison.is_some_and(|poison| seeds.contains(&poison)) {
                state.next_step = Some(Fault::Panic);
            }
            state.calls.push(Call::Step(seeds));
            if is_warm_up && !state.holds_warm_up {
                drop(state);
                // Independent of the batch size, so that the queue learns that batching pays.
                std::thread::sleep(Duration::from_millis(2));
                self.do_steps(slots);
                return Ok(());
            }
            state.waits_at_gate = state.is_shut();
            state = self.control.0.1.wait_while(state, |state| state.is_shut()).expect("no panic under this lock");
            state.waits_at_gate = false;
            state.free_steps = state.free_steps.saturating_sub(1);
            (state.next_step.take(), state.step_images_max)
        };
        act(fault)?;
        if images_max.is_some_and(|max| slots.len() > max) {
            return Err(EngineError::OutOfMemory("told to".into()));
        }
        self.do_steps(slots);
        Ok(())
    }

    fn finish(&mut self, slot: Slot) -> Result<RgbImage, EngineError> {
        let Image { spec, step, .. } = self.images.remove(&slot).expect("an admitted slot");
        let fault = {
            let mut state = self.control.lock();
            state.calls.push(Call::Finish(spec.seed()));
            state.next_finish.take()
        };
        let input = spec.input_image().map(|start| start.image.pixels());
        let colour = match input {
            _ if matches!(fault, Some(Fault::Black)) => [0; 3],
            Some(input) => [input[0], input[1], input[2]],
            None => colour(spec.seed()),
        };
        act(fault)?;
        assert_eq!(step, spec.steps(), "an image must have done all its steps");
        let pixels = colour.repeat(spec.width() as usize * spec.height() as usize);
        Ok(RgbImage::new(spec.width(), spec.height(), pixels).expect("three bytes per pixel"))
    }

    /// One pixel, whose red tells how many steps are done, in increments that every format preserves.
    fn preview(&mut self, slot: Slot) -> Result<Option<RgbImage>, EngineError> {
        let step = self.images[&slot].step as u8;
        Ok(RgbImage::new(1, 1, vec![step * PREVIEW_RED_PER_STEP, 0, 0]))
    }

    /// In two parts. As a preview, in the size of the image.
    fn draft_part(&mut self, slot: Slot) -> Result<Draft, EngineError> {
        let Image { spec, step, draft_parts } = self.images.get_mut(&slot).expect("an admitted slot");
        let fault = {
            let mut state = self.control.lock();
            state.calls.push(Call::Draft(spec.seed()));
            state.next_draft.take()
        };
        act(fault)?;
        *draft_parts += 1;
        if *draft_parts % 2 == 1 {
            return Ok(Draft::Unfinished);
        }
        let pixels = [*step as u8 * PREVIEW_RED_PER_STEP, 0, 0].repeat(spec.width() as usize * spec.height() as usize);
        Ok(Draft::Done(RgbImage::new(spec.width(), spec.height(), pixels).expect("three bytes per pixel")))
    }

    fn release(&mut self, slot: Slot) {
        if let Some(image) = self.images.remove(&slot) {
            self.control.lock().calls.push(Call::Release(image.spec.seed()));
        }
    }
}

/// The color of every pixel of a seed's image.
pub(crate) fn colour(seed: u64) -> [u8; 3] {
    let [red, green, blue, ..] = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_be_bytes();
    // An all-black image counts as a fault.
    [red | 1, green, blue]
}
