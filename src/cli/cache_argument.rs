//! The cache between steps on the command line: `first_block`, or `first_block=THRESHOLD`.

use crate::domain::step_cache::{CacheKind, StepCache, THRESHOLD_DEFAULT};

/// Reads the option. The threshold's limits are checked with the other parameters.
pub(super) fn parse_cache(text: &str) -> Result<StepCache, String> {
    let (name, threshold) = match text.split_once('=') {
        None => (text, Ok(THRESHOLD_DEFAULT)),
        Some((name, number)) => (name, number.parse()),
    };
    match name.parse::<CacheKind>() {
        Ok(CacheKind::FirstBlock) => {
            let threshold = threshold.map_err(|_| "the threshold behind `=` must be a number".to_owned())?;
            Ok(StepCache { threshold })
        }
        Err(unknown) => Err(unknown.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_has_a_name_and_perhaps_a_threshold() {
        let parsed = |text| parse_cache(text).map(|cache| cache.threshold);
        assert_eq!(parsed("first_block"), Ok(THRESHOLD_DEFAULT));
        assert_eq!(parsed("first_block=0.12"), Ok(0.12));
        for (text, reason) in [("", "first_block"), ("teacache=0.1", "first_block"), ("first_block=", "a number")] {
            let error = parsed(text).expect_err("refused");
            assert!(error.contains(reason), "{text:?}: {error}");
        }
    }
}
