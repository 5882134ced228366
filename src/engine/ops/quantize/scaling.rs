//! Where the scales of a matrix product in e4m3 are applied. That depends on what cublasLt offers on the device; the codes
//! and the scales are the same everywhere.

/// Where the scales of rows and columns are applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scaling {
    /// By cublasLt, before its result is rounded.
    InProduct,
    /// By a kernel of ours, after cublasLt has rounded the product of the codes to bf16. Its own scales, one for all of a
    /// matrix, stay 1: with such a scale an image would depend on the others in its batch.
    Afterwards,
}

impl Scaling {
    /// Of a device's compute capability. `None` where the tensor cores do not multiply e4m3.
    pub(crate) fn of((major, minor): (i32, i32)) -> Option<Self> {
        match (major, minor) {
            // Scales by rows and columns, `OUTER_VEC_32F`, are Hopper's alone.
            (9, _) => Some(Self::InProduct),
            (8, 9) | (10.., _) => Some(Self::Afterwards),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_are_applied_where_the_device_can() {
        let of = |capability| Scaling::of(capability);
        for too_old in [(7, 5), (8, 0), (8, 6), (8, 7)] {
            assert_eq!(of(too_old), None, "{too_old:?}");
        }
        assert_eq!(of((9, 0)), Some(Scaling::InProduct));
        for one_scale in [(8, 9), (10, 0), (10, 3), (11, 0), (12, 0), (12, 1)] {
            assert_eq!(of(one_scale), Some(Scaling::Afterwards), "{one_scale:?}");
        }
    }
}
