//! What a key may use up and its share beside others, as they are asked for and shown.

use serde::Serialize;
use utoipa::ToSchema;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema};

use crate::auth::{Change, LimitChanges};
use crate::domain::limits::KeyLimits;
use crate::domain::priority::Priority;
use crate::http::extract::json::Fields;
use crate::http::openapi::schema::{ObjectSchema, one_of, or_null, whole};

const FIELD: &str = "limits";
const MEGAPIXEL_STEPS: &str = "Megapixel-steps in a UTC day: megapixels times denoising steps, twice those with a negative \
                               prompt, and 4 steps more for each image, which are for reading the prompt and decoding.";

/// The limits of a new key: those that are not given are none, and the priority is normal.
pub(super) fn of_new(fields: &mut Fields) -> KeyLimits {
    let mut limits = KeyLimits::default();
    fields.nested(FIELD, |fields| {
        limits = KeyLimits {
            requests_per_minute: fields.small_number("requests_per_minute"),
            concurrent_jobs: fields.small_number("concurrent_jobs"),
            megapixel_steps_per_day: fields.small_number("megapixel_steps_per_day"),
            priority: fields.word("priority").unwrap_or_default(),
        };
    });
    limits
}

/// What is to become of a key's limits: those that are not given stay, `null` takes one away, or all of them.
/// The priority then is as a new key has it.
pub(super) fn of_edit(fields: &mut Fields) -> LimitChanges {
    if fields.is_null(FIELD) {
        return LimitChanges {
            requests_per_minute: Change::Remove,
            concurrent_jobs: Change::Remove,
            megapixel_steps_per_day: Change::Remove,
            priority: Some(Priority::default()),
        };
    }
    let mut changes = LimitChanges::default();
    fields.nested(FIELD, |fields| {
        changes = LimitChanges {
            requests_per_minute: fields.number_change("requests_per_minute"),
            concurrent_jobs: fields.number_change("concurrent_jobs"),
            megapixel_steps_per_day: fields.number_change("megapixel_steps_per_day"),
            priority: if fields.is_null("priority") { Some(Priority::default()) } else { fields.word("priority") },
        };
    });
    changes
}

/// A key's limits, `null` for none, and its priority.
#[derive(Serialize, ToSchema)]
#[schema(as = Limits)]
pub(in crate::http) struct LimitsView {
    requests_per_minute: Option<u32>,
    concurrent_jobs: Option<u32>,
    megapixel_steps_per_day: Option<u32>,
    #[schema(schema_with = priority_schema)]
    priority: &'static str,
}

impl From<KeyLimits> for LimitsView {
    fn from(limits: KeyLimits) -> Self {
        Self {
            requests_per_minute: limits.requests_per_minute,
            concurrent_jobs: limits.concurrent_jobs,
            megapixel_steps_per_day: limits.megapixel_steps_per_day,
            priority: limits.priority.as_str(),
        }
    }
}

fn priority_schema() -> ObjectBuilder {
    let says = "The share of the device while several keys have jobs: a high key gets four times as much as a normal \
                one, a low key a quarter. Counts for jobs that are accepted from then on; normal unless something else \
                is said.";
    one_of(Priority::ALL.map(Priority::as_str)).description(Some(says))
}

/// The schema of the limits of a request; `adapt` is for each of them.
pub(super) fn schema(description: &str, adapt: fn(ObjectBuilder) -> ObjectBuilder) -> RefOr<Schema> {
    let limit = |says: &str| adapt(whole(1).description(Some(says)));
    ObjectSchema::new(description)
        .optional(
            "requests_per_minute",
            limit("Requests in a minute; each image asked for in OpenAI's words counts as one."),
        )
        .optional("concurrent_jobs", limit("Unfinished jobs at a time."))
        .optional("megapixel_steps_per_day", limit(MEGAPIXEL_STEPS))
        .optional("priority", adapt(priority_schema()))
        .into()
}

/// As [`schema`], where `null` takes a limit away and makes the priority normal.
pub(super) fn edit_schema() -> RefOr<Schema> {
    schema("What is to be different about the limits.", or_null)
}
