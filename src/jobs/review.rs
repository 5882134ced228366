//! Reviews of jobs by someone outside: their prompts before they are queued, their images before they are stored. Decides what
//! follows from a verdict. Must not know who judges, or how.

use super::state::Inner;
use super::{JobError, JobsError, Visibility};
use crate::domain::format::OutputFormat;
use crate::domain::ids::{JobId, KeyId, ModelId};
use crate::domain::review::{Review, ReviewStage, Reviewer, Subject, Verdict};
use crate::domain::spec::GenerateSpec;

/// The code of a job whose image was refused.
pub const CONTENT_REFUSED: &str = "content_refused";
/// The code of a job whose image could not be reviewed, where that is required.
pub const MODERATION_UNAVAILABLE: &str = "moderation_unavailable";

impl Inner {
    fn reviewer_at(&self, stage: ReviewStage) -> Option<&dyn Reviewer> {
        self.reviewer.as_deref().filter(|reviewer| reviewer.is_asked(stage))
    }

    /// Lets the texts of a request be judged.
    ///
    /// # Errors
    /// [`JobsError::ContentRefused`] or [`JobsError::ModerationUnavailable`].
    pub(super) async fn review_prompt(&self, job: JobId, owner: KeyId, spec: &GenerateSpec) -> Result<(), JobsError> {
        let Some(reviewer) = self.reviewer_at(ReviewStage::Before) else { return Ok(()) };
        let subject = Subject::Prompt {
            prompt: spec.prompt().to_owned(),
            prompt_2: Some(spec.t5_prompt()).filter(|text| *text != spec.prompt()).map(str::to_owned),
            negative_prompt: spec.negative().map(|negative| negative.prompt.clone()),
        };
        match reviewer.review(Review { job, owner, model: spec.model().clone(), subject }).await {
            Verdict::Allowed => Ok(()),
            Verdict::Refused { reason } => Err(JobsError::ContentRefused { reason }),
            Verdict::Unavailable => Err(JobsError::ModerationUnavailable),
        }
    }

    /// Lets a generated image be judged.
    ///
    /// # Errors
    /// Why its job fails.
    pub(super) async fn review_image(
        &self,
        (job, owner): (JobId, KeyId),
        model: &ModelId,
        (image, format): (&[u8], OutputFormat),
    ) -> Result<(), JobError> {
        let Some(reviewer) = self.reviewer_at(ReviewStage::After) else { return Ok(()) };
        let subject = Subject::Image { bytes: image.to_vec(), format };
        let failed = |code: &str, reason: String| Err(JobError { code: code.to_owned(), reason });
        match reviewer.review(Review { job, owner, model: model.clone(), subject }).await {
            Verdict::Allowed => Ok(()),
            Verdict::Refused { reason } => failed(CONTENT_REFUSED, reason),
            Verdict::Unavailable => failed(MODERATION_UNAVAILABLE, "the image could not be reviewed".to_owned()),
        }
    }

    /// Whether previews are withheld: they would show what a review may still refuse.
    pub(super) fn hides_previews(&self, visibility: Visibility) -> bool {
        visibility != Visibility::All && self.reviewer_at(ReviewStage::After).is_some()
    }
}
