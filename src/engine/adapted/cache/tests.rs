//! Recorded adapters in a small cache.

use std::path::{Path, PathBuf};

use candle_core::{DType, Tensor};

use super::*;
use crate::domain::model::ModelFiles;
use crate::engine::checkpoint::Checkpoint;

fn reference(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference").join(path)
}

fn cache(bytes_max: usize) -> AdapterCache {
    let checkpoint = Checkpoint::open(&ModelFiles::Directory(reference("FLUX.1-dev"))).expect("complete");
    AdapterCache::new(Loader::new(&checkpoint, DType::F32, bytes_max), &Device::Cpu)
}

/// A use of a recorded adapter; equal numbers are the same one.
fn used(number: u8, name: &str) -> Vec<AdapterUse> {
    let file = reference("lora/adapters").join(format!("{name}.safetensors"));
    vec![AdapterUse { id: AdapterId::of_sha256([number; 32]), file: file.into(), scale: 0.5 }]
}

/// Whether an adapter is in memory.
fn has(cache: &AdapterCache, uses: &[AdapterUse]) -> bool {
    !cache.set(uses).0.is_empty()
}

fn bytes_of(uses: &[AdapterUse]) -> usize {
    let mut cache = cache(usize::MAX);
    drop(cache.load(uses).expect("loads"));
    cache.bytes()
}

#[test]
fn an_adapter_is_read_once_and_nothing_waits_for_it() {
    let mut cache = cache(usize::MAX);
    let uses = used(1, "a1_peft");
    assert!(!cache.prepare(&uses).expect("begins"), "its thread was just started");
    while !cache.prepare(&uses).expect("loads") {
        std::thread::sleep(LOOK_INTERVAL);
    }
    let first = cache.load(&uses).expect("there");
    let second = cache.load(&uses).expect("there");
    assert!(Arc::ptr_eq(&first.0[0].0, &second.0[0].0), "the same numbers");
    assert_eq!((first.0[0].1, cache.entries.len()), (0.5, 1));
}

/// A job asks once for each step of others.
#[test]
fn a_file_that_was_read_is_there_at_the_next_call() {
    let mut cache = cache(usize::MAX);
    let uses = used(1, "a1_peft");
    assert!(!cache.prepare(&uses).expect("begins"));
    while cache.entries.iter().any(|entry| !entry.is_droppable()) {
        std::thread::sleep(LOOK_INTERVAL);
    }
    assert!(cache.prepare(&uses).expect("is there"));
}

#[test]
fn an_adapter_of_strength_0_is_not_read() {
    let mut cache = cache(usize::MAX);
    let uses: Vec<_> = used(1, "missing").into_iter().map(|lora| AdapterUse { scale: 0.0, ..lora }).collect();
    assert!(cache.prepare(&uses).expect("nothing to do"));
    assert!(cache.load(&uses).expect("nothing to do").0.is_empty() && cache.entries.is_empty());
}

#[test]
fn the_least_recently_used_adapter_leaves_and_one_in_use_stays() {
    let (first, second, third) = (used(1, "a1_peft"), used(2, "b1_kohya"), used(3, "c1_ai_toolkit"));
    let mut cache = cache([&first, &second, &third].map(|uses| bytes_of(uses)).iter().sum::<usize>() - 1);
    for uses in [&first, &second, &first] {
        cache.load(uses).expect("loads");
    }
    cache.load(&third).expect("loads");
    assert_eq!([&first, &second, &third].map(|uses| has(&cache, uses)), [true, false, true]);
    let image = cache.load(&first).expect("there");
    cache.load(&second).expect("loads");
    assert_eq!([&first, &second, &third].map(|uses| has(&cache, uses)), [true, true, false]);
    assert!(cache.drop_unused());
    assert_eq!([&first, &second].map(|uses| has(&cache, uses)), [true, false]);
    assert!(!cache.drop_unused(), "the other is used");
    drop(image);
    assert!(cache.drop_unused() && cache.entries.is_empty());
}

#[test]
fn adapters_in_use_make_others_wait_and_what_never_fits_is_refused() {
    let (first, second) = (used(1, "a1_peft"), used(2, "b1_kohya"));
    let mut cache = cache(bytes_of(&first).max(bytes_of(&second)));
    let image = cache.load(&first).expect("loads");
    assert!(matches!(cache.load(&second), Err(EngineError::OutOfMemory(_))));
    assert!(!cache.prepare(&second).expect("waits"));
    drop(image);
    cache.load(&second).expect("there is room now");
    let both = [first, second].concat();
    let error = cache.load(&both).expect_err("more than the cache holds");
    assert!(matches!(&error, EngineError::Request(reason) if reason.contains("MiB that are for adapters")), "{error}");
}

#[test]
fn no_more_than_so_many_are_kept() {
    let mut cache = cache(usize::MAX);
    for number in 0..ADAPTERS_MAX as u8 + 3 {
        cache.load(&used(number, "e4_peft_some_layers")).expect("loads");
        assert!(cache.entries.len() <= ADAPTERS_MAX);
    }
    assert_eq!(cache.entries.len(), ADAPTERS_MAX);
}

/// Jobs that were canceled while their adapters were read.
#[test]
fn files_that_were_read_for_nobody_do_not_keep_others_from_being_read() {
    let mut cache = cache(usize::MAX);
    for number in 0..10 {
        let uses = used(number, "a1_peft");
        assert!(!cache.prepare(&uses).expect("begins"));
        assert!(cache.entries.iter().any(|entry| entry.id == uses[0].id), "it is being read");
        while cache.entries.iter().any(|entry| !entry.is_droppable()) {
            std::thread::sleep(LOOK_INTERVAL);
        }
        assert!(cache.entries.len() <= WAITING_MAX + 1, "the oldest are dropped");
    }
    cache.load(&used(100, "b1_kohya")).expect("loads");
}

/// Adapters that wait for room in the host's memory are not read again for each other's sake.
#[test]
fn one_that_waits_for_room_drops_no_other_that_waits() {
    let (first, second, third) = (used(1, "a1_peft"), used(2, "a1_peft"), used(3, "a1_peft"));
    let mut cache = cache(bytes_of(&first));
    let image = cache.load(&first).expect("loads");
    for uses in [&second, &third, &second, &third] {
        assert!(matches!(cache.load(uses), Err(EngineError::OutOfMemory(_))));
        assert!(cache.entries.iter().any(|entry| entry.id == uses[0].id && matches!(entry.state, State::Read(_))));
    }
    assert_eq!(cache.entries.len(), 3, "none was dropped");
    drop(image);
    cache.load(&third).expect("there is room now");
    assert_eq!([&first, &second, &third].map(|uses| has(&cache, uses)), [false, false, true]);
}

#[test]
fn what_cannot_be_applied_is_refused_by_its_id_and_without_its_path() {
    let mut cache = cache(usize::MAX);
    for (name, reason) in [
        ("j10_sdxl", "its file: an adapter for Stable Diffusion"),
        ("j7_nan", "its file cannot be used:"),
        ("j11_no_lora_keys", "nothing in it is a change of FLUX.1"),
        ("there_is_none", "its file: missing"),
    ] {
        let uses = used(7, name);
        // An error is not kept.
        for _ in 0..2 {
            let Err(EngineError::Request(error)) = cache.load(&uses) else { panic!("{name} is refused") };
            assert!(error.contains(reason) && error.contains(uses[0].id.as_str()), "{error}");
            assert!(!error.contains("tests/reference"), "{error}");
        }
        assert!(cache.entries.is_empty());
    }
}

/// A device's steps wait for one piece at a time.
#[test]
fn changes_move_to_a_device_in_pieces_and_stay_in_their_order() {
    let change = |first: usize, rows: usize| {
        let bias = Tensor::zeros((1, rows), DType::F32, &Device::Cpu).expect("a row");
        RowChange { rows: first..first + rows, form: None, norm: None, bias: Some(bias) }
    };
    // Two fit into a piece, three do not, and one is larger than a piece.
    let changes = vec![change(0, 4), change(4, 4), change(8, 4), change(12, 16), change(28, 1)];
    let starts = |changes: &[RowChange]| changes.iter().map(|change| change.rows.start).collect::<Vec<_>>();
    let (id, bytes) = (AdapterId::of_sha256([1; 32]), changes.iter().map(RowChange::bytes).sum());
    let (modules, norms) = (HashMap::from([("a".to_owned(), changes)]), HashMap::new());
    let moved = LoadedAdapter { id, is_of_text: false, inputs_joined: 0, modules: HashMap::new(), norms };
    let mut state = State::Moving(Moving { left: one_by_one(modules), moved, bytes });
    let mut counts = Vec::new();
    let (adapter, moved_bytes) = loop {
        match state {
            State::Ready(adapter, bytes) => break (adapter, bytes),
            State::Moving(moving) => state = moving.advance(&Device::Cpu, 10 * size_of::<f32>()).expect("moves"),
            State::Reading(_) | State::Read(_) => panic!("it was read"),
        }
        if let State::Moving(moving) = &state {
            counts.push(moving.moved.modules["a"].len());
        }
    };
    assert_eq!((counts, moved_bytes), (vec![2, 3, 4], bytes));
    assert_eq!(starts(&adapter.modules["a"]), [0, 4, 8, 12, 28]);
}
