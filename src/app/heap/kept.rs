//! Large blocks that were freed and are kept for the next request of their size. A step on the CPU asks for the same blocks as the one
//! before it, and the system clears each page that it gives out: that took a tenth of a step's time.
//!
//! What is kept never lets the process grow beyond what it has used at once. When nothing large has been asked for or freed for a
//! while, everything is given back.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Most blocks that are kept: more than a step frees before it asks for the same sizes again.
const BLOCKS_MAX: usize = 64;

/// Sizes are rounded up to this, the size of a large page: then more requests are of one size. Pages that nobody writes to take no memory.
const SIZE_STEP: usize = 2 << 20;

static KEPT: Mutex<Kept> = Mutex::new(Kept::new());

/// A block of the system's allocator, with the layout that it was asked for.
#[derive(Clone, Copy)]
struct Block {
    address: usize,
    bytes: usize,
    align: usize,
}

/// What is kept, the oldest first, and what is in use.
struct Kept {
    blocks: [Block; BLOCKS_MAX],
    count: usize,
    bytes: usize,
    /// Bytes of large blocks in use, and the most that there were at once.
    used: usize,
    used_max: usize,
    /// Whether something was asked for or freed since this was last looked at.
    is_busy: bool,
}

impl Kept {
    const fn new() -> Self {
        let blocks = [Block { address: 0, bytes: 0, align: 1 }; BLOCKS_MAX];
        Self { blocks, count: 0, bytes: 0, used: 0, used_max: 0, is_busy: false }
    }

    fn remove(&mut self, place: usize) -> Block {
        let block = self.blocks[place];
        self.blocks.copy_within(place + 1..self.count, place);
        self.count -= 1;
        self.bytes -= block.bytes;
        block
    }

    /// A kept block of this size, which is in use from now on.
    fn take(&mut self, bytes: usize, align: usize) -> Option<Block> {
        let fits = |block: &Block| (block.bytes, block.align) == (bytes, align);
        // The newest is most likely still in a cache.
        let place = self.blocks[..self.count].iter().rposition(fits)?;
        Some(self.remove(place))
    }

    /// Counts bytes as used.
    fn use_bytes(&mut self, bytes: usize) {
        self.is_busy = true;
        self.used += bytes;
        self.used_max = self.used_max.max(self.used);
    }

    /// Takes back what was counted for a request that failed.
    fn never_used(&mut self, bytes: usize) {
        self.used -= bytes;
        self.used_max = self.used;
    }

    /// The oldest block, if with it there is more than was ever in use.
    fn surplus(&mut self) -> Option<Block> {
        (self.count > 0 && self.used + self.bytes > self.used_max).then(|| self.remove(0))
    }

    /// Counts a block as free, and keeps it. Returns one to give back instead, where there is no place for all.
    fn keep(&mut self, block: Block) -> Option<Block> {
        self.is_busy = true;
        self.used -= block.bytes;
        let dropped = (self.count == BLOCKS_MAX).then(|| self.remove(0));
        self.blocks[self.count] = block;
        self.count += 1;
        self.bytes += block.bytes;
        dropped
    }
}

/// Never fails: what it protects is whole between any two lines.
fn kept() -> MutexGuard<'static, Kept> {
    KEPT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The bytes that are asked for in place of so many.
fn rounded(bytes: usize) -> Option<usize> {
    bytes.checked_next_multiple_of(SIZE_STEP)
}

fn layout(bytes: usize, align: usize) -> Option<Layout> {
    Layout::from_size_align(bytes, align).ok()
}

/// A large block; of zeros, if that is asked for. Null where there is no memory.
pub(super) fn alloc(wanted: Layout, is_zeroed: bool) -> *mut u8 {
    let Some(layout) = rounded(wanted.size()).and_then(|bytes| layout(bytes, wanted.align())) else {
        return std::ptr::null_mut();
    };
    let found = {
        let mut kept = kept();
        let found = kept.take(layout.size(), layout.align());
        kept.use_bytes(layout.size());
        found
    };
    if let Some(block) = found {
        let block = std::ptr::with_exposed_provenance_mut::<u8>(block.address);
        if is_zeroed {
            // SAFETY: the block has at least so many bytes, and nobody else uses it.
            #[expect(unsafe_code, reason = "the interface of allocators")]
            unsafe {
                block.write_bytes(0, wanted.size());
            }
        }
        return block;
    }
    give_back_surplus();
    // SAFETY: the size is not zero.
    #[expect(unsafe_code, reason = "the interface of allocators")]
    let new = || unsafe { if is_zeroed { System.alloc_zeroed(layout) } else { System.alloc(layout) } };
    let mut block = new();
    if block.is_null() && give_back_all() {
        block = new();
    }
    if block.is_null() {
        kept().never_used(layout.size());
    }
    block
}

/// Keeps a block that [`alloc`] or [`realloc`] has returned for this layout.
pub(super) fn dealloc(block: *mut u8, freed: Layout) {
    let bytes = rounded(freed.size()).unwrap_or(0);
    let dropped = kept().keep(Block { address: block.expose_provenance(), bytes, align: freed.align() });
    if let Some(block) = dropped {
        give_back(block);
    }
}

/// Another size for a block of the system's allocator. `from` and `to` are the sizes as they were and are asked for; those of large
/// blocks are rounded. Null where there is no memory; then the block stays.
///
/// # Safety
/// As for [`GlobalAlloc::realloc`].
#[expect(unsafe_code, reason = "the interface of allocators")]
pub(super) unsafe fn realloc(block: *mut u8, from: Layout, to: usize, is_large: impl Fn(usize) -> bool) -> *mut u8 {
    let held = |bytes: usize| if is_large(bytes) { rounded(bytes) } else { Some(bytes) };
    let (Some(old), Some(new)) = (held(from.size()), held(to)) else { return std::ptr::null_mut() };
    if old == new && is_large(to) {
        return block;
    }
    let Some(old_layout) = layout(old, from.align()) else { return std::ptr::null_mut() };
    // SAFETY: the block has this layout, as the caller promises.
    let mut moved = unsafe { System.realloc(block, old_layout, new) };
    if moved.is_null() && give_back_all() {
        // SAFETY: a block stays as it is where it could not be moved.
        moved = unsafe { System.realloc(block, old_layout, new) };
    }
    if !moved.is_null() {
        let mut kept = kept();
        kept.used -= if is_large(from.size()) { old } else { 0 };
        kept.use_bytes(if is_large(to) { new } else { 0 });
        drop(kept);
        give_back_surplus();
    }
    moved
}

/// Gives back all that is kept, if nothing large was asked for or freed since the last call.
pub(super) fn give_back_if_idle() {
    let is_idle = {
        let mut kept = kept();
        !std::mem::take(&mut kept.is_busy)
    };
    if is_idle {
        give_back_all();
    }
}

/// Gives back all that is kept: where there is no more memory, and before somebody looks at how much is free. Returns whether there was
/// anything.
pub(in crate::app) fn give_back_all() -> bool {
    let mut kept = kept();
    let (blocks, count) = (kept.blocks, kept.count);
    (kept.count, kept.bytes) = (0, 0);
    kept.used_max = kept.used;
    drop(kept);
    blocks[..count].iter().copied().for_each(give_back);
    count > 0
}

fn give_back_surplus() {
    loop {
        let Some(block) = kept().surplus() else { return };
        give_back(block);
    }
}

fn give_back(block: Block) {
    let Some(layout) = layout(block.bytes, block.align) else { return };
    // SAFETY: the block came from the system's allocator with this layout, and is no longer used.
    #[expect(unsafe_code, reason = "the interface of allocators")]
    unsafe {
        System.dealloc(std::ptr::with_exposed_provenance_mut(block.address), layout);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    fn block(address: usize, mib: usize) -> Block {
        Block { address, bytes: mib * MIB, align: 4 }
    }

    #[test]
    fn a_freed_block_is_taken_for_its_own_size_alone() {
        let mut kept = Kept::new();
        kept.use_bytes(8 * MIB);
        assert!(kept.keep(block(1, 8)).is_none());
        assert!(kept.take(6 * MIB, 4).is_none() && kept.take(8 * MIB, 64).is_none());
        assert_eq!(kept.take(8 * MIB, 4).map(|block| block.address), Some(1));
        assert!(kept.take(8 * MIB, 4).is_none(), "taken");
        assert_eq!((kept.count, kept.bytes), (0, 0));
    }

    #[test]
    fn what_is_kept_never_exceeds_what_was_in_use_at_once() {
        let mut kept = Kept::new();
        for address in 1..=3 {
            kept.use_bytes(10 * MIB);
            // As if each was a new one: 20 MiB would be there, of which never more than 10 were in use.
            let given_back: Vec<usize> = std::iter::from_fn(|| kept.surplus()).map(|block| block.address).collect();
            assert_eq!(given_back, if address == 1 { vec![] } else { vec![address - 1] }, "the oldest first");
            assert!(kept.keep(block(address, 10)).is_none());
        }
        assert!(kept.surplus().is_none());
        kept.use_bytes(8 * MIB);
        assert_eq!(kept.surplus().map(|block| block.address), Some(3), "8 MiB are used, and 10 would be kept");
        assert!(kept.surplus().is_none());
    }

    #[test]
    fn a_request_that_failed_allows_no_more_to_be_kept() {
        let mut kept = Kept::new();
        kept.use_bytes(10 * MIB);
        kept.use_bytes(1000 * MIB);
        kept.never_used(1000 * MIB);
        assert_eq!((kept.used, kept.used_max), (10 * MIB, 10 * MIB));
    }

    #[test]
    fn the_oldest_leaves_where_there_is_no_place() {
        let mut kept = Kept::new();
        kept.use_bytes(1000 * MIB);
        for address in 1..=BLOCKS_MAX {
            assert!(kept.keep(block(address, 4)).is_none());
        }
        assert_eq!(kept.keep(block(1000, 4)).map(|block| block.address), Some(1));
        assert_eq!(kept.take(4 * MIB, 4).map(|block| block.address), Some(1000), "the newest first");
        assert_eq!(kept.bytes, 4 * MIB * (BLOCKS_MAX - 1));
    }
}
