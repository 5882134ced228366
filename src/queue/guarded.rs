//! An engine whose panics are errors. The engine thread outlives whatever happens inside an engine.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::EngineFactory;
use crate::domain::engine::{EngineError, EngineLimits, RgbImage, Slot, StepEngine};
use crate::domain::spec::GenerateSpec;

/// An engine behind `catch_unwind`. After an [`EngineError::Fatal`] it must be thrown away: its state is unknown.
pub(super) struct GuardedEngine(Option<Box<dyn StepEngine>>);

impl GuardedEngine {
    pub(super) fn build(factory: &EngineFactory) -> Result<Self, EngineError> {
        guard(factory).map(|engine| Self(Some(engine)))
    }

    fn engine(&mut self) -> &mut dyn StepEngine {
        self.0.as_deref_mut().expect("the engine is there until it is dropped")
    }

    pub(super) fn limits(&mut self) -> Result<EngineLimits, EngineError> {
        guard(|| Ok(self.engine().limits()))
    }

    pub(super) fn attention_balance_tokens(&mut self) -> Result<usize, EngineError> {
        guard(|| Ok(self.engine().attention_balance_tokens()))
    }

    pub(super) fn admit(&mut self, spec: &GenerateSpec) -> Result<Slot, EngineError> {
        guard(|| self.engine().admit(spec))
    }

    pub(super) fn step(&mut self, slots: &[Slot]) -> Result<(), EngineError> {
        guard(|| self.engine().step(slots))
    }

    pub(super) fn decode_part(&mut self, slot: Slot) -> Result<bool, EngineError> {
        guard(|| self.engine().decode_part(slot))
    }

    pub(super) fn finish(&mut self, slot: Slot) -> Result<RgbImage, EngineError> {
        guard(|| self.engine().finish(slot))
    }

    pub(super) fn preview(&mut self, slot: Slot) -> Result<Option<RgbImage>, EngineError> {
        guard(|| self.engine().preview(slot))
    }

    pub(super) fn release(&mut self, slot: Slot) -> Result<(), EngineError> {
        guard(|| {
            self.engine().release(slot);
            Ok(())
        })
    }
}

impl Drop for GuardedEngine {
    fn drop(&mut self) {
        let engine = self.0.take();
        if let Err(error) = guard(move || {
            drop(engine);
            Ok(())
        }) {
            tracing::error!(%error, "the engine could not be taken down cleanly");
        }
    }
}

fn guard<T>(call: impl FnOnce() -> Result<T, EngineError>) -> Result<T, EngineError> {
    // Whatever a panic left half done is thrown away with the engine.
    catch_unwind(AssertUnwindSafe(call))
        .unwrap_or_else(|panic| Err(EngineError::Fatal(format!("panicked: {}", words(panic.as_ref())))))
}

fn words(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a message")
}
