//! What is remembered of the clients of AUTOMATIC1111's API: a key's requests that wait for images, and the model that it has
//! chosen. In memory only. Clients of that API know one server that works for them alone; here each key is such a server.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::domain::ids::{JobId, KeyId, ModelId};

/// Maximum keys whose choice of a model is remembered. The oldest key's goes.
const CHOICES_MAX: usize = 10_000;

/// The memory of all keys.
#[derive(Debug, Default)]
pub(in crate::http) struct Sessions {
    /// The jobs of each key's requests, by the number of the request. The limit of connections bounds them.
    waiting: Mutex<HashMap<KeyId, BTreeMap<u64, Vec<JobId>>>>,
    /// Ids of keys sort by age.
    choices: Mutex<BTreeMap<KeyId, ModelId>>,
}

/// A request that waits for its images, until dropped.
#[derive(Debug)]
pub(super) struct Waiting<'a> {
    sessions: &'a Sessions,
    key: KeyId,
    number: u64,
}

impl Sessions {
    fn waiting(&self) -> MutexGuard<'_, HashMap<KeyId, BTreeMap<u64, Vec<JobId>>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn choices(&self) -> MutexGuard<'_, BTreeMap<KeyId, ModelId>> {
        self.choices.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a request of this key waits for these jobs.
    pub(super) fn wait_for(&self, key: KeyId, jobs: Vec<JobId>) -> Waiting<'_> {
        let mut waiting = self.waiting();
        let requests = waiting.entry(key).or_default();
        let number = requests.last_key_value().map_or(0, |(last, _)| last + 1);
        requests.insert(number, jobs);
        Waiting { sessions: self, key, number }
    }

    /// The jobs that requests of this key wait for, the oldest request's first.
    pub(super) fn jobs_of(&self, key: KeyId) -> Vec<JobId> {
        self.waiting().get(&key).into_iter().flat_map(BTreeMap::values).flatten().copied().collect()
    }

    /// The model that a key has chosen.
    pub(super) fn choice(&self, key: KeyId) -> Option<ModelId> {
        self.choices().get(&key).cloned()
    }

    /// Remembers a key's choice.
    pub(super) fn choose(&self, key: KeyId, model: ModelId) {
        let mut choices = self.choices();
        choices.insert(key, model);
        if choices.len() > CHOICES_MAX {
            choices.pop_first();
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut waiting = self.sessions.waiting();
        let Some(requests) = waiting.get_mut(&self.key) else { return };
        requests.remove(&self.number);
        if requests.is_empty() {
            waiting.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_has_its_own_requests_until_they_end() {
        let sessions = Sessions::default();
        let (one, other) = (KeyId::generate(), KeyId::generate());
        let jobs: Vec<JobId> = (0..3).map(|_| JobId::generate()).collect();
        let first = sessions.wait_for(one, jobs[..2].to_vec());
        let second = sessions.wait_for(one, jobs[2..].to_vec());
        assert_eq!((sessions.jobs_of(one), sessions.jobs_of(other)), (jobs.clone(), Vec::new()));
        drop(first);
        let third = sessions.wait_for(one, vec![jobs[0]]);
        assert_eq!(sessions.jobs_of(one), [jobs[2], jobs[0]]);
        drop((second, third));
        assert!(sessions.waiting().is_empty());
    }

    #[test]
    fn choices_are_remembered_for_a_limited_number_of_keys() {
        let sessions = Sessions::default();
        let keys: Vec<KeyId> = (0..=CHOICES_MAX).map(|_| KeyId::generate()).collect();
        for key in &keys {
            sessions.choose(*key, ModelId::new("a/b"));
        }
        sessions.choose(keys[1], ModelId::new("c/d"));
        assert_eq!(sessions.choices().len(), CHOICES_MAX);
        assert_eq!(sessions.choice(keys[1]), Some(ModelId::new("c/d")));
    }
}
