//! What ControlNets add to an image behind the transformer's blocks.

use candle_core::{Result, Tensor};

/// The residuals of one image in one step: of blocks with two streams, and of those on the joint stream. Each is
/// `[image tokens, hidden]`, in the type of the computation.
#[derive(Debug, Default)]
pub(crate) struct Residuals {
    double: Vec<Tensor>,
    single: Vec<Tensor>,
}

impl Residuals {
    /// Of each kind in the order of the blocks.
    pub(crate) fn new(double: Vec<Tensor>, single: Vec<Tensor>) -> Self {
        Self { double, single }
    }

    /// Adds those of another control image, pair by pair.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub(crate) fn add(&mut self, other: Self) -> Result<()> {
        for (sums, addends) in [(&mut self.double, other.double), (&mut self.single, other.single)] {
            for (index, addend) in addends.into_iter().enumerate() {
                match sums.get_mut(index) {
                    Some(sum) => *sum = (&*sum + addend)?,
                    None => sums.push(addend),
                }
            }
        }
        Ok(())
    }

    /// Those of each kind.
    #[cfg(test)]
    pub(crate) fn of_both_kinds(&self) -> [&[Tensor]; 2] {
        [&self.double, &self.single]
    }

    /// What is added behind a block, by its number; those with two streams come first. `blocks` are the transformer's, of both
    /// kinds: where it has more than there are residuals, neighbors share one, as many as make all of them suffice
    /// (`FluxTransformer2DModel.forward` of diffusers).
    pub(super) fn behind(&self, number: usize, blocks: [usize; 2]) -> Option<&Tensor> {
        let (residuals, index, blocks) = match number.checked_sub(blocks[0]) {
            None => (&self.double, number, blocks[0]),
            Some(index) => (&self.single, index, blocks[1]),
        };
        let neighbors = blocks.div_ceil(residuals.len().max(1)).max(1);
        residuals.get(index / neighbors)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn residuals(double: &[f32], single: &[f32]) -> Residuals {
        let of = |values: &[f32]| -> Vec<Tensor> {
            values.iter().map(|value| Tensor::new(&[*value], &Device::Cpu).expect("a number")).collect()
        };
        Residuals::new(of(double), of(single))
    }

    fn number(tensor: &Tensor) -> f32 {
        tensor.to_vec1::<f32>().expect("numbers")[0]
    }

    #[test]
    fn neighbors_share_a_residual() {
        let behind = |residuals: &Residuals, blocks: [usize; 2]| -> Vec<Option<f32>> {
            (0..blocks[0] + blocks[1]).map(|block| residuals.behind(block, blocks).map(number)).collect()
        };
        // FLUX.1-dev's 19 blocks with the five of a union: four at a time, the last of them three.
        let shared = behind(&residuals(&[0.0, 1.0, 2.0, 3.0, 4.0], &[]), [19, 0]);
        let expected: Vec<Option<f32>> = (0..19).map(|block| Some((block / 4) as f32)).collect();
        assert_eq!(shared, expected);
        let both = behind(&residuals(&[1.0], &[2.0, 3.0]), [2, 3]);
        assert_eq!(both, [Some(1.0), Some(1.0), Some(2.0), Some(2.0), Some(3.0)]);
        assert_eq!(behind(&residuals(&[1.0], &[]), [1, 2]), [Some(1.0), None, None]);
        // More than blocks: the rest is not used.
        assert_eq!(behind(&residuals(&[1.0, 2.0, 3.0], &[]), [2, 0]), [Some(1.0), Some(2.0)]);
    }

    #[test]
    fn residuals_are_added_pair_by_pair() {
        let mut sum = residuals(&[1.0, 2.0], &[]);
        sum.add(residuals(&[10.0, 20.0], &[30.0])).expect("adds");
        let [double, single] = sum.of_both_kinds();
        assert_eq!(double.iter().map(number).collect::<Vec<_>>(), [11.0, 22.0]);
        assert_eq!(single.iter().map(number).collect::<Vec<_>>(), [30.0]);
    }
}
