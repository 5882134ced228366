//! Sums of work over many jobs.

use crate::domain::usage::Work;

/// What work is summed up by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkGroup {
    /// The key that asked, by its id.
    Key,
    /// The model. Empty for work of versions that did not store it.
    Model,
    /// The UTC day in which jobs ended, as its number.
    Day,
    /// The project that the key belonged to when a job was accepted, by its id. Empty for none.
    Project,
}

/// A sum.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WorkSum {
    /// Jobs that ended, with or without an image.
    pub jobs: u64,
    /// Their work.
    pub work: Work,
}

impl WorkSum {
    /// Adds another sum.
    pub fn include(&mut self, other: &Self) {
        self.jobs = self.jobs.saturating_add(other.jobs);
        self.work.include(&other.work);
    }
}
