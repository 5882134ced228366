//! The operator's moderation: an HTTP service that is asked about prompts before they are queued, and about images before they are
//! stored. Owns what it is asked, how long and how often, and what an answer or its absence means. Must not know how jobs run.
//!
//! Nothing of a prompt or an image is stored or logged here. What was not allowed, and what nobody judged, is in the audit log.

mod client;
mod wire;

use std::time::Duration;

use serde_json::json;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

use crate::auth::{Actor, AdminService, AuditAction, AuditedKey, KeyService};
use crate::domain::ids::{JobId, KeyId, ModelId};
use crate::domain::review::{OnFailure, PendingVerdict, Review, ReviewStage, Reviewer, Verdict};
use crate::domain::shared_secret::SharedSecret;
use crate::telemetry::metrics;
use client::Client;
pub use client::ModerationError;
use wire::Answer;

/// Reviews of prompts at one time, and as many of images. Others wait.
const REVIEWS_MAX: usize = 16;

/// Whom to ask, and about what.
#[derive(Debug, Clone)]
pub struct ModerationSettings {
    /// Where the service is: an http or https URL.
    pub url: String,
    /// Whether it is asked about prompts.
    pub before: bool,
    /// Whether it is asked about images.
    pub after: bool,
    /// What happens when it does not answer.
    pub on_failure: OnFailure,
    /// The longest time of a review, from the question to the end of the answer, and the longest wait for its turn.
    pub timeout: Duration,
    /// Sent with each question as a bearer token.
    pub secret: Option<SharedSecret>,
}

/// Asks the operator's service.
pub struct Moderator {
    settings: ModerationSettings,
    client: Client,
    /// Apart, so that many prompts keep no image from being reviewed.
    prompts: Semaphore,
    images: Semaphore,
    admin: AdminService,
    keys: KeyService,
}

/// What a review is about, for log, metrics and audit log.
struct About {
    stage: ReviewStage,
    job: JobId,
    owner: KeyId,
    model: ModelId,
}

/// How a review ended that was not a plain permission.
struct Noted {
    action: AuditAction,
    outcome: &'static str,
    reason: String,
}

impl Moderator {
    /// A moderator that writes what it refuses to the audit log.
    ///
    /// # Errors
    /// When the URL, or https on this machine, cannot be used.
    pub fn new(settings: ModerationSettings, admin: AdminService, keys: KeyService) -> Result<Self, ModerationError> {
        let client = Client::new(&settings.url, settings.timeout, settings.secret.as_ref())?;
        let (prompts, images) = (Semaphore::new(REVIEWS_MAX), Semaphore::new(REVIEWS_MAX));
        Ok(Self { settings, client, prompts, images, admin, keys })
    }

    async fn judge(&self, review: Review) -> Verdict {
        let about = About { stage: review.stage(), job: review.job, owner: review.owner, model: review.model.clone() };
        let (verdict, noted) = self.meaning_of(self.ask_in_turn(review).await);
        let outcome = noted.as_ref().map_or("allowed", |noted| noted.outcome);
        metrics::reviewed(about.stage.as_str(), outcome);
        if let Some(noted) = noted {
            self.note(&about, &noted).await;
        }
        verdict
    }

    /// Asks when it is this review's turn. Its time to be answered begins then: else what waits behind many others would have
    /// no answer, however quick the service is.
    async fn ask_in_turn(&self, review: Review) -> Result<Answer, ModerationError> {
        let places = match review.stage() {
            ReviewStage::Before => &self.prompts,
            ReviewStage::After => &self.images,
        };
        let place = tokio::time::timeout(self.settings.timeout, places.acquire()).await;
        // They are never closed: it is the wait that fails.
        let _place = place.map_err(|_| ModerationError::Crowded)?.map_err(|_| ModerationError::Crowded)?;
        let answered = tokio::time::timeout(self.settings.timeout, self.ask(review)).await;
        answered.unwrap_or(Err(ModerationError::Timeout))
    }

    async fn ask(&self, review: Review) -> Result<Answer, ModerationError> {
        // An image takes megabytes of base64.
        let question = spawn_blocking(move || wire::question(&review)).await;
        let question = question.map_err(|error| ModerationError::Question(error.to_string()))?;
        wire::answer(&self.client.ask(question).await?)
    }

    /// What follows from an answer, and what is written about it.
    fn meaning_of(&self, answered: Result<Answer, ModerationError>) -> (Verdict, Option<Noted>) {
        match answered {
            Ok(Answer { is_allowed: true, .. }) => (Verdict::Allowed, None),
            Ok(Answer { reason, .. }) => {
                let noted = Noted { action: AuditAction::ContentRefused, outcome: "refused", reason: reason.clone() };
                (Verdict::Refused { reason }, Some(noted))
            }
            Err(error) => {
                let (verdict, outcome) = match (self.settings.on_failure, &error) {
                    // Nothing is wrong with the service. Whoever sends very much must not get past it.
                    (_, ModerationError::Crowded) | (OnFailure::Refuse, _) => (Verdict::Unavailable, "failed_refused"),
                    (OnFailure::Allow, _) => (Verdict::Allowed, "failed_allowed"),
                };
                let noted = Noted { action: AuditAction::ModerationFailed, outcome, reason: error.to_string() };
                (verdict, Some(noted))
            }
        }
    }

    /// Writes to the log and the audit log. A verdict stands even if it cannot be written.
    async fn note(&self, About { stage, job, owner, model }: &About, Noted { action, outcome, reason }: &Noted) {
        let stage = stage.as_str();
        if *action == AuditAction::ContentRefused {
            // The service's words are for the audit log: they may repeat what was asked for.
            tracing::info!(%job, stage, "the moderation refused a job");
        } else {
            tracing::warn!(%job, stage, outcome, cause = reason, "the moderation gave no answer");
        }
        let key = self.keys.get(*owner).await.ok().map(|key| AuditedKey { id: key.id, prefix: key.prefix });
        // The console's jobs have no key.
        let actor = if key.is_some() { Actor::KeyJob } else { Actor::Worker };
        let detail = json!({
            "stage": stage,
            "job_id": job.to_string(),
            "model": model.as_str(),
            "outcome": outcome,
            "reason": reason,
        });
        if let Err(error) = self.admin.note(&actor, *action, key, detail).await {
            tracing::error!(%job, %error, "a verdict of the moderation is not in the audit log");
        }
    }
}

impl Reviewer for Moderator {
    fn is_asked(&self, stage: ReviewStage) -> bool {
        match stage {
            ReviewStage::Before => self.settings.before,
            ReviewStage::After => self.settings.after,
        }
    }

    fn review(&self, review: Review) -> PendingVerdict<'_> {
        Box::pin(self.judge(review))
    }
}
