//! The subset of OpenAI's API that its clients need: they work with this worker once they have its base URL and a key.
//! Errors have OpenAI's format ([`crate::http::dialect`]); everything else is as on the other routes.

pub(in crate::http) mod edit_request;
pub(in crate::http) mod edits;
pub(in crate::http) mod images;
pub(in crate::http) mod models;
pub(in crate::http) mod request;
mod stream;
mod streaming;
pub(in crate::http) mod variations;

use crate::auth::Principal;
use crate::domain::format::OutputFormat;
use crate::domain::priority::Priority;
use crate::domain::spec::GenerateSpec;
use crate::domain::webhook::JobWebhook;
use crate::http::origin::Origin;
use crate::jobs::Submission;

/// The job for an image of a caller. Its webhook is the key's, if it has one, and tells of URLs at `origin`.
fn submission(caller: &Principal, origin: &Origin, spec: GenerateSpec, output_format: OutputFormat) -> Submission {
    Submission {
        owner: caller.key_id,
        limits: caller.limits.clone(),
        spec,
        output_format,
        priority: Priority::Normal,
        deadline: None,
        repeat_key: None,
        webhook: Some(JobWebhook { origin: Some(origin.as_str().to_owned()), ..JobWebhook::default() }),
    }
}

/// Width and height of the image that an image of `spec` becomes part of, or of it alone, in pixels.
fn size_of(spec: &GenerateSpec) -> (u32, u32) {
    let whole = spec.overlay().map(|overlay| (overlay.image.width(), overlay.image.height()));
    whole.unwrap_or((spec.width(), spec.height()))
}
