//! Batch invariance under the real scheduler: hundreds of jobs of several owners arrive at random moments, some are
//! canceled, some have images of any role, adapters or caches between steps, and every generated image is the same file as
//! when it is generated unbatched.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use fluxserve::catalog::card_or_flux_dev;
use fluxserve::domain::adapter::{AdapterId, AdapterUse};
use fluxserve::domain::conditioning::{Conditioning, GivenImage, ImageRole};
use fluxserve::domain::device::DeviceChoice;
use fluxserve::domain::engine::{EngineError, EngineLimits, Slot, StepEngine};
use fluxserve::domain::format::OutputFormat;
use fluxserve::domain::ids::{JobId, KeyId, ModelId};
use fluxserve::domain::image::RgbImage;
use fluxserve::domain::model::ModelFiles;
use fluxserve::domain::priority::Priority;
use fluxserve::domain::spec::{GenerateParams, GenerateSpec};
use fluxserve::domain::step_cache::StepCache;
use fluxserve::encode::encode;
use fluxserve::engine::FluxEngine;
use fluxserve::queue::event::{JobEvents, QueueEvent};
use fluxserve::queue::{CancelCause, EngineFactory, EngineState, Queue, QueueSettings, Terms};

const JOBS: usize = 500;
const OWNERS: usize = 5;
const SEED: u64 = 20_260_824;

fn engine() -> FluxEngine {
    let files = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/FLUX.1-dev");
    FluxEngine::load(&ModelFiles::Directory(files), DeviceChoice::Cpu).expect("the checkpoint loads")
}

/// SplitMix64: the same jobs in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % end
    }

    fn image(&mut self, role: ImageRole, (width, height): (u32, u32)) -> GivenImage {
        let pixels = (0..width * height * 3).map(|_| self.below(256) as u8).collect();
        let image = Arc::new(RgbImage::new(width, height, pixels).expect("three bytes per pixel"));
        GivenImage::new("images[0]", role, image)
    }

    /// One or two reference images, of sizes of their own.
    fn references(&mut self) -> Vec<GivenImage> {
        let count = 1 + self.below(2);
        let side = |random: &mut Self| 16 * (1 + random.below(3) as u32);
        let reference = |_| {
            let size = (side(self), side(self));
            self.image(ImageRole::Reference, size)
        };
        (0..count).map(reference).collect()
    }

    /// An input image for one job in four, and a mask for half of these.
    fn images(&mut self, width: u32, height: u32) -> Vec<GivenImage> {
        if self.below(4) > 0 {
            return Vec::new();
        }
        let mut images = vec![self.image(ImageRole::Input, (width, height))];
        if self.below(2) == 0 {
            let white: Vec<bool> = (0..width / 8).map(|_| self.below(2) == 0).collect();
            let pixel = |at: u32| [if white[(at % width / 8) as usize] { 255 } else { 0 }; 3];
            let pixels = (0..width * height).flat_map(pixel).collect();
            let mask = Arc::new(RgbImage::new(width, height, pixels).expect("three bytes per pixel"));
            images.push(GivenImage::new("images[1]", ImageRole::Mask, mask));
        }
        images
    }

    /// An adapter that reads a control image, and others beside it.
    fn control_loras(&mut self) -> Vec<AdapterUse> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/lora/adapters");
        let file = folder.join("h_control_canny.safetensors").into();
        let mut loras = vec![AdapterUse { id: AdapterId::of_sha256([250; 32]), file, scale: 0.9 }];
        loras.extend(self.loras());
        loras
    }

    /// Up to three adapters for one job in three.
    fn loras(&mut self) -> Vec<AdapterUse> {
        let names = [
            "a1_peft",
            "b1_kohya",
            "e4_peft_some_layers",
            "f3_kohya_te1_only",
            "g1_loha",
            "g3_lokr_simpletuner",
            "g7_dora_peft",
        ];
        let count = if self.below(3) == 0 { 1 + self.below(3) } else { 0 };
        let adapter = |random: &mut Self| {
            let number = random.below(names.len() as u64) as usize;
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/lora/adapters");
            let file = folder.join(format!("{}.safetensors", names[number])).into();
            let scale = random.below(20) as f64 / 10.0 - 1.0;
            AdapterUse { id: AdapterId::of_sha256([number as u8; 32]), file, scale }
        };
        (0..count).map(|_| adapter(self)).collect()
    }

    /// A cache between steps for one job in three, which leaves out few steps or many.
    fn step_cache(&mut self) -> Option<StepCache> {
        (self.below(3) == 0).then(|| StepCache { threshold: (1 + self.below(50)) as f64 / 50.0 })
    }

    fn spec(&mut self, seed: u64) -> GenerateSpec {
        let mut card = card_or_flux_dev(&ModelId::new("reference"));
        // FLUX.1-Kontext differs from this checkpoint in its weights alone.
        (card.conditioning, card.input_images_max) = (Conditioning::References, 2);
        (card.limits.width_min, card.limits.height_min) = (16, 16);
        let prompts = ["a red circle", "two eggs", "", "neon signs reflected in a wet street", "a bowl of ramen"];
        let mut side = || 16 * (1 + self.below(4) as u32);
        let (width, height) = (side(), side());
        let images = match seed % 8 {
            3 => self.references(),
            5 => vec![self.image(ImageRole::Control, (width, height))],
            _ => self.images(width, height),
        };
        let has = |role: ImageRole| images.iter().any(|given| given.role == role);
        let (has_input, has_control) = (has(ImageRole::Input), has(ImageRole::Control));
        let params = GenerateParams {
            prompt: prompts[self.below(prompts.len() as u64) as usize].to_owned(),
            negative_prompt: (self.below(8) == 0).then(|| "blurry".to_owned()),
            width: Some(width),
            height: Some(height),
            strength: has_input.then(|| (1 + self.below(10)) as f64 / 10.0),
            images,
            steps: Some(1 + self.below(12) as u32),
            guidance: Some(self.below(8) as f64),
            seed,
            sequence_length: Some(1 + self.below(16) as usize),
            loras: if has_control { self.control_loras() } else { self.loras() },
            step_cache: self.step_cache(),
            ..GenerateParams::default()
        };
        GenerateSpec::new(params, &card).expect("a valid image")
    }
}

/// Counts what an engine steps: images once for each of their steps.
#[derive(Default)]
struct Batches {
    alone: AtomicUsize,
    together: AtomicUsize,
}

/// The engine, with its batches counted.
struct Counted {
    engine: FluxEngine,
    batches: Arc<Batches>,
}

impl StepEngine for Counted {
    fn limits(&self) -> EngineLimits {
        self.engine.limits()
    }

    fn prepare(&mut self, spec: &GenerateSpec) -> Result<bool, EngineError> {
        self.engine.prepare(spec)
    }

    fn admit(&mut self, spec: &GenerateSpec) -> Result<Slot, EngineError> {
        self.engine.admit(spec)
    }

    fn encode_part(&mut self, slot: Slot) -> Result<bool, EngineError> {
        self.engine.encode_part(slot)
    }

    fn step(&mut self, slots: &[Slot]) -> Result<(), EngineError> {
        let images = if slots.len() == 1 { &self.batches.alone } else { &self.batches.together };
        images.fetch_add(slots.len(), Ordering::Relaxed);
        self.engine.step(slots)
    }

    fn decode_part(&mut self, slot: Slot) -> Result<bool, EngineError> {
        self.engine.decode_part(slot)
    }

    fn finish(&mut self, slot: Slot) -> Result<RgbImage, EngineError> {
        self.engine.finish(slot)
    }

    fn release(&mut self, slot: Slot) {
        self.engine.release(slot);
    }
}

fn generate_unbatched(engine: &mut FluxEngine, spec: &GenerateSpec) -> Vec<u8> {
    let slot = engine.admit(spec).expect("admits");
    for _ in 0..spec.steps() {
        engine.step(&[slot]).expect("steps");
    }
    png(&engine.finish(slot).expect("finishes"))
}

fn png(image: &RgbImage) -> Vec<u8> {
    encode(image, OutputFormat::Png).expect("a file")
}

/// A queue with two engines, so that an image may be generated by either.
async fn queue(batches: &Arc<Batches>) -> Queue {
    let settings = QueueSettings {
        model: ModelId::new("reference"),
        jobs_max: 2 * JOBS,
        warm_up: Random(1).spec(0),
        rebuild_delay: Duration::from_millis(1),
        rebuild_delay_max: Duration::from_millis(1),
        outage_max: Duration::from_mins(1),
        stall_min: Duration::from_mins(1),
    };
    let factory = || -> EngineFactory {
        let batches = Arc::clone(batches);
        Box::new(move || {
            Ok(Box::new(Counted { engine: engine(), batches: Arc::clone(&batches) }) as Box<dyn StepEngine>)
        })
    };
    let queue = Queue::start(&settings, vec![factory(), factory()]).expect("threads");
    while queue.engines() != (2, 2) {
        assert_ne!(*queue.state().borrow(), EngineState::Gone);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    queue
}

/// The image's file; `None` when the job was canceled.
async fn end_of(mut events: JobEvents) -> Option<Vec<u8>> {
    loop {
        match events.next().await.expect("an outcome") {
            QueueEvent::Finished(image) => return Some(png(&image)),
            QueueEvent::Canceled => return None,
            QueueEvent::Failed(failure) => panic!("{failure:?}"),
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hundreds_of_batched_jobs_give_the_files_they_give_unbatched() {
    let batches = Arc::new(Batches::default());
    let queue = queue(&batches).await;
    batches.alone.store(0, Ordering::Relaxed);
    batches.together.store(0, Ordering::Relaxed);
    let mut random = Random(SEED);
    let owners: Vec<KeyId> = (0..OWNERS).map(|_| KeyId::generate()).collect();
    let specs: Vec<GenerateSpec> = (0..JOBS as u64).map(|seed| random.spec(seed)).collect();
    let mut ends = BTreeMap::new();
    for (number, spec) in specs.iter().enumerate() {
        let id = JobId::generate();
        let reservation = queue.reserve(owners[random.below(OWNERS as u64) as usize]).expect("a reservation");
        let terms = Terms { priority: Priority::ALL[random.below(3) as usize], ..Terms::default() };
        ends.insert(number, tokio::spawn(end_of(reservation.submit(id, spec.clone(), terms))));
        if random.below(6) == 0 {
            let (queue, wait) = (queue.clone(), Duration::from_millis(random.below(400)));
            tokio::spawn(async move {
                tokio::time::sleep(wait).await;
                queue.cancel(id, CancelCause::Request);
            });
        }
        // In bursts.
        if random.below(4) == 0 {
            tokio::time::sleep(Duration::from_millis(random.below(60))).await;
        }
    }
    let mut unbatched = engine();
    let (mut generated, mut canceled) = (0, 0);
    for (number, end) in ends {
        match end.await.expect("no panic") {
            None => canceled += 1,
            Some(file) => {
                assert!(
                    file == generate_unbatched(&mut unbatched, &specs[number]),
                    "{number} differs: {:?}",
                    specs[number]
                );
                generated += 1;
            }
        }
    }
    queue.close();
    let (alone, together) = (batches.alone.load(Ordering::Relaxed), batches.together.load(Ordering::Relaxed));
    assert!(generated > JOBS * 2 / 3 && canceled > 0, "{generated} generated, {canceled} canceled");
    // How many are in a step depends on what encoding costs beside it, and so on the processor and its other work.
    assert!(together > alone, "{together} images stepped together, {alone} alone: hardly any were batched");
}
