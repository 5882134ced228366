//! A matrix product that is exact in e4m3 and known beforehand. Rows differ in their scales alone, so that a scale in the wrong
//! place is noticed.

use candle_core::{DType, Device, Result, Tensor, bail};

pub(super) const COLUMNS: usize = 32;
const INNER: usize = 64;

/// The number that fills a row of `x`.
fn x_of(row: usize) -> f32 {
    [1.0, 2.0, 4.0, 8.0, 16.0][row % 5]
}

/// The number that fills a row of the weight.
fn weight_of(column: usize) -> f32 {
    [1.0, 0.5, 0.25][column % 3]
}

/// `[rows, 64]`
pub(super) fn x(rows: usize, dtype: DType, device: &Device) -> Result<Tensor> {
    filled((0..rows).map(x_of), dtype, device)
}

/// `[32, 64]`
pub(super) fn weight(dtype: DType, device: &Device) -> Result<Tensor> {
    filled((0..COLUMNS).map(weight_of), dtype, device)
}

fn filled(numbers: impl Iterator<Item = f32>, dtype: DType, device: &Device) -> Result<Tensor> {
    let numbers: Vec<f32> = numbers.flat_map(|number| [number; INNER]).collect();
    let rows = numbers.len() / INNER;
    Tensor::from_vec(numbers, (rows, INNER), &Device::Cpu)?.to_dtype(dtype)?.to_device(device)
}

/// Compares `out [rows, 32]` with what it must be. Scales are rounded, which the tolerance covers.
///
/// # Errors
/// When a value is wrong, or the device fails.
pub(super) fn check(out: &Tensor) -> Result<()> {
    let rows = out.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.to_vec2::<f32>()?;
    for (row, values) in rows.iter().enumerate() {
        for (column, value) in values.iter().enumerate() {
            let expected = INNER as f32 * x_of(row) * weight_of(column);
            let is_right = (value - expected).abs() <= 1e-4 * expected;
            if !is_right {
                bail!("a matrix product of {} rows in e4m3 gives {value} instead of {expected}", rows.len());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_result_is_noticed() {
        let right = || {
            let (x, weight) = (x(77, DType::F32, &Device::Cpu)?, weight(DType::F32, &Device::Cpu)?);
            x.matmul(&weight.t()?)
        };
        let right = right().expect("the product");
        check(&right).expect("right");
        let said = |wrong: Result<Tensor>| {
            let error = check(&wrong.expect("a tensor")).expect_err("wrong").to_string();
            // A backtrace follows, if the environment asks for it.
            error.lines().next().unwrap_or_default().to_owned()
        };
        assert_eq!(said(&right * 2.0), "a matrix product of 77 rows in e4m3 gives 128 instead of 64");
        assert_eq!(said(&right * f64::NAN), "a matrix product of 77 rows in e4m3 gives NaN instead of 64");
        // The scales of other rows, and of other columns.
        let moved = |dimension| right.narrow(dimension, 1, right.dim(dimension).expect("a matrix") - 1);
        assert_eq!(said(moved(0)), "a matrix product of 76 rows in e4m3 gives 128 instead of 64");
        assert_eq!(said(moved(1)), "a matrix product of 77 rows in e4m3 gives 32 instead of 64");
        // The last row alone.
        let ends = [right.narrow(0, 0, 76), right.narrow(0, 76, 1).and_then(|row| row * 2.0)];
        let wrong = Tensor::cat(&ends.map(|rows| rows.expect("rows")), 0);
        assert_eq!(said(wrong), "a matrix product of 77 rows in e4m3 gives 256 instead of 128");
    }
}
