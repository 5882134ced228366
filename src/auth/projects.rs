//! Projects: keys that have limits and a budget together.

use serde_json::{Map, Value, json};
use time::OffsetDateTime;

use crate::auth::KeyFailure;
use crate::auth::audit::{self, Actor, AuditAction, NewEntry};
use crate::auth::record::{Change, NAME_CHARS_MAX, fit_name};
use crate::auth::service::KeyService;
use crate::domain::budget::Budget;
use crate::domain::ids::ProjectId;
use crate::domain::limits::{GroupLimits, InvalidLimit};
use crate::store::StoreError;

/// Maximum number of projects.
pub const PROJECTS_MAX: u32 = 500;

/// A project to be created.
#[derive(Debug, Clone)]
pub struct NewProject {
    /// Its name, which no other project has.
    pub name: String,
    /// The limits of all its keys together.
    pub limits: GroupLimits,
}

/// Changes to a project.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProjectEdit {
    /// New name.
    pub name: Option<String>,
    /// New limits, or none.
    pub limits: GroupChanges,
}

/// Changes to a project's limits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GroupChanges {
    /// See [`GroupLimits::requests_per_minute`].
    pub requests_per_minute: Change<u32>,
    /// See [`GroupLimits::concurrent_jobs`].
    pub concurrent_jobs: Change<u32>,
    /// See [`GroupLimits::megapixel_steps_per_day`].
    pub megapixel_steps_per_day: Change<u32>,
    /// See [`GroupLimits::budget`].
    pub budget: Change<Budget>,
}

/// A project.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProjectRecord {
    /// Its id.
    pub id: ProjectId,
    /// Its name.
    pub name: String,
    /// The limits of all its keys together.
    pub limits: GroupLimits,
    /// Number of its keys, without revoked ones.
    pub keys: u64,
    /// When it was created.
    pub created_at: OffsetDateTime,
}

/// Why a project was not created, found, changed or deleted.
#[derive(Debug, thiserror::Error)]
pub enum ProjectError {
    /// The name is empty, too long, or has invisible characters.
    #[error("must be 1 to {NAME_CHARS_MAX} characters, without control characters and invisible ones")]
    Name,
    /// Another project has this name.
    #[error("a project with the name {0} exists")]
    NameTaken(String),
    /// There are too many.
    #[error("there can be at most {PROJECTS_MAX} projects")]
    TooMany,
    /// A limit is out of range.
    #[error(transparent)]
    Limit(#[from] InvalidLimit),
    /// There is no such project.
    #[error("there is no such project")]
    NotFound,
    /// Keys belong to it.
    #[error("keys belong to the project: {keys}")]
    InUse {
        /// How many, without revoked ones.
        keys: u32,
    },
    /// An internal failure.
    #[error("the projects are not available")]
    Unavailable(#[from] KeyFailure),
}

impl From<StoreError> for ProjectError {
    fn from(error: StoreError) -> Self {
        Self::Unavailable(error.into())
    }
}

impl GroupChanges {
    /// The limits that are set, to be checked.
    fn set(&self) -> GroupLimits {
        GroupLimits {
            requests_per_minute: self.requests_per_minute.set(),
            concurrent_jobs: self.concurrent_jobs.set(),
            megapixel_steps_per_day: self.megapixel_steps_per_day.set(),
            budget: self.budget.set(),
        }
    }
}

impl KeyService {
    /// All projects, by name.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn projects(&self) -> Result<Vec<ProjectRecord>, ProjectError> {
        Ok(self.keys.projects().await?)
    }

    /// A project.
    ///
    /// # Errors
    /// When there is none with this id, or the database fails.
    pub async fn project(&self, id: ProjectId) -> Result<ProjectRecord, ProjectError> {
        self.keys.project(id).await?.ok_or(ProjectError::NotFound)
    }

    /// Creates a project.
    ///
    /// # Errors
    /// When its name or a limit is invalid, its name is taken, there are too many, or the database fails.
    pub async fn create_project(&self, new: NewProject, by: &Actor) -> Result<ProjectRecord, ProjectError> {
        new.limits.check()?;
        let name = fit_name(&new.name).ok_or(ProjectError::Name)?;
        let limits = new.limits;
        let project = ProjectRecord { id: ProjectId::generate(), name, limits, keys: 0, created_at: self.now() };
        let detail = of_new(&project);
        self.keys.insert_project(&project, &self.about_project(by, AuditAction::ProjectCreated, detail)).await?;
        Ok(project)
    }

    /// Changes a project, from the next request of its keys on.
    ///
    /// # Errors
    /// As [`KeyService::create_project`], and when there is none with this id.
    pub async fn edit_project(
        &self,
        id: ProjectId,
        edit: ProjectEdit,
        by: &Actor,
    ) -> Result<ProjectRecord, ProjectError> {
        edit.limits.set().check()?;
        let name = edit.name.as_deref().map(|name| fit_name(name).ok_or(ProjectError::Name)).transpose()?;
        let edit = ProjectEdit { name, ..edit };
        if edit != ProjectEdit::default() {
            let detail = of_edit(id, &edit);
            self.keys.edit_project(id, &edit, &self.about_project(by, AuditAction::ProjectEdited, detail)).await?;
        }
        self.project(id).await
    }

    /// Deletes a project that no key belongs to. Revoked keys do not count.
    ///
    /// # Errors
    /// When keys belong to it, there is none with this id, or the database fails.
    pub async fn delete_project(&self, id: ProjectId, by: &Actor) -> Result<(), ProjectError> {
        let project = self.project(id).await?;
        let detail = json!({ "project": project.name, "project_id": id });
        self.keys.delete_project(id, &self.about_project(by, AuditAction::ProjectDeleted, detail)).await
    }

    fn about_project<'a>(&self, actor: &'a Actor, action: AuditAction, detail: Value) -> NewEntry<'a> {
        NewEntry { at: self.now(), actor, action, key: None, detail }
    }
}

fn of_new(project: &ProjectRecord) -> Value {
    let GroupLimits { requests_per_minute, concurrent_jobs, megapixel_steps_per_day, budget } = project.limits;
    json!({
        "project": project.name,
        "project_id": project.id,
        "limits": {
            "requests_per_minute": requests_per_minute,
            "concurrent_jobs": concurrent_jobs,
            "megapixel_steps_per_day": megapixel_steps_per_day,
            "budget": budget.map(audit::of_budget),
        },
    })
}

/// What has changed.
fn of_edit(id: ProjectId, edit: &ProjectEdit) -> Value {
    let mut detail = Map::new();
    detail.insert("project_id".into(), json!(id));
    if let Some(name) = &edit.name {
        detail.insert("project".into(), json!(name));
    }
    let GroupChanges { requests_per_minute, concurrent_jobs, megapixel_steps_per_day, budget } = edit.limits;
    let mut limits = Map::new();
    audit::insert(&mut limits, "requests_per_minute", requests_per_minute, Value::from);
    audit::insert(&mut limits, "concurrent_jobs", concurrent_jobs, Value::from);
    audit::insert(&mut limits, "megapixel_steps_per_day", megapixel_steps_per_day, Value::from);
    audit::insert(&mut limits, "budget", budget, audit::of_budget);
    if !limits.is_empty() {
        detail.insert("limits".into(), Value::Object(limits));
    }
    Value::Object(detail)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use time::macros::datetime;

    use super::*;
    use crate::auth::record::{KeyEdit, KeyError, NewKey};
    use crate::domain::clock::ManualClock;
    use crate::domain::limits::KeyLimits;
    use crate::domain::scope::Scope;
    use crate::store::Store;

    const BY: Actor = Actor::CommandLine;

    fn service(store: Store) -> KeyService {
        KeyService::new(store, Arc::new(ManualClock::new(datetime!(2030-01-01 12:00 UTC))))
    }

    fn named(name: &str) -> NewProject {
        NewProject { name: name.into(), limits: GroupLimits::default() }
    }

    #[tokio::test]
    async fn projects_are_created_edited_and_deleted_once_their_keys_have_left() {
        let service = service(Store::open_in_memory().await.expect("opens"));
        let limits = GroupLimits {
            concurrent_jobs: Some(2),
            budget: Some(Budget::MegapixelSteps(100)),
            ..GroupLimits::default()
        };
        let shop = service.create_project(NewProject { name: " shop ".into(), limits }, &BY).await.expect("made");
        assert_eq!((shop.name.as_str(), shop.limits, shop.keys), ("shop", limits, 0));
        let again = service.create_project(named("shop"), &BY).await;
        assert!(matches!(again, Err(ProjectError::NameTaken(name)) if name == "shop"));
        assert!(matches!(service.create_project(named(" "), &BY).await, Err(ProjectError::Name)));
        let new = NewKey { name: "k".into(), scope: Scope::Inference, expires_at: None, limits: KeyLimits::default() };
        let nowhere = service.create_in(new.clone(), Some(ProjectId::generate()), &BY).await;
        assert!(matches!(nowhere, Err(KeyError::UnknownProject)));
        let key = service.create_in(new, Some(shop.id), &BY).await.expect("made").record;
        let terms = key.limits.project.expect("a project");
        assert_eq!((terms.id, terms.limits), (shop.id, limits));
        let refused = service.delete_project(shop.id, &BY).await;
        assert!(matches!(refused, Err(ProjectError::InUse { keys: 1 })));

        let changes = GroupChanges {
            concurrent_jobs: Change::Remove,
            budget: Change::Set(Budget::Money("2.5".parse().expect("money"))),
            ..GroupChanges::default()
        };
        let edit = ProjectEdit { name: Some("store".into()), limits: changes };
        let edited = service.edit_project(shop.id, edit, &BY).await.expect("edited");
        assert_eq!((edited.name.as_str(), edited.limits.concurrent_jobs, edited.keys), ("store", None, 1));
        assert_eq!(edited.limits.budget, changes.budget.set());
        let seen = service.get(key.id).await.expect("there").limits.project.expect("a project");
        assert_eq!(seen.limits, edited.limits, "a key has its project's limits of now");

        let leave = KeyEdit { project: Change::Remove, ..KeyEdit::default() };
        assert_eq!(service.edit(key.id, leave, &BY).await.expect("edited").limits.project, None);
        let enter = KeyEdit { project: Change::Set(shop.id), ..KeyEdit::default() };
        service.edit(key.id, enter, &BY).await.expect("edited");
        service.revoke(key.id, &BY).await.expect("revoked");
        service.delete_project(shop.id, &BY).await.expect("only a revoked key belonged to it");
        assert_eq!(service.get(key.id).await.expect("there").limits.project, None);
        assert!(matches!(service.project(shop.id).await, Err(ProjectError::NotFound)));
        assert!(service.projects().await.expect("read").is_empty());
    }

    #[tokio::test]
    async fn changes_of_projects_are_in_the_log() {
        let store = Store::open_in_memory().await.expect("opens");
        let service = service(store.clone());
        let clock = ManualClock::new(datetime!(2030-01-01 12:00 UTC));
        let admin = crate::auth::AdminService::new(store, Arc::new(clock));
        let shop = service.create_project(named("shop"), &BY).await.expect("made");
        service.edit_project(shop.id, ProjectEdit::default(), &BY).await.expect("nothing to do");
        let limits = GroupChanges { requests_per_minute: Change::Set(7), ..GroupChanges::default() };
        service.edit_project(shop.id, ProjectEdit { name: None, limits }, &BY).await.expect("edited");
        service.delete_project(shop.id, &BY).await.expect("deleted");
        let page = admin.audit_page(None, 100).await.expect("read");
        let told: Vec<_> = page.entries.iter().rev().map(|entry| (entry.action, entry.detail.clone())).collect();
        let limits = json!({
            "requests_per_minute": null, "concurrent_jobs": null, "megapixel_steps_per_day": null, "budget": null,
        });
        let expected = [
            (AuditAction::ProjectCreated, json!({ "project": "shop", "project_id": shop.id, "limits": limits })),
            (AuditAction::ProjectEdited, json!({ "project_id": shop.id, "limits": { "requests_per_minute": 7 } })),
            (AuditAction::ProjectDeleted, json!({ "project": "shop", "project_id": shop.id })),
        ];
        assert_eq!(told, expected);
    }
}
