//! A bounded map that drops roughly the least recently used entries: for caches and throttles.

use std::collections::HashMap;
use std::hash::Hash;

/// Two generations of entries. A used entry moves to the younger one; when that is full, the older one is dropped. So
/// the map holds at most `entries_max`, an entry survives until at least half as many others have been used after it,
/// and every operation takes constant time without a list to maintain.
#[derive(Debug)]
pub struct RecentMap<K, V> {
    younger: HashMap<K, V>,
    older: HashMap<K, V>,
    generation_max: usize,
}

impl<K: Eq + Hash, V> RecentMap<K, V> {
    /// A map of at most `entries_max` (at least 2) entries.
    #[must_use]
    pub fn new(entries_max: usize) -> Self {
        Self { younger: HashMap::new(), older: HashMap::new(), generation_max: (entries_max / 2).max(1) }
    }

    /// The entry of `key`; counts as a use.
    pub fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        if !self.younger.contains_key(key) {
            let (key, value) = self.older.remove_entry(key)?;
            self.insert(key, value);
        }
        self.younger.get_mut(key)
    }

    /// Puts or replaces the entry of `key`.
    pub fn insert(&mut self, key: K, value: V) {
        if self.younger.len() >= self.generation_max && !self.younger.contains_key(&key) {
            self.older = std::mem::take(&mut self.younger);
        }
        self.older.remove(&key);
        self.younger.insert(key, value);
    }

    /// Number of entries.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.younger.len() + self.older.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_always_holds() {
        let mut map = RecentMap::new(10);
        for number in 0..10_000 {
            map.insert(number % 37, number);
            map.get_mut(&(number % 11));
            assert!(map.len() <= 10);
        }
    }

    #[test]
    fn used_entries_stay_and_idle_ones_go() {
        let mut map = RecentMap::new(10);
        map.insert("used", 0);
        map.insert("idle", 0);
        for number in 0..100_u32 {
            let name: &'static str = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k"][number as usize % 11];
            map.insert(name, 1);
            *map.get_mut(&"used").expect("stays") += 1;
        }
        assert_eq!(map.get_mut(&"used"), Some(&mut 100));
        assert_eq!(map.get_mut(&"idle"), None);
    }

    #[test]
    fn an_entry_has_one_value() {
        let mut map = RecentMap::new(4);
        map.insert("a", 1);
        map.insert("b", 1);
        map.insert("c", 1);
        map.insert("a", 2);
        assert_eq!(map.get_mut(&"a"), Some(&mut 2));
        assert!(map.len() <= 4);
    }
}
