//! Weights on their way to a device whose copies are asynchronous: reading the next bytes while those before are copied,
//! across all tensors.
//!
//! Reader threads fill a few buffers, in the order in which the model is going to ask for its tensors; the thread that asks
//! has the device copy out of them. A buffer is filled again only after all copies out of it have arrived. What was not asked
//! for in the expected order is read all the same: then reading begins anew at that tensor.

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

/// Bytes of one buffer. A copy of so many takes a PCIe link of the fifth generation 0.15 ms, beside which what is done once
/// for each buffer is nothing; and it stays in the processor's caches until then: pieces of 32 MiB took half as long again to
/// be read out of the page cache (`benches/README.md`).
pub(super) const BUFFER_BYTES: usize = 8 << 20;

/// Most threads that read. One brings some 5 to 20 GB/s out of the page cache, and such a link takes 55; a fast disk wants
/// several requests at one time.
const READERS_MAX: usize = 8;

/// Buffers beside those that are being filled: one that is being copied, and one that waits for it.
const BUFFERS_IN_FLIGHT: usize = 2;

/// A device to copy to, and the host's memory that it copies from.
pub(super) trait Destination: Send + Sync + 'static {
    /// A buffer that the device can read while the host goes on. When it is dropped, all copies out of it have arrived.
    type Buffer: Send;
    /// A tensor's place on the device.
    type Target;

    /// Whether its tensors are those of this device.
    fn is_at(&self, device: &Device) -> bool;

    /// A new buffer.
    fn buffer(&self, bytes: usize) -> Result<Self::Buffer>;

    /// A new place, with anything in it.
    fn target(&self, recipe: &Recipe) -> Result<Self::Target>;

    /// Waits until all copies out of the buffer have arrived, and has `write` fill it. Called by the readers.
    fn fill(
        &self,
        buffer: &mut Self::Buffer,
        write: &mut dyn FnMut(&mut [u8]) -> std::result::Result<(), String>,
    ) -> std::result::Result<(), String>;

    /// Begins to copy part of a buffer to `at` bytes from the target's beginning, and need not wait for its end. Called by
    /// the thread that asks for tensors.
    fn copy(&self, buffer: &mut Self::Buffer, from: Range<usize>, target: &mut Self::Target, at: usize) -> Result<()>;

    /// The tensor whose bytes have all been copied, or are going to be before the device does anything else with it.
    fn tensor(&self, target: Self::Target, recipe: &Recipe) -> Result<Tensor>;
}

/// Gives tensors by their numbers in a list that was settled before.
pub(super) trait TensorStream: Send + Sync {
    /// Whether it gives tensors on this device.
    fn leads_to(&self, device: &Device) -> bool;

    /// # Errors
    /// When a file cannot be read, or the device fails.
    fn tensor(&self, number: usize) -> Result<Tensor>;

    /// Times that a tensor was asked for before its turn, and reading began anew.
    fn restarts(&self) -> usize;
}

/// Threads that read, for as long as it lives.
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

/// What has come to the front and is not used up.
struct Front<B> {
    chunk: Option<Chunk<B>>,
    /// The number of the chunk that comes next.
    awaited: u64,
}

/// How many threads read: no more than help, and than the machine has cores.
pub(super) fn readers() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).clamp(2, READERS_MAX)
}

impl<D: Destination> WeightStream<D> {
    /// Begins to read the tensors in the order of `recipes`.
    ///
    /// # Errors
    /// When there is no memory for the buffers, or no thread to be had.
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

    /// Brings a tensor to the device: what of it has been read ahead, and then what is read meanwhile.
    ///
    /// # Errors
    /// When a file cannot be read, or the device fails.
    pub(super) fn bring(&self, number: usize) -> Result<D::Target> {
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
                    // Part of it is gone: whoever asks again gets it from its beginning, as it stands in the file then.
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
        let target = self.bring(number)?;
        self.shared.destination.tensor(target, &self.shared.recipes[number])
    }

    fn restarts(&self) -> usize {
        self.shared.lock().restarts
    }
}

impl<D: Destination> Drop for WeightStream<D> {
    fn drop(&mut self) {
        self.shared.lock().is_closed = true;
        self.shared.changed.notify_all();
        for reader in self.readers.drain(..) {
            // Its panic has been told of where it was missed.
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

    /// Makes sure that a tensor's first byte comes next.
    fn line_up(&self, front: &mut Front<D::Buffer>, number: usize) {
        let state = self.lock();
        let next = state.coming.front().copied().or(state.cursor.map(|(recipe, _)| recipe));
        if next == Some(number) || self.recipes[number].bytes() == 0 {
            return;
        }
        drop(state);
        self.forget_ahead(front, |state| state.begin_anew_at(number, self.asked));
    }

    /// Lets go of what has come to the front, and of what was read after it.
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
                return Err("a thread that reads weights went down".to_owned());
            }
            state = self.wait(state);
        }
    }

    /// Copies what the next chunk has of a tensor, `left` bytes at most; how many that were.
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

    /// A reader's life.
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

    /// What a reader does next, and into what; `None` at the end.
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

/// Nobody shall wait for what a thread that has panicked was to read.
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
