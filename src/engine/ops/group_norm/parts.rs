//! The parts of an image of which the CUDA kernel takes statistics, each by a block.

/// Maximum parts: eight blocks for each multiprocessor of an H200.
const PARTS_MAX: usize = 1056;

/// Fewest pixels of a part.
const PART_PIXELS_MIN: usize = 64;

/// Parts of so many pixels.
pub(in crate::engine::ops) fn parts_of(pixels: usize) -> usize {
    (pixels / PART_PIXELS_MIN).clamp(1, PARTS_MAX)
}

/// Pixels of each part, cut as `group_norm.cu` cuts them.
pub(super) fn pixels_of_parts(pixels: usize) -> Vec<usize> {
    let parts = parts_of(pixels);
    (0..parts).map(|part| pixels * (part + 1) / parts - pixels * part / parts).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_every_pixel_once() {
        for pixels in [1, 63, 64, 1000, 28 * 1024, 4_194_304] {
            let parts = pixels_of_parts(pixels);
            assert_eq!((parts.len(), parts.iter().sum::<usize>()), (parts_of(pixels), pixels));
        }
    }
}
