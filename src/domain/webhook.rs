//! Webhooks: which events there are, what an owner wants to be told of, and which receivers an operator allows.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use crate::domain::budget::BudgetLevel;
use crate::domain::job::JobStatus;
use crate::domain::networks::Networks;

/// Something that a receiver is told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum WebhookEvent {
    /// An engine has started the job.
    Started,
    /// The job has its image.
    Succeeded,
    /// The job failed.
    Failed,
    /// The job was canceled.
    Canceled,
    /// Most of a budget is used.
    BudgetWarning,
    /// A budget is used up.
    BudgetExhausted,
    /// Nothing has happened: the administrator tries the receiver.
    Test,
}

/// A word that is no event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("unknown event")]
pub struct UnknownEvent;

/// A word that is none of the events that may be named at this place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must name {}", listed(.0))]
pub struct OtherEvent(pub &'static [WebhookEvent]);

impl WebhookEvent {
    /// The events of jobs, in their order: what a request may name.
    pub const OF_JOBS: [Self; 4] = [Self::Started, Self::Succeeded, Self::Failed, Self::Canceled];

    /// What a key may name: the events of its jobs, and those of its budget.
    pub const OF_KEYS: [Self; 6] =
        [Self::Started, Self::Succeeded, Self::Failed, Self::Canceled, Self::BudgetWarning, Self::BudgetExhausted];

    /// Its name on the wire and in the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Started => "job.started",
            Self::Succeeded => "job.succeeded",
            Self::Failed => "job.failed",
            Self::Canceled => "job.canceled",
            Self::BudgetWarning => "budget.warning",
            Self::BudgetExhausted => "budget.exhausted",
            Self::Test => "webhook.test",
        }
    }

    /// The event of a job's end; `None` while it has not ended.
    #[must_use]
    pub fn of_end(status: JobStatus) -> Option<Self> {
        match status {
            JobStatus::Queued | JobStatus::Running => None,
            JobStatus::Succeeded => Some(Self::Succeeded),
            JobStatus::Failed => Some(Self::Failed),
            JobStatus::Canceled => Some(Self::Canceled),
        }
    }

    /// The event of a budget of which this share is used.
    #[must_use]
    pub fn of_budget(level: BudgetLevel) -> Self {
        match level {
            BudgetLevel::Warning => Self::BudgetWarning,
            BudgetLevel::Exhausted => Self::BudgetExhausted,
        }
    }

    /// The job's state right after the event; `None` if it is about no job.
    #[must_use]
    pub fn job_status(self) -> Option<JobStatus> {
        match self {
            Self::Started => Some(JobStatus::Running),
            Self::Succeeded => Some(JobStatus::Succeeded),
            Self::Failed => Some(JobStatus::Failed),
            Self::Canceled => Some(JobStatus::Canceled),
            Self::BudgetWarning | Self::BudgetExhausted | Self::Test => None,
        }
    }
}

impl FromStr for WebhookEvent {
    type Err = UnknownEvent;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::OF_KEYS.into_iter().chain([Self::Test]).find(|event| event.as_str() == text).ok_or(UnknownEvent)
    }
}

impl fmt::Display for WebhookEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// As in `a, b or c`.
fn listed(events: &[WebhookEvent]) -> String {
    let names: Vec<&str> = events.iter().map(|event| event.as_str()).collect();
    match names.split_last() {
        Some((last, others)) if !others.is_empty() => format!("{} or {last}", others.join(", ")),
        _ => names.concat(),
    }
}

/// The events that a receiver is told of; possibly none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebhookEvents(BTreeSet<WebhookEvent>);

impl WebhookEvents {
    /// Reads a list of names, in any order, of which each must be among `known`.
    ///
    /// # Errors
    /// When one of them is not.
    pub fn of(names: &[String], known: &'static [WebhookEvent]) -> Result<Self, OtherEvent> {
        let event = |name: &String| known.iter().copied().find(|event| event.as_str() == name).ok_or(OtherEvent(known));
        names.iter().map(event).collect::<Result<_, _>>().map(Self)
    }

    /// Whether `event` is among them.
    #[must_use]
    pub fn has(&self, event: WebhookEvent) -> bool {
        self.0.contains(&event)
    }

    /// Their names.
    pub fn names(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.0.iter().map(|event| event.as_str())
    }

    /// The form to store: names separated by commas.
    #[must_use]
    pub fn to_text(&self) -> String {
        self.names().collect::<Vec<_>>().join(",")
    }

    /// Reads the stored form. What is no event is left out.
    #[must_use]
    pub fn from_text(text: &str) -> Self {
        Self(text.split(',').filter_map(|name| name.parse().ok()).collect())
    }
}

impl Default for WebhookEvents {
    /// A job's ends.
    fn default() -> Self {
        Self([WebhookEvent::Succeeded, WebhookEvent::Failed, WebhookEvent::Canceled].into())
    }
}

/// What a request says of its job's webhook. What is absent is as the key's default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JobWebhook {
    /// Where to deliver to; checked.
    pub url: Option<String>,
    /// What to tell of.
    pub events: Option<WebhookEvents>,
    /// The start of the URLs in what is delivered: this worker as the request reached it. `None`: the configured one.
    pub origin: Option<String>,
}

/// Receivers that an operator allows although they are in a private network: host names and networks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AllowedHosts {
    names: Vec<String>,
    networks: Networks,
}

/// An entry that is neither a host name nor a network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is neither a host name nor a network: write it like hooks.example.org, 10.0.0.0/8 or 10.0.0.7")]
pub struct NotAReceiver(String);

impl AllowedHosts {
    /// Reads a list.
    ///
    /// # Errors
    /// Names the first entry that is neither a name nor a network.
    pub fn of(list: &[String]) -> Result<Self, NotAReceiver> {
        let is_network = |entry: &&String| Networks::of(std::slice::from_ref(*entry)).is_ok();
        let (networks, names): (Vec<&String>, Vec<&String>) = list.iter().partition(is_network);
        if let Some(other) = names.iter().find(|name| !is_name(name)) {
            return Err(NotAReceiver((*other).clone()));
        }
        let networks: Vec<String> = networks.into_iter().cloned().collect();
        let networks = Networks::of(&networks).map_err(|error| NotAReceiver(error.to_string()))?;
        Ok(Self { names: names.into_iter().map(|name| name.to_ascii_lowercase()).collect(), networks })
    }

    /// Whether the list has this host name.
    #[must_use]
    pub fn has_name(&self, name: &str) -> bool {
        let name = name.trim_end_matches('.');
        self.names.iter().any(|known| known.eq_ignore_ascii_case(name))
    }

    /// Whether the list has names alone.
    #[must_use]
    pub fn has_no_networks(&self) -> bool {
        self.networks == Networks::default()
    }

    /// Whether one of the networks contains this address.
    #[must_use]
    pub fn contain(&self, address: IpAddr) -> bool {
        self.networks.contain(address)
    }
}

/// Whether a text is a host name that is not an address in an unusual form.
fn is_name(text: &str) -> bool {
    let is_label = |label: &str| {
        let is_inside = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        !label.is_empty() && label.bytes().all(is_inside)
    };
    let is_number = |label: &str| label.bytes().all(|byte| byte.is_ascii_digit());
    text.split('.').all(is_label) && !text.rsplit('.').next().is_some_and(is_number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_as_they_are_written() {
        for event in WebhookEvent::OF_KEYS.into_iter().chain([WebhookEvent::Test]) {
            assert_eq!(event.as_str().parse(), Ok(event));
        }
        let of = |names: &[&str], known: &'static [WebhookEvent]| {
            WebhookEvents::of(&names.iter().map(ToString::to_string).collect::<Vec<_>>(), known)
        };
        let list = |names: &[&str]| of(names, &WebhookEvent::OF_JOBS);
        let events = list(&["job.failed", "job.started", "job.failed"]).expect("events");
        assert_eq!(events.to_text(), "job.started,job.failed");
        assert_eq!(WebhookEvents::from_text(&events.to_text()), events);
        assert!(events.has(WebhookEvent::Failed) && !events.has(WebhookEvent::Succeeded));
        for bad in ["", "job", "job.done", "webhook.test", "JOB.FAILED", "budget.warning"] {
            assert_eq!(list(&["job.failed", bad]), Err(OtherEvent(&WebhookEvent::OF_JOBS)), "{bad}");
        }
        let refused = list(&["job.done"]).expect_err("no event").to_string();
        assert_eq!(refused, "must name job.started, job.succeeded, job.failed or job.canceled");
        let of_key = of(&["budget.exhausted", "budget.warning", "job.failed"], &WebhookEvent::OF_KEYS);
        let of_key = of_key.expect("events");
        assert_eq!(of_key.to_text(), "job.failed,budget.warning,budget.exhausted");
        assert_eq!(WebhookEvents::from_text(&of_key.to_text()), of_key);
        let none = list(&[]).expect("none");
        assert_eq!((none.to_text().as_str(), WebhookEvents::from_text("")), ("", none.clone()));
        assert_eq!(WebhookEvents::default().to_text(), "job.succeeded,job.failed,job.canceled");
    }

    #[test]
    fn receivers_are_allowed_by_name_or_network() {
        let list = |entries: &[&str]| AllowedHosts::of(&entries.iter().map(ToString::to_string).collect::<Vec<_>>());
        let allowed = list(&["Hooks.internal", "10.1.0.0/16", "::1"]).expect("a list");
        assert!(allowed.has_name("hooks.INTERNAL") && allowed.has_name("hooks.internal."));
        assert!(!allowed.has_name("internal") && !allowed.has_name("a.hooks.internal"));
        assert!(allowed.contain("10.1.2.3".parse().expect("an address")));
        assert!(!allowed.contain("10.2.0.1".parse().expect("an address")));
        for bad in ["", "a b", "a.b:80", "https://a.b", "10.0.0.0/33", "10.0.0", "2130706433", "*.a.b", "a..b"] {
            assert_eq!(list(&["10.0.0.0/8", bad]), Err(NotAReceiver(bad.to_owned())), "{bad}");
        }
    }
}
