//! The heap: large blocks in large pages, and a bound for the freed memory that the allocator keeps.
//!
//! Once large blocks were freed, glibc raises two bounds by itself: blocks up to 32 MiB then come from its arenas, and
//! each arena, of which there are up to eight per core, keeps up to 64 MiB at its end. Decoding clients' images leaves
//! such arenas: a worker would end up hundreds of MiB above what it uses. See `mallopt(3)`.

mod kept;

use std::alloc::{GlobalAlloc, Layout, System};
use std::convert::Infallible;
use std::time::Duration;

pub(super) use kept::give_back_all;

/// How long nothing large is asked for or freed before everything that is kept is given back.
const IDLE: Duration = Duration::from_secs(5);

/// The system's allocator, with large blocks in large pages, which are kept for a while once they are freed. A step on the CPU asks
/// for new memory in every layer, and a tenth of its time was spent on the clearing of pages.
#[derive(Debug)]
pub struct Heap;

// SAFETY: every block is the system's allocator's, and advice changes no contents.
#[expect(unsafe_code, reason = "the interface of allocators")]
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if is_large(layout.size()) {
            return in_large_pages(kept::alloc(layout, false), layout.size());
        }
        // SAFETY: as the caller promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if is_large(layout.size()) {
            return in_large_pages(kept::alloc(layout, true), layout.size());
        }
        // SAFETY: as the caller promised.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if is_large(layout.size()) {
            return kept::dealloc(block, layout);
        }
        // SAFETY: as the caller promised.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        if is_large(layout.size()) || is_large(bytes) {
            // SAFETY: as the caller promised.
            return in_large_pages(unsafe { kept::realloc(block, layout, bytes, is_large) }, bytes);
        }
        // SAFETY: as the caller promised.
        unsafe { System.realloc(block, layout, bytes) }
    }
}

fn is_large(bytes: usize) -> bool {
    bytes >= LARGE_BLOCK_BYTES
}

/// Gives back what is kept whenever nothing large was asked for or freed for a while.
pub(super) async fn give_back_when_idle() -> Infallible {
    loop {
        tokio::time::sleep(IDLE).await;
        kept::give_back_if_idle();
    }
}

/// Blocks of this size or more are in large pages: two of these, so that one of them is inside the block.
const LARGE_BLOCK_BYTES: usize = 2 * LARGE_PAGE_BYTES;
const LARGE_PAGE_BYTES: usize = 2 << 20;

/// The block, whose large pages are asked for if it has any. Nothing depends on whether the system has them.
fn in_large_pages(block: *mut u8, bytes: usize) -> *mut u8 {
    if is_large(bytes) && !block.is_null() {
        let before = block.align_offset(LARGE_PAGE_BYTES);
        let pages = bytes.saturating_sub(before) / LARGE_PAGE_BYTES;
        ask_for_large_pages(block.wrapping_add(before), pages * LARGE_PAGE_BYTES);
    }
    block
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn ask_for_large_pages(start: *mut u8, bytes: usize) {
    // SAFETY: the range is part of a block of this process, and the advice changes no contents.
    #[expect(unsafe_code, reason = "the C library's interface")]
    unsafe {
        libc::madvise(start.cast(), bytes, libc::MADV_HUGEPAGE);
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn ask_for_large_pages(_: *mut u8, _: usize) {}

/// Blocks of this size or more are mapped by themselves: the value that glibc ends up with.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const OWN_MAPPING_BYTES: i32 = 32 * 1024 * 1024;
/// What an arena may keep at its end. With less, a CPU engine would request its blocks from the system again and again.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const KEPT_BYTES: i32 = 16 * 1024 * 1024;

/// Sets bounds that do not grow. Does nothing with another allocator.
pub(super) fn bound_what_is_kept() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[expect(unsafe_code, reason = "the C library's interface")]
    // SAFETY: takes two numbers, and locks what it changes. An unknown parameter is refused without effect.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, OWN_MAPPING_BYTES);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT_BYTES);
    }
}

#[cfg(all(test, target_os = "linux", target_env = "gnu"))]
mod tests {
    use super::*;

    /// Whether the mapping of an address is to have large pages.
    fn has_large_pages(address: usize) -> bool {
        let maps = std::fs::read_to_string("/proc/self/smaps").expect("Linux");
        let mut is_inside = false;
        for line in maps.lines() {
            let range = line.split_once(' ').and_then(|(range, _)| range.split_once('-'));
            let ends = range.map(|(start, end)| [start, end].map(|end| usize::from_str_radix(end, 16)));
            if let Some([Ok(start), Ok(end)]) = ends {
                is_inside = (start..end).contains(&address);
            }
            if is_inside && line.starts_with("VmFlags:") {
                return line.split_whitespace().any(|flag| flag == "hg");
            }
        }
        panic!("no mapping of {address:x}");
    }

    #[test]
    #[expect(unsafe_code, reason = "the interface of allocators")]
    fn large_blocks_are_in_large_pages_and_keep_their_contents() {
        if !std::path::Path::new("/sys/kernel/mm/transparent_hugepage").exists() {
            return;
        }
        let layout = |bytes| Layout::from_size_align(bytes, 64).expect("a layout");
        // SAFETY: blocks are used inside their sizes, and freed with the layouts they have.
        unsafe {
            let block = Heap.alloc_zeroed(layout(64 << 20));
            assert!(has_large_pages(block as usize + (32 << 20)));
            assert_eq!(*block.add(32 << 20), 0);
            *block.add(1000) = 7;
            let block = Heap.realloc(block, layout(64 << 20), 96 << 20);
            assert_eq!(*block.add(1000), 7);
            assert!(has_large_pages(block as usize + (90 << 20)));
            Heap.dealloc(block, layout(96 << 20));
            // As small ones, kept ones are of zeros where that is asked for.
            let block = Heap.alloc(layout(8 << 20));
            block.write_bytes(7, 8 << 20);
            Heap.dealloc(block, layout(8 << 20));
            for _ in 0..2 {
                let block = Heap.alloc_zeroed(layout(8 << 20));
                assert!((0..8 << 20).all(|at| *block.add(at) == 0));
                Heap.dealloc(block, layout(8 << 20));
            }
            // Over the border and back.
            let block = Heap.alloc(layout(1000));
            *block.add(999) = 9;
            let block = Heap.realloc(block, layout(1000), 5 << 20);
            let block = Heap.realloc(block, layout(5 << 20), 2000);
            assert_eq!(*block.add(999), 9);
            Heap.dealloc(block, layout(2000));
            let small = Heap.alloc(layout(1000));
            assert!(!small.is_null());
            Heap.dealloc(small, layout(1000));
        }
    }
}
