//! The adapters in a device's memory: which there are, and how others get there without making a step wait.
//!
//! A file is read on a thread of its own, which gives way to all others. What it has goes to the device in pieces, between two steps.

use std::collections::HashMap;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use candle_core::Device;

use super::background::give_way;
use super::changes::AdapterSet;
use super::loaded::{LoadedAdapter, PIECE_BYTES, RowChange};
use super::loader::Loader;
use crate::domain::adapter::{AdapterId, AdapterUse};
use crate::domain::engine::EngineError;
use crate::engine::device::device_error;

/// Maximum adapters in memory.
const ADAPTERS_MAX: usize = 16;

/// Maximum files that are read at a time.
const READS_MAX: usize = 2;

/// Maximum adapters in the host's memory that were read, and that the job which comes first does not need.
const WAITING_MAX: usize = 2;

/// How long to sleep between two looks at what is loading, where nothing else is to do.
const LOOK_INTERVAL: Duration = Duration::from_millis(1);

/// Adapters by id, the least recently used first.
pub(crate) struct AdapterCache {
    loader: Arc<Loader>,
    device: Device,
    entries: Vec<Entry>,
}

struct Entry {
    id: AdapterId,
    state: State,
}

/// How far an adapter is.
enum State {
    Reading(JoinHandle<Result<LoadedAdapter, EngineError>>),
    /// In the host's memory, until there is room on the device.
    Read(LoadedAdapter),
    Moving(Moving),
    Ready(Arc<LoadedAdapter>, usize),
}

/// An adapter of which a part is on the device.
struct Moving {
    /// The next one last, each with the name of its module.
    left: Vec<(String, RowChange)>,
    moved: LoadedAdapter,
    bytes: usize,
}

/// What a request for adapters found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    Ready,
    Loading,
    /// Until an image that uses others has left.
    NoRoom,
}

impl AdapterCache {
    /// An empty one.
    pub(crate) fn new(loader: Loader, device: &Device) -> Self {
        Self { loader: Arc::new(loader), device: device.clone(), entries: Vec::new() }
    }

    /// Whether adapters are in memory. Loads them further if not, without waiting.
    ///
    /// # Errors
    /// [`EngineError::Request`] when one of them cannot be used; else when the device fails.
    pub(crate) fn prepare(&mut self, uses: &[AdapterUse]) -> Result<bool, EngineError> {
        Ok(self.advance(uses)? == Progress::Ready)
    }

    /// Adapters with their strengths. Waits for those that are not in memory.
    ///
    /// # Errors
    /// As [`Self::prepare`]; [`EngineError::OutOfMemory`] when those that are used leave no room.
    pub(crate) fn load(&mut self, uses: &[AdapterUse]) -> Result<AdapterSet, EngineError> {
        loop {
            match self.advance(uses)? {
                Progress::Ready => return Ok(self.set(uses)),
                Progress::Loading => std::thread::sleep(LOOK_INTERVAL),
                Progress::NoRoom => {
                    return Err(EngineError::OutOfMemory("other images' adapters leave no room for more".to_owned()));
                }
            }
        }
    }

    /// Frees the memory of those that no image uses. `false`: there was none.
    pub(crate) fn drop_unused(&mut self) -> bool {
        let before = self.entries.len();
        self.entries.retain(|entry| !entry.is_droppable());
        self.entries.len() < before
    }

    fn set(&self, uses: &[AdapterUse]) -> AdapterSet {
        let ready = |id: &AdapterId| {
            self.entries.iter().find_map(|entry| match &entry.state {
                State::Ready(adapter, _) if entry.id == *id => Some(Arc::clone(adapter)),
                _ => None,
            })
        };
        let used = effective(uses).filter_map(|lora| Some((ready(&lora.id)?, lora.scale)));
        AdapterSet(used.collect())
    }

    fn advance(&mut self, uses: &[AdapterUse]) -> Result<Progress, EngineError> {
        let mut progress = Progress::Ready;
        for lora in effective(uses) {
            match self.advance_one(lora, uses)? {
                Progress::Ready => {}
                Progress::Loading => progress = Progress::Loading,
                Progress::NoRoom => return Ok(Progress::NoRoom),
            }
        }
        Ok(progress)
    }

    /// Loads one of the used adapters further.
    fn advance_one(&mut self, lora: &AdapterUse, uses: &[AdapterUse]) -> Result<Progress, EngineError> {
        let Some(place) = self.entries.iter().position(|entry| entry.id == lora.id) else {
            return self.begin(lora, uses);
        };
        // An error drops it: the next request begins anew.
        let Entry { id, state } = self.entries.remove(place);
        let (state, progress) = match state {
            State::Reading(thread) if !thread.is_finished() => (State::Reading(thread), Progress::Loading),
            State::Reading(thread) => {
                let panicked = |_| Err(EngineError::Request(format!("the adapter `{id}`: reading it failed")));
                // Not at the next call: a step may be long.
                self.place(thread.join().unwrap_or_else(panicked)?, uses)?
            }
            State::Read(adapter) => self.place(adapter, uses)?,
            State::Moving(moving) => {
                (moving.advance(&self.device, PIECE_BYTES).map_err(device_error)?, Progress::Loading)
            }
            State::Ready(adapter, bytes) => (State::Ready(adapter, bytes), Progress::Ready),
        };
        self.entries.push(Entry { id, state });
        Ok(progress)
    }

    /// Starts to read an adapter, if there is a place for one.
    fn begin(&mut self, lora: &AdapterUse, uses: &[AdapterUse]) -> Result<Progress, EngineError> {
        // Not those that have ended: whoever asked for them may be gone, and then nothing else takes their numbers.
        let is_reading = |entry: &&Entry| matches!(&entry.state, State::Reading(thread) if !thread.is_finished());
        if self.entries.iter().filter(is_reading).count() >= READS_MAX {
            return Ok(Progress::Loading);
        }
        let is_other = |entry: &&Entry| entry.is_read() && !is_among(&entry.id, uses);
        while self.entries.iter().filter(is_other).count() > WAITING_MAX {
            self.evict(uses, Entry::is_read);
        }
        while self.entries.len() >= ADAPTERS_MAX {
            if !self.evict(uses, |_| true) {
                return Ok(Progress::NoRoom);
            }
        }
        let (loader, lora) = (Arc::clone(&self.loader), lora.clone());
        let id = lora.id.clone();
        let read = move || {
            give_way();
            loader.load(&lora)
        };
        let thread = std::thread::Builder::new().name("adapter".to_owned()).spawn(read);
        let thread = thread.map_err(|error| EngineError::OutOfMemory(format!("no thread for an adapter: {error}")))?;
        self.entries.push(Entry { id, state: State::Reading(thread) });
        Ok(Progress::Loading)
    }

    /// Begins to move an adapter to the device, if there is room.
    fn place(&mut self, adapter: LoadedAdapter, uses: &[AdapterUse]) -> Result<(State, Progress), EngineError> {
        let (bytes, bytes_max) = (adapter.bytes(), self.loader.bytes_max);
        while self.bytes() + bytes > bytes_max {
            // What is in the host's memory alone would have to be read again, and leaves no room on the device.
            if self.evict(uses, |entry| entry.bytes() > 0) {
                continue;
            }
            if self.entries.iter().filter(|entry| entry.bytes() > 0).all(|entry| is_among(&entry.id, uses)) {
                let reason = format!("its adapters take more than the {} MiB that are for adapters", bytes_max >> 20);
                return Err(EngineError::Request(reason));
            }
            return Ok((State::Read(adapter), Progress::NoRoom));
        }
        if self.device.is_cpu() {
            return Ok((State::Ready(Arc::new(adapter), bytes), Progress::Ready));
        }
        let LoadedAdapter { id, is_of_text, inputs_joined, modules, norms } = adapter;
        // Few numbers, which are no piece of their own.
        let norms = norms.into_iter().map(|(name, norm)| Ok((name, norm.to_device(&self.device)?)));
        let norms = norms.collect::<candle_core::Result<_>>().map_err(device_error)?;
        let empty = HashMap::with_capacity(modules.len());
        let moved = LoadedAdapter { id, is_of_text, inputs_joined, modules: empty, norms };
        Ok((State::Moving(Moving { left: one_by_one(modules), moved, bytes }), Progress::Loading))
    }

    /// Bytes on the device.
    fn bytes(&self) -> usize {
        self.entries.iter().map(Entry::bytes).sum()
    }

    /// Drops the least recently used adapter of some that no image uses, and `uses` does not name. `false`: there is none.
    fn evict(&mut self, uses: &[AdapterUse], of: impl Fn(&Entry) -> bool) -> bool {
        let droppable = |entry: &Entry| entry.is_droppable() && of(entry) && !is_among(&entry.id, uses);
        let Some(place) = self.entries.iter().position(droppable) else { return false };
        let entry = self.entries.remove(place);
        tracing::debug!(id = %entry.id, "an adapter leaves the device");
        true
    }
}

impl Entry {
    /// Bytes on the device.
    fn bytes(&self) -> usize {
        match &self.state {
            State::Reading(_) | State::Read(_) => 0,
            State::Moving(moving) => moving.bytes,
            State::Ready(_, bytes) => *bytes,
        }
    }

    /// Whether its numbers are in the host's memory alone.
    fn is_read(&self) -> bool {
        match &self.state {
            State::Reading(thread) => thread.is_finished(),
            State::Read(_) => true,
            State::Moving(_) | State::Ready(..) => false,
        }
    }

    /// Whether nothing would wait for it, or uses it.
    fn is_droppable(&self) -> bool {
        match &self.state {
            // A thread that reads would go on.
            State::Reading(_) | State::Read(_) => self.is_read(),
            State::Moving(_) => true,
            State::Ready(adapter, _) => Arc::strong_count(adapter) == 1,
        }
    }
}

impl Moving {
    /// Moves the next piece: as many changes as have at most so many bytes, at least one.
    fn advance(mut self, device: &Device, bytes_max: usize) -> candle_core::Result<State> {
        let mut bytes = 0;
        while let Some((name, change)) = self.left.pop() {
            if bytes > 0 && bytes + change.bytes() > bytes_max {
                self.left.push((name, change));
                return Ok(State::Moving(self));
            }
            bytes += change.bytes();
            self.moved.modules.entry(name).or_default().push(change.on(device)?);
        }
        Ok(State::Ready(Arc::new(self.moved), self.bytes))
    }
}

/// The changes of all modules, those of each in their order when they are taken from the end.
fn one_by_one(modules: HashMap<String, Vec<RowChange>>) -> Vec<(String, RowChange)> {
    let named =
        |(name, changes): (String, Vec<RowChange>)| changes.into_iter().rev().map(move |change| (name.clone(), change));
    modules.into_iter().flat_map(named).collect()
}

/// Those that change something.
fn effective(uses: &[AdapterUse]) -> impl Iterator<Item = &AdapterUse> {
    uses.iter().filter(|lora| lora.scale != 0.0)
}

fn is_among(id: &AdapterId, uses: &[AdapterUse]) -> bool {
    effective(uses).any(|lora| lora.id == *id)
}

#[cfg(test)]
mod tests;
