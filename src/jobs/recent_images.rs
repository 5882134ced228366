//! The images that were put in the bucket last: whoever waits for one is not answered by asking the bucket for what was just sent there.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use crate::domain::format::OutputFormat;
use crate::domain::ids::JobId;

/// Memory for them, and their number.
const BYTES_MAX: usize = 64 * 1024 * 1024;
const IMAGES_MAX: usize = 256;

type Name = (JobId, OutputFormat);

/// Some images in memory, the oldest of which make room for others.
#[derive(Default)]
pub(super) struct RecentImages(Mutex<Images>);

#[derive(Default)]
struct Images {
    by_age: VecDeque<(Name, Arc<Vec<u8>>)>,
    bytes: usize,
}

impl RecentImages {
    /// Keeps an image for a while.
    pub(super) fn keep(&self, name: Name, bytes: Arc<Vec<u8>>) {
        let mut images = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        images.remove(name);
        images.bytes += bytes.len();
        images.by_age.push_back((name, bytes));
        while images.bytes > BYTES_MAX || images.by_age.len() > IMAGES_MAX {
            let Some((_, oldest)) = images.by_age.pop_front() else { break };
            images.bytes -= oldest.len();
        }
    }

    pub(super) fn get(&self, name: Name) -> Option<Arc<Vec<u8>>> {
        let images = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        images.by_age.iter().find(|(known, _)| *known == name).map(|(_, bytes)| Arc::clone(bytes))
    }

    pub(super) fn forget(&self, name: Name) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }
}

impl Images {
    fn remove(&mut self, name: Name) {
        let found = self.by_age.iter().position(|(known, _)| *known == name);
        if let Some((_, bytes)) = found.and_then(|at| self.by_age.remove(at)) {
            self.bytes -= bytes.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_make_room_by_number_and_by_bytes() {
        let images = RecentImages::default();
        let names: Vec<Name> = (0..=IMAGES_MAX).map(|_| (JobId::generate(), OutputFormat::Png)).collect();
        for name in &names {
            images.keep(*name, Arc::new(vec![1]));
        }
        assert_eq!((images.get(names[0]), images.get(names[1])), (None, Some(Arc::new(vec![1]))));
        let large = (JobId::generate(), OutputFormat::Png);
        images.keep(large, Arc::new(vec![2; BYTES_MAX]));
        assert_eq!(images.get(names[IMAGES_MAX]), None);
        assert!(images.get(large).is_some());
        images.keep(names[0], Arc::new(vec![3; BYTES_MAX + 1]));
        assert_eq!((images.get(large), images.get(names[0])), (None, None), "one that is too large is not kept");
    }

    #[test]
    fn what_is_forgotten_or_replaced_takes_no_memory() {
        let images = RecentImages::default();
        let name = (JobId::generate(), OutputFormat::Png);
        images.keep(name, Arc::new(vec![1; 5]));
        images.keep(name, Arc::new(vec![2; 3]));
        assert_eq!(images.get(name), Some(Arc::new(vec![2; 3])));
        images.forget(name);
        images.forget(name);
        assert_eq!(images.get(name), None);
        let left = images.0.lock().expect("not poisoned");
        assert_eq!((left.bytes, left.by_age.len()), (0, 0));
    }
}
