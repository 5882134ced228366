//! Reading ahead: streams weights to a device whose copies are asynchronous, and reads the next bytes while the previous ones
//! are copied, across all tensors.
//!
//! Reader threads fill a few buffers, in the order in which the model will ask for its tensors; the thread that asks has the
//! device copy out of them. A buffer is filled again only after all copies out of it are done. A tensor that is asked for out
//! of order restarts the reading there.

#[cfg(feature = "cuda")]
pub(super) mod cuda;
pub(super) mod nowhere;
mod state;

use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use candle_core::{Device, Result, Tensor};

use super::recipe::Recipe;
pub(super) use state::Asked;
use state::{Chunk, State};

/// Bytes of one buffer. A PCIe link of the fifth generation copies it in 0.15 ms, which hides the work per buffer, and it
/// stays in the processor's caches until then: buffers of 32 MiB took half as long again to be read from the page cache
/// (`benches/README.md`).
pub(in crate::engine) const BUFFER_BYTES: usize = 8 << 20;

/// Maximum threads that read. One reads 5 to 20 GB/s from the page cache, and such a link takes 55; a fast disk needs several
/// requests at a time.
const READERS_MAX: usize = 8;

/// Buffers besides those that are being filled: one that is being copied, and one that waits.
const BUFFERS_IN_FLIGHT: usize = 2;

/// A device to copy to, and the host memory that it copies from.
pub(super) trait Destination: Send + Sync + 'static {
    /// A buffer that the device can read asynchronously. Dropping it waits for all copies out of it.
    type Buffer: Send;
    /// A tensor's memory on the device.
    type Target;

    /// Whether its tensors are on this device.
    fn is_at(&self, device: &Device) -> bool;

    /// A new buffer.
    fn buffer(&self, bytes: usize) -> Result<Self::Buffer>;

    /// Memory for a tensor, uninitialized.
    fn target(&self, recipe: &Recipe) -> Result<Self::Target>;

    /// Waits until all copies out of the buffer are done, and has `write` fill it. Called by the readers.
    fn fill(
        &self,
        buffer: &mut Self::Buffer,
        write: &mut dyn FnMut(&mut [u8]) -> std::result::Result<(), String>,
    ) -> std::result::Result<(), String>;

    /// Begins to copy part of a buffer to `at` bytes from the target's beginning, and need not wait for the end. Called by
    /// the thread that asks for tensors.
    fn copy(&self, buffer: &mut Self::Buffer, from: Range<usize>, target: &mut Self::Target, at: usize) -> Result<()>;

    /// The tensor, whose bytes are copied before any later use on the device.
    fn tensor(&self, target: Self::Target, recipe: &Recipe) -> Result<Tensor>;

    /// Has later copies wait for the device's work so far, where they would not by themselves: tensors may be dropped after it.
    fn release(&self) -> Result<()> {
        Ok(())
    }
}

/// Gives tensors by their numbers in a fixed list.
pub(super) trait TensorStream: Send + Sync {
    /// Whether its tensors are on this device.
    fn leads_to(&self, device: &Device) -> bool;

    /// # Errors
    /// When a file cannot be read, or the device fails.
    fn tensor(&self, number: usize) -> Result<Tensor>;

    /// How often a tensor was asked for out of order, and reading restarted.
    fn restarts(&self) -> usize;

    /// Lets tensors be dropped: their memory is not written before the device's work so far is done.
    ///
    /// # Errors
    /// When the device fails.
    fn release(&self) -> Result<()>;
}

/// A stream of tensors, with its reader threads.
pub(super) struct WeightStream<D: Destination> {
    shared: Arc<Shared<D>>,
    front: Mutex<Front<D::Buffer>>,
    readers: Vec<JoinHandle<()>>,
}

struct Shared<D: Destination> {
    destination: D,
    recipes: Vec<Recipe>,
    asked: Asked,
    buffer_bytes: usize,
    state: Mutex<State<D::Buffer>>,
    changed: Condvar,
}

/// The chunk that is being copied.
struct Front<B> {
    chunk: Option<Chunk<B>>,
    /// The number of the next chunk.
    awaited: u64,
}

/// How many threads read: as many as help, and at most as many as the machine has cores.
pub(in crate::engine) fn readers() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).clamp(2, READERS_MAX)
}

impl<D: Destination> WeightStream<D> {
    /// Begins to read the tensors in the order of `recipes`.
    ///
    /// # Errors
    /// When there is no memory for the buffers, or no thread can be started.
    pub(super) fn start(destination: D, recipes: Vec<Recipe>, asked: Asked) -> Result<Self> {
        Self::start_with(destination, recipes, asked, readers(), BUFFER_BYTES)
    }

    fn start_with(
        destination: D,
        recipes: Vec<Recipe>,
        asked: Asked,
        readers: usize,
        buffer_bytes: usize,
    ) -> Result<Self> {
        let buffers = (0..readers + BUFFERS_IN_FLIGHT).map(|_| destination.buffer(buffer_bytes));
        let state = State::new(buffers.collect::<Result<_>>()?, &recipes);
        let shared =
            Shared { destination, recipes, asked, buffer_bytes, state: Mutex::new(state), changed: Condvar::new() };
        let front = Mutex::new(Front { chunk: None, awaited: 0 });
        let mut stream = Self { shared: Arc::new(shared), front, readers: Vec::with_capacity(readers) };
        for number in 0..readers {
            let shared = Arc::clone(&stream.shared);
            let thread = std::thread::Builder::new().name(format!("weights-{number}"));
            stream.readers.push(thread.spawn(move || shared.read_on())?);
        }
        Ok(stream)
    }

    /// Copies a tensor to the device: what was read ahead, and then the rest as it is read.
    ///
    /// # Errors
    /// When a file cannot be read, or the device fails.
    pub(super) fn fetch(&self, number: usize) -> Result<D::Target> {
        let shared = &*self.shared;
        let recipe = &shared.recipes[number];
        let mut target = shared.destination.target(recipe)?;
        let mut front = self.front.lock().unwrap_or_else(PoisonError::into_inner);
        shared.line_up(&mut front, number);
        let mut left = recipe.bytes();
        while left > 0 {
            match shared.copy_next(&mut front, number, &mut target, left) {
                Ok(copied) => left -= copied,
                Err(error) => {
                    // Part of it is consumed: the next request reads it again from its beginning.
                    shared.forget_ahead(&mut front, |state| state.stop(shared.asked));
                    return Err(error);
                }
            }
        }
        shared.lock().give(number, shared.asked);
        Ok(target)
    }
}

impl<D: Destination> TensorStream for WeightStream<D> {
    fn leads_to(&self, device: &Device) -> bool {
        self.shared.destination.is_at(device)
    }

    fn tensor(&self, number: usize) -> Result<Tensor> {
        let target = self.fetch(number)?;
        self.shared.destination.tensor(target, &self.shared.recipes[number])
    }

    fn restarts(&self) -> usize {
        self.shared.lock().restarts
    }

    fn release(&self) -> Result<()> {
        self.shared.destination.release()
    }
}

impl<D: Destination> Drop for WeightStream<D> {
    fn drop(&mut self) {
        self.shared.lock().is_closed = true;
        self.shared.changed.notify_all();
        for reader in self.readers.drain(..) {
            // A panic was reported where its chunk was missed.
            drop(reader.join());
        }
    }
}

impl<D: Destination> Shared<D> {
    fn lock(&self) -> MutexGuard<'_, State<D::Buffer>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State<D::Buffer>>) -> MutexGuard<'a, State<D::Buffer>> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a tensor's first byte the next one.
    fn line_up(&self, front: &mut Front<D::Buffer>, number: usize) {
        let state = self.lock();
        let next = state.coming.front().copied().or(state.cursor.map(|(recipe, _)| recipe));
        if next == Some(number) || self.recipes[number].bytes() == 0 {
            return;
        }
        drop(state);
        self.forget_ahead(front, |state| state.restart_at(number, self.asked));
    }

    /// Drops the chunk that is being copied, and all that was read after it.
    fn forget_ahead(&self, front: &mut Front<D::Buffer>, forget: impl FnOnce(&mut State<D::Buffer>)) {
        let mut state = self.lock();
        state.free.extend(front.chunk.take().map(|chunk| chunk.buffer));
        forget(&mut state);
        front.awaited = state.next;
        self.changed.notify_all();
    }

    fn wait_for(&self, front: &mut Front<D::Buffer>) -> std::result::Result<Chunk<D::Buffer>, String> {
        let mut state = self.lock();
        loop {
            if let Some(chunk) = state.filled.remove(&front.awaited) {
                front.awaited += 1;
                return chunk;
            }
            if state.is_broken {
                return Err("a thread that reads weights panicked".to_owned());
            }
            state = self.wait(state);
        }
    }

    /// Copies what the next chunk has of a tensor, at most `left` bytes, and returns how many.
    fn copy_next(
        &self,
        front: &mut Front<D::Buffer>,
        number: usize,
        target: &mut D::Target,
        left: usize,
    ) -> Result<usize> {
        let mut chunk = match front.chunk.take() {
            Some(chunk) => chunk,
            None => self.wait_for(front).map_err(candle_core::Error::msg)?,
        };
        let (mut copied, mut outcome) = (0, Ok(()));
        while let Some(&piece) = chunk.pieces.front()
            && piece.recipe == number
            && copied < left
            && outcome.is_ok()
        {
            let from = piece.from..piece.from + piece.bytes;
            outcome = self.destination.copy(&mut chunk.buffer, from, target, piece.at);
            chunk.pieces.pop_front();
            copied += piece.bytes;
        }
        if chunk.pieces.is_empty() {
            self.lock().free.push_back(chunk.buffer);
            self.changed.notify_all();
        } else {
            front.chunk = Some(chunk);
        }
        outcome?;
        if copied == 0 {
            candle_core::bail!("a tensor's bytes do not follow each other");
        }
        Ok(copied)
    }

    /// Runs a reader.
    fn read_on(&self) {
        let _guard = BreaksOnPanic(self);
        while let Some((number, mut chunk)) = self.next_chunk() {
            let pieces = &chunk.pieces;
            let filled = self.destination.fill(&mut chunk.buffer, &mut |bytes| {
                for piece in pieces {
                    let out = &mut bytes[piece.from..piece.from + piece.bytes];
                    self.recipes[piece.recipe].read(piece.at, out)?;
                }
                Ok(())
            });
            let mut state = self.lock();
            if number < state.valid_from {
                state.free.push_back(chunk.buffer);
            } else if let Err(reason) = filled {
                state.free.push_back(chunk.buffer);
                state.filled.insert(number, Err(reason));
            } else {
                state.filled.insert(number, Ok(chunk));
            }
            self.changed.notify_all();
        }
    }

    /// The next chunk for a reader to fill; `None` at the end.
    fn next_chunk(&self) -> Option<(u64, Chunk<D::Buffer>)> {
        let mut state = self.lock();
        loop {
            if state.is_closed {
                return None;
            }
            if state.cursor.is_some()
                && let Some(buffer) = state.free.pop_front()
            {
                let number = state.next;
                state.next += 1;
                let pieces = state.cut(&self.recipes, self.asked, self.buffer_bytes);
                return Some((number, Chunk { buffer, pieces }));
            }
            state = self.wait(state);
        }
    }
}

/// Wakes those who wait for a reader that panics.
struct BreaksOnPanic<'a, D: Destination>(&'a Shared<D>);

impl<D: Destination> Drop for BreaksOnPanic<'_, D> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.lock().is_broken = true;
            self.0.changed.notify_all();
        }
    }
}

#[cfg(test)]
pub(super) mod slow;
#[cfg(test)]
mod tests;
