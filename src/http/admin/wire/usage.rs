//! A key's usage in responses.

use serde::Serialize;
use utoipa::ToSchema;

use super::budget::BudgetUseView;
use crate::domain::usage::DayUsage;

/// The usage of one UTC day.
#[derive(Serialize, ToSchema)]
#[schema(as = DayUsage)]
pub(in crate::http) struct DayUsageView {
    /// As in `2030-01-31`.
    date: String,
    requests: u64,
    images: u64,
    megapixel_steps: f64,
    gpu_seconds: f64,
}

impl From<DayUsage> for DayUsageView {
    fn from(usage: DayUsage) -> Self {
        Self {
            date: usage.day.to_string(),
            requests: usage.requests,
            images: usage.work.images,
            megapixel_steps: usage.work.megapixel_steps(),
            gpu_seconds: usage.work.engine_time.as_secs_f64(),
        }
    }
}

/// The last days, the oldest first, up to today.
#[derive(Serialize, ToSchema)]
#[schema(as = Usage)]
pub(in crate::http) struct UsageView {
    pub(in crate::http) data: Vec<DayUsageView>,
    /// The key's budget in the present month, if it has one.
    pub(in crate::http) budget: Option<BudgetUseView>,
}
