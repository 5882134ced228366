//! A convolution of planes on the CPU: products of weights with the neighbors of every pixel.
//!
//! Pixels of a row lie in a vector unit's lanes. With a border around the planes, their neighbors are the same lanes elsewhere, which are
//! read where they are.

use std::ops::Range;

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Storage, Tensor, bail};
use rayon::prelude::*;

use super::super::contiguous;
use super::super::gemm::panels::{LanesInPlace, Panel};
use super::super::gemm::{MatrixRef, Onto, Threads, VectorUnit, multiply};

/// Outputs of one task in each plane: enough for a matrix product, and few enough for the cache.
const STRIP_PIXELS: usize = 512;

/// Tasks of each thread at a time: their outputs are copied while they are in the cache, and take little memory.
const STRIPS_PER_THREAD: usize = 16;

/// Of `x [1, inputs, height, width]` by `weight [outputs, inputs, kernel, kernel]` and `bias [outputs]`.
pub(super) struct OnCpu {
    pub(super) kernel: usize,
    /// Rows of the input for which there is an output.
    pub(super) rows: Range<usize>,
    /// Is added to the output.
    pub(super) residual: Option<Tensor>,
    /// Whether the sides are doubled first. Then the kernel is 3×3, and the processor has a vector unit.
    pub(super) is_doubled: bool,
}

/// One image's channels, row by row.
#[derive(Clone, Copy)]
struct Planes<'a> {
    values: &'a [f32],
    channels: usize,
    height: usize,
    width: usize,
}

/// Weights, and which neighbors they are for.
struct Taps<'a> {
    /// `[outputs, taps]`
    weight: MatrixRef<'a>,
    /// Channel, row and column of each tap, counted from the first neighbor.
    places: Vec<[usize; 3]>,
    /// Row and column among those that an input pixel has as outputs.
    parity: [usize; 2],
}

/// Memory that a thread reuses.
#[derive(Default)]
struct Scratch {
    padded: Vec<f32>,
    offsets: Vec<u32>,
    totals: Vec<f32>,
}

impl CustomOp3 for OnCpu {
    fn name(&self) -> &'static str {
        "convolution"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        weight: &CpuStorage,
        weight_l: &Layout,
        bias: &CpuStorage,
        bias_l: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (batch, channels, height, width) = xl.shape().dims4()?;
        let (outputs, inputs, high, wide) = weight_l.shape().dims4()?;
        let (values, weight, bias) = (contiguous(x, xl)?, contiguous(weight, weight_l)?, contiguous(bias, bias_l)?);
        if batch != 1 || inputs != channels || [high, wide] != [self.kernel; 2] || bias.len() != outputs {
            bail!("convolution: {:?} by {:?}", xl.shape(), weight_l.shape());
        }
        let Range { start: first, end } = self.rows;
        if first > end || end > height {
            bail!("convolution: rows {first} to {end} of {height}");
        }
        let scale = self.scale();
        let shape = Shape::from((1, outputs, scale * (end - first), scale * width));
        let held = self.residual.as_ref().map(Tensor::storage_and_layout);
        let residual = match &held {
            None => None,
            Some((storage, layout)) => match &**storage {
                Storage::Cpu(storage) if layout.shape() == &shape => Some(contiguous(storage, layout)?),
                _ => bail!("convolution: {:?} on {shape:?}, or on another device", layout.dims()),
            },
        };
        let planes = Planes { values, channels, height, width };
        let doubled = if self.is_doubled { doubled(weight) } else { Vec::new() };
        let taps = self.taps(if self.is_doubled { &doubled } else { weight }, outputs, channels);
        let out = self.strips(planes, &taps, bias, residual);
        Ok((CpuStorage::F32(out), shape))
    }
}

impl OnCpu {
    /// How many rows and columns of the output an input pixel has.
    fn scale(&self) -> usize {
        1 + usize::from(self.is_doubled)
    }

    /// `weight [outputs, channels, taps]`, or as [`doubled`] returns it.
    fn taps<'a>(&self, weight: &'a [f32], outputs: usize, channels: usize) -> Vec<Taps<'a>> {
        let kernel = self.kernel;
        if !self.is_doubled {
            let count = channels * kernel * kernel;
            let place = |tap| [tap / (kernel * kernel), tap / kernel % kernel, tap % kernel];
            let weight = MatrixRef::new(weight, outputs, count, count);
            return vec![Taps { weight, places: (0..count).map(place).collect(), parity: [0, 0] }];
        }
        let count = 4 * channels;
        let kinds = weight.chunks_exact((outputs * count).max(1)).enumerate();
        kinds
            .map(|(kind, weight)| {
                let parity = [kind / 2, kind % 2];
                // The first neighbor is above and left, except for odd rows and columns.
                let place = |at: usize| [at / 4, at % 4 / 2 + parity[0], at % 2 + parity[1]];
                let weight = MatrixRef::new(weight, outputs, count, count);
                Taps { weight, places: (0..count).map(place).collect(), parity }
            })
            .collect()
    }

    /// `[outputs, rows, columns]`, in parallel over strips of rows, then over channels.
    fn strips(&self, planes: Planes, taps: &[Taps], bias: &[f32], residual: Option<&[f32]>) -> Vec<f32> {
        let (scale, outputs) = (self.scale(), bias.len());
        let Range { start: first, end } = self.rows;
        let strip_rows = (STRIP_PIXELS / (scale * scale * planes.width).max(1)).max(1);
        let starts: Vec<usize> = (first..end).step_by(strip_rows).collect();
        let row_pixels = scale * scale * planes.width;
        let pixels = (end - first) * row_pixels;
        let unit = VectorUnit::of_this_processor();
        let mut out = vec![0.0_f32; outputs * pixels];
        for starts in starts.chunks(STRIPS_PER_THREAD * rayon::current_num_threads()) {
            let strips: Vec<Vec<f32>> = starts
                .par_iter()
                .map_init(Scratch::default, |scratch, &top| {
                    let rows = top..(top + strip_rows).min(end);
                    let mut out = vec![0.0; outputs * rows.len() * row_pixels];
                    match unit {
                        Some(unit) => self.strip(unit, (planes, taps, rows), scratch, &mut out),
                        None => self.strip_of_neighbors((planes, taps, rows), scratch, &mut out),
                    }
                    out
                })
                .collect();
            out.par_chunks_mut(pixels.max(1)).enumerate().for_each(|(channel, out)| {
                let residual = residual.map(|residual| &residual[channel * pixels..][..pixels]);
                for (strip, &top) in strips.iter().zip(starts) {
                    let (at, count) = ((top - first) * row_pixels, strip.len() / outputs);
                    let values = &strip[channel * count..][..count];
                    add(&mut out[at..][..count], values, bias[channel], residual.map(|all| &all[at..][..count]));
                }
            });
        }
        out
    }

    /// Some rows, `[outputs, rows, columns]`, with pixels in lanes.
    fn strip(
        &self,
        unit: VectorUnit,
        (planes, taps, rows): (Planes, &[Taps], Range<usize>),
        scratch: &mut Scratch,
        out: &mut [f32],
    ) {
        if planes.channels == 0 {
            return;
        }
        let Scratch { padded, offsets, totals } = scratch;
        let (scale, width) = (self.scale(), planes.width);
        let (plane, pitch) = planes.pad(self.kernel / 2, &rows, LanesInPlace::slack(unit), padded);
        let columns = scale * width;
        let panels = Panel::split(unit, width);
        for Taps { weight, places, parity: [down, right] } in taps {
            offsets.clear();
            // An offset that is too large is beyond the end.
            let offset = |[channel, row, column]: &[usize; 3]| channel * plane + row * pitch + column;
            offsets.extend(places.iter().map(|place| u32::try_from(offset(place)).unwrap_or(u32::MAX)));
            let lanes = LanesInPlace::new(unit, padded, offsets);
            for row in 0..rows.len() {
                for panel in &panels {
                    let panel_width = panel.width(unit);
                    totals.resize(weight.rows * panel_width, 0.0);
                    lanes.multiply(panel, row * pitch, *weight, totals);
                    for (output, totals) in totals.chunks_exact(panel_width).enumerate() {
                        let start = ((output * rows.len() + row) * scale + down) * columns + right;
                        let out = &mut out[start + scale * panel.lanes.start..];
                        let out = out.iter_mut().step_by(scale);
                        out.zip(&totals[..panel.lanes.len()]).for_each(|(out, total)| *out = *total);
                    }
                }
            }
        }
    }

    /// The same without a vector unit: by a product with a matrix of all neighbors. Sides are not doubled.
    fn strip_of_neighbors(
        &self,
        (planes, taps, rows): (Planes, &[Taps], Range<usize>),
        scratch: &mut Scratch,
        out: &mut [f32],
    ) {
        let neighbors = planes.neighbors(self.kernel, &rows, &mut scratch.padded);
        for taps in taps {
            multiply(out, taps.weight, neighbors, Onto::Nothing, Threads::One);
        }
    }
}

/// A 3×3 convolution of an image of doubled sides as four 2×2 ones of the small image, for pixels of even or odd rows and columns:
/// `[outputs, channels, 9]` -> `[4, outputs, channels, 4]`. That is four ninths of the products.
fn doubled(weight: &[f32]) -> Vec<f32> {
    // Of an even row's three neighbors the first is the previous small row, the other two its own; of an odd row's the first two are
    // its own, the last is the next small row. The same holds for columns.
    let halves = |[first, second, third]: [f32; 3], is_odd: bool| {
        if is_odd { [first + second, third] } else { [first, second + third] }
    };
    let count = weight.len() / 9 * 4;
    let mut out = vec![0.0; 4 * count];
    out.par_chunks_exact_mut(count.max(1)).enumerate().for_each(|(kind, out)| {
        let (is_odd_row, is_odd_column) = (kind / 2 == 1, kind % 2 == 1);
        for (nine, four) in weight.chunks_exact(9).zip(out.chunks_exact_mut(4)) {
            let columns: [_; 3] = std::array::from_fn(|at| halves([nine[at], nine[3 + at], nine[6 + at]], is_odd_row));
            for (row, four) in four.chunks_exact_mut(2).enumerate() {
                four.copy_from_slice(&halves(columns.map(|column| column[row]), is_odd_column));
            }
        }
    });
    out
}

/// Writes values with a bias to `out`, and adds the residual if there is one.
fn add(out: &mut [f32], values: &[f32], bias: f32, residual: Option<&[f32]>) {
    match residual {
        None => {
            for (out, &value) in out.iter_mut().zip(values) {
                *out = value + bias;
            }
        }
        Some(residual) => {
            for ((out, &value), &residual) in out.iter_mut().zip(values).zip(residual) {
                *out = residual + (value + bias);
            }
        }
    }
}

impl<'a> Planes<'a> {
    /// Copies some rows of all planes, with a border of their neighbors or zeros around them, and `slack` numbers behind the last plane.
    /// Returns how far apart planes and rows are.
    fn pad(self, border: usize, rows: &Range<usize>, slack: usize, padded: &mut Vec<f32>) -> (usize, usize) {
        let Self { values, channels, height, width } = self;
        let pitch = width + 2 * border;
        let plane = (rows.len() + 2 * border) * pitch;
        padded.clear();
        padded.resize(channels * plane + slack, 0.0);
        for (channel, plane) in padded.chunks_exact_mut(plane.max(1)).take(channels).enumerate() {
            for (row, out) in (rows.start..).zip(plane.chunks_exact_mut(pitch.max(1))) {
                let Some(source) = row.checked_sub(border).filter(|&row| row < height) else { continue };
                out[border..][..width].copy_from_slice(&values[(channel * height + source) * width..][..width]);
            }
        }
        (plane, pitch)
    }

    /// `[channels × kernel × kernel, rows × width]`: for each pixel of some rows all inputs of its output. `spread` is memory that
    /// a thread reuses.
    fn neighbors<'b>(self, kernel: usize, rows: &Range<usize>, spread: &'b mut Vec<f32>) -> MatrixRef<'b>
    where
        'a: 'b,
    {
        let Self { values, channels, height, width } = self;
        let (top, pixels) = (rows.start, rows.len() * width);
        if kernel == 1 {
            return MatrixRef::new(&values[top * width..], channels, pixels, height * width);
        }
        let border = kernel / 2;
        spread.clear();
        spread.resize(channels * kernel * kernel * pixels, 0.0);
        for (tap, values_of_tap) in spread.chunks_exact_mut(pixels.max(1)).enumerate() {
            let (channel, down, right) = (tap / (kernel * kernel), tap / kernel % kernel, tap % kernel);
            for (row, out) in values_of_tap.chunks_exact_mut(width).enumerate() {
                let Some(source) = (top + row + down).checked_sub(border).filter(|&row| row < height) else { continue };
                let source = &values[(channel * height + source) * width..][..width];
                // Where the neighbor is outside the image, the zeros stay.
                let (skipped, missing) =
                    (border.saturating_sub(right).min(width), right.saturating_sub(border).min(width));
                let length = width - skipped - missing;
                out[skipped..][..length].copy_from_slice(&source[missing..][..length]);
            }
        }
        MatrixRef::new(spread, channels * kernel * kernel, pixels, pixels)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::noise::standard_normal;

    #[test]
    fn neighbors_in_lanes_give_the_bits_of_a_matrix_of_neighbors() {
        for (kernel, channels, outputs, height, width) in
            [(3, 5, 7, 6, 9), (3, 70, 16, 3, 60), (1, 30, 9, 4, 50), (3, 1, 1, 1, 1)]
        {
            let count = outputs * channels * kernel * kernel;
            let numbers = |seed, count: usize| standard_normal(seed, 0, count.next_multiple_of(16));
            let (weight, values) = (numbers(1, count), numbers(2, channels * height * width));
            let planes = Planes { values: &values[..channels * height * width], channels, height, width };
            for rows in [0..height, height / 2..height, 0..1] {
                let op = OnCpu { kernel, rows: rows.clone(), residual: None, is_doubled: false };
                let taps = op.taps(&weight[..count], outputs, channels);
                let mut expected = vec![0.0; outputs * rows.len() * width];
                op.strip_of_neighbors((planes, &taps, rows.clone()), &mut Scratch::default(), &mut expected);
                for unit in VectorUnit::all() {
                    let mut scratch = Scratch { padded: vec![f32::NAN; 100], ..Scratch::default() };
                    let mut found = vec![f32::NAN; expected.len()];
                    op.strip(unit, (planes, &taps, rows.clone()), &mut scratch, &mut found);
                    assert!(found == expected, "{kernel}x{kernel}, {channels} to {outputs}, {rows:?}, {unit:?}");
                }
            }
        }
    }
}
