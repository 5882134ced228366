//! The control images of an image between two steps, as ControlNets take them.

use candle_core::Tensor;

use super::transformer::NetPrompt;
use crate::domain::conditioning::ControlMode;

/// A control image that a ControlNet reads.
pub(crate) struct Control {
    /// Its number in the request.
    pub(super) number: usize,
    /// Its ControlNet's number.
    pub(super) net: usize,
    /// Its kind, for a union.
    pub(super) mode: Option<ControlMode>,
    /// Its latents, packed, `[image tokens, channels]`, f32; `None` until it is encoded.
    pub(crate) latents: Option<Tensor>,
    pub(super) prompt: NetPrompt,
    pub(super) scale: f64,
    /// Whether it acts, of each step that is run.
    pub(super) acts: Vec<bool>,
}

impl Control {
    /// Whether it acts in any step. One that does not is never encoded.
    pub(super) fn is_used(&self) -> bool {
        self.acts.contains(&true)
    }
}

/// Those of an image, in the order of the request.
#[derive(Default)]
pub(crate) struct Controls {
    pub(crate) all: Vec<Control>,
    /// How many residuals of each kind are left when those of all are added.
    pub(super) wanted: [usize; 2],
}

impl Controls {
    /// Those that act in a step.
    pub(super) fn acting(&self, step: usize) -> impl Iterator<Item = &Control> {
        self.all.iter().filter(move |control| control.acts.get(step) == Some(&true))
    }
}

/// How many residuals of each kind are left of nets that give so many: they are added pair by pair, so that longer lists lose what
/// is behind the shortest, whether or not its net acts in the step. Nets without any change nothing; but where the first has none,
/// none are used (`FluxMultiControlNetModel.forward` of diffusers).
pub(super) fn residuals_left(nets: impl IntoIterator<Item = [usize; 2]>) -> [usize; 2] {
    let shorter = |left: usize, other: usize| if other == 0 { left } else { left.min(other) };
    let both = |left: [usize; 2], other: [usize; 2]| [shorter(left[0], other[0]), shorter(left[1], other[1])];
    nets.into_iter().reduce(both).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shortest_list_of_residuals_counts() {
        for (nets, left) in [
            (vec![], [0, 0]),
            (vec![[5, 10]], [5, 10]),
            (vec![[5, 10], [6, 0]], [5, 10]),
            (vec![[6, 0], [5, 10]], [5, 0]),
            (vec![[5, 10], [6, 4], [6, 0]], [5, 4]),
        ] {
            assert_eq!(residuals_left(nets.clone()), left, "{nets:?}");
        }
    }
}
