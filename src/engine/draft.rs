//! The draft that an engine is decoding: of one image at a time, and of none while another image is encoded or decoded, because
//! the memory is planned for one of these.

use super::FluxEngine;
use super::models::flux1::Drafting;
use crate::domain::engine::{Draft, EngineError, Slot};

/// A draft of which parts are left.
pub(super) struct UnfinishedDraft {
    slot: Slot,
    drafting: Drafting,
}

impl FluxEngine {
    /// The next part of the draft of an image.
    pub(super) fn next_draft_part(&mut self, slot: Slot) -> Result<Draft, EngineError> {
        let begun = self.draft.take().filter(|draft| draft.slot == slot).map(|draft| draft.drafting);
        let Some(image) = self.images.get(&slot) else { return Ok(Draft::Unavailable) };
        // A large image takes the memory of the adapters to be decoded, and this one still needs its own.
        let is_too_large = self.pixels.needs_that_of_adapters(image.width as usize * image.height as usize);
        if is_too_large || self.images.values().any(|image| image.decoding.is_some() || !image.is_encoded()) {
            return Ok(Draft::Unavailable);
        }
        let begun = match begun {
            Some(drafting) => Some(drafting),
            None => self.model.begin_draft(image)?,
        };
        let Some(drafting) = begun else { return Ok(Draft::Unavailable) };
        let (drafting, is_left) = self.model.draft_part(drafting)?;
        if is_left {
            // Calls only enqueue work: the queue measures time after this.
            self.wait()?;
            self.draft = Some(UnfinishedDraft { slot, drafting });
            return Ok(Draft::Unfinished);
        }
        self.model.complete_draft(drafting, image).map(Draft::Done)
    }

    /// Frees memory that no image needs: an unfinished draft, and adapters. `false`: there was none.
    pub(super) fn free_spare_memory(&mut self) -> bool {
        let had_draft = self.draft.take().is_some();
        self.adapters.drop_unused() || had_draft
    }

    /// Forgets the unfinished draft of an image that leaves.
    pub(super) fn drop_draft_of(&mut self, slot: Slot) {
        if self.draft.as_ref().is_some_and(|draft| draft.slot == slot) {
            self.draft = None;
        }
    }
}
