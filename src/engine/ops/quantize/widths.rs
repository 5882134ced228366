//! Which rows the kernels and cublasLt take.

/// Values of a row that become 16 bytes of codes.
pub(in crate::engine::ops) const CODES: usize = 16;

/// Maximum values of a row that a kernel holds.
pub(in crate::engine::ops) const WIDTH_MAX: usize = 16_384;

/// Whether the kernels and the library take rows of so many values.
pub(crate) fn is_possible(width: usize) -> bool {
    width > 0 && width.is_multiple_of(CODES) && width <= WIDTH_MAX
}
