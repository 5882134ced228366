//! Compares what images show with what was asked for, and counts.

use std::fmt;

use crate::analysis::{Patch, Seen};
use crate::scene::{Object, Scene};

/// A count of right ones among all.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tally {
    pub(crate) right: usize,
    pub(crate) of: usize,
}

impl Tally {
    fn add(&mut self, right: bool) {
        self.right += usize::from(right);
        self.of += 1;
    }

    /// In percent; 100 for an empty tally.
    pub(crate) fn percent(self) -> f64 {
        if self.of == 0 { 100.0 } else { 100.0 * self.right as f64 / self.of as f64 }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.of == 0 {
            return f.pad("-");
        }
        f.pad(&format!("{:.1} % of {}", self.percent(), self.of))
    }
}

/// Tallies over many images.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Score {
    /// Images with the right background.
    pub(crate) background: Tally,
    /// Requested objects in the right color.
    pub(crate) color: Tally,
    /// Requested objects in the right shape.
    pub(crate) shape: Tally,
    /// Images with the right arrangement (`relation`, `pair`, `placed`).
    pub(crate) arrangement: Tally,
    /// Images with the right number of objects.
    pub(crate) count: Tally,
    /// Images with everything right.
    pub(crate) all_right: Tally,
}

/// The patch for each object: the pairing with most colors and shapes right.
fn pair<'a>(objects: &[Object], patches: &'a [Patch]) -> Vec<Option<&'a Patch>> {
    fn likeness(object: &Object, patch: &Patch) -> usize {
        usize::from(patch.color == Some(&object.color)) + usize::from(patch.shape == Some(&object.shape))
    }
    fn best<'a>(objects: &[Object], free: &[&'a Patch]) -> (usize, Vec<Option<&'a Patch>>) {
        let Some((object, others)) = objects.split_first() else { return (0, Vec::new()) };
        let mut found = None;
        for (index, patch) in free.iter().enumerate() {
            let mut rest = free.to_vec();
            rest.remove(index);
            let (points, mut pairs) = best(others, &rest);
            let points = points + likeness(object, patch);
            if found.as_ref().is_none_or(|(most, _)| points > *most) {
                pairs.insert(0, Some(*patch));
                found = Some((points, pairs));
            }
        }
        found.unwrap_or_else(|| {
            let (points, mut pairs) = best(others, free);
            pairs.insert(0, None);
            (points, pairs)
        })
    }
    let largest: Vec<&Patch> = patches.iter().take(objects.len()).collect();
    best(objects, &largest).1
}

/// Whether the objects are arranged as asked; `None` when nothing was asked.
fn arranged(scene: &Scene, pairs: &[Option<&Patch>]) -> Option<bool> {
    if scene.kind == "placed" {
        let stands = |patch: &Patch| {
            (0..2).all(|axis| ((patch.center[axis] - 0.5) / 0.15).round().clamp(-1.0, 1.0) as i32 == scene.place[axis])
        };
        return Some(pairs[0].is_some_and(stands));
    }
    // Half of the smallest distance in training, along the named axis.
    let apart = 0.2;
    let (axis, sign) = match scene.relation.as_str() {
        "left" => (0, -1.0),
        "right" => (0, 1.0),
        "above" => (1, -1.0),
        "below" => (1, 1.0),
        _ => return None,
    };
    Some(match pairs {
        [Some(first), Some(second)] => (first.center[axis] - second.center[axis]) * sign > apart,
        _ => false,
    })
}

impl Score {
    /// Adds one image; returns whether everything was right.
    pub(crate) fn add(&mut self, scene: &Scene, seen: &Seen) -> bool {
        let pairs = pair(&scene.objects, &seen.patches);
        let background = seen.background == Some(&scene.background);
        let counted = seen.patches.len() == scene.objects.len();
        let arranged = arranged(scene, &pairs);
        let mut is_right = background && counted && arranged.unwrap_or(true);
        for (object, patch) in scene.objects.iter().zip(&pairs) {
            let color = patch.is_some_and(|patch| patch.color == Some(&object.color));
            let shape = patch.is_some_and(|patch| patch.shape == Some(&object.shape));
            self.color.add(color);
            self.shape.add(shape);
            is_right &= color && shape;
        }
        self.background.add(background);
        self.count.add(counted);
        if let Some(right) = arranged {
            self.arrangement.add(right);
        }
        self.all_right.add(is_right);
        is_right
    }
}
