//! The audit log: who changed keys, password and sessions, when and from where. Never holds a secret.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::auth::key::PublicId;
use crate::auth::record::{Change, KeyEdit, LimitChanges, NewKey};
use crate::domain::budget::Budget;
use crate::domain::ids::{KeyId, ProjectId, SessionId};
use crate::domain::limits::{KeyLimits, LoraList};

/// Maximum entries in one page of the log.
pub const AUDIT_PER_PAGE_MAX: u32 = 100;
/// Maximum entries kept for each kind of authorized actor; the oldest go first.
const ENTRIES_MAX: u32 = 100_000;
/// Maximum entries kept for unauthenticated clients.
const STRANGERS_ENTRIES_MAX: u32 = 1_000;

/// Who acted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Actor {
    /// The administrator, signed in.
    Administrator {
        /// The session.
        session: SessionId,
        /// Where the request came from.
        address: IpAddr,
    },
    /// An operator who runs the program on the data folder.
    CommandLine,
    /// The worker itself.
    Worker,
    /// A client that is not authenticated.
    Stranger {
        /// Where the request came from.
        address: IpAddr,
    },
    /// A client with the key that the entry names.
    KeyHolder {
        /// Where the request came from.
        address: IpAddr,
    },
    /// The same, by a job: where its request came from is not kept.
    KeyJob,
}

impl Actor {
    /// Its name in the log.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Administrator { .. } => "administrator",
            Self::CommandLine => "command_line",
            Self::Worker => "worker",
            Self::Stranger { .. } => "stranger",
            Self::KeyHolder { .. } | Self::KeyJob => "key_holder",
        }
    }

    /// Maximum entries kept for this kind of actor.
    pub(super) fn entries_max(&self) -> u32 {
        if matches!(self, Self::Stranger { .. }) { STRANGERS_ENTRIES_MAX } else { ENTRIES_MAX }
    }

    pub(super) fn session(&self) -> Option<SessionId> {
        if let Self::Administrator { session, .. } = self { Some(*session) } else { None }
    }

    pub(super) fn address(&self) -> Option<IpAddr> {
        match self {
            Self::Administrator { address, .. } | Self::Stranger { address } | Self::KeyHolder { address } => {
                Some(*address)
            }
            Self::CommandLine | Self::Worker | Self::KeyJob => None,
        }
    }
}

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuditAction {
    /// A key was created.
    KeyCreated,
    /// A key's name, scope, expiry or limits were changed.
    KeyEdited,
    /// A key got a new value.
    KeyRotated,
    /// A key was revoked.
    KeyRevoked,
    /// The administrator's password was set, which ended all sessions.
    PasswordSet,
    /// The administrator signed in.
    SignedIn,
    /// The administrator signed out.
    SignedOut,
    /// A sign-in was refused for a wrong password.
    SignInRefused,
    /// A namespace of the cluster was added, to be granted to keys.
    NamespaceCreated,
    /// A namespace's id now stands for another namespace of the cluster.
    NamespaceRenamed,
    /// A namespace was removed.
    NamespaceDeleted,
    /// A key got a token for a namespace of the cluster.
    CredentialIssued,
    /// A LoRA was added.
    LoraAdded,
    /// A LoRA was removed.
    LoraRemoved,
    /// A project was created.
    ProjectCreated,
    /// A project's name or limits were changed.
    ProjectEdited,
    /// A project was deleted.
    ProjectDeleted,
    /// A key or a project has used so much of its budget that this is told.
    BudgetReached,
    /// A key's webhook got another URL or other events.
    WebhookEdited,
    /// A key got a webhook secret, or a new one.
    WebhookSecretMade,
    /// The operator's moderation refused a prompt or an image.
    ContentRefused,
    /// The operator's moderation did not answer.
    ModerationFailed,
}

/// A text that is no action.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("unknown action")]
pub struct UnknownAction;

impl AuditAction {
    /// Every action.
    pub const ALL: [Self; 22] = [
        Self::KeyCreated,
        Self::KeyEdited,
        Self::KeyRotated,
        Self::KeyRevoked,
        Self::PasswordSet,
        Self::SignedIn,
        Self::SignedOut,
        Self::SignInRefused,
        Self::NamespaceCreated,
        Self::NamespaceRenamed,
        Self::NamespaceDeleted,
        Self::CredentialIssued,
        Self::LoraAdded,
        Self::LoraRemoved,
        Self::ProjectCreated,
        Self::ProjectEdited,
        Self::ProjectDeleted,
        Self::BudgetReached,
        Self::WebhookEdited,
        Self::WebhookSecretMade,
        Self::ContentRefused,
        Self::ModerationFailed,
    ];

    /// Its name in the log and on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::KeyCreated => "key_created",
            Self::KeyEdited => "key_edited",
            Self::KeyRotated => "key_rotated",
            Self::KeyRevoked => "key_revoked",
            Self::PasswordSet => "password_set",
            Self::SignedIn => "signed_in",
            Self::SignedOut => "signed_out",
            Self::SignInRefused => "sign_in_refused",
            Self::NamespaceCreated => "namespace_created",
            Self::NamespaceRenamed => "namespace_renamed",
            Self::NamespaceDeleted => "namespace_deleted",
            Self::CredentialIssued => "credential_issued",
            Self::LoraAdded => "lora_added",
            Self::LoraRemoved => "lora_removed",
            Self::ProjectCreated => "project_created",
            Self::ProjectEdited => "project_edited",
            Self::ProjectDeleted => "project_deleted",
            Self::BudgetReached => "budget_reached",
            Self::WebhookEdited => "webhook_edited",
            Self::WebhookSecretMade => "webhook_secret_made",
            Self::ContentRefused => "content_refused",
            Self::ModerationFailed => "moderation_failed",
        }
    }
}

impl fmt::Display for AuditAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for AuditAction {
    type Err = UnknownAction;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|action| action.as_str() == text).ok_or(UnknownAction)
    }
}

/// The key that an entry is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AuditedKey {
    /// Its id.
    pub id: KeyId,
    /// Its prefix at that time.
    pub prefix: PublicId,
}

/// An entry to be written.
#[derive(Debug)]
pub(super) struct NewEntry<'a> {
    pub(super) at: OffsetDateTime,
    pub(super) actor: &'a Actor,
    pub(super) action: AuditAction,
    pub(super) key: Option<AuditedKey>,
    pub(super) detail: Value,
}

/// An entry of the log.
#[derive(Debug, Clone, PartialEq)]
pub struct AuditEntry {
    /// Its number; later entries have higher ones.
    pub id: i64,
    /// When it happened.
    pub at: OffsetDateTime,
    /// Who acted: a name of [`Actor::as_str`].
    pub actor: String,
    /// The session that it was done with.
    pub session: Option<String>,
    /// Where the request came from.
    pub address: Option<String>,
    /// What was done.
    pub action: AuditAction,
    /// The key that it is about.
    pub key: Option<AuditedKey>,
    /// Details, such as a key's new name, scope or expiry.
    pub detail: Value,
}

/// A page of entries, the newest first.
#[derive(Debug, Clone, PartialEq)]
pub struct AuditPage {
    /// The entries.
    pub entries: Vec<AuditEntry>,
    /// Where the next page begins, if there is one.
    pub next: Option<i64>,
}

/// Details of a new key.
pub(super) fn of_new(new: &NewKey, project: Option<ProjectId>) -> Value {
    let KeyLimits {
        requests_per_minute,
        concurrent_jobs,
        megapixel_steps_per_day,
        priority,
        loras,
        budget,
        project: _,
    } = &new.limits;
    let mut detail = json!({
        "name": new.name,
        "scope": new.scope.to_json(),
        "expires_at": new.expires_at.map(moment),
        "limits": {
            "requests_per_minute": requests_per_minute,
            "concurrent_jobs": concurrent_jobs,
            "megapixel_steps_per_day": megapixel_steps_per_day,
            "priority": priority.as_str(),
        },
    });
    if let Some(loras) = loras {
        detail["limits"]["loras"] = listed(loras);
    }
    if let Some(budget) = budget {
        detail["limits"]["budget"] = of_budget(*budget);
    }
    if let Some(project) = project {
        detail["project"] = json!(project);
    }
    detail
}

/// A budget, in the form that requests have.
pub(super) fn of_budget(budget: Budget) -> Value {
    match budget {
        Budget::MegapixelSteps(steps) => json!({ "megapixel_steps": steps }),
        Budget::Money(money) => json!({ "money": money.to_string() }),
    }
}

/// Details of an edit: what has changed.
pub(super) fn of_edit(edit: &KeyEdit) -> Value {
    let mut detail = Map::new();
    if let Some(name) = &edit.name {
        detail.insert("name".into(), json!(name));
    }
    if let Some(scope) = &edit.scope {
        detail.insert("scope".into(), scope.to_json());
    }
    insert(&mut detail, "expires_at", edit.expires_at, |expires_at| json!(moment(expires_at)));
    let mut limits = Map::new();
    insert(&mut detail, "project", edit.project, |project| json!(project));
    let LimitChanges { requests_per_minute, concurrent_jobs, megapixel_steps_per_day, priority, loras, budget } =
        &edit.limits;
    insert(&mut limits, "requests_per_minute", *requests_per_minute, Value::from);
    insert(&mut limits, "concurrent_jobs", *concurrent_jobs, Value::from);
    insert(&mut limits, "megapixel_steps_per_day", *megapixel_steps_per_day, Value::from);
    insert(&mut limits, "loras", loras.as_ref(), listed);
    insert(&mut limits, "budget", *budget, of_budget);
    if let Some(priority) = priority {
        limits.insert("priority".into(), json!(priority.as_str()));
    }
    if !limits.is_empty() {
        detail.insert("limits".into(), Value::Object(limits));
    }
    Value::Object(detail)
}

fn listed(loras: &LoraList) -> Value {
    loras.iter().collect::<Vec<_>>().into()
}

pub(super) fn insert<T>(detail: &mut Map<String, Value>, field: &str, change: Change<T>, say: impl FnOnce(T) -> Value) {
    match change {
        Change::Keep => {}
        Change::Remove => drop(detail.insert(field.into(), Value::Null)),
        Change::Set(value) => drop(detail.insert(field.into(), say(value))),
    }
}

/// Details of a rotation.
pub(super) fn of_rotation(new_prefix: PublicId, until: Option<OffsetDateTime>) -> Value {
    json!({ "new_prefix": new_prefix.to_string(), "old_value_until": until.map(moment) })
}

fn moment(moment: OffsetDateTime) -> String {
    // Only years beyond 9999 cannot be formatted.
    moment.format(&Rfc3339).unwrap_or_else(|_| moment.unix_timestamp().to_string())
}
