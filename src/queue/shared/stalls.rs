//! Which engine draws nothing any more, if any.

use std::sync::Arc;
use std::time::Duration;

use super::{Inner, SharedQueue, Side};
use crate::queue::EngineState;
use crate::queue::watchdog::{BUILDS_IN_VAIN_MAX, Stall, Watch, allowed};

impl SharedQueue {
    /// What an engine notes its calls in.
    pub(in crate::queue) fn watch(&self, engine: usize) -> Arc<Watch> {
        Arc::clone(&self.lock().engines[engine].watch)
    }

    /// An engine has finished an image.
    pub(in crate::queue) fn note_finished_image(&self, engine: usize) {
        self.lock().engines[engine].failures = 0;
    }

    /// The first engine that is thought to draw nothing any more. A call that takes less than `call_min` is no reason.
    pub(in crate::queue) fn stall(&self, call_min: Duration) -> Option<Stall> {
        let inner = self.lock();
        let of = |engine: usize| {
            inner.stuck(engine, call_min).or_else(|| inner.gone(engine)).or_else(|| inner.in_vain(engine))
        };
        (0..inner.engines.len()).find_map(of)
    }
}

impl Side {
    fn is_ready(&self) -> bool {
        self.state == EngineState::Ready
    }

    /// How often it was built again without an image since.
    fn builds_in_vain(&self) -> u32 {
        self.failures.saturating_sub(1)
    }
}

impl Inner {
    fn stuck(&self, engine: usize, call_min: Duration) -> Option<Stall> {
        let side = &self.engines[engine];
        // Before an engine has drawn, nobody knows what it takes.
        if !side.is_warmed_up {
            return None;
        }
        let (call, took) = side.watch.under_way()?;
        let works: Vec<f64> = side.admitted.iter().map(|shown| shown.step_work).collect();
        let expected_seconds = call.expected_seconds(&side.costs, &works);
        let what = call.words();
        // Nothing was measured yet.
        if expected_seconds <= 0.0 {
            return None;
        }
        (took > allowed(expected_seconds, call_min)).then_some(Stall::Call { engine, what, took, expected_seconds })
    }

    fn gone(&self, engine: usize) -> Option<Stall> {
        // When the queue is closed they go in good order.
        (self.engines[engine].state == EngineState::Gone && !self.draining).then_some(Stall::Gone { engine })
    }

    /// While another one draws, this one costs nobody an image; nor does one that was built and has nothing to do.
    fn in_vain(&self, engine: usize) -> Option<Stall> {
        let side = &self.engines[engine];
        let times = side.builds_in_vain();
        let is_idle = side.is_ready() && side.admitted.is_empty();
        if times < BUILDS_IN_VAIN_MAX || is_idle {
            return None;
        }
        let draws = |side: &Side| side.is_ready() && side.builds_in_vain() < BUILDS_IN_VAIN_MAX;
        let is_alone = !self.engines.iter().any(draws);
        is_alone.then_some(Stall::BuiltInVain { engine, times })
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

    fn shown() -> ActiveJob {
        ActiveJob {
            id: JobId::generate(),
            owner: KeyId::generate(),
            terms: Terms::default(),
            arrived: Instant::now(),
            step_tokens: 1,
            step_work: 1.0,
            steps_left: 1,
            is_suspect: false,
        }
    }

    fn fails(shared: &SharedQueue, engine: usize) {
        shared.set_state(engine, EngineState::Rebuilding { cause: "told to fail".into(), builds_failed: 0 });
    }

    #[test]
    fn an_engine_that_fails_each_time_it_is_built_is_borne_while_another_one_draws() {
        let shared = SharedQueue::new(2);
        for _ in 0..10 {
            fails(&shared, 0);
        }
        assert_eq!(shared.stall(SOON), None, "it has never drawn, and no other process will do better");
        for engine in [0, 1] {
            shared.set_state(engine, EngineState::Ready);
        }
        for times in 0..=3 {
            shared.set_state(0, EngineState::Ready);
            fails(&shared, 0);
            assert_eq!(shared.stall(SOON), None, "built again {times} times, and the other one draws");
        }
        fails(&shared, 1);
        assert_eq!(shared.stall(SOON), Some(Stall::BuiltInVain { engine: 0, times: 3 }));
        shared.set_state(0, EngineState::Ready);
        assert_eq!(shared.stall(SOON), None, "it was built, and nobody wants an image of it");
        shared.show(0, &[shown()]);
        assert_eq!(shared.stall(SOON), Some(Stall::BuiltInVain { engine: 0, times: 3 }), "it was always built");
        shared.note_finished_image(0);
        assert_eq!(shared.stall(SOON), None);
    }

    #[test]
    fn a_thread_that_is_gone_is_told_of_unless_it_was_to_go() {
        let shared = SharedQueue::new(1);
        shared.set_state(0, EngineState::Gone);
        assert_eq!(shared.stall(SOON), Some(Stall::Gone { engine: 0 }));
        shared.close();
        assert_eq!(shared.stall(SOON), None);
    }

    #[test]
    fn an_engine_that_does_not_come_back_from_its_first_image_is_noticed_when_it_has_drawn_before() {
        let shared = SharedQueue::new(1);
        let mut costs = CostModel::default();
        costs.note_warm_up(100.0, Duration::from_millis(1));
        shared.set_costs(0, costs, WorkScale { attention_balance_tokens: 1 });
        let watch = shared.watch(0);
        let _under_way = watch.begin(Call::Step);
        std::thread::sleep(Duration::from_millis(65));
        assert_eq!(shared.stall(SOON), None, "it has never drawn");
        shared.set_state(0, EngineState::Ready);
        fails(&shared, 0);
        assert!(matches!(shared.stall(SOON), Some(Stall::Call { what: "a step", .. })), "{:?}", shared.stall(SOON));
    }

    #[test]
    fn a_call_may_take_sixty_times_what_is_expected_and_never_too_little() {
        let shared = SharedQueue::new(1);
        let costs = CostModel::known(3600.0, 1.0, 0.001, 0.001);
        shared.set_costs(0, costs, WorkScale { attention_balance_tokens: 1 });
        let watch = shared.watch(0);
        let admitting = watch.begin(Call::Admit);
        std::thread::sleep(Duration::from_millis(65));
        assert_eq!(shared.stall(SOON), None, "nobody knows yet what it takes");
        drop(admitting);
        shared.set_state(0, EngineState::Ready);
        shared.show(0, &[shown()]);
        for (call, is_stalled) in
            [(Call::Admit, true), (Call::Preview, true), (Call::Decode, true), (Call::Step, false)]
        {
            let _under_way = watch.begin(call);
            std::thread::sleep(Duration::from_millis(65));
            assert_eq!(shared.stall(Duration::from_mins(1)), None, "{call:?}: a minute is always borne");
            let stall = shared.stall(SOON);
            assert_eq!(stall.is_some(), is_stalled, "{call:?}: {stall:?}");
        }
        assert_eq!(shared.stall(Duration::ZERO), None, "nothing is under way");
    }
}
