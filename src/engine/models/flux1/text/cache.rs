//! The embeddings of the latest prompts: a prompt that is used again, or with many seeds, is encoded once.

use std::collections::VecDeque;

use super::PromptEmbedding;
use crate::domain::adapter::AdapterId;

/// Maximum prompts in the cache: in FLUX.1-dev an embedding takes 4 MiB of the device's memory.
const PROMPTS_MAX: usize = 16;

/// What an embedding depends on.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct PromptKey {
    /// What CLIP reads.
    pub(crate) prompt: String,
    /// What T5 reads.
    pub(crate) t5_prompt: String,
    /// T5 tokens it is padded or cut to.
    pub(crate) length: usize,
    /// The adapters that change a text encoder, with the bits of their strengths.
    pub(crate) adapters: Vec<(AdapterId, u64)>,
}

/// Embeddings by prompt, the most recently used first.
#[derive(Default)]
pub(crate) struct PromptCache(VecDeque<(PromptKey, PromptEmbedding)>);

impl PromptCache {
    /// The cached embedding of a prompt.
    pub(crate) fn get(&mut self, key: &PromptKey) -> Option<PromptEmbedding> {
        let place = self.0.iter().position(|(known, _)| known == key)?;
        let entry = self.0.remove(place)?;
        let embedding = entry.1.clone();
        self.0.push_front(entry);
        Some(embedding)
    }

    /// Adds an embedding. A full cache drops the least recently used one.
    pub(crate) fn put(&mut self, key: PromptKey, embedding: PromptEmbedding) {
        self.0.truncate(PROMPTS_MAX - 1);
        self.0.push_front((key, embedding));
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};

    use super::*;

    fn key(prompt: &str) -> PromptKey {
        PromptKey { prompt: prompt.to_owned(), t5_prompt: prompt.to_owned(), length: 8, adapters: Vec::new() }
    }

    fn embedding() -> PromptEmbedding {
        let empty = Tensor::zeros((1, 1), DType::F32, &Device::Cpu).expect("zeros");
        PromptEmbedding { pooled: empty.clone(), sequence: empty }
    }

    #[test]
    fn the_least_recently_used_embedding_is_dropped() {
        let mut cache = PromptCache::default();
        cache.put(key("kept"), embedding());
        for number in 0..3 * PROMPTS_MAX {
            assert!(cache.get(&key("kept")).is_some(), "after {number} others");
            cache.put(key(&number.to_string()), embedding());
            assert!(cache.0.len() <= PROMPTS_MAX);
        }
        assert!(cache.get(&key("0")).is_none());
    }

    #[test]
    fn each_part_of_the_key_counts() {
        let mut cache = PromptCache::default();
        cache.put(key("a"), embedding());
        assert!(cache.get(&PromptKey { length: 9, ..key("a") }).is_none());
        assert!(cache.get(&PromptKey { t5_prompt: "b".to_owned(), ..key("a") }).is_none());
        assert!(cache.get(&PromptKey { prompt: "b".to_owned(), ..key("a") }).is_none());
        let adapters = vec![(AdapterId::of_sha256([1; 32]), 0)];
        assert!(cache.get(&PromptKey { adapters, ..key("a") }).is_none());
    }
}
