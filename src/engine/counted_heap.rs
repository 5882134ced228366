//! The memory that a test holds, counted where it asks for that. The allocator of all tests of this library is here.

#![expect(unsafe_code, reason = "the interface of allocators")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

#[global_allocator]
static HEAP: CountedHeap = CountedHeap;

/// The system's allocator, which counts for the threads that ask for it.
struct CountedHeap;

/// Bytes since the counting began.
#[derive(Debug, Clone, Copy, Default)]
struct Count {
    /// Less than zero where older memory was freed.
    held: isize,
    most: isize,
}

thread_local! {
    // Without a destructor, so that it can be used at any time.
    static COUNT: Cell<Option<Count>> = const { Cell::new(None) };
}

/// The outcome of `run`, and the most bytes of the heap that it held at a time.
pub(in crate::engine) fn most_held<T>(run: impl FnOnce() -> T) -> (T, usize) {
    let (outcome, count) = counted(run);
    (outcome, count.most as usize)
}

/// The outcome of `run`, and the bytes of the heap that it still holds.
pub(in crate::engine) fn still_held<T>(run: impl FnOnce() -> T) -> (T, usize) {
    let (outcome, count) = counted(run);
    (outcome, count.held.max(0) as usize)
}

/// Runs `run` on a thread pool of one thread, which is the thread whose bytes are counted.
pub(in crate::engine) fn on_one_thread<T: Send>(run: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread").install(run)
}

fn counted<T>(run: impl FnOnce() -> T) -> (T, Count) {
    COUNT.set(Some(Count::default()));
    let outcome = run();
    (outcome, COUNT.take().unwrap_or_default())
}

fn note(bytes: isize) {
    if let Some(Count { held, most }) = COUNT.get() {
        let held = held + bytes;
        COUNT.set(Some(Count { held, most: most.max(held) }));
    }
}

// SAFETY: every block is the system's allocator's. Counting neither allocates nor unwinds.
unsafe impl GlobalAlloc for CountedHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size() as isize);
        // SAFETY: as the caller promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size() as isize);
        // SAFETY: as the caller promised.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        note(-(layout.size() as isize));
        // SAFETY: as the caller promised.
        unsafe { System.dealloc(block, layout) }
    }

    // A block that grows counts once: the system extends or remaps large ones.
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        note(bytes as isize - layout.size() as isize);
        // SAFETY: as the caller promised.
        unsafe { System.realloc(block, layout, bytes) }
    }
}

#[test]
fn what_is_held_at_a_time_is_counted() {
    let older = std::hint::black_box(vec![1_u8; 500]);
    let ((), most) = most_held(|| {
        drop(older);
        drop(vec![1_u8; 300]);
        let mut kept = vec![1_u8; 1000];
        kept.reserve_exact(5000);
        std::hint::black_box(&kept);
    });
    assert_eq!(most, 5500, "500 of what there was are free again");
    let (kept, most) = most_held(|| std::hint::black_box(vec![0_u8; 1 << 20]));
    assert_eq!((kept.len(), most), (1 << 20, 1 << 20));
    assert_eq!(most_held(|| ()).1, 0);
    let (kept, held) = still_held(|| {
        drop(std::hint::black_box(vec![1_u8; 3000]));
        std::hint::black_box(vec![1_u8; 2000])
    });
    assert_eq!((kept.len(), held), (2000, 2000));
}
