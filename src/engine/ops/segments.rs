//! How a packed token stream is cut into sequences.

/// How a packed stream is cut into sequences: `bounds[i]..bounds[i + 1]` are the rows of sequence `i`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Segments {
    bounds: Vec<usize>,
}

impl Segments {
    /// From the length of each sequence, in stream order.
    pub(crate) fn from_lengths(lengths: impl IntoIterator<Item = usize>) -> Self {
        let mut bounds = vec![0];
        for length in lengths {
            bounds.push(bounds[bounds.len() - 1] + length);
        }
        Self { bounds }
    }

    /// How many sequences there are.
    pub(crate) fn count(&self) -> usize {
        self.bounds.len() - 1
    }

    /// Rows in all.
    pub(crate) fn rows(&self) -> usize {
        self.bounds[self.count()]
    }

    /// The rows of one sequence.
    pub(crate) fn range(&self, sequence: usize) -> std::ops::Range<usize> {
        self.bounds[sequence]..self.bounds[sequence + 1]
    }

    /// The rows of every sequence, in stream order.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = std::ops::Range<usize>> + '_ {
        self.bounds.windows(2).map(|pair| pair[0]..pair[1])
    }
}

/// Where the sequences of a stream are in another one, each in one piece.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    pub(super) sources: Segments,
    pub(super) starts: Vec<usize>,
}

impl Places {
    /// `starts` are the first rows in the other stream, one for each sequence.
    pub(crate) fn new(sources: &Segments, starts: impl IntoIterator<Item = usize>) -> Self {
        let places = Self { sources: sources.clone(), starts: starts.into_iter().collect() };
        assert_eq!(places.starts.len(), sources.count(), "one start for each sequence");
        places
    }

    /// The rows of every sequence, and the first of those in the other stream.
    pub(crate) fn pairs(&self) -> impl Iterator<Item = (std::ops::Range<usize>, usize)> + '_ {
        self.sources.ranges().zip(self.starts.iter().copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_cover_the_stream() {
        let segments = Segments::from_lengths([3, 0, 4]);
        assert_eq!((segments.count(), segments.rows(), segments.range(2)), (3, 7, 3..7));
    }
}
