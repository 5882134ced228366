//! Which engine draws nothing any more, if any.

use std::sync::Arc;
use std::time::Duration;

use super::{Inner, Line};
use crate::queue::EngineState;
use crate::queue::watchdog::{BUILDS_IN_VAIN_MAX, Stall, Watch, allowed};

impl Line {
    /// What an engine notes its calls in.
    pub(in crate::queue) fn watch(&self, engine: usize) -> Arc<Watch> {
        Arc::clone(&self.lock().engines[engine].watch)
    }

    /// An engine has finished a picture.
    pub(in crate::queue) fn note_drawn(&self, engine: usize) {
        self.lock().engines[engine].builds_in_vain = 0;
    }

    /// The first engine that is thought to draw nothing any more. A call that takes less than `call_min` is no reason.
    pub(in crate::queue) fn stall(&self, call_min: Duration) -> Option<Stall> {
        let inner = self.lock();
        (0..inner.engines.len()).find_map(|engine| inner.stuck(engine, call_min).or_else(|| inner.in_vain(engine)))
    }
}

impl Inner {
    fn stuck(&self, engine: usize, call_min: Duration) -> Option<Stall> {
        let side = &self.engines[engine];
        // Before an engine has drawn, nobody knows what it takes.
        if side.state != EngineState::Ready {
            return None;
        }
        let (call, took) = side.watch.under_way()?;
        let expected_seconds = call.expected_seconds(&side.costs, side.admitted.iter().map(|shown| shown.step_work));
        let what = call.words();
        // Nothing was measured yet.
        if expected_seconds <= 0.0 {
            return None;
        }
        (took > allowed(expected_seconds, call_min)).then_some(Stall::Call { engine, what, took, expected_seconds })
    }

    /// While another one draws, this one costs nobody a picture.
    fn in_vain(&self, engine: usize) -> Option<Stall> {
        let is_in_vain = |engine: usize| self.engines[engine].builds_in_vain >= BUILDS_IN_VAIN_MAX;
        let draws = |other: usize| self.engines[other].state == EngineState::Ready && !is_in_vain(other);
        let is_alone = !(0..self.engines.len()).any(|other| other != engine && draws(other));
        let times = self.engines[engine].builds_in_vain;
        (is_in_vain(engine) && is_alone).then_some(Stall::BuiltInVain { engine, times })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::cost::{CostModel, WorkScale};
    use crate::queue::watchdog::Call;

    const SOON: Duration = Duration::from_millis(20);

    fn fails(line: &Line, engine: usize) {
        line.set_state(engine, EngineState::Rebuilding { cause: "told to fail".into(), builds_failed: 0 });
    }

    #[test]
    fn an_engine_that_fails_each_time_it_is_built_is_borne_while_another_one_draws() {
        let line = Line::new(2);
        for _ in 0..10 {
            fails(&line, 0);
        }
        assert_eq!(line.stall(SOON), None, "it has never drawn, and no other process will do better");
        for engine in [0, 1] {
            line.set_state(engine, EngineState::Ready);
        }
        for times in 1..=4 {
            fails(&line, 0);
            line.set_state(0, EngineState::Ready);
            assert_eq!(line.stall(SOON), None, "{times}: the other one draws");
        }
        fails(&line, 1);
        assert_eq!(line.stall(SOON), Some(Stall::BuiltInVain { engine: 0, times: 4 }));
        line.note_drawn(0);
        assert_eq!(line.stall(SOON), None);
    }

    #[test]
    fn a_call_may_take_sixty_times_what_is_expected_and_never_too_little() {
        let line = Line::new(1);
        let costs = CostModel::known(3600.0, 1.0, 0.001, 0.001);
        line.set_costs(0, costs, WorkScale { attention_balance_tokens: 1 });
        let watch = line.watch(0);
        let calls = [(Call::Admit, true), (Call::Step, false)];
        for (call, is_stalled) in calls {
            let _under_way = watch.begin(call);
            std::thread::sleep(Duration::from_millis(65));
            line.set_state(0, EngineState::Loading);
            assert_eq!(line.stall(SOON), None, "nobody knows yet what it takes");
            line.set_state(0, EngineState::Ready);
            assert_eq!(line.stall(Duration::from_mins(1)), None, "{call:?}: a minute is always borne");
            let stall = line.stall(SOON);
            assert_eq!(stall.is_some(), is_stalled, "{call:?}: {stall:?}");
        }
        assert_eq!(line.stall(Duration::ZERO), None, "nothing is under way");
    }
}
