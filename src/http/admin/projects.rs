//! `/v1/projects`: keys with limits and a budget that they share.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde_json::json;

use super::wire::budget::{BudgetUseView, check_payable};
use super::wire::project::{CreateProject, EditProject, ProjectListView, ProjectView};
use crate::auth::ProjectRecord;
use crate::domain::budget::BudgetHolder;
use crate::http::error::{ApiError, ErrorCode};
use crate::http::extract::administrator::Administrator;
use crate::http::extract::json::ApiJson;
use crate::http::extract::path::ProjectPath;
use crate::http::openapi::{Operation, Tag};
use crate::http::state::HttpState;

pub(in crate::http) async fn list(
    State(state): State<HttpState>,
    _: Administrator,
) -> Result<Json<ProjectListView>, ApiError> {
    let mut data = Vec::new();
    for project in state.keys.projects().await? {
        data.push(view(&state, project).await?);
    }
    Ok(Json(ProjectListView { data }))
}

pub(in crate::http) fn list_operation() -> Operation {
    Operation::new(Tag::Usage, "list_projects", "All projects, by name")
        .answers::<ProjectListView>(StatusCode::OK, "All projects.")
        .refuses([ErrorCode::StorageUnavailable])
}

pub(in crate::http) async fn create(
    State(state): State<HttpState>,
    administrator: Administrator,
    ApiJson { value: CreateProject(new), .. }: ApiJson<CreateProject>,
) -> Result<(StatusCode, Json<ProjectView>), ApiError> {
    check_payable(&state, new.limits.budget)?;
    let administrator = administrator.recheck(&state).await?;
    let project = state.keys.create_project(new, &administrator.actor()).await?;
    Ok((StatusCode::CREATED, Json(view(&state, project).await?)))
}

pub(in crate::http) fn create_operation() -> Operation {
    let example =
        json!({ "name": "web shop", "limits": { "concurrent_jobs": 8, "budget": { "megapixel_steps": 100_000 } } });
    Operation::new(Tag::Usage, "create_project", "Create a project")
        .description("Keys get into it with their field `project`.")
        .body::<CreateProject>(example)
        .answers::<ProjectView>(StatusCode::CREATED, "The project.")
        .refuses([ErrorCode::ProjectExists, ErrorCode::StorageUnavailable])
}

pub(in crate::http) async fn show(
    State(state): State<HttpState>,
    _: Administrator,
    ProjectPath(id): ProjectPath,
) -> Result<Json<ProjectView>, ApiError> {
    let project = state.keys.project(id).await?;
    Ok(Json(view(&state, project).await?))
}

pub(in crate::http) fn show_operation() -> Operation {
    Operation::new(Tag::Usage, "get_project", "Get a project")
        .answers::<ProjectView>(StatusCode::OK, "The project, and how much of its budget is used.")
        .refuses([ErrorCode::StorageUnavailable])
}

pub(in crate::http) async fn edit(
    State(state): State<HttpState>,
    administrator: Administrator,
    ProjectPath(id): ProjectPath,
    ApiJson { value: EditProject(edit), .. }: ApiJson<EditProject>,
) -> Result<Json<ProjectView>, ApiError> {
    check_payable(&state, edit.limits.budget.set())?;
    let administrator = administrator.recheck(&state).await?;
    let project = state.keys.edit_project(id, edit, &administrator.actor()).await?;
    state.jobs.note_budget(BudgetHolder::Project(id));
    Ok(Json(view(&state, project).await?))
}

pub(in crate::http) fn edit_operation() -> Operation {
    Operation::new(Tag::Usage, "edit_project", "Rename a project, change its limits or its budget")
        .description("Applies to the next request of its keys.")
        .body::<EditProject>(json!({ "limits": { "requests_per_minute": 600 } }))
        .answers::<ProjectView>(StatusCode::OK, "The project as it is now.")
        .refuses([ErrorCode::ProjectExists, ErrorCode::StorageUnavailable])
}

pub(in crate::http) async fn remove(
    State(state): State<HttpState>,
    administrator: Administrator,
    ProjectPath(id): ProjectPath,
) -> Result<StatusCode, ApiError> {
    state.keys.delete_project(id, &administrator.actor()).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(in crate::http) fn remove_operation() -> Operation {
    Operation::new(Tag::Usage, "delete_project", "Delete a project")
        .description("Refused while keys belong to it, other than revoked ones. What it has used stays in reports.")
        .answers_nothing(StatusCode::NO_CONTENT, "It is deleted.")
        .refuses([ErrorCode::ProjectInUse])
}

async fn view(state: &HttpState, project: ProjectRecord) -> Result<ProjectView, ApiError> {
    let budget = match project.limits.budget {
        None => None,
        Some(budget) => {
            let standing = state.usage.standing(BudgetHolder::Project(project.id), budget).await?;
            Some(BudgetUseView::of(state, &standing))
        }
    };
    Ok(ProjectView::new(project, budget))
}
