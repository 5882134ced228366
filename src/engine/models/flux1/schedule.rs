//! The noise schedule of flow matching.

use super::config::SchedulerConfig;

/// Noise levels from 1 down to 0: `steps + 1` of them, the last one 0.
///
/// As diffusers' `FlowMatchEulerDiscreteScheduler` with the sigmas that `FluxPipeline` passes: evenly spaced from 1 to
/// `1 / steps`, then shifted towards noise, the more the larger the image.
pub(crate) fn sigmas(config: &SchedulerConfig, image_tokens: usize, steps: usize) -> Vec<f32> {
    let last = 1.0 / steps as f64;
    let linear = |index: usize| {
        if steps == 1 { 1.0 } else { 1.0 + index as f64 * ((last - 1.0) / (steps - 1) as f64) }
    };
    let even = (0..steps).map(|index| linear(index) as f32);
    let shifted: Vec<f32> = if config.use_dynamic_shifting {
        let strength = mu(config, image_tokens).exp() as f32;
        even.map(|sigma| strength / (strength + (1.0 / sigma - 1.0))).collect()
    } else {
        let shift = config.shift as f32;
        even.map(|sigma| shift * sigma / (1.0 + (shift - 1.0) * sigma)).collect()
    };
    shifted.into_iter().chain([0.0]).collect()
}

/// Strength of the shift: linear in the image's tokens, extrapolated outside the configured range
/// (`calculate_shift` of diffusers' FLUX pipeline).
pub(crate) fn mu(config: &SchedulerConfig, image_tokens: usize) -> f64 {
    let span = (config.max_image_seq_len - config.base_image_seq_len) as f64;
    let slope = (config.max_shift - config.base_shift) / span;
    let intercept = config.base_shift - slope * config.base_image_seq_len as f64;
    image_tokens as f64 * slope + intercept
}
