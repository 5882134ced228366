//! Logs and metrics: set-up, and every metric's name and unit, once.
