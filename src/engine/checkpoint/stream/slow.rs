//! A destination for tests: copies late, on a thread of its own, and overwrites a buffer before it is filled.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use candle_core::{Device, Result, Tensor, bail};

use super::Destination;
use crate::engine::checkpoint::recipe::Recipe;

type Bytes = Arc<Mutex<Vec<u8>>>;

pub(in crate::engine::checkpoint) struct Slow {
    copies: Mutex<Sender<Copy>>,
    waits: bool,
    copies_left: AtomicUsize,
    buffers_left: AtomicUsize,
    reading: Box<dyn Fn() + Send + Sync>,
}

struct Copy {
    buffer: Bytes,
    from: Range<usize>,
    target: Bytes,
    at: usize,
    pending: Arc<Pending>,
}

/// Copies out of a buffer that are not done.
#[derive(Default)]
struct Pending(Mutex<usize>, Condvar);

impl Pending {
    fn wait(&self) {
        let count = self.0.lock().expect("no panic");
        drop(self.1.wait_while(count, |count| *count > 0).expect("no panic"));
    }
}

pub(in crate::engine::checkpoint) struct Buffer {
    bytes: Bytes,
    pending: Arc<Pending>,
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.pending.wait();
    }
}

pub(in crate::engine::checkpoint) struct Target {
    bytes: Bytes,
    pending: Vec<Arc<Pending>>,
}

/// The bytes that were copied.
pub(in crate::engine::checkpoint) fn bytes_in(target: &Target) -> Vec<u8> {
    target.bytes.lock().expect("no panic").clone()
}

impl Slow {
    /// Each copy takes at least so long.
    pub(in crate::engine::checkpoint) fn new(delay: Duration) -> Self {
        Self::copying_when(move || std::thread::sleep(delay))
    }

    /// Each copy waits until `when` returns.
    pub(super) fn copying_when(when: impl Fn() + Send + 'static) -> Self {
        let (sender, copies) = channel::<Copy>();
        std::thread::spawn(move || {
            for Copy { buffer, from, target, at, pending } in copies {
                when();
                let bytes = buffer.lock().expect("no panic")[from].to_vec();
                target.lock().expect("no panic")[at..at + bytes.len()].copy_from_slice(&bytes);
                *pending.0.lock().expect("no panic") -= 1;
                pending.1.notify_all();
            }
        });
        let unbounded = || AtomicUsize::new(usize::MAX);
        Self {
            copies: Mutex::new(sender),
            waits: true,
            copies_left: unbounded(),
            buffers_left: unbounded(),
            reading: Box::new(|| ()),
        }
    }

    /// Fills buffers while copies out of them are pending.
    pub(super) fn without_waiting(self) -> Self {
        Self { waits: false, ..self }
    }

    pub(super) fn failing_after(self, copies: usize) -> Self {
        Self { copies_left: AtomicUsize::new(copies), ..self }
    }

    pub(in crate::engine::checkpoint) fn with_buffers(self, buffers: usize) -> Self {
        Self { buffers_left: AtomicUsize::new(buffers), ..self }
    }

    /// Calls `reading` before each buffer is filled.
    pub(super) fn with_reading(self, reading: impl Fn() + Send + Sync + 'static) -> Self {
        Self { reading: Box::new(reading), ..self }
    }
}

fn take_one(left: &AtomicUsize) -> bool {
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
}

impl Destination for Slow {
    type Buffer = Buffer;
    type Target = Target;

    fn is_at(&self, device: &Device) -> bool {
        device.is_cpu()
    }

    fn buffer(&self, bytes: usize) -> Result<Buffer> {
        if !take_one(&self.buffers_left) {
            bail!("no pinned memory");
        }
        Ok(Buffer { bytes: Arc::new(Mutex::new(vec![0; bytes])), pending: Arc::default() })
    }

    fn target(&self, recipe: &Recipe) -> Result<Target> {
        Ok(Target { bytes: Arc::new(Mutex::new(vec![0xee; recipe.bytes()])), pending: Vec::new() })
    }

    fn fill(
        &self,
        buffer: &mut Buffer,
        write: &mut dyn FnMut(&mut [u8]) -> std::result::Result<(), String>,
    ) -> std::result::Result<(), String> {
        if self.waits {
            buffer.pending.wait();
        }
        (self.reading)();
        let mut bytes = buffer.bytes.lock().expect("no panic");
        bytes.fill(0xaa);
        write(&mut bytes)
    }

    fn copy(&self, buffer: &mut Buffer, from: Range<usize>, target: &mut Target, at: usize) -> Result<()> {
        if !take_one(&self.copies_left) {
            bail!("the device has failed");
        }
        *buffer.pending.0.lock().expect("no panic") += 1;
        target.pending.push(Arc::clone(&buffer.pending));
        let copy = Copy {
            buffer: Arc::clone(&buffer.bytes),
            from,
            target: Arc::clone(&target.bytes),
            at,
            pending: Arc::clone(&buffer.pending),
        };
        self.copies.lock().expect("no panic").send(copy).expect("the device's thread is there");
        Ok(())
    }

    fn tensor(&self, target: Target, recipe: &Recipe) -> Result<Tensor> {
        target.pending.iter().for_each(|pending| pending.wait());
        Tensor::from_raw_buffer(&bytes_in(&target), recipe.dtype, &recipe.shape, &Device::Cpu)
    }
}
