//! Planes in another size. Each side is resampled by itself.

use rayon::prelude::*;

/// How values between pixels are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Filter {
    /// Cubic, over as many pixels as become one (Pillow's `BICUBIC`).
    Cubic,
    /// Linear, over as many pixels as become one (Pillow's `BILINEAR`).
    Linear,
    /// Cubic between the four nearest pixels (`bicubic` of torch, without `align_corners`).
    NearestCubic,
    /// Linear between the two nearest pixels; the outermost ones stay where they are (`bilinear` of torch with `align_corners`).
    Corners,
}

/// The size of planes, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) height: usize,
    pub(super) width: usize,
}

/// The pixels that an output pixel is made of, with their weights.
type Taps = Vec<(usize, f32)>;

/// Resamples planes `[any number, height, width]` that have `size` to `target`. No side may be 0.
pub(super) fn resized(planes: &[f32], size: Size, target: Size, filter: Filter) -> Vec<f32> {
    let columns = taps(size.width, target.width, filter);
    let rows = taps(size.height, target.height, filter);
    let mut narrowed = vec![0.0; planes.len() / size.width * target.width];
    narrowed.par_chunks_mut(target.width).zip(planes.par_chunks(size.width)).for_each(|(out, row)| {
        for (value, taps) in out.iter_mut().zip(&columns) {
            *value = taps.iter().map(|(index, weight)| row[*index] * weight).sum();
        }
    });
    let count = planes.len() / (size.width * size.height);
    let mut out = vec![0.0; count * target.width * target.height];
    out.par_chunks_mut(target.width).enumerate().for_each(|(line, out)| {
        let (plane, row) = (line / target.height, line % target.height);
        for (index, weight) in &rows[row] {
            let source = &narrowed[(plane * size.height + index) * target.width..][..target.width];
            for (value, from) in out.iter_mut().zip(source) {
                *value += from * weight;
            }
        }
    });
    out
}

fn taps(from: usize, to: usize, filter: Filter) -> Vec<Taps> {
    match filter {
        Filter::Cubic => (0..to).map(|place| spread(place, from, to, 2.0, |x| cubic(x, -0.5))).collect(),
        Filter::Linear => (0..to).map(|place| spread(place, from, to, 1.0, |x| (1.0 - x.abs()).max(0.0))).collect(),
        Filter::NearestCubic => (0..to).map(|place| nearest_cubic(place, from, to)).collect(),
        Filter::Corners => (0..to).map(|place| between_corners(place, from, to)).collect(),
    }
}

/// A kernel of this `support` around an output pixel's place, stretched to as many pixels as become one.
fn spread(place: usize, from: usize, to: usize, support: f32, kernel: impl Fn(f32) -> f32) -> Taps {
    let scale = from as f32 / to as f32;
    let stretch = scale.max(1.0);
    let (center, reach) = ((place as f32 + 0.5) * scale, support * stretch);
    let first = (center - reach + 0.5).max(0.0) as usize;
    let last = ((center + reach + 0.5) as usize).min(from);
    let taps: Taps = (first..last).map(|index| (index, kernel((index as f32 - center + 0.5) / stretch))).collect();
    let sum: f32 = taps.iter().map(|(_, weight)| weight).sum();
    taps.into_iter().map(|(index, weight)| (index, weight / sum)).collect()
}

/// Beyond the borders, the outermost pixels go on.
fn nearest_cubic(place: usize, from: usize, to: usize) -> Taps {
    let center = (place as f32 + 0.5) * (from as f32 / to as f32) - 0.5;
    let below = center.floor();
    let tap = |offset: i32| {
        let index = (below as i64 + i64::from(offset)).clamp(0, from as i64 - 1);
        (index as usize, cubic(below + offset as f32 - center, -0.75))
    };
    (-1..=2).map(tap).collect()
}

fn between_corners(place: usize, from: usize, to: usize) -> Taps {
    let center = if to > 1 { place as f32 * ((from - 1) as f32 / (to - 1) as f32) } else { 0.0 };
    let below = (center as usize).min(from - 1);
    let part = center - below as f32;
    vec![(below, 1.0 - part), ((below + 1).min(from - 1), part)]
}

/// Keys' cubic kernel with the slope `a`.
fn cubic(x: f32, a: f32) -> f32 {
    let x = x.abs();
    if x < 1.0 {
        ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * a
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILTERS: [Filter; 4] = [Filter::Cubic, Filter::Linear, Filter::NearestCubic, Filter::Corners];

    fn row(values: &[f32], width: usize, filter: Filter) -> Vec<f32> {
        let size = Size { height: 1, width: values.len() };
        resized(values, size, Size { height: 1, width }, filter)
    }

    fn assert_close(found: &[f32], expected: &[f32]) {
        assert_eq!(found.len(), expected.len());
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-4), "{found:?}, not {expected:?}");
    }

    /// Worked out by hand from the definitions of Pillow's and torch's filters.
    #[test]
    fn values_are_those_of_the_libraries() {
        let values = [0.0, 10.0, 20.0, 50.0];
        assert_close(&row(&values, 2, Filter::Cubic), &[5.123_967, 33.305_786]);
        assert_close(&row(&values, 2, Filter::Linear), &[7.142_857, 31.428_572]);
        assert_close(&row(&values, 2, Filter::NearestCubic), &[4.0625, 35.9375]);
        let expected = [0.0, 4.285_714, 8.571_428, 12.857_143, 17.142_857, 24.285_714, 37.142_857, 50.0];
        assert_close(&row(&values, 8, Filter::Corners), &expected);
    }

    #[test]
    fn a_flat_image_stays_flat_and_the_same_size_changes_nothing() {
        let size = Size { height: 5, width: 7 };
        for filter in FILTERS {
            for target in [Size { height: 3, width: 20 }, Size { height: 11, width: 2 }, Size { height: 1, width: 1 }] {
                let flat = resized(&[4.5; 70], size, target, filter);
                assert_close(&flat, &vec![4.5; 2 * target.height * target.width]);
            }
            let values: Vec<f32> = (0..70).map(|value| (value as f32 * 0.7).sin()).collect();
            assert_close(&resized(&values, size, size, filter), &values);
        }
    }

    #[test]
    fn planes_and_sides_do_not_mix() {
        let size = Size { height: 2, width: 2 };
        let planes = [0.0, 1.0, 2.0, 3.0, 10.0, 20.0, 30.0, 40.0];
        let found = resized(&planes, size, Size { height: 3, width: 3 }, Filter::Corners);
        let expected =
            [0.0, 0.5, 1.0, 1.0, 1.5, 2.0, 2.0, 2.5, 3.0, 10.0, 15.0, 20.0, 20.0, 25.0, 30.0, 30.0, 35.0, 40.0];
        assert_close(&found, &expected);
    }
}
