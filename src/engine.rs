//! FLUX on candle, behind `domain::engine::StepEngine`. The only home of candle; knows nothing of tokio, HTTP, queue, auth or SQL.
