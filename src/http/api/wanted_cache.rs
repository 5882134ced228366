//! The cache between steps that a request asks for: lossy, so never without being asked.

use utoipa::openapi::ObjectBuilder;

use crate::domain::spec::FieldError;
use crate::domain::step_cache::{CACHE, CACHE_THRESHOLD, CacheKind, StepCache, THRESHOLD_DEFAULT, THRESHOLD_MAX};
use crate::http::extract::json::Fields;
use crate::http::openapi::schema::{number, one_of};
use crate::http::settings::HttpSettings;

const ABOUT: &str = "Makes the image faster, and another one: a step in which the first block of the transformer changes nearly \
                     what it changed before leaves out the other blocks, and takes their last change again. Without \
                     it, every step is complete.";
const THRESHOLD: &str = "How much the first block's change may differ from the one before, relative to it. More leaves \
                         out more.";

/// Reads its fields. The threshold's limits are checked with the other parameters.
pub(in crate::http) fn read(fields: &mut Fields) -> Option<StepCache> {
    let threshold = fields.number(CACHE_THRESHOLD);
    let Some(name) = fields.text(CACHE) else {
        if threshold.is_some() {
            fields.refuse(CACHE_THRESHOLD, format!("needs `{CACHE}`"));
        }
        return None;
    };
    match name.parse::<CacheKind>() {
        Ok(CacheKind::FirstBlock) => Some(StepCache { threshold: threshold.unwrap_or(THRESHOLD_DEFAULT) }),
        Err(unknown) => {
            fields.refuse(CACHE, unknown.to_string());
            None
        }
    }
}

/// What is wrong with asking for a cache, if this worker allows none.
pub(in crate::http) fn refusal(cache: Option<StepCache>, settings: &HttpSettings) -> Option<FieldError> {
    let is_refused = cache.is_some() && !settings.allows_caches;
    is_refused.then(|| FieldError::new(CACHE, "the worker runs with --deterministic, which allows no cache"))
}

/// The schema of the field [`CACHE`].
pub(in crate::http) fn schema() -> ObjectBuilder {
    one_of(CacheKind::ALL.map(CacheKind::as_str)).description(Some(ABOUT))
}

/// The schema of the field [`CACHE_THRESHOLD`].
pub(in crate::http) fn threshold_schema() -> ObjectBuilder {
    let about = format!("{THRESHOLD} Defaults to {THRESHOLD_DEFAULT}. Requires `{CACHE}`.");
    number().exclusive_minimum(Some(0)).maximum(Some(THRESHOLD_MAX)).description(Some(about))
}
