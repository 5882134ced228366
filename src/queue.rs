//! The planner and the engine thread. Sees `domain::engine::StepEngine` only, never candle.
