//! An engine whose panics become errors, so that its thread outlives them.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::EngineFactory;
use super::watchdog::{Call, Watch};
use crate::domain::engine::{Draft, EngineError, EngineLimits, Slot, StepEngine};
use crate::domain::image::RgbImage;
use crate::domain::spec::GenerateSpec;

/// An engine behind `catch_unwind`. After an [`EngineError::Fatal`] it must be dropped: its state is unknown.
pub(super) struct GuardedEngine {
    engine: Option<Box<dyn StepEngine>>,
    watch: Arc<Watch>,
}

impl GuardedEngine {
    /// Builds an engine whose calls are recorded in `watch`.
    pub(super) fn build(factory: &EngineFactory, watch: Arc<Watch>) -> Result<Self, EngineError> {
        guard(factory).map(|engine| Self { engine: Some(engine), watch })
    }

    fn engine(&mut self) -> &mut dyn StepEngine {
        self.engine.as_deref_mut().expect("the engine is there until it is dropped")
    }

    fn watched<T>(
        &mut self,
        call: Call,
        of: impl FnOnce(&mut dyn StepEngine) -> Result<T, EngineError>,
    ) -> Result<T, EngineError> {
        let watch = Arc::clone(&self.watch);
        let _under_way = watch.begin(call);
        guard(|| of(self.engine()))
    }

    pub(super) fn limits(&mut self) -> Result<EngineLimits, EngineError> {
        guard(|| Ok(self.engine().limits()))
    }

    pub(super) fn attention_balance_tokens(&mut self) -> Result<usize, EngineError> {
        guard(|| Ok(self.engine().attention_balance_tokens()))
    }

    pub(super) fn prepare(&mut self, spec: &GenerateSpec) -> Result<bool, EngineError> {
        self.watched(Call::Admit, |engine| engine.prepare(spec))
    }

    pub(super) fn admit(&mut self, spec: &GenerateSpec) -> Result<Slot, EngineError> {
        self.watched(Call::Admit, |engine| engine.admit(spec))
    }

    pub(super) fn encode_part(&mut self, slot: Slot) -> Result<bool, EngineError> {
        self.watched(Call::Admit, |engine| engine.encode_part(slot))
    }

    pub(super) fn step(&mut self, slots: &[Slot]) -> Result<(), EngineError> {
        self.watched(Call::Step, |engine| engine.step(slots))
    }

    pub(super) fn decode_part(&mut self, slot: Slot) -> Result<bool, EngineError> {
        self.watched(Call::Decode, |engine| engine.decode_part(slot))
    }

    pub(super) fn finish(&mut self, slot: Slot) -> Result<RgbImage, EngineError> {
        self.watched(Call::Decode, |engine| engine.finish(slot))
    }

    pub(super) fn preview(&mut self, slot: Slot) -> Result<Option<RgbImage>, EngineError> {
        self.watched(Call::Preview, |engine| engine.preview(slot))
    }

    pub(super) fn draft_part(&mut self, slot: Slot) -> Result<Draft, EngineError> {
        self.watched(Call::Decode, |engine| engine.draft_part(slot))
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
        let engine = self.engine.take();
        if let Err(error) = guard(move || {
            drop(engine);
            Ok(())
        }) {
            tracing::error!(%error, "dropping the engine failed");
        }
    }
}

fn guard<T>(call: impl FnOnce() -> Result<T, EngineError>) -> Result<T, EngineError> {
    // What a panic left half done is dropped with the engine.
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
