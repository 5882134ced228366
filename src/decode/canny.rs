//! The edges of an image, by Canny's method: what FLUX.1-Canny-dev and ControlNets for edges were trained with.
//!
//! As `cv2.Canny(image, 50, 200)` of OpenCV, pixel for pixel: no blur, Sobel's gradient of the color that changes most, its length
//! as |x| + |y|, and neighbors by eight directions. Source: `CannyImageEncoder` of black-forest-labs/flux for the thresholds, and
//! `canny.cpp` of OpenCV 4 for the rules.

use super::resize::PIXEL_BYTES;
use crate::domain::image::RgbImage;

/// A gradient of at most this length is no edge.
const WEAK: i64 = 50;
/// A longer gradient than this is an edge by itself; others between are edges where they continue one.
const STRONG: i64 = 200;
/// Fractional bits in the comparison of directions.
const FRACTION_BITS: u32 = 15;
/// The tangent of 22.5 degrees, with [`FRACTION_BITS`].
const TANGENT: i64 = 13_573;

/// What is known of a pixel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mark {
    Nothing,
    /// An edge if it is next to one.
    Candidate,
    Edge,
}

/// The edges of an image, white on black, in its size.
pub(super) fn edges(image: &RgbImage) -> RgbImage {
    let gradients = Gradients::of(image);
    let (mut marks, mut found) = gradients.marks();
    // Each pixel is found once at most.
    while let Some(index) = found.pop() {
        for next in gradients.neighbors(index) {
            if marks[next] == Mark::Candidate {
                marks[next] = Mark::Edge;
                found.push(next);
            }
        }
    }
    let shade = |mark: Mark| if mark == Mark::Edge { u8::MAX } else { 0 };
    let pixels = marks.into_iter().flat_map(|mark| [shade(mark); PIXEL_BYTES]).collect();
    RgbImage::new(image.width(), image.height(), pixels).expect("three bytes per pixel")
}

/// The gradient of every pixel.
struct Gradients {
    width: usize,
    height: usize,
    /// To the right and downwards.
    values: Vec<[i16; 2]>,
}

impl Gradients {
    /// Those of the color that changes most; the image continues with its border.
    fn of(image: &RgbImage) -> Self {
        let (width, height) = (image.width() as usize, image.height() as usize);
        let pixels = image.pixels();
        let mut values = Vec::with_capacity(width * height);
        for y in 0..height {
            let rows = [y.saturating_sub(1), y, (y + 1).min(height - 1)];
            for x in 0..width {
                let columns = [x.saturating_sub(1), x, (x + 1).min(width - 1)];
                let of_channel = |channel: usize| {
                    let at = |row: usize, column: usize| {
                        i16::from(pixels[(rows[row] * width + columns[column]) * PIXEL_BYTES + channel])
                    };
                    let in_column = |column: usize| at(0, column) + 2 * at(1, column) + at(2, column);
                    let in_row = |row: usize| at(row, 0) + 2 * at(row, 1) + at(row, 2);
                    [in_column(2) - in_column(0), in_row(2) - in_row(0)]
                };
                let [first, second, third] = [0, 1, 2].map(of_channel);
                // Of two that are equally long, the first one counts.
                let longer = |a: [i16; 2], b: [i16; 2]| if length(b) > length(a) { b } else { a };
                values.push(longer(longer(first, second), third));
            }
        }
        Self { width, height, values }
    }

    /// The length of a pixel's gradient; outside the image it is 0.
    fn length_at(&self, x: i64, y: i64) -> i64 {
        let (Ok(x), Ok(y)) = (usize::try_from(x), usize::try_from(y)) else { return 0 };
        if x >= self.width || y >= self.height { 0 } else { length(self.values[y * self.width + x]) }
    }

    /// Whether the gradient is longer than a weak one, and the longest in its own direction.
    fn is_peak(&self, x: i64, y: i64) -> bool {
        let own = self.length_at(x, y);
        if own <= WEAK {
            return false;
        }
        let [right, down] = self.values[y as usize * self.width + x as usize].map(i64::from);
        let steep = down.abs() << FRACTION_BITS;
        let flat = right.abs() * TANGENT;
        // The tangent of 67.5 degrees is that of 22.5 degrees plus 2.
        if steep < flat {
            own > self.length_at(x - 1, y) && own >= self.length_at(x + 1, y)
        } else if steep > flat + (right.abs() << (FRACTION_BITS + 1)) {
            own > self.length_at(x, y - 1) && own >= self.length_at(x, y + 1)
        } else {
            let side = if (right ^ down) < 0 { -1 } else { 1 };
            own > self.length_at(x - side, y - 1) && own > self.length_at(x + side, y + 1)
        }
    }

    /// The marks of all pixels, and the strong ones among them.
    fn marks(&self) -> (Vec<Mark>, Vec<usize>) {
        let (mut marks, mut strong) = (vec![Mark::Nothing; self.values.len()], Vec::new());
        for (index, mark) in marks.iter_mut().enumerate() {
            let (x, y) = ((index % self.width) as i64, (index / self.width) as i64);
            if !self.is_peak(x, y) {
                continue;
            }
            *mark = Mark::Candidate;
            if self.length_at(x, y) > STRONG {
                *mark = Mark::Edge;
                strong.push(index);
            }
        }
        (marks, strong)
    }

    /// The pixels around one, up to eight.
    fn neighbors(&self, index: usize) -> impl Iterator<Item = usize> {
        let (width, x, y) = (self.width, index % self.width, index / self.width);
        let columns = x.saturating_sub(1)..(x + 2).min(width);
        let rows = y.saturating_sub(1)..(y + 2).min(self.height);
        rows.flat_map(move |row| columns.clone().map(move |column| row * width + column))
    }
}

fn length([right, down]: [i16; 2]) -> i64 {
    i64::from(right.unsigned_abs()) + i64::from(down.unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::super::tests::{reference, two_halves};
    use super::*;

    /// Recorded from OpenCV: `tests/reference/images/README.md`.
    #[test]
    fn edges_are_those_of_opencv() {
        for name in ["noisy", "shapes", "thin"] {
            let found = edges(&reference(&format!("images/{name}.png")));
            let expected = reference(&format!("images/{name}-canny.png"));
            assert!(found == expected, "{name}: {} bytes differ", different(&found, &expected));
        }
    }

    fn different(a: &RgbImage, b: &RgbImage) -> usize {
        a.pixels().iter().zip(b.pixels()).filter(|(a, b)| a != b).count()
    }

    #[test]
    fn a_border_between_two_colors_is_one_line() {
        let found = edges(&two_halves(8, 4));
        let row: Vec<u8> = found.pixels()[..24].iter().step_by(3).copied().collect();
        assert_eq!(row.iter().filter(|shade| **shade > 0).count(), 1, "{row:?}");
        let flat = RgbImage::new(3, 2, vec![90; 18]).expect("three bytes per pixel");
        assert!(edges(&flat).is_black());
        let dot = RgbImage::new(1, 1, vec![9, 200, 3]).expect("three bytes per pixel");
        assert!(edges(&dot).is_black(), "nothing beside it differs");
    }
}
