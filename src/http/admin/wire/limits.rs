//! A key's limits and priority in requests and responses.

use serde::Serialize;
use utoipa::ToSchema;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ArrayBuilder, ObjectBuilder, Schema, SchemaType, Type};

use super::budget::{self, BudgetView};
use crate::auth::{Change, GroupChanges, LimitChanges};
use crate::domain::adapter::LORAS;
use crate::domain::limits::{GroupLimits, KeyLimits, LORAS_LISTED_MAX, LoraList};
use crate::domain::priority::Priority;
use crate::http::extract::json::Fields;
use crate::http::openapi::schema::{ObjectSchema, integer, one_of, or_null, text};

const FIELD: &str = "limits";
const MEGAPIXEL_STEPS: &str = "Megapixel-steps per UTC day: megapixels times denoising steps, doubled with a negative \
                               prompt, plus 4 steps for each image, which cover prompt encoding and decoding.";

/// The limits of a new key. Absent ones are unlimited, and the priority defaults to normal.
pub(super) fn of_new(fields: &mut Fields) -> KeyLimits {
    let mut limits = KeyLimits::default();
    fields.nested(FIELD, |fields| {
        limits = KeyLimits {
            requests_per_minute: fields.small_number("requests_per_minute"),
            concurrent_jobs: fields.small_number("concurrent_jobs"),
            megapixel_steps_per_day: fields.small_number("megapixel_steps_per_day"),
            priority: fields.word("priority").unwrap_or_default(),
            loras: loras(fields),
            budget: budget::read(fields),
            project: None,
        };
    });
    limits
}

/// A list of LoRAs.
fn loras(fields: &mut Fields) -> Option<LoraList> {
    let list = fields.texts(LORAS)?;
    LoraList::new(list).inspect_err(|error| fields.refuse(LORAS, error.to_string())).ok()
}

/// Changes to a key's limits. Absent ones stay, `null` removes one or all of them and resets the priority.
pub(super) fn of_edit(fields: &mut Fields) -> LimitChanges {
    if fields.is_null(FIELD) {
        return LimitChanges {
            requests_per_minute: Change::Remove,
            concurrent_jobs: Change::Remove,
            megapixel_steps_per_day: Change::Remove,
            priority: Some(Priority::default()),
            loras: Change::Remove,
            budget: Change::Remove,
        };
    }
    let mut changes = LimitChanges::default();
    fields.nested(FIELD, |fields| {
        changes = LimitChanges {
            requests_per_minute: fields.number_change("requests_per_minute"),
            concurrent_jobs: fields.number_change("concurrent_jobs"),
            megapixel_steps_per_day: fields.number_change("megapixel_steps_per_day"),
            priority: if fields.is_null("priority") { Some(Priority::default()) } else { fields.word("priority") },
            loras: if fields.is_null(LORAS) { Change::Remove } else { loras(fields).map_or(Change::Keep, Change::Set) },
            budget: budget::read_change(fields),
        };
    });
    changes
}

/// The limits of a new project. Absent ones are unlimited.
pub(super) fn of_new_group(fields: &mut Fields) -> GroupLimits {
    let mut limits = GroupLimits::default();
    fields.nested(FIELD, |fields| {
        limits = GroupLimits {
            requests_per_minute: fields.small_number("requests_per_minute"),
            concurrent_jobs: fields.small_number("concurrent_jobs"),
            megapixel_steps_per_day: fields.small_number("megapixel_steps_per_day"),
            budget: budget::read(fields),
        };
    });
    limits
}

/// Changes to a project's limits. Absent ones stay, `null` removes one or all of them.
pub(super) fn of_group_edit(fields: &mut Fields) -> GroupChanges {
    if fields.is_null(FIELD) {
        return GroupChanges {
            requests_per_minute: Change::Remove,
            concurrent_jobs: Change::Remove,
            megapixel_steps_per_day: Change::Remove,
            budget: Change::Remove,
        };
    }
    let mut changes = GroupChanges::default();
    fields.nested(FIELD, |fields| {
        changes = GroupChanges {
            requests_per_minute: fields.number_change("requests_per_minute"),
            concurrent_jobs: fields.number_change("concurrent_jobs"),
            megapixel_steps_per_day: fields.number_change("megapixel_steps_per_day"),
            budget: budget::read_change(fields),
        };
    });
    changes
}

/// A key's limits, `null` for unlimited, and its priority.
#[derive(Serialize, ToSchema)]
#[schema(as = Limits)]
pub(in crate::http) struct LimitsView {
    requests_per_minute: Option<u32>,
    concurrent_jobs: Option<u32>,
    megapixel_steps_per_day: Option<u32>,
    #[schema(schema_with = priority_schema)]
    priority: &'static str,
    /// The LoRAs that the key may use, by id or name; `null` for all.
    loras: Option<Vec<String>>,
    budget: Option<BudgetView>,
}

/// The limits of all keys of a project together, `null` for unlimited.
#[derive(Serialize, ToSchema)]
#[schema(as = GroupLimits)]
pub(in crate::http) struct GroupLimitsView {
    requests_per_minute: Option<u32>,
    concurrent_jobs: Option<u32>,
    megapixel_steps_per_day: Option<u32>,
    budget: Option<BudgetView>,
}

impl From<GroupLimits> for GroupLimitsView {
    fn from(limits: GroupLimits) -> Self {
        Self {
            requests_per_minute: limits.requests_per_minute,
            concurrent_jobs: limits.concurrent_jobs,
            megapixel_steps_per_day: limits.megapixel_steps_per_day,
            budget: limits.budget.map(BudgetView::from),
        }
    }
}

impl From<KeyLimits> for LimitsView {
    fn from(limits: KeyLimits) -> Self {
        Self {
            requests_per_minute: limits.requests_per_minute,
            concurrent_jobs: limits.concurrent_jobs,
            megapixel_steps_per_day: limits.megapixel_steps_per_day,
            priority: limits.priority.as_str(),
            loras: limits.loras.map(|loras| loras.iter().map(str::to_owned).collect()),
            budget: limits.budget.map(BudgetView::from),
        }
    }
}

fn priority_schema() -> ObjectBuilder {
    let description = "The share of the device while several keys have jobs: a high-priority key gets four times as \
                       much as a normal one, a low-priority key a quarter. Applies to new jobs. Defaults to normal.";
    one_of(Priority::ALL.map(Priority::as_str)).description(Some(description))
}

/// The schema of the limits in a request; `adapt` changes each of them.
pub(super) fn schema(description: &str, adapt: fn(ObjectBuilder) -> ObjectBuilder) -> RefOr<Schema> {
    group(description, adapt).optional("priority", adapt(priority_schema())).optional(LORAS, adapted_list(adapt)).into()
}

/// The schema of a project's limits in a request.
pub(super) fn group_schema(description: &str, adapt: fn(ObjectBuilder) -> ObjectBuilder) -> RefOr<Schema> {
    group(description, adapt).into()
}

/// As [`group_schema`], where `null` removes a limit.
pub(super) fn group_edit_schema() -> RefOr<Schema> {
    group_schema("Changes to the limits.", or_null)
}

/// The limits that keys and projects have.
fn group(description: &str, adapt: fn(ObjectBuilder) -> ObjectBuilder) -> ObjectSchema {
    let limit = |meaning: &str| adapt(integer(1).description(Some(meaning)));
    ObjectSchema::new(description)
        .optional(
            "requests_per_minute",
            limit("Requests per minute. Each image requested through OpenAI's API counts as one."),
        )
        .optional("concurrent_jobs", limit("Unfinished jobs at one time."))
        .optional("megapixel_steps_per_day", limit(MEGAPIXEL_STEPS))
        .optional(budget::BUDGET, adapt(budget::schema()))
}

/// The list of LoRAs. `adapt` is for other types, so what it does to one of them tells what to do.
fn adapted_list(adapt: fn(ObjectBuilder) -> ObjectBuilder) -> RefOr<Schema> {
    let about = "The LoRAs that the key may use, by id or name; an empty list allows none. All by default.";
    let is_nullable = matches!(adapt(text()).build().schema_type, SchemaType::Array(_));
    let list = ArrayBuilder::new().items(text()).max_items(Some(LORAS_LISTED_MAX)).description(Some(about));
    let types = if is_nullable { SchemaType::from_iter([Type::Array, Type::Null]) } else { Type::Array.into() };
    list.schema_type(types).into()
}

/// As [`schema`], where `null` removes a limit or resets the priority.
pub(super) fn edit_schema() -> RefOr<Schema> {
    schema("Changes to the limits.", or_null)
}
