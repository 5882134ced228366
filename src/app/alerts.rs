//! Hands the alerts of budgets to webhooks: neither module knows the other.

use std::time::Duration;

use anyhow::Context as _;

use crate::domain::budget::BudgetHolder;
use crate::domain::webhook::WebhookEvent;
use crate::hooks::{Alert, Webhooks};
use crate::store::Store;
use crate::usage::{BudgetAlert, Usage};

/// Time between checks. One costs next to nothing while the database is not written to.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);
/// How many alerts are read at once.
const ALERTS_AT_ONCE: u32 = 100;

/// Hands over alerts forever, each once, also across restarts. It looks into the table: so it finds what an earlier process has
/// left.
pub async fn tell_of_alerts(store: Store, usage: Usage, webhooks: Webhooks) {
    let mut seen = None;
    loop {
        let mark = store.change_mark();
        if mark.is_none() || mark != seen {
            match hand_over(&usage, &webhooks).await {
                // What has been written since is seen the next time.
                Ok(()) => seen = mark,
                Err(error) => tracing::warn!("alerts cannot be handed to webhooks now: {error:#}"),
            }
        }
        tokio::time::sleep(CHECK_INTERVAL).await;
    }
}

/// Hands over what was raised since the last time.
async fn hand_over(usage: &Usage, webhooks: &Webhooks) -> anyhow::Result<()> {
    loop {
        let last = webhooks.last_alert().await.context("reading which was the last")?;
        let alerts = usage.alerts_after(last, ALERTS_AT_ONCE).await.context("reading alerts")?;
        if alerts.is_empty() {
            return Ok(());
        }
        for alert in alerts {
            webhooks.add_alert(&alert_of(alert)).await.context("writing deliveries")?;
        }
    }
}

/// An alert of a budget as webhooks take it.
fn alert_of(alert: BudgetAlert) -> Alert {
    let BudgetAlert { id, holder, month, level, at, detail } = alert;
    let key = match holder {
        BudgetHolder::Key(key) => Some(key),
        // A project's is the operator's business, not that of those who hold its keys.
        BudgetHolder::Project(_) => None,
    };
    let subject = format!("{}/{}/{month}", holder.kind(), holder.id_text());
    Alert { number: id, key, event: WebhookEvent::of_budget(level), subject, at, data: detail }
}
