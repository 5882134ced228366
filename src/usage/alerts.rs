//! Alerts: once a month for each share of a budget that is told of, also across restarts.
//!
//! A job is charged in one transaction, and budgets are compared after it. What a crash leaves uncompared is compared at the
//! next start. The table says what was told already.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use time::OffsetDateTime;

use super::budgets::BudgetStanding;
use super::{Usage, UsageError};
use crate::auth::{AuditedKey, KeyError, ProjectError};
use crate::domain::budget::{Budget, BudgetHolder, BudgetLevel};
use crate::domain::ids::KeyId;
use crate::domain::month::Month;
use crate::telemetry::metrics;

/// Longest wait before a budget is compared again that could not be.
const RETRY_DELAY: Duration = Duration::from_secs(5);

/// That a share of a budget was reached.
#[derive(Debug, Clone, PartialEq)]
pub struct BudgetAlert {
    /// Its number; later alerts have higher ones.
    pub id: i64,
    /// Whose budget it is.
    pub holder: BudgetHolder,
    /// The month.
    pub month: Month,
    /// The share.
    pub level: BudgetLevel,
    /// When it was noticed.
    pub at: OffsetDateTime,
    /// What is told: `name`, `budget`, `used` and `month`.
    pub detail: Value,
}

/// A holder of a budget, with what an alert says of it.
struct Held {
    name: String,
    /// For the audit log, if it is a key.
    key: Option<AuditedKey>,
    budget: Budget,
}

impl Usage {
    /// Alerts after the one with the number `after`, the oldest first: at most `limit`. Whoever delivers them remembers the
    /// last number: an alert is stored in one transaction with its entry in the audit log, so none is missed.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn alerts_after(&self, after: i64, limit: u32) -> Result<Vec<BudgetAlert>, UsageError> {
        self.alerts.after(after, limit).await
    }

    /// Compares budgets with what was used, forever: all of them at first, then those that are charged. One that cannot be
    /// compared is tried again, and holds up no other.
    pub async fn watch_budgets(&self) {
        let mut waiting = loop {
            match self.budget_holders().await {
                Ok(holders) => break holders,
                Err(error) => tracing::warn!(?error, "the holders of budgets cannot be read; retrying"),
            }
            tokio::time::sleep(RETRY_DELAY).await;
        };
        loop {
            let mut failed = BTreeMap::new();
            for (holder, was_refused) in waiting {
                if let Err(error) = self.check(holder, was_refused).await {
                    tracing::warn!(?error, "a budget cannot be compared with what was used; it is tried again");
                    failed.insert(holder, was_refused);
                }
            }
            waiting = failed;
            let charged = if waiting.is_empty() {
                self.jobs.charged().await
            } else {
                tokio::time::timeout(RETRY_DELAY, self.jobs.charged()).await.unwrap_or_default()
            };
            for (holder, was_refused) in charged {
                *waiting.entry(holder).or_default() |= was_refused;
            }
        }
    }

    /// All holders of budgets, in the form of [`JobService::charged`](crate::jobs::JobService::charged).
    async fn budget_holders(&self) -> Result<BTreeMap<BudgetHolder, bool>, UsageError> {
        let mut holders = BTreeMap::new();
        for project in self.keys.projects().await? {
            if project.limits.budget.is_some() {
                holders.insert(BudgetHolder::Project(project.id), false);
            }
        }
        let mut after: Option<KeyId> = None;
        loop {
            let keys = self.keys.with_budgets(after).await?;
            let Some(last) = keys.last() else { return Ok(holders) };
            after = Some(last.id);
            holders.extend(keys.iter().map(|key| (BudgetHolder::Key(key.id), false)));
        }
    }

    /// Compares a budget, and raises the alerts that are due. A job may be refused before all is used: a budget of which most
    /// is used counts as used up then.
    async fn check(&self, holder: BudgetHolder, was_refused: bool) -> Result<(), UsageError> {
        let Some(held) = self.held(holder).await? else { return Ok(()) };
        let standing = self.standing(holder, held.budget).await?;
        let Some(used) = standing.used else { return Ok(()) };
        let is_over = was_refused && used.has_reached(BudgetLevel::Warning);
        for level in BudgetLevel::ALL {
            if is_over || used.has_reached(level) {
                self.raise((holder, &held), level, &standing).await?;
            }
        }
        Ok(())
    }

    async fn held(&self, holder: BudgetHolder) -> Result<Option<Held>, UsageError> {
        let (name, key, budget) = match holder {
            BudgetHolder::Key(id) => match self.keys.get(id).await {
                Ok(key) => (key.name, Some(AuditedKey { id, prefix: key.prefix }), key.limits.budget),
                Err(KeyError::NotFound(_)) => return Ok(None),
                Err(error) => return Err(error.into()),
            },
            BudgetHolder::Project(id) => match self.keys.project(id).await {
                Ok(project) => (project.name, None, project.limits.budget),
                Err(ProjectError::NotFound) => return Ok(None),
                Err(error) => return Err(error.into()),
            },
        };
        Ok(budget.map(|budget| Held { name, key, budget }))
    }

    /// Stores an alert with its entry in the audit log, unless it was told already; then logs and counts it.
    async fn raise(
        &self,
        (holder, held): (BudgetHolder, &Held),
        level: BudgetLevel,
        standing: &BudgetStanding,
    ) -> Result<(), UsageError> {
        let mut detail = json!({
            "holder": holder.kind(),
            "id": holder.id_text(),
            "name": held.name,
            "percent": level.percent(),
            "month": standing.month.to_string(),
            "budget": of_budget(held.budget),
            "used": { "megapixel_steps": standing.work.megapixel_steps() },
        });
        if let Some(cost) = self.cost(&standing.work) {
            detail["used"]["money"] = json!(cost.to_string());
        }
        let alert = BudgetAlert { id: 0, holder, month: standing.month, level, at: self.keys.now(), detail };
        if self.alerts.insert(&alert, held.key).await? {
            let (kind, id, percent) = (holder.kind(), holder.id_text(), level.percent());
            tracing::warn!(holder = kind, id, percent, month = %standing.month, "a share of a budget is used");
            metrics::budget_reached(level.as_str());
        }
        Ok(())
    }
}

/// A budget in the form that requests have.
fn of_budget(budget: Budget) -> Value {
    match budget {
        Budget::MegapixelSteps(steps) => json!({ "megapixel_steps": steps }),
        Budget::Money(money) => json!({ "money": money.to_string() }),
    }
}
