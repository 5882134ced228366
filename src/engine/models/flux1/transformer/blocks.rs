//! Layers that are used one after the other, in passes: each in memory, or read for every pass, one ahead of the one that
//! computes. At most two that were read are in memory at a time.
//!
//! On the CPU, threads of the pass read the next while the compute threads are busy; they end with the pass. On other devices
//! the thread of the engine reads it, after it has handed the current one to the device.
//!
//! Knows neither files nor what a layer computes.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use candle_core::{Error, Result};

use crate::engine::checkpoint::{Tensors, readers};

/// The layers of a pass, in their order.
pub(super) struct Blocks<B> {
    /// `None` where one is read for every pass.
    kept: Vec<Option<B>>,
    /// Of the others.
    source: Option<Source<B>>,
}

/// Reads layers by their numbers.
type Read<B> = Box<dyn Fn(usize) -> Result<B> + Send + Sync>;

/// What is done with each layer, and whether the pass goes on.
type Run<'r, B> = &'r mut dyn FnMut(&B) -> Result<ControlFlow<()>>;

struct Source<B> {
    read: Read<B>,
    tensors: Tensors,
    /// How many that were read, or are being read, are in memory; and the most there ever were.
    held: AtomicUsize,
    held_max: AtomicUsize,
}

/// A layer that was read for one pass.
struct Held<'a, B> {
    layer: B,
    source: &'a Source<B>,
}

impl<B> Drop for Held<'_, B> {
    fn drop(&mut self) {
        // A device that fails here has reported an error at its work, too.
        let _ = self.source.tensors.release();
        self.source.held.fetch_sub(1, Ordering::SeqCst);
    }
}

impl<B> Source<B> {
    fn read(&self, number: usize) -> Result<Held<'_, B>> {
        let held = self.held.fetch_add(1, Ordering::SeqCst) + 1;
        self.held_max.fetch_max(held, Ordering::SeqCst);
        match (self.read)(number) {
            Ok(layer) => Ok(Held { layer, source: self }),
            Err(error) => {
                self.held.fetch_sub(1, Ordering::SeqCst);
                Err(error)
            }
        }
    }
}

impl<B> Blocks<B> {
    /// All in memory.
    pub(super) fn kept(layers: Vec<B>) -> Self {
        Self { kept: layers.into_iter().map(Some).collect(), source: None }
    }

    /// `count` layers, of which those that `is_read` tells are read for every pass, out of `tensors`.
    ///
    /// # Errors
    /// When one of the others cannot be read.
    pub(super) fn read_by(
        read: Read<B>,
        count: usize,
        is_read: impl Fn(usize) -> bool,
        tensors: Tensors,
    ) -> Result<Self> {
        let keep = |number| if is_read(number) { Ok(None) } else { read(number).map(Some) };
        let kept = (0..count).map(keep).collect::<Result<Vec<_>>>()?;
        let source = Source { read, tensors, held: AtomicUsize::new(0), held_max: AtomicUsize::new(0) };
        let source = kept.iter().any(Option::is_none).then_some(source);
        Ok(Self { kept, source })
    }

    /// The numbers of those that are read.
    fn read_numbers(&self) -> Vec<usize> {
        (0..).zip(&self.kept).filter(|(_, kept)| kept.is_none()).map(|(number, _)| number).collect()
    }
}

impl<B: Send> Blocks<B> {
    /// Calls `run` with each layer.
    ///
    /// # Errors
    /// When `run` fails, or a layer cannot be read: then the next pass reads it again.
    pub(super) fn each(&self, mut run: impl FnMut(&B) -> Result<()>) -> Result<()> {
        self.each_until(|layer| run(layer).map(ControlFlow::Continue))
    }

    /// Calls `run` with each layer until it breaks. No further layer is read then, but for what was being read ahead: on the CPU one
    /// layer, elsewhere a few buffers (`checkpoint/stream.rs`), which the next pass drops.
    ///
    /// # Errors
    /// As [`Self::each`]. A layer that was read ahead for nothing is no error.
    pub(super) fn each_until(&self, mut run: impl FnMut(&B) -> Result<ControlFlow<()>>) -> Result<()> {
        match &self.source {
            None => {
                for layer in self.kept.iter().flatten() {
                    if run(layer)?.is_break() {
                        break;
                    }
                }
                Ok(())
            }
            Some(source) if source.tensors.device().is_cpu() => self.each_read_by_threads(source, &mut run),
            Some(source) => self.each_read_between(source, &mut run),
        }
    }

    fn each_read_by_threads(&self, source: &Source<B>, run: Run<B>) -> Result<()> {
        let numbers = self.read_numbers();
        // Threads of their own: a compute thread that waits for the disk would keep the others waiting.
        let threads = rayon::ThreadPoolBuilder::new().num_threads(readers());
        let threads = threads.thread_name(|index| format!("blocks-{index}"));
        let pass = |pool: &rayon::ThreadPool| {
            // Nothing is stored between the two sides: one layer computes, one is read, and no third is begun.
            let (give, take) = sync_channel(0);
            pool.in_place_scope(move |scope| {
                scope.spawn(move |_| read_all(source, &numbers, &give));
                self.run_all(&take, run)
            })
        };
        threads.build_scoped(rayon::ThreadBuilder::run, pass).map_err(Error::wrap)?
    }

    fn run_all(&self, take: &Receiver<Result<Held<'_, B>>>, run: Run<B>) -> Result<()> {
        for kept in &self.kept {
            let flow = if let Some(layer) = kept {
                run(layer)?
            } else {
                let held = take.recv().map_err(|_| Error::msg("the thread that reads blocks has ended"))??;
                run(&held.layer)?
            };
            // The caller drops its end of the channel, and with it the reading thread ends.
            if flow.is_break() {
                break;
            }
        }
        Ok(())
    }

    fn each_read_between(&self, source: &Source<B>, run: Run<B>) -> Result<()> {
        let mut numbers = self.read_numbers().into_iter();
        let mut next = numbers.next().map(|number| source.read(number)).transpose()?;
        for kept in &self.kept {
            let held = if kept.is_some() { None } else { next.take() };
            let Some(layer) = kept.as_ref().or(held.as_ref().map(|held| &held.layer)) else {
                return Err(Error::msg("a block was not read"));
            };
            if run(layer)?.is_break() {
                break;
            }
            if next.is_none() {
                next = numbers.next().map(|number| source.read(number)).transpose()?;
            }
        }
        Ok(())
    }
}

/// Reads layers, each when the one before is taken, up to the first that fails.
fn read_all<'a, B>(source: &'a Source<B>, numbers: &[usize], give: &SyncSender<Result<Held<'a, B>>>) {
    let mut spent = Duration::ZERO;
    for number in numbers {
        let started = Instant::now();
        let held = source.read(*number);
        spent += started.elapsed();
        let is_failed = held.is_err();
        // Nothing takes it where the pass has failed, or ended early.
        if give.send(held).is_err() || is_failed {
            return;
        }
    }
    let (seconds, held_max) = (spent.as_secs_f64(), source.held_max.load(Ordering::SeqCst));
    tracing::debug!(read = numbers.len(), seconds, held_max, "blocks were read");
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::{Arc, Mutex};

    use candle_core::{DType, Device};
    use candle_nn::VarBuilder;

    use super::*;

    /// What was read, in order, and a number that cannot be read.
    #[derive(Default)]
    struct Reads {
        numbers: Mutex<Vec<usize>>,
        fails_at: Mutex<Option<usize>>,
    }

    /// Numbers as layers.
    fn blocks(count: usize, is_read: impl Fn(usize) -> bool, reads: &Arc<Reads>) -> Blocks<usize> {
        let reads = Arc::clone(reads);
        let read = Box::new(move |number: usize| {
            if *reads.fails_at.lock().expect("no panic") == Some(number) {
                return Err(Error::msg("the file is gone"));
            }
            reads.numbers.lock().expect("no panic").push(number);
            Ok(number)
        });
        let tensors = Tensors::from(VarBuilder::from_tensors(HashMap::new(), DType::F32, &Device::Cpu));
        Blocks::read_by(read, count, is_read, tensors).expect("reads")
    }

    fn held(blocks: &Blocks<usize>) -> (usize, usize) {
        let source = blocks.source.as_ref().expect("some are read");
        (source.held.load(Ordering::SeqCst), source.held_max.load(Ordering::SeqCst))
    }

    const ON: ControlFlow<()> = ControlFlow::Continue(());

    /// Both ways to read ahead.
    type Pass = fn(&Blocks<usize>, Run<usize>) -> Result<()>;
    const PASSES: [Pass; 2] = [
        |blocks, run| blocks.each_read_by_threads(blocks.source.as_ref().expect("some are read"), run),
        |blocks, run| blocks.each_read_between(blocks.source.as_ref().expect("some are read"), run),
    ];

    /// Which layers are read.
    const CHOICES: [fn(usize) -> bool; 3] = [|_| true, |number| number.is_multiple_of(3), |number| number > 7];

    #[test]
    fn layers_come_in_their_order_in_every_pass_and_two_are_in_memory() {
        for pass in PASSES {
            for is_read in CHOICES {
                let reads = Arc::new(Reads::default());
                let blocks = blocks(11, is_read, &reads);
                let kept: Vec<usize> = (0..11).filter(|number| !is_read(*number)).collect();
                assert_eq!(std::mem::take(&mut *reads.numbers.lock().expect("no panic")), kept);
                for _ in 0..3 {
                    let mut ran = Vec::new();
                    let mut run = |layer: &usize| {
                        ran.push(*layer);
                        Ok(ON)
                    };
                    pass(&blocks, &mut run).expect("runs");
                    assert_eq!(ran, (0..11).collect::<Vec<_>>());
                    let read = std::mem::take(&mut *reads.numbers.lock().expect("no panic"));
                    assert_eq!(read, (0..11).filter(|number| is_read(*number)).collect::<Vec<_>>());
                    let (now, most) = held(&blocks);
                    assert!(now == 0 && most <= 2, "{now}, {most}");
                }
            }
        }
    }

    #[test]
    fn layers_that_are_all_kept_are_read_once() {
        let reads = Arc::new(Reads::default());
        let blocks = blocks(3, |_| false, &reads);
        for _ in 0..2 {
            let mut ran = Vec::new();
            blocks
                .each(|layer| {
                    ran.push(*layer);
                    Ok(())
                })
                .expect("runs");
            assert_eq!(ran, [0, 1, 2]);
        }
        assert_eq!(*reads.numbers.lock().expect("no panic"), [0, 1, 2]);
    }

    /// While one computes, exactly the next one is being read or was.
    #[test]
    fn one_is_read_while_another_computes() {
        let reads = Arc::new(Reads::default());
        let blocks = blocks(5, |_| true, &reads);
        let mut run = |layer: &usize| {
            // The reader begins the next one by itself. Waits until it has, which a mechanism without it would never do.
            while *layer < 4 && reads.numbers.lock().expect("no panic").len() < layer + 2 {
                std::thread::yield_now();
            }
            let read = reads.numbers.lock().expect("no panic").len();
            assert!(read <= layer + 2, "{read} were read while {layer} computes");
            Ok(ON)
        };
        PASSES[0](&blocks, &mut run).expect("runs");
        assert_eq!(held(&blocks), (0, 2));
    }

    #[test]
    fn what_cannot_be_read_fails_its_pass_and_no_other() {
        for pass in PASSES {
            for fails_at in [0, 1, 4] {
                let reads = Arc::new(Reads::default());
                let blocks = blocks(5, |_| true, &reads);
                *reads.fails_at.lock().expect("no panic") = Some(fails_at);
                let mut ran = 0;
                let failed = pass(&blocks, &mut |_| {
                    ran += 1;
                    Ok(ON)
                });
                assert!(failed.expect_err("fails").to_string().contains("the file is gone"));
                assert!(ran <= fails_at && held(&blocks).0 == 0, "{ran}");
                *reads.fails_at.lock().expect("no panic") = None;
                let mut ran = 0;
                let again = pass(&blocks, &mut |_| {
                    ran += 1;
                    Ok(ON)
                });
                again.expect("runs");
                assert_eq!(ran, 5);
            }
        }
    }

    #[test]
    fn a_pass_that_fails_leaves_nothing_in_memory_and_no_thread() {
        for pass in PASSES {
            let reads = Arc::new(Reads::default());
            let all = blocks(9, |_| true, &reads);
            let failed = pass(&all, &mut |layer| if *layer == 3 { Err(Error::msg("no memory")) } else { Ok(ON) });
            assert!(failed.expect_err("fails").to_string().contains("no memory"));
            assert_eq!(held(&all).0, 0);
            // The reading side holds the other reference to `reads`, through `all` alone: threads are joined with the pass.
            drop(all);
            assert_eq!(Arc::strong_count(&reads), 1);
        }
    }

    /// Of the layers behind the last one that ran, at most one was read, and it is not kept. The next pass has them all.
    #[test]
    fn a_pass_that_ends_early_reads_no_more_than_one_further_layer() {
        for pass in PASSES {
            for ends_at in [0, 3, 8] {
                let reads = Arc::new(Reads::default());
                let all = blocks(9, |_| true, &reads);
                let mut ran = Vec::new();
                let mut run = |layer: &usize| {
                    ran.push(*layer);
                    Ok(if *layer == ends_at { ControlFlow::Break(()) } else { ON })
                };
                pass(&all, &mut run).expect("ends");
                assert_eq!(ran, (0..=ends_at).collect::<Vec<_>>());
                let read = std::mem::take(&mut *reads.numbers.lock().expect("no panic"));
                assert!((ends_at + 1..=ends_at + 2).contains(&read.len()), "{read:?}, up to {ends_at}");
                assert_eq!(held(&all).0, 0);
                let mut ran = 0;
                let again = pass(&all, &mut |_| {
                    ran += 1;
                    Ok(ON)
                });
                again.expect("runs");
                assert_eq!(ran, 9);
                drop(all);
                assert_eq!(Arc::strong_count(&reads), 1);
            }
        }
    }

    #[test]
    fn layers_that_are_kept_are_run_until_one_breaks() {
        let all = blocks(5, |_| false, &Arc::new(Reads::default()));
        let mut ran = Vec::new();
        let run = |layer: &usize| {
            ran.push(*layer);
            Ok(if *layer == 2 { ControlFlow::Break(()) } else { ON })
        };
        all.each_until(run).expect("ends");
        assert_eq!(ran, [0, 1, 2]);
    }
}
