//! The HTTP surface: routes, extractors, answers and the one table of errors. Knows nothing of candle or SQL.
