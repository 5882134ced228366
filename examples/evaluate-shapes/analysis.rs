//! Plain image analysis: the color of the background, and the color, shape and position of each connected patch.

use fluxserve::domain::image::RgbImage;

use crate::outlines::{Grid, Outlines, SIDE};

/// Names and values of colors; the training varies each channel by at most 6.
pub(crate) const COLORS: [(&str, [u8; 3]); 12] = [
    ("red", [220, 50, 47]),
    ("orange", [245, 140, 30]),
    ("yellow", [250, 215, 60]),
    ("green", [50, 160, 70]),
    ("cyan", [60, 200, 215]),
    ("blue", [45, 90, 205]),
    ("purple", [130, 65, 180]),
    ("pink", [245, 150, 190]),
    ("brown", [120, 75, 45]),
    ("white", [245, 245, 245]),
    ("gray", [135, 138, 142]),
    ("black", [25, 25, 28]),
];

/// A color farther than this from all of them, in levels, has no name.
const COLOR_DISTANCE_MAX: f32 = 60.0;

/// Pixels nearer to the background than this, in levels, belong to it: just above half the distance between the two
/// nearest colors, orange and yellow (81), so that a pixel on an edge goes to the nearer side.
const BACKGROUND_DISTANCE_MAX: f32 = 45.0;

/// Smallest patch that counts, as a share of the image. The smallest object in training covers 0.8 %.
const PATCH_SHARE_MIN: f32 = 0.002;

/// Smallest overlap with an outline for a patch to have that shape.
const OVERLAP_MIN: f32 = 0.7;

/// A patch of one color.
#[derive(Debug, Clone)]
pub(crate) struct Patch {
    /// A name of [`COLORS`], or none.
    pub(crate) color: Option<&'static str>,
    /// A name of [`crate::outlines::SHAPES`], or none.
    pub(crate) shape: Option<&'static str>,
    /// Middle of its bounding box, as shares of width and height.
    pub(crate) center: [f32; 2],
}

/// What an image shows.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    /// A name of [`COLORS`], or none.
    pub(crate) background: Option<&'static str>,
    /// Largest first.
    pub(crate) patches: Vec<Patch>,
}

type Color = [f32; 3];

fn distance(left: Color, right: Color) -> f32 {
    left.iter().zip(right).map(|(a, b)| (a - b) * (a - b)).sum::<f32>().sqrt()
}

fn name_of(color: Color) -> Option<&'static str> {
    let distances = COLORS.iter().map(|(name, value)| (*name, distance(color, value.map(f32::from))));
    let (name, nearest) = distances.min_by(|left, right| left.1.total_cmp(&right.1))?;
    (nearest <= COLOR_DISTANCE_MAX).then_some(name)
}

/// Median per channel.
fn median(colors: &[Color]) -> Color {
    std::array::from_fn(|channel| {
        let mut values: Vec<f32> = colors.iter().map(|color| color[channel]).collect();
        values.sort_by(f32::total_cmp);
        values[values.len() / 2]
    })
}

struct Image {
    width: usize,
    height: usize,
    pixels: Vec<Color>,
}

impl Image {
    fn of(image: &RgbImage) -> Self {
        let pixels = image.pixels().chunks_exact(3).map(|rgb| [rgb[0], rgb[1], rgb[2]].map(f32::from));
        Self { width: image.width() as usize, height: image.height() as usize, pixels: pixels.collect() }
    }

    fn is_border(&self, index: usize) -> bool {
        let (x, y) = (index % self.width, index / self.width);
        x == 0 || y == 0 || x == self.width - 1 || y == self.height - 1
    }

    /// Neighboring pixels, corners included.
    fn around(&self, index: usize) -> impl Iterator<Item = usize> + '_ {
        let (x, y) = (index % self.width, index / self.width);
        let rows = y.saturating_sub(1)..(y + 2).min(self.height);
        rows.flat_map(move |row| {
            (x.saturating_sub(1)..(x + 2).min(self.width)).map(move |column| row * self.width + column)
        })
    }

    /// Connected patches of pixels that are not background.
    fn patches(&self, background: Color) -> Vec<Vec<usize>> {
        let mut open: Vec<bool> =
            self.pixels.iter().map(|pixel| distance(*pixel, background) > BACKGROUND_DISTANCE_MAX).collect();
        let mut patches = Vec::new();
        for start in 0..open.len() {
            if !std::mem::take(&mut open[start]) {
                continue;
            }
            let mut patch = vec![start];
            let mut next = 0;
            while next < patch.len() {
                for neighbor in self.around(patch[next]) {
                    if std::mem::take(&mut open[neighbor]) {
                        patch.push(neighbor);
                    }
                }
                next += 1;
            }
            if patch.len() as f32 >= PATCH_SHARE_MIN * self.pixels.len() as f32 {
                patches.push(patch);
            }
        }
        patches.sort_by_key(|patch| std::cmp::Reverse(patch.len()));
        patches
    }

    fn describe(&self, members: &[usize], background: Color, outlines: &Outlines) -> Patch {
        let inside: std::collections::HashSet<usize> = members.iter().copied().collect();
        let is_inner = |index: &usize| self.around(*index).all(|neighbor| inside.contains(&neighbor));
        let core: Vec<Color> =
            members.iter().filter(|index| is_inner(index)).map(|&index| self.pixels[index]).collect();
        let all: Vec<Color> = members.iter().map(|&index| self.pixels[index]).collect();
        let color = median(if core.is_empty() { &all } else { &core });
        let (columns, rows) =
            (members.iter().map(|index| index % self.width), members.iter().map(|index| index / self.width));
        let (left, right) = (columns.clone().min().unwrap_or(0), columns.max().unwrap_or(0) + 1);
        let (top, bottom) = (rows.clone().min().unwrap_or(0), rows.max().unwrap_or(0) + 1);
        let cover = |x: usize, y: usize| {
            let index = y * self.width + x;
            let share = distance(self.pixels[index], background) / distance(color, background).max(1.0);
            if inside.contains(&index) { share.clamp(0.0, 1.0) } else { 0.0 }
        };
        let grid = resample([left, right], [top, bottom], cover);
        let (shape, overlap) = outlines.nearest(&grid);
        Patch {
            color: name_of(color),
            shape: (overlap >= OVERLAP_MIN).then_some(shape),
            center: [(left + right) as f32 / 2.0 / self.width as f32, (top + bottom) as f32 / 2.0 / self.height as f32],
        }
    }
}

/// Resamples a box of pixels to the grid for comparing outlines, bilinearly.
fn resample(across: [usize; 2], down: [usize; 2], cover: impl Fn(usize, usize) -> f32) -> Grid {
    // Cells are sampled at several points, so that a cell wider than a pixel misses none.
    const SAMPLES: usize = 4;
    let position = |[from, to]: [usize; 2], step: usize| {
        let exact = (step as f32 + 0.5) / (SIDE * SAMPLES) as f32 * (to - from) as f32 - 0.5;
        let exact = exact.clamp(0.0, (to - from - 1) as f32);
        let before = exact.floor() as usize;
        (from + before, from + (before + 1).min(to - from - 1), exact - exact.floor())
    };
    let mut grid = vec![0.0; SIDE * SIDE];
    for row in 0..SIDE * SAMPLES {
        let (above, below, lower) = position(down, row);
        for column in 0..SIDE * SAMPLES {
            let (before, after, right) = position(across, column);
            let upper_value = cover(before, above) * (1.0 - right) + cover(after, above) * right;
            let lower_value = cover(before, below) * (1.0 - right) + cover(after, below) * right;
            grid[row / SAMPLES * SIDE + column / SAMPLES] +=
                (upper_value * (1.0 - lower) + lower_value * lower) / (SAMPLES * SAMPLES) as f32;
        }
    }
    grid
}

/// Analyzes an image.
pub(crate) fn look(image: &RgbImage, outlines: &Outlines) -> Seen {
    let image = Image::of(image);
    let border: Vec<Color> =
        (0..image.pixels.len()).filter(|&index| image.is_border(index)).map(|index| image.pixels[index]).collect();
    let background = median(&border);
    let patches = image.patches(background);
    Seen {
        background: name_of(background),
        patches: patches.iter().map(|members| image.describe(members, background, outlines)).collect(),
    }
}
