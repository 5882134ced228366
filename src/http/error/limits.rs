//! Limits of keys and projects as answers.

use super::{ApiError, ErrorCode};
use crate::domain::limits::LimitHolder;
use crate::http::quota::{DAY_SECONDS, Quota};
use crate::jobs::LimitReached;

pub(super) fn rate_limited(holder: LimitHolder, per_minute: u32, retry_after_seconds: u64) -> ApiError {
    let name = of(holder, "requests", "project-requests");
    let quota = Quota { name, ..Quota::of_requests(per_minute, 0) };
    ApiError::new(ErrorCode::RateLimited)
        .with_detail(format!("{} is {per_minute} requests per minute", limit_of(holder)))
        .with_quota(quota, retry_after_seconds)
}

pub(super) fn limit_reached(reached: &LimitReached) -> ApiError {
    match *reached {
        LimitReached::ConcurrentJobs { holder, limit, retry_after_seconds } => {
            let name = of(holder, "concurrent-jobs", "project-concurrent-jobs");
            let quota = Quota { name, limit, window_seconds: None, left: 0 };
            ApiError::new(ErrorCode::ConcurrentJobsLimit)
                .with_detail(format!("{} is {limit} unfinished jobs", limit_of(holder)))
                .with_quota(quota, retry_after_seconds)
        }
        LimitReached::MegapixelSteps { holder, limit, left, needed, retry_after_seconds } => {
            let name = of(holder, "megapixel-steps", "project-megapixel-steps");
            let quota = Quota { name, limit, window_seconds: Some(DAY_SECONDS), left };
            let whose = of(holder, "", " of the key's project");
            let detail = format!(
                "the request needs {needed} megapixel-steps, and {left} of {limit}{whose} are left in this UTC day"
            );
            ApiError::new(ErrorCode::DailyLimit).with_detail(detail).with_quota(quota, retry_after_seconds)
        }
        LimitReached::Budget { holder, budget, retry_after_seconds } => {
            let detail =
                format!("what is left of the {holder}'s budget of {budget} for this UTC month does not suffice");
            ApiError::new(ErrorCode::BudgetExhausted).with_detail(detail).with_retry_after(retry_after_seconds)
        }
    }
}

fn of(holder: LimitHolder, key: &'static str, project: &'static str) -> &'static str {
    match holder {
        LimitHolder::Key => key,
        LimitHolder::Project => project,
    }
}

fn limit_of(holder: LimitHolder) -> &'static str {
    of(holder, "the limit", "the limit of the key's project")
}
