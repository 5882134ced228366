//! Detects stalled engines.

use std::sync::Arc;
use std::time::Duration;

use super::{EngineView, Inner, SharedQueue};
use crate::queue::EngineState;
use crate::queue::watchdog::{FRUITLESS_REBUILDS_MAX, Stall, Watch, allowed};

impl SharedQueue {
    /// Where an engine records its calls.
    pub(in crate::queue) fn watch(&self, engine: usize) -> Arc<Watch> {
        Arc::clone(&self.lock().engines[engine].watch)
    }

    /// An engine has finished an image.
    pub(in crate::queue) fn note_finished_image(&self, engine: usize) {
        self.lock().engines[engine].failures = 0;
    }

    /// The first stalled engine. A call shorter than `call_min` is no stall.
    pub(in crate::queue) fn stall(&self, call_min: Duration) -> Option<Stall> {
        let inner = self.lock();
        let of = |engine: usize| {
            inner.stuck(engine, call_min).or_else(|| inner.gone(engine)).or_else(|| inner.fruitless(engine))
        };
        (0..inner.engines.len()).find_map(of)
    }
}

impl EngineView {
    fn is_ready(&self) -> bool {
        self.state == EngineState::Ready
    }

    /// Rebuilds since its last finished image.
    fn fruitless_rebuilds(&self) -> u32 {
        self.failures.saturating_sub(1)
    }
}

impl Inner {
    fn stuck(&self, engine: usize, call_min: Duration) -> Option<Stall> {
        let view = &self.engines[engine];
        // Before an engine is warmed up, its costs are unknown.
        if !view.is_warmed_up {
            return None;
        }
        let (call, took) = view.watch.under_way()?;
        let works: Vec<f64> = view.admitted.iter().map(|job| job.step_work).collect();
        let expected_seconds = call.expected_seconds(&view.costs, &works);
        let what = call.words();
        // Nothing measured yet.
        if expected_seconds <= 0.0 {
            return None;
        }
        (took > allowed(expected_seconds, call_min)).then_some(Stall::Call { engine, what, took, expected_seconds })
    }

    fn gone(&self, engine: usize) -> Option<Stall> {
        // When the queue is closed, threads end on purpose.
        (self.engines[engine].state == EngineState::Gone && !self.draining).then_some(Stall::Gone { engine })
    }

    /// No stall while another engine serves the jobs, or while this one is built and idle.
    fn fruitless(&self, engine: usize) -> Option<Stall> {
        let view = &self.engines[engine];
        let times = view.fruitless_rebuilds();
        let is_idle = view.is_ready() && view.admitted.is_empty();
        if times < FRUITLESS_REBUILDS_MAX || is_idle {
            return None;
        }
        let serves = |view: &EngineView| view.is_ready() && view.fruitless_rebuilds() < FRUITLESS_REBUILDS_MAX;
        let none_serves = !self.engines.iter().any(serves);
        none_serves.then_some(Stall::FruitlessRebuilds { engine, times })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::domain::ids::{JobId, KeyId};
    use crate::queue::Terms;
    use crate::queue::cost::{CostModel, WorkScale};
    use crate::queue::entry::ActiveJob;
    use crate::queue::watchdog::Call;

    const SOON: Duration = Duration::from_millis(20);

    fn active_job() -> ActiveJob {
        ActiveJob {
            id: JobId::generate(),
            owner: KeyId::generate(),
            terms: Terms::default(),
            arrived: Instant::now(),
            step_tokens: 1,
            step_work: 1.0,
            steps_left: 1,
            is_encoding: false,
            is_suspect: false,
        }
    }

    fn fails(shared: &SharedQueue, engine: usize) {
        shared.set_state(engine, EngineState::Rebuilding { cause: "told to fail".into(), builds_failed: 0 });
    }

    #[test]
    fn an_engine_whose_rebuilds_all_fail_is_tolerated_while_another_one_serves() {
        let shared = SharedQueue::new(2);
        for _ in 0..10 {
            fails(&shared, 0);
        }
        assert_eq!(shared.stall(SOON), None, "it was never ready, and a restarted process would do no better");
        for engine in [0, 1] {
            shared.set_state(engine, EngineState::Ready);
        }
        for times in 0..=3 {
            shared.set_state(0, EngineState::Ready);
            fails(&shared, 0);
            assert_eq!(shared.stall(SOON), None, "rebuilt {times} times, and the other one serves");
        }
        fails(&shared, 1);
        assert_eq!(shared.stall(SOON), Some(Stall::FruitlessRebuilds { engine: 0, times: 3 }));
        shared.set_state(0, EngineState::Ready);
        assert_eq!(shared.stall(SOON), None, "it was built, and has no job");
        shared.publish(0, &[active_job()]);
        assert_eq!(shared.stall(SOON), Some(Stall::FruitlessRebuilds { engine: 0, times: 3 }), "it was always built");
        shared.note_finished_image(0);
        assert_eq!(shared.stall(SOON), None);
    }

    #[test]
    fn a_dead_thread_is_a_stall_unless_the_queue_is_closed() {
        let shared = SharedQueue::new(1);
        shared.set_state(0, EngineState::Gone);
        assert_eq!(shared.stall(SOON), Some(Stall::Gone { engine: 0 }));
        shared.close();
        assert_eq!(shared.stall(SOON), None);
    }

    #[test]
    fn a_call_that_hangs_during_warm_up_is_a_stall_only_once_the_engine_was_ready() {
        let shared = SharedQueue::new(1);
        let mut costs = CostModel::default();
        costs.note_warm_up(100.0, Duration::from_millis(1));
        shared.set_costs(0, costs, WorkScale { attention_balance_tokens: 1 });
        let watch = shared.watch(0);
        let _under_way = watch.begin(Call::Step);
        std::thread::sleep(Duration::from_millis(65));
        assert_eq!(shared.stall(SOON), None, "it was never ready");
        shared.set_state(0, EngineState::Ready);
        fails(&shared, 0);
        assert!(matches!(shared.stall(SOON), Some(Stall::Call { what: "a step", .. })), "{:?}", shared.stall(SOON));
    }

    #[test]
    fn a_call_may_take_sixty_times_the_expected_time_and_at_least_the_minimum() {
        let shared = SharedQueue::new(1);
        let costs = CostModel::known(3600.0, 1.0, 0.001, 0.001);
        shared.set_costs(0, costs, WorkScale { attention_balance_tokens: 1 });
        let watch = shared.watch(0);
        let admitting = watch.begin(Call::Admit);
        std::thread::sleep(Duration::from_millis(65));
        assert_eq!(shared.stall(SOON), None, "its costs are unknown");
        drop(admitting);
        shared.set_state(0, EngineState::Ready);
        shared.publish(0, &[active_job()]);
        for (call, is_stalled) in
            [(Call::Admit, true), (Call::Preview, true), (Call::Decode, true), (Call::Step, false)]
        {
            let _under_way = watch.begin(call);
            std::thread::sleep(Duration::from_millis(65));
            assert_eq!(shared.stall(Duration::from_mins(1)), None, "{call:?}: below the minimum");
            let stall = shared.stall(SOON);
            assert_eq!(stall.is_some(), is_stalled, "{call:?}: {stall:?}");
        }
        assert_eq!(shared.stall(Duration::ZERO), None, "nothing is under way");
    }
}
