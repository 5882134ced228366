//! The positions of FLUX.1's tokens, as rotary tables. Text tokens stand at position zero on all axes.

use candle_core::{Device, Result};

use crate::engine::ops::rope::Rotary;

/// Base of the rotary frequencies.
const THETA: f64 = 10_000.0;

/// The time of reference images. That of the image is 0.
const REFERENCE_TIME: usize = 1;

/// A position on the axes: time, row, column.
type Position = [usize; 3];

/// The tables of an image's tokens and of those of its reference images, all row by row. Each is given by its rows and columns, in
/// tokens. `axes` are the head's dimensions given to (time, row, column).
///
/// # Errors
/// When the device is out of memory.
pub(super) fn tables(
    image: [usize; 2],
    references: &[[usize; 2]],
    axes: [usize; 3],
    device: &Device,
) -> Result<Rotary> {
    let of_references = references.iter().zip(origins(references)).flat_map(|(size, origin)| positions(*size, origin));
    Rotary::at(positions(image, [0; 3]).chain(of_references), axes, THETA, device)
}

/// The positions of `rows × columns` tokens from `origin` on.
fn positions([rows, columns]: [usize; 2], [time, top, left]: Position) -> impl Iterator<Item = Position> {
    (0..rows).flat_map(move |row| (0..columns).map(move |column| [time, top + row, left + column]))
}

/// Where reference images begin. All have one time. The first begins at zero (`FluxKontextPipeline` of diffusers, which takes one).
/// Each other one begins below those before it, or to the right of them where the canvas of all would be higher than wide
/// otherwise (the method "offset" of ComfyUI, its default for FLUX.1-Kontext).
fn origins(references: &[[usize; 2]]) -> Vec<Position> {
    let mut canvas = [0, 0];
    let origin = |&[rows, columns]: &[usize; 2]| {
        let [height, width] = canvas;
        let [top, left] = if rows + height > columns + width { [0, width] } else { [height, 0] };
        canvas = [height.max(top + rows), width.max(left + columns)];
        [REFERENCE_TIME, top, left]
    };
    references.iter().map(origin).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_laid_out_on_one_canvas() {
        assert_eq!(origins(&[]), Vec::<Position>::new());
        assert_eq!(origins(&[[4, 6]]), [[1, 0, 0]]);
        // A square beside a square is as wide as it would be high below: below. Then the canvas is higher than wide.
        assert_eq!(origins(&[[4, 4], [4, 4], [4, 4]]), [[1, 0, 0], [1, 4, 0], [1, 0, 4]]);
        assert_eq!(origins(&[[6, 2], [6, 2], [2, 8]]), [[1, 0, 0], [1, 0, 2], [1, 6, 0]]);
    }

    #[test]
    fn the_tokens_of_a_reference_follow_those_of_the_image() {
        let axes = [4, 6, 6];
        let joint = tables([2, 3], &[[1, 2]], axes, &Device::Cpu).expect("tables");
        let expected = [[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 1, 0], [0, 1, 1], [0, 1, 2], [1, 0, 0], [1, 0, 1]];
        let expected = Rotary::at(expected, axes, THETA, &Device::Cpu).expect("tables");
        for (found, expected) in [(joint.cos, expected.cos), (joint.sin, expected.sin)] {
            let numbers = |table: &candle_core::Tensor| table.to_vec2::<f32>().expect("numbers");
            assert_eq!(numbers(&found), numbers(&expected));
        }
    }
}
