//! The models this worker knows: cards from `models/*.toml`, and which of them are being served. Knows nothing of candle or HTTP.
