//! Rough images of running jobs: each latent position as one pixel, by a linear map from latent channels to red, green and
//! blue.
//!
//! The map is fitted to the loaded model, as ridge regression (Hoerl and Kennard, Technometrics 12, 1970, 55–67) between
//! latents and the output of the model's own decoder, averaged over the pixels of one latent position. So it suits every
//! autoencoder. It is fitted first to patches of random colors, so that previews work from the beginning, and then to the
//! images that the engine finishes, up to a bound. It never changes an image.

use candle_core::{DType, Device, Result, Tensor};

use super::vae::{self, Decoder};
use crate::domain::image::RgbImage;
use crate::engine::noise::standard_normal;

/// Longer side of a preview, in pixels; larger latents are averaged down.
const SIDE_MAX: usize = 128;
/// Maximum latent positions used of one finished image.
const IMAGE_POSITIONS_MAX: usize = 4096;
/// Latent positions after which the map stays: sixteen large images, or some hundred small ones.
const POSITIONS_MAX: usize = 65_536;
/// The ridge: added to the diagonal of the normal equations, as a share of the channels' mean there. It suppresses directions
/// in which the latents hardly varied so far, as in a single image.
const RIDGE_SHARE: f64 = 1e-3;
/// Sides of the patches for the first map, and of the square that they form, in latents.
const PATCH_SIDE: usize = 4;
const PATCHES_SIDE: usize = 16;
/// Deviation of the patches' latents. Flat colors have larger ones than complete images, whose latents are scaled to 1.
const PATCHES_DEVIATION: f64 = 1.5;
/// Red, green and blue.
const COLORS: usize = 3;

/// A linear map from latents to colors, and the equations it was fitted by.
#[derive(Debug, Clone)]
pub(crate) struct Projection {
    equations: NormalEquations,
    /// For each channel, and last for the constant, its weight in each color; colors are from -1 to 1. `None` before the first
    /// fit.
    map: Option<Vec<[f32; COLORS]>>,
}

impl Projection {
    /// A map for a decoder of latents with so many channels, fitted to patches of random colors.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub(crate) fn of(decoder: &Decoder, channels: usize, device: &Device) -> Result<Self> {
        let count = PATCHES_SIDE / PATCH_SIDE;
        let colors = standard_normal(0, 0, channels * count * count);
        let patches = (Tensor::from_vec(colors, (1, channels, count, count), device)? * PATCHES_DEVIATION)?
            .upsample_nearest2d(PATCHES_SIDE, PATCHES_SIDE)?;
        let mut projection = Self::new(channels);
        projection.learn(&patches, &decoder.decode(&patches)?)?;
        Ok(projection)
    }

    /// No map yet.
    pub(super) fn new(channels: usize) -> Self {
        Self { equations: NormalEquations::new(channels + 1), map: None }
    }

    /// Fits the map to one more image: its latents `[1, channels, rows, columns]` as the transformer returns them, and the
    /// decoder's pixels `[1, 3, rows × scale, columns × scale]`, about -1 to 1, both f32 on any device.
    ///
    /// # Errors
    /// When the device is out of memory. The map stays as it was.
    pub(crate) fn learn(&mut self, latents: &Tensor, pixels: &Tensor) -> Result<()> {
        if self.equations.samples >= POSITIONS_MAX {
            return Ok(());
        }
        let (_, _, rows, columns) = latents.dims4()?;
        let (_, _, height, width) = pixels.dims4()?;
        // Clamped as the image is.
        let colors = pixels.clamp(-1f32, 1f32)?.avg_pool2d((height / rows, width / columns))?;
        let (latents, colors) = (planes(latents)?, planes(&colors)?);
        let mut equations = self.equations.clone();
        let positions = rows * columns;
        // An odd stride through rows of even length visits every position inside a token.
        let stride = positions.div_ceil(IMAGE_POSITIONS_MAX) | 1;
        let mut inputs = vec![1.0; latents.len() + 1];
        for position in (0..positions).step_by(stride) {
            for (input, plane) in inputs.iter_mut().zip(&latents) {
                *input = f64::from(plane[position]);
            }
            equations.add(&inputs, std::array::from_fn(|color| f64::from(colors[color][position])));
        }
        // Numbers that are not finite, which no finished image has, would spoil all later fits.
        if let Some(map) = equations.solve() {
            (self.equations, self.map) = (equations, Some(map));
        }
        Ok(())
    }

    /// Latents `[1, channels, rows, columns]`, f32 on any device -> an image with a pixel for each position, averaged
    /// down to at most 128 on the longer side. `None` before the first fit, and for latents that are not finite.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub(crate) fn image(&self, latents: &Tensor) -> Result<Option<RgbImage>> {
        let Some(map) = &self.map else { return Ok(None) };
        let (_, _, rows, columns) = latents.dims4()?;
        let (constant, parts) = map.split_last().expect("the constant is always there");
        let divisor = rows.max(columns).div_ceil(SIDE_MAX);
        let latents = if divisor > 1 { latents.avg_pool2d(divisor)? } else { latents.clone() };
        let (_, _, height, width) = latents.dims4()?;
        let planes = planes(&latents)?;
        let mut bytes = Vec::with_capacity(height * width * COLORS);
        for position in 0..height * width {
            let mut pixel = *constant;
            for (part, plane) in parts.iter().zip(&planes) {
                for (color, part) in pixel.iter_mut().zip(part) {
                    *color += part * plane[position];
                }
            }
            if pixel.iter().any(|color| !color.is_finite()) {
                return Ok(None);
            }
            bytes.extend(pixel.map(vae::to_byte));
        }
        Ok(RgbImage::new(width as u32, height as u32, bytes))
    }
}

/// `[1, planes, rows, columns]` -> each plane row by row, f32, on the CPU.
fn planes(tensor: &Tensor) -> Result<Vec<Vec<f32>>> {
    tensor.squeeze(0)?.flatten_from(1)?.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.to_vec2()
}

/// `XᵀX` and `XᵀY` of a least-squares problem with three right sides, in f64. The last input is the constant 1.
#[derive(Debug, Clone)]
struct NormalEquations {
    unknowns: usize,
    samples: usize,
    /// `[unknowns, unknowns]`, symmetric; only the lower triangle is kept.
    matrix: Vec<f64>,
    /// `[unknowns, 3]`
    right: Vec<[f64; COLORS]>,
}

impl NormalEquations {
    fn new(unknowns: usize) -> Self {
        Self { unknowns, samples: 0, matrix: vec![0.0; unknowns * unknowns], right: vec![[0.0; COLORS]; unknowns] }
    }

    fn add(&mut self, inputs: &[f64], outputs: [f64; COLORS]) {
        self.samples += 1;
        for (row, &input) in inputs.iter().enumerate() {
            let sums = &mut self.matrix[row * self.unknowns..][..=row];
            for (sum, other) in sums.iter_mut().zip(inputs) {
                *sum += input * other;
            }
            for (sum, output) in self.right[row].iter_mut().zip(outputs) {
                *sum += input * output;
            }
        }
    }

    /// The solution, with the ridge on all unknowns but the constant. `None` when a number is not finite, or when
    /// nothing varies.
    fn solve(&self) -> Option<Vec<[f32; COLORS]>> {
        let channels = self.unknowns - 1;
        let diagonal = (0..channels).map(|at| self.matrix[at * self.unknowns + at]);
        let ridge = RIDGE_SHARE * diagonal.sum::<f64>() / channels as f64;
        let mut matrix = self.matrix.clone();
        for at in 0..channels {
            matrix[at * self.unknowns + at] += ridge;
        }
        let solution = solve_positive_definite(matrix, self.right.clone())?;
        let narrow = |colors: [f64; COLORS]| colors.map(|color| color as f32);
        let solution: Vec<[f32; COLORS]> = solution.into_iter().map(narrow).collect();
        solution.iter().flatten().all(|part| part.is_finite()).then_some(solution)
    }
}

/// Solves `matrix × x = right` for a symmetric positive definite matrix, of which the lower triangle is read, by
/// Cholesky's decomposition (Golub and Van Loan, Matrix Computations, 4th edition, 4.2.5). `None` where the matrix is not
/// positive definite.
fn solve_positive_definite(mut matrix: Vec<f64>, mut right: Vec<[f64; COLORS]>) -> Option<Vec<[f64; COLORS]>> {
    let size = right.len();
    for row in 0..size {
        for column in 0..=row {
            let known: f64 = (0..column).map(|at| matrix[row * size + at] * matrix[column * size + at]).sum();
            let rest = matrix[row * size + column] - known;
            matrix[row * size + column] = if row > column {
                rest / matrix[column * size + column]
            } else if rest > 0.0 {
                rest.sqrt()
            } else {
                return None;
            };
        }
    }
    // Forward with the triangle, then back with its transpose.
    for row in 0..size {
        subtract(&mut right, row, (0..row).map(|at| (at, matrix[row * size + at])));
        right[row] = right[row].map(|value| value / matrix[row * size + row]);
    }
    for row in (0..size).rev() {
        subtract(&mut right, row, (row + 1..size).map(|at| (at, matrix[at * size + row])));
        right[row] = right[row].map(|value| value / matrix[row * size + row]);
    }
    Some(right)
}

/// `right[row] -= Σ factor × right[at]`
fn subtract(right: &mut [[f64; COLORS]], row: usize, terms: impl Iterator<Item = (usize, f64)>) {
    for (at, factor) in terms {
        let other = right[at];
        for (value, other) in right[row].iter_mut().zip(other) {
            *value -= factor * other;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHANNELS: usize = 4;

    /// Pseudorandom numbers from -1 to 1.
    fn scattered(count: usize) -> Vec<f32> {
        let mut state = 1_u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    fn latents(rows: usize, columns: usize) -> Tensor {
        let numbers = scattered(CHANNELS * rows * columns);
        Tensor::from_vec(numbers, (1, CHANNELS, rows, columns), &Device::Cpu).expect("a shape that fits")
    }

    /// The output of a linear decoder for `latents`: red 0.4 a + 0.1, green -0.3 b, blue 0.2 (c + d) - 0.2.
    fn decoded(latents: &Tensor, scale: usize) -> Tensor {
        let planes = planes(latents).expect("on the CPU");
        let (_, _, rows, columns) = latents.dims4().expect("four dimensions");
        let red = planes[0].iter().map(|a| 0.4 * a + 0.1);
        let green = planes[1].iter().map(|b| -0.3 * b);
        let blue = planes[2].iter().zip(&planes[3]).map(|(c, d)| 0.2 * (c + d) - 0.2);
        let small: Vec<f32> = red.chain(green).chain(blue).collect();
        let small = Tensor::from_vec(small, (1, 3, rows, columns), &Device::Cpu).expect("a shape that fits");
        small.upsample_nearest2d(rows * scale, columns * scale).expect("memory")
    }

    #[test]
    fn a_linear_decoder_is_learned_from_one_image() {
        let mut projection = Projection::new(CHANNELS);
        let (seen, other) = (latents(8, 8), latents(6, 10));
        assert!(projection.image(&other).expect("memory").is_none(), "not fitted yet");
        projection.learn(&seen, &decoded(&seen, 8)).expect("memory");
        let image = projection.image(&other).expect("memory").expect("it has learned");
        assert_eq!((image.width(), image.height()), (10, 6));
        let expected = vae::to_rgb_bytes(&decoded(&other, 1)).expect("memory").expect("finite");
        let worst = image.pixels().iter().zip(&expected).map(|(found, meant)| found.abs_diff(*meant)).max();
        assert!(worst <= Some(1), "off by {worst:?}");
    }

    #[test]
    fn large_latents_are_averaged_down() {
        let mut projection = Projection::new(CHANNELS);
        let large = latents(100, 260);
        projection.learn(&large, &decoded(&large, 2)).expect("memory");
        let image = projection.image(&large).expect("memory").expect("it has learned");
        assert_eq!((image.width(), image.height()), (86, 33));
        let expected = vae::to_rgb_bytes(&decoded(&large.avg_pool2d(3).expect("memory"), 1)).expect("memory");
        let expected = expected.expect("finite");
        let worst = image.pixels().iter().zip(&expected).map(|(found, meant)| found.abs_diff(*meant)).max();
        assert!(worst <= Some(1), "off by {worst:?}");
    }

    #[test]
    fn learning_is_bounded_for_each_image_and_in_all() {
        let mut projection = Projection::new(CHANNELS);
        let large = latents(128, 128);
        let pixels = decoded(&large, 1);
        projection.learn(&large, &pixels).expect("memory");
        let once = projection.equations.samples;
        assert!((IMAGE_POSITIONS_MAX / 2..=IMAGE_POSITIONS_MAX).contains(&once), "{once}");
        for _ in 0..40 {
            projection.learn(&large, &pixels).expect("memory");
        }
        let all = projection.equations.samples;
        assert!((POSITIONS_MAX..POSITIONS_MAX + IMAGE_POSITIONS_MAX).contains(&all), "{all}");
    }

    #[test]
    fn numbers_that_are_not_finite_are_neither_learned_nor_shown() {
        let mut projection = Projection::new(CHANNELS);
        let good = latents(8, 8);
        let bad = good.affine(f64::INFINITY, 0.0).expect("memory");
        projection.learn(&bad, &decoded(&good, 8)).expect("memory");
        assert_eq!(projection.equations.samples, 0);
        projection.learn(&good, &decoded(&good, 8)).expect("memory");
        assert!(projection.image(&bad).expect("memory").is_none());
        assert!(projection.image(&good).expect("memory").is_some());
    }

    #[test]
    fn zero_latents_give_no_map() {
        let mut projection = Projection::new(CHANNELS);
        let flat = latents(8, 8).zeros_like().expect("memory");
        projection.learn(&flat, &decoded(&flat, 8)).expect("memory");
        assert!(projection.map.is_none(), "the channels do not differ");
    }

    #[test]
    fn equations_are_solved_and_those_without_a_solution_are_rejected() {
        let matrix = vec![4.0, f64::NAN, f64::NAN, 2.0, 10.0, f64::NAN, 1.0, 3.0, 5.0];
        // Of x = (1, 2, 3), (-1, 0, 1) and (0, 0, 2).
        let right = vec![[11.0, -3.0, 2.0], [31.0, 1.0, 6.0], [22.0, 4.0, 10.0]];
        let solution = solve_positive_definite(matrix, right).expect("positive definite");
        let expected = [[1.0, -1.0, 0.0], [2.0, 0.0, 0.0], [3.0, 1.0, 2.0]];
        for (found, meant) in solution.iter().flatten().zip(expected.iter().flatten()) {
            assert!((found - meant).abs() < 1e-12, "{solution:?}");
        }
        assert!(solve_positive_definite(vec![1.0, 0.0, 2.0, 4.0], vec![[1.0; 3]; 2]).is_none(), "no inverse");
        assert!(solve_positive_definite(vec![-1.0], vec![[1.0; 3]]).is_none(), "negative");
    }
}
