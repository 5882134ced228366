//! Progress bar of loading a model, on a terminal.

use std::sync::Arc;

use indicatif::{ProgressBar, ProgressStyle};

use crate::domain::engine::LoadObserver;

/// Shows the progress until the model is loaded.
pub(super) struct LoadBar(ProgressBar);

impl LoadBar {
    pub(super) fn new() -> anyhow::Result<Arc<Self>> {
        let style = ProgressStyle::with_template(
            "{bar:24} {decimal_bytes:>9} of {decimal_total_bytes:<9} {decimal_bytes_per_sec:>11} {eta:>4} left  weights",
        )?;
        // Hidden until the size is known.
        let bar = ProgressBar::hidden();
        bar.set_style(style);
        Ok(Arc::new(Self(bar)))
    }
}

impl LoadObserver for LoadBar {
    fn planned(&self, bytes: u64) {
        self.0.set_draw_target(indicatif::ProgressDrawTarget::stderr());
        self.0.set_length(bytes);
        self.0.set_position(0);
        self.0.reset_eta();
    }

    fn loaded(&self, bytes: u64) {
        self.0.inc(bytes);
        if self.0.length().is_none_or(|length| self.0.position() >= length) {
            self.0.finish_and_clear();
        }
    }
}

impl Drop for LoadBar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
