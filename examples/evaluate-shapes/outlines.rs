//! The shapes as pure geometry, for comparison with images: each fills a square grid exactly, whatever its proportions.

/// Cells along a side of a [`Grid`].
pub(crate) const SIDE: usize = 24;

/// How much of each cell is covered, row by row.
pub(crate) type Grid = Vec<f32>;

/// Names of all shapes.
pub(crate) const SHAPES: [&str; 8] = ["circle", "square", "triangle", "star", "ring", "cross", "diamond", "heart"];

/// Samples along a side of a cell.
const SAMPLES: usize = 4;

/// Whether a point is inside. `x` and `y` go from -1 to 1 over the shape's bounding box, `y` downwards.
fn holds(shape: &str, x: f32, y: f32) -> bool {
    let radius = x.hypot(y);
    match shape {
        "circle" => radius <= 1.0,
        "square" => true,
        "triangle" => x.abs() <= f32::midpoint(y, 1.0),
        "ring" => (0.56..=1.0).contains(&radius),
        "cross" => x.abs() <= 0.34 || y.abs() <= 0.34,
        "diamond" => x.abs() + y.abs() <= 1.0,
        "star" => in_star(x, y),
        "heart" => in_heart(x, y),
        _ => false,
    }
}

/// Five points, one upwards. The bounding box of the unit star is ±0.951 across and from -1 to 0.809 down.
fn in_star(x: f32, y: f32) -> bool {
    let (x, y) = (x * 0.951, -1.0 + f32::midpoint(y, 1.0) * 1.809);
    let corners: Vec<(f32, f32)> = (0..10)
        .map(|index| {
            let radius = if index % 2 == 0 { 1.0 } else { 0.42 };
            let angle = std::f32::consts::PI * (index as f32 / 5.0 - 0.5);
            (radius * angle.cos(), radius * angle.sin())
        })
        .collect();
    // A ray to the right crosses the border an odd number of times.
    let crossings = (0..10).filter(|&index| {
        let ((ax, ay), (bx, by)) = (corners[index], corners[(index + 1) % 10]);
        (ay > y) != (by > y) && x < (bx - ax) * (y - ay) / (by - ay) + ax
    });
    crossings.count() % 2 == 1
}

/// (x² + y² − 1)³ ≤ x²·y³, whose bounding box is ±1.139 across and from -1 to 1.24 up.
fn in_heart(x: f32, y: f32) -> bool {
    let (x, y) = (x * 1.139, 1.24 - f32::midpoint(y, 1.0) * 2.24);
    (x * x + y * y - 1.0).powi(3) <= x * x * y.powi(3)
}

/// The shape's grid.
fn grid_of(shape: &str) -> Grid {
    let fine = SIDE * SAMPLES;
    let at = |index: usize| (index as f32 + 0.5) / fine as f32 * 2.0 - 1.0;
    let mut grid = vec![0.0; SIDE * SIDE];
    for row in 0..fine {
        for column in 0..fine {
            if holds(shape, at(column), at(row)) {
                grid[row / SAMPLES * SIDE + column / SAMPLES] += 1.0 / (SAMPLES * SAMPLES) as f32;
            }
        }
    }
    grid
}

/// All shapes, ready for comparison.
pub(crate) struct Outlines(Vec<(&'static str, Grid)>);

impl Outlines {
    pub(crate) fn new() -> Self {
        Self(SHAPES.iter().map(|&shape| (shape, grid_of(shape))).collect())
    }

    /// The shape that `grid` overlaps best, and by how much: intersection over union, 0 to 1.
    pub(crate) fn nearest(&self, grid: &Grid) -> (&'static str, f32) {
        let overlap = |other: &Grid| {
            let (mut both, mut either) = (0.0, 0.0);
            for (left, right) in grid.iter().zip(other) {
                both += left.min(*right);
                either += left.max(*right);
            }
            both / either
        };
        let scored = self.0.iter().map(|(shape, other)| (*shape, overlap(other)));
        scored.max_by(|left, right| left.1.total_cmp(&right.1)).expect("there are shapes")
    }
}
