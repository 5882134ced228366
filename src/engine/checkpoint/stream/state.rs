//! How far a list of tensors has been read. Knows nothing of threads.

use std::collections::{BTreeMap, VecDeque};

use crate::engine::checkpoint::recipe::Recipe;

/// A tensor's bytes begin in a buffer at a multiple of this many bytes, for fast copies.
const PIECE_ALIGNMENT: usize = 256;

/// Whether each tensor is asked for once, or all of them repeatedly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::engine::checkpoint) enum Asked {
    Once,
    Repeatedly,
}

/// The state of reading. Each filling of a buffer is a chunk; the chunks' numbers only grow.
pub(super) struct State<B> {
    /// To be filled; the one whose copies began first comes first.
    pub(super) free: VecDeque<B>,
    /// Filled, or failed, by their numbers.
    pub(super) filled: BTreeMap<u64, std::result::Result<Chunk<B>, String>>,
    /// The number of the chunk that is read next.
    pub(super) next: u64,
    /// Chunks with smaller numbers are dropped.
    pub(super) valid_from: u64,
    /// The tensor, and the byte of it, to read next; `None` behind the last, and after an error.
    pub(super) cursor: Option<(usize, usize)>,
    /// Tensors whose reading has begun and that were not given yet, in order.
    pub(super) coming: VecDeque<usize>,
    /// Which were given, or are coming.
    pub(super) is_begun: Vec<bool>,
    pub(super) is_given: Vec<bool>,
    /// How often reading restarted.
    pub(super) restarts: usize,
    pub(super) is_closed: bool,
    /// A reader has panicked.
    pub(super) is_broken: bool,
}

/// A full buffer, and its pieces that are left.
pub(super) struct Chunk<B> {
    pub(super) buffer: B,
    pub(super) pieces: VecDeque<Piece>,
}

/// A tensor's bytes from `at` on, which are in the buffer from `from` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) recipe: usize,
    pub(super) at: usize,
    pub(super) from: usize,
    pub(super) bytes: usize,
}

impl<B> State<B> {
    pub(super) fn new(free: VecDeque<B>, recipes: &[Recipe]) -> Self {
        // A tensor without bytes never comes.
        let is_empty: Vec<bool> = recipes.iter().map(|recipe| recipe.bytes() == 0).collect();
        Self {
            free,
            filled: BTreeMap::new(),
            next: 0,
            valid_from: 0,
            cursor: is_empty.iter().position(|is_empty| !is_empty).map(|first| (first, 0)),
            coming: VecDeque::new(),
            is_begun: is_empty.clone(),
            is_given: is_empty,
            restarts: 0,
            is_closed: false,
            is_broken: false,
        }
    }

    /// The next bytes, as many as fit in a buffer; the cursor moves behind them.
    pub(super) fn cut(&mut self, recipes: &[Recipe], asked: Asked, buffer_bytes: usize) -> VecDeque<Piece> {
        let (mut pieces, mut from) = (VecDeque::new(), 0);
        while let Some((recipe, at)) = self.cursor
            && from < buffer_bytes
        {
            if at == 0 {
                self.coming.push_back(recipe);
                self.is_begun[recipe] = true;
            }
            let left = recipes[recipe].bytes() - at;
            let bytes = left.min(buffer_bytes - from);
            pieces.push_back(Piece { recipe, at, from, bytes });
            from = (from + bytes).next_multiple_of(PIECE_ALIGNMENT);
            self.cursor = if bytes < left { Some((recipe, at + bytes)) } else { self.after(recipe, recipes, asked) };
        }
        pieces
    }

    /// The next tensor to be read, behind another one; behind the last comes the first.
    fn after(&self, recipe: usize, recipes: &[Recipe], asked: Asked) -> Option<(usize, usize)> {
        let is_wanted = |&other: &usize| match asked {
            Asked::Once => !self.is_begun[other],
            Asked::Repeatedly => recipes[other].bytes() > 0,
        };
        (recipe + 1..recipes.len()).chain(0..=recipe).find(is_wanted).map(|recipe| (recipe, 0))
    }

    /// Drops what was read and not given, and continues at another tensor.
    pub(super) fn restart_at(&mut self, number: usize, asked: Asked) {
        self.restarts += 1;
        self.stop(asked);
        self.cursor = Some((number, 0));
    }

    /// Drops what was read and not given, and reads nothing before it is asked for.
    pub(super) fn stop(&mut self, asked: Asked) {
        let unused = std::mem::take(&mut self.filled);
        self.free.extend(unused.into_values().flatten().map(|chunk| chunk.buffer));
        self.valid_from = self.next;
        self.coming.clear();
        if asked == Asked::Once {
            self.is_begun.clone_from(&self.is_given);
        }
        self.cursor = None;
    }

    /// Notes that the first tensor was given.
    pub(super) fn give(&mut self, number: usize, asked: Asked) {
        if self.coming.front() == Some(&number) {
            self.coming.pop_front();
        }
        if asked == Asked::Once {
            self.is_given[number] = true;
        }
    }
}
