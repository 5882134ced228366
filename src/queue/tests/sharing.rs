//! How owners share an engine, decodings included.

use super::*;

/// Duration of a step, and of a part of a decoding.
const SPELL: Duration = Duration::from_millis(4);
const PARTS: u32 = 12;

/// Decodes in parts, and records its calls.
struct InParts {
    calls: Arc<Mutex<Vec<&'static str>>>,
    parts_left: BTreeMap<Slot, u32>,
    slots: u64,
    draft_parts: u32,
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

    fn draft_part(&mut self, _: Slot) -> Result<Draft, EngineError> {
        self.spend("draft");
        self.draft_parts += 1;
        let image = RgbImage::new(1, 1, vec![1; 3]).expect("three bytes");
        Ok(if self.draft_parts.is_multiple_of(PARTS) { Draft::Done(image) } else { Draft::Unfinished })
    }

    fn release(&mut self, slot: Slot) {
        self.parts_left.remove(&slot);
    }
}

#[tokio::test]
async fn a_draft_blocks_others_for_one_step_at_a_time() {
    let calls: Arc<Mutex<Vec<&'static str>>> = Arc::default();
    let made = Arc::clone(&calls);
    let make = move || -> Result<Box<dyn StepEngine>, EngineError> {
        let calls = Arc::clone(&made);
        Ok(Box::new(InParts { calls, parts_left: BTreeMap::new(), slots: 0, draft_parts: 0 }))
    };
    let queue = Queue::start(&settings(), vec![Box::new(make)]).expect("a thread");
    ready(&queue).await;
    calls.lock().expect("not poisoned").clear();
    let drafts = Drafts::new(1, &DraftMemory::default());
    let submit = |drafts: Drafts| {
        let reservation = queue.reserve(KeyId::generate()).expect("a reservation").with_drafts(drafts);
        reservation.submit(JobId::generate(), spec_in(Some(40)), Terms::default())
    };
    let (mut drafted, mut other) = (submit(drafts.clone()), submit(Drafts::default()));
    for events in [&mut drafted, &mut other] {
        while next(events).await.is_some_and(|event| !matches!(event, QueueEvent::Finished(_))) {}
    }
    assert_eq!(drafts.take().map(|draft| draft.index), Some(0));
    let calls = calls.lock().expect("not poisoned").clone();
    let parts = calls.split(|call| *call == "step").map(|calls| calls.iter().filter(|call| **call == "draft").count());
    assert_eq!(parts.clone().sum::<usize>(), PARTS as usize, "{calls:?}");
    // As with decodings.
    assert!(parts.max().is_some_and(|parts| parts <= PARTS as usize / 2), "{calls:?}");
}

#[tokio::test]
async fn a_decoding_blocks_others_for_one_step_at_a_time() {
    let calls: Arc<Mutex<Vec<&'static str>>> = Arc::default();
    let made = Arc::clone(&calls);
    let make = move || -> Result<Box<dyn StepEngine>, EngineError> {
        Ok(Box::new(InParts { calls: Arc::clone(&made), parts_left: BTreeMap::new(), slots: 0, draft_parts: 0 }))
    };
    let queue = Queue::start(&settings(), vec![Box::new(make)]).expect("a thread");
    ready(&queue).await;
    calls.lock().expect("not poisoned").clear();
    let submit = |steps: u32| {
        queue.reserve(KeyId::generate()).expect("a reservation").submit(
            JobId::generate(),
            spec_in(Some(steps)),
            Terms::default(),
        )
    };
    let (mut long, mut short) = (submit(40), submit(2));
    for events in [&mut short, &mut long] {
        while next(events).await.is_some_and(|event| !matches!(event, QueueEvent::Finished(_))) {}
    }
    let calls = calls.lock().expect("not poisoned").clone();
    // The last image runs alone, and is decoded at once.
    let last_step = calls.iter().rposition(|call| *call == "step").expect("steps");
    assert_eq!(calls[last_step + 1..], ["part"; PARTS as usize]);
    let parts = calls[..last_step].split(|call| *call == "step").map(<[_]>::len);
    assert_eq!(parts.clone().sum::<usize>(), PARTS as usize, "{calls:?}");
    // The length of a part follows from the warm-up, which a busy machine may have slowed down.
    assert!(parts.max().is_some_and(|parts| parts <= PARTS as usize / 2), "{calls:?}");
}

/// Decodes in one call, which takes as long as `PARTS` steps.
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
async fn an_owner_of_single_step_images_gets_no_more_engine_time_than_others() {
    const STEPS: u32 = 60;
    let make = || -> Result<Box<dyn StepEngine>, EngineError> { Ok(Box::new(InOneGo(0))) };
    let queue = Queue::start(&QueueSettings { jobs_max: 16, ..settings() }, vec![Box::new(make)]).expect("a thread");
    ready(&queue).await;
    let generate = async |owner: KeyId, steps: u32| {
        let mut events = queue.reserve(owner).expect("a reservation").submit(
            JobId::generate(),
            spec_in(Some(steps)),
            Terms::default(),
        );
        while next(&mut events).await.is_some_and(|event| !matches!(event, QueueEvent::Finished(_))) {}
    };
    let (owner, rival) = (KeyId::generate(), KeyId::generate());
    let finished = AtomicU32::new(0);
    let single = async || {
        loop {
            generate(rival, 1).await;
            finished.fetch_add(1, Ordering::Relaxed);
        }
    };
    let singles = async { tokio::join!(single(), single(), single()) };
    let theirs = tokio::select! {
        _ = singles => unreachable!("they never end"),
        theirs = async {
            until("the rival is served", || finished.load(Ordering::Relaxed) > 0).await;
            let before = finished.load(Ordering::Relaxed);
            generate(owner, STEPS).await;
            finished.load(Ordering::Relaxed) - before
        } => theirs,
    };
    // As many as take the time of the one image. Without shares of time there would be one for each step.
    let fair = (STEPS + PARTS) / (1 + PARTS);
    assert!(theirs <= 2 * fair + 2, "{theirs} images beside one; {fair} would be fair");
    queue.close();
}
