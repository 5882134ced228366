//! How changes are arranged in launches of the kernels: those of the same rows follow each other and are never apart. Plain numbers.

use std::ops::Range;

use super::part::PARTS_MAX;

/// Rows of a block of either kernel.
const ROWS: usize = 64;
/// Ranks of a block of the first, and columns of a block of the second.
const RANKS: usize = 32;
const COLUMNS: usize = 64;
/// Values between the two products from which on a launch takes no further rows: 128 MiB, which the next one has again.
const INNER_MAX: usize = 64 << 20;

/// The sizes of a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::engine::ops) struct Sizes {
    pub(in crate::engine::ops) rows: Range<usize>,
    pub(in crate::engine::ops) columns: Range<usize>,
    pub(in crate::engine::ops) rank: usize,
}

/// A change in a launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::engine::ops) struct Arranged {
    /// Its number among all changes.
    pub(in crate::engine::ops) part: usize,
    /// Where its rows between the two products begin, in values.
    pub(in crate::engine::ops) at: usize,
    /// Of the first of the changes of the same rows: how many there are, and which tiles of columns they touch. Else 0.
    pub(in crate::engine::ops) group: usize,
    pub(in crate::engine::ops) first_tile: usize,
    pub(in crate::engine::ops) tiles: usize,
}

/// Changes that are launched together.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::engine::ops) struct Launch {
    pub(in crate::engine::ops) parts: Vec<Arranged>,
    /// Values between the two products.
    pub(in crate::engine::ops) inner: usize,
    /// Blocks of the first kernel, and of the second.
    pub(in crate::engine::ops) blocks: [usize; 2],
}

/// The launches for all changes that have rows. At most [`PARTS_MAX`] have the same.
pub(in crate::engine::ops) fn launches(changes: &[Sizes]) -> Vec<Launch> {
    let mut launches: Vec<Launch> = Vec::new();
    for group in groups(changes) {
        let is_full = |launch: &Launch| launch.parts.len() + group.len() > PARTS_MAX || launch.inner >= INNER_MAX;
        if launches.last().is_none_or(is_full) {
            launches.push(Launch::default());
        }
        if let Some(launch) = launches.last_mut() {
            launch.add(&group, changes);
        }
    }
    launches
}

/// The numbers of the changes of the same rows, in their order.
fn groups(changes: &[Sizes]) -> Vec<Vec<usize>> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for (number, change) in changes.iter().enumerate().filter(|(_, change)| !change.rows.is_empty()) {
        match groups.iter_mut().find(|group| changes[group[0]].rows == change.rows) {
            Some(group) => group.push(number),
            None => groups.push(vec![number]),
        }
    }
    groups
}

impl Launch {
    fn add(&mut self, group: &[usize], changes: &[Sizes]) {
        let columns = group.iter().map(|number| &changes[*number].columns);
        let start = columns.clone().map(|columns| columns.start).min().unwrap_or_default();
        let end = columns.map(|columns| columns.end).max().unwrap_or_default();
        let (first_tile, end_tile) = (start / COLUMNS, end.div_ceil(COLUMNS));
        for (index, &part) in group.iter().enumerate() {
            let Sizes { rows, rank, .. } = &changes[part];
            let row_tiles = rows.len().div_ceil(ROWS);
            let (of_group, tiles) = if index == 0 { (group.len(), end_tile - first_tile) } else { (0, 0) };
            let first_tile = if index == 0 { first_tile } else { 0 };
            self.parts.push(Arranged { part, at: self.inner, group: of_group, first_tile, tiles });
            self.inner += rows.len() * rank;
            self.blocks[0] += row_tiles * rank.div_ceil(RANKS);
            self.blocks[1] += row_tiles * tiles;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(rows: Range<usize>, columns: Range<usize>, rank: usize) -> Sizes {
        Sizes { rows, columns, rank }
    }

    #[test]
    fn changes_of_the_same_rows_follow_each_other() {
        let changes = [
            change(100..230, 64..128, 16),
            change(0..100, 0..3072, 40),
            change(7..7, 0..64, 8),
            change(100..230, 200..264, 8),
        ];
        let expected = Launch {
            parts: vec![
                Arranged { part: 0, at: 0, group: 2, first_tile: 1, tiles: 4 },
                Arranged { part: 3, at: 130 * 16, group: 0, first_tile: 0, tiles: 0 },
                Arranged { part: 1, at: 130 * 24, group: 1, first_tile: 0, tiles: 48 },
            ],
            inner: 130 * 24 + 100 * 40,
            blocks: [3 + 3 + 2 * 2, 3 * 4 + 2 * 48],
        };
        assert_eq!(launches(&changes), [expected]);
        assert!(launches(&changes[2..3]).is_empty());
    }

    #[test]
    fn more_changes_than_one_launch_takes_are_launched_one_after_the_other_and_no_group_is_cut() {
        // Groups of five.
        let changes: Vec<Sizes> =
            (0..100).map(|number| change(number / 5 * 10..number / 5 * 10 + 10, 0..64, 8)).collect();
        let launches = launches(&changes);
        assert_eq!(launches.iter().map(|launch| launch.parts.len()).collect::<Vec<_>>(), [45, 45, 10]);
        for launch in &launches {
            for (index, part) in launch.parts.iter().enumerate() {
                assert_eq!(part.group, if index % 5 == 0 { 5 } else { 0 });
                assert_eq!(part.at, index * 80);
            }
        }
        let numbers = launches.iter().flat_map(|launch| launch.parts.iter().map(|part| part.part));
        assert_eq!(numbers.collect::<Vec<_>>(), (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn what_is_between_the_products_takes_no_more_memory_in_a_launch_than_its_last_rows_need() {
        let rows = 4096;
        let changes: Vec<Sizes> =
            (0..80).map(|number| change(number / 4 * rows..(number / 4 + 1) * rows, 0..64, 512)).collect();
        let of_group = 4 * rows * 512;
        let launches = launches(&changes);
        assert_eq!(launches.iter().map(|launch| launch.parts.len()).collect::<Vec<_>>(), [32, 32, 16]);
        assert!(launches.iter().all(|launch| launch.inner < INNER_MAX + of_group));
    }
}
