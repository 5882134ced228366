use std::fs::File;
use std::io::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use candle_core::DType;

use super::slow::{Slow, bytes_in};
use super::*;
use crate::engine::blocks::BlockType;
use crate::engine::checkpoint::numbers::Numbers;
use crate::engine::checkpoint::recipe::Segment;
use crate::engine::checkpoint::source::{Blob, Source};

const BUFFER: usize = 4 * PIECE;
const PIECE: usize = 256;

/// Pseudorandom bytes by seed.
fn scattered(seed: usize, length: usize) -> Vec<u8> {
    let mut state = seed as u64 + 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..length).map(|_| next()).collect()
}

fn recipe(parts: &[&[u8]]) -> Recipe {
    let segment = |bytes: &&[u8]| Segment {
        file: Arc::new(Blob::embedded("part", bytes.to_vec().leak())),
        start: 0,
        skipped: 0,
        count: bytes.len() / 2,
        numbers: Numbers::Blocks(BlockType::Bf16),
    };
    let numbers = parts.iter().map(|part| part.len() / 2).sum();
    Recipe { segments: parts.iter().map(segment).collect(), dtype: DType::BF16, shape: vec![numbers] }
}

/// Tensors of all kinds of lengths: empty, one number, less than a buffer, exactly one, and several.
fn tensors() -> (Vec<Recipe>, Vec<Vec<u8>>) {
    let lengths = [2, 100, BUFFER, 0, 10 * BUFFER + 30, PIECE, 2, 3 * BUFFER - 2, 6, 4, 2 * BUFFER, 40, 0];
    let bytes: Vec<Vec<u8>> = lengths.iter().enumerate().map(|(seed, &length)| scattered(seed, length)).collect();
    let in_parts = |bytes: &Vec<u8>| {
        let (first, second) = bytes.split_at(bytes.len() / 4 * 2);
        recipe(&[first, second])
    };
    (bytes.iter().map(in_parts).collect(), bytes)
}

fn start(slow: Slow, recipes: Vec<Recipe>, asked: Asked) -> WeightStream<Slow> {
    WeightStream::start_with(slow, recipes, asked, 3, BUFFER).expect("starts")
}

#[test]
fn all_tensors_arrive_complete_from_a_slow_device() {
    let (recipes, expected) = tensors();
    let count = recipes.len();
    let stream = start(Slow::new(Duration::from_micros(300)), recipes, Asked::Once);
    let targets: Vec<_> = (0..count).map(|number| stream.fetch(number).expect("comes")).collect();
    assert_eq!(stream.restarts(), 0);
    // The last copies are only known to be done when the buffers are dropped.
    drop(stream);
    for (number, (target, expected)) in targets.iter().zip(&expected).enumerate() {
        assert!(bytes_in(target) == *expected, "tensor {number}");
    }
}

#[test]
fn a_buffer_that_is_filled_before_its_copies_are_done_is_detected() {
    let (recipes, expected) = tensors();
    let count = recipes.len();
    let stream = start(Slow::new(Duration::from_millis(2)).without_waiting(), recipes, Asked::Once);
    let targets: Vec<_> = (0..count).map(|number| stream.fetch(number).expect("comes")).collect();
    drop(stream);
    assert!(targets.iter().zip(&expected).any(|(target, expected)| bytes_in(target) != *expected));
}

#[test]
fn tensors_come_in_any_order_and_more_than_once() {
    let (recipes, expected) = tensors();
    let stream = start(Slow::new(Duration::ZERO), recipes, Asked::Once);
    let order = [4, 5, 0, 1, 12, 11, 10, 4, 3, 2, 6, 7, 8, 9, 0];
    let targets = order.map(|number| stream.fetch(number).expect("comes"));
    assert!(stream.restarts() >= 4, "{}", stream.restarts());
    drop(stream);
    for (number, target) in order.into_iter().zip(&targets) {
        assert!(bytes_in(target) == expected[number], "tensor {number}");
    }
}

#[test]
fn a_repeated_stream_is_read_ahead_across_the_end() {
    for (recipes, expected) in [tensors(), (vec![recipe(&[&[1, 2]])], vec![vec![1, 2]])] {
        let count = recipes.len();
        let stream = start(Slow::new(Duration::ZERO), recipes, Asked::Repeatedly);
        let targets: Vec<_> =
            (0..3 * count).map(|turn| (turn % count, stream.fetch(turn % count).expect("comes"))).collect();
        assert_eq!(stream.restarts(), 0);
        drop(stream);
        for (number, target) in targets {
            assert!(bytes_in(&target) == expected[number], "tensor {number}");
        }
    }
}

/// A file of so many bytes, open in a checkpoint, that can be truncated.
fn file(length: usize) -> (tempfile::TempDir, File, Arc<Blob>) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("weights.safetensors");
    let mut file = File::create(&path).expect("a file");
    file.write_all(&scattered(1, length)).expect("written");
    let blob = Source::main(folder.path()).open("weights.safetensors").expect("opens").expect("is there");
    (folder, file, Arc::new(blob))
}

fn one_of_many(file: &Arc<Blob>, number: usize, bytes: usize) -> Recipe {
    let (file, numbers) = (Arc::clone(file), Numbers::Blocks(BlockType::Bf16));
    let segment = Segment { file, start: number * bytes, skipped: 0, count: bytes / 2, numbers };
    Recipe { segments: vec![segment], dtype: DType::BF16, shape: vec![bytes / 2] }
}

#[test]
fn a_file_that_is_truncated_meanwhile_is_named_and_nothing_hangs() {
    let (_folder, file, blob) = file(100 * BUFFER);
    let recipes = (0..100).map(|number| one_of_many(&blob, number, BUFFER)).collect();
    let stream = start(Slow::new(Duration::ZERO), recipes, Asked::Once);
    stream.fetch(0).expect("comes");
    file.set_len(50 * BUFFER as u64 + 6).expect("cut");
    let mut errors = (1..100).filter_map(|number| stream.fetch(number).err());
    let error = errors.next().expect("the rest is gone").to_string();
    assert!(error.contains("`weights.safetensors` was truncated") && error.contains("models download"), "{error}");
    assert_eq!(errors.count() + 1, 50, "each tensor behind the new end, and no other");
    file.set_len(100 * BUFFER as u64).expect("grown");
    stream.fetch(99).expect("a tensor that is complete again can be read");
}

#[test]
fn a_device_that_fails_or_has_no_memory_is_reported() {
    let (recipes, _) = tensors();
    let stream = start(Slow::new(Duration::ZERO).failing_after(3), recipes, Asked::Once);
    let error = (0..11).find_map(|number| stream.fetch(number).err()).expect("it fails").to_string();
    assert!(error.contains("the device has failed"), "{error}");
    drop(stream);
    let (recipes, _) = tensors();
    let none = WeightStream::start_with(Slow::new(Duration::ZERO).with_buffers(2), recipes, Asked::Once, 3, BUFFER);
    assert!(none.err().expect("no memory").to_string().contains("no pinned memory"));
}

#[test]
fn reading_continues_while_the_device_copies() {
    const BUFFERS: usize = 20;
    let (read, copied) = (Arc::new(AtomicUsize::new(0)), AtomicUsize::new(0));
    let timeouts = Arc::new(AtomicUsize::new(0));
    // No copy ends before the buffer after it, and one more, are being filled.
    let when = {
        let (read, timeouts) = (Arc::clone(&read), Arc::clone(&timeouts));
        move || {
            let wanted = (copied.fetch_add(1, Ordering::SeqCst) + 3).min(BUFFERS);
            let until = Instant::now() + Duration::from_secs(10);
            while read.load(Ordering::SeqCst) < wanted {
                if Instant::now() > until {
                    timeouts.fetch_add(1, Ordering::SeqCst);
                    return;
                }
                std::thread::sleep(Duration::from_micros(100));
            }
        }
    };
    let counted = Arc::clone(&read);
    let slow = Slow::copying_when(when).with_reading(move || {
        counted.fetch_add(1, Ordering::SeqCst);
    });
    let bytes: Vec<Vec<u8>> = (0..BUFFERS).map(|seed| scattered(seed, BUFFER)).collect();
    let recipes = bytes.iter().map(|bytes| recipe(&[bytes])).collect();
    let stream = WeightStream::start_with(slow, recipes, Asked::Once, 2, BUFFER).expect("starts");
    let targets: Vec<_> = (0..BUFFERS).map(|number| stream.fetch(number).expect("comes")).collect();
    drop(stream);
    assert_eq!((read.load(Ordering::SeqCst), timeouts.load(Ordering::SeqCst)), (BUFFERS, 0));
    assert!(targets.iter().zip(&bytes).all(|(target, bytes)| bytes_in(target) == *bytes));
}
