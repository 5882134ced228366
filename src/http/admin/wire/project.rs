//! A project in requests and responses.

use serde::Serialize;
use time::OffsetDateTime;
use time::serde::rfc3339;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::Schema;
use utoipa::{PartialSchema, ToSchema};

use super::budget::BudgetUseView;
use super::limits::{self, GroupLimitsView};
use crate::auth::{NAME_CHARS_MAX, NewProject, ProjectEdit, ProjectRecord};
use crate::http::extract::json::{Fields, FromFields};
use crate::http::openapi::schema::{ObjectSchema, text};

const ABOUT_LIMITS: &str = "The limits of all its keys together. They apply beside those of each key.";

/// A project to create.
pub(in crate::http) struct CreateProject(pub(in crate::http) NewProject);

impl FromFields for CreateProject {
    fn from_fields(fields: &mut Fields) -> Option<Self> {
        let name = fields.required_text("name");
        let limits = limits::of_new_group(fields);
        Some(Self(NewProject { name: name?, limits }))
    }
}

impl ToSchema for CreateProject {}

impl PartialSchema for CreateProject {
    fn schema() -> RefOr<Schema> {
        let name = text().max_length(Some(NAME_CHARS_MAX)).description(Some("A name that no other project has."));
        ObjectSchema::new("A project to create.")
            .required("name", name)
            .optional("limits", limits::group_schema(ABOUT_LIMITS, |limit| limit))
            .into()
    }
}

/// Changes to a project. Absent fields stay; `null` removes a limit.
pub(in crate::http) struct EditProject(pub(in crate::http) ProjectEdit);

impl FromFields for EditProject {
    fn from_fields(fields: &mut Fields) -> Option<Self> {
        let name = fields.lasting_text("name");
        let limits = limits::of_group_edit(fields);
        Some(Self(ProjectEdit { name, limits }))
    }
}

impl ToSchema for EditProject {}

impl PartialSchema for EditProject {
    fn schema() -> RefOr<Schema> {
        ObjectSchema::new("Changes to a project. Absent fields stay as they are.")
            .optional("name", text().max_length(Some(NAME_CHARS_MAX)))
            .optional("limits", limits::group_edit_schema())
            .into()
    }
}

/// A project.
#[derive(Serialize, ToSchema)]
#[schema(as = Project)]
pub(in crate::http) struct ProjectView {
    id: String,
    name: String,
    limits: GroupLimitsView,
    /// Number of its keys, without revoked ones.
    keys: u64,
    #[serde(with = "rfc3339")]
    created_at: OffsetDateTime,
    /// Its budget in the present month, if it has one.
    budget: Option<BudgetUseView>,
}

impl ProjectView {
    pub(in crate::http) fn new(project: ProjectRecord, budget: Option<BudgetUseView>) -> Self {
        let ProjectRecord { id, name, limits, keys, created_at } = project;
        Self { id: id.to_string(), name, limits: limits.into(), keys, created_at, budget }
    }
}

/// All projects, by name.
#[derive(Serialize, ToSchema)]
#[schema(as = ProjectList)]
pub(in crate::http) struct ProjectListView {
    pub(in crate::http) data: Vec<ProjectView>,
}
