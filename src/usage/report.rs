//! Rows of usage over days: by key, model, day or project.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use super::{Usage, UsageError};
use crate::domain::ids::KeyId;
use crate::domain::money::Money;
use crate::domain::usage::{Day, DayRange, Work};
use crate::jobs::{WorkGroup, WorkSum};

/// Maximum rows read from one table for a page. A page of keys is made from two tables, so it has up to twice as many. Days are
/// all on one page: there are fewer.
pub const ROWS_PER_PAGE: u32 = 500;

/// The group of jobs without a key: those of the console.
const PLAYGROUND: &str = "playground";
/// The group of work of versions that did not store its model.
const UNKNOWN_MODEL: &str = "unknown";
/// The group of keys without a project.
const NO_PROJECT: &str = "none";

/// What a row is the usage of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupBy {
    /// A key.
    Key,
    /// A model.
    Model,
    /// A UTC day.
    Day,
    /// A project: the one that the key belonged to when a job was accepted.
    Project,
}

/// A text that is no group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("unknown group")]
pub struct UnknownGroup;

impl GroupBy {
    /// Every group.
    pub const ALL: [Self; 4] = [Self::Key, Self::Model, Self::Day, Self::Project];

    /// The word on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Key => "key",
            Self::Model => "model",
            Self::Day => "day",
            Self::Project => "project",
        }
    }
}

impl fmt::Display for GroupBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for GroupBy {
    type Err = UnknownGroup;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|group| group.as_str() == text).ok_or(UnknownGroup)
    }
}

/// The usage of one key, model, day or project.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageRow {
    /// The key's or project's id, the model's id, or the day.
    pub group: String,
    /// The name of the key or project, if it has one.
    pub name: Option<String>,
    /// Accepted requests; `None` where they are not counted: by model and by project.
    pub requests: Option<u64>,
    /// Jobs that ended, with or without an image.
    pub jobs: u64,
    /// Their work.
    pub work: Work,
    /// What it costs, if there are prices.
    pub cost: Option<Money>,
}

/// Some rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsagePage {
    /// The rows, in the order of their groups.
    pub rows: Vec<UsageRow>,
    /// Where the next page begins, if there is one.
    pub next: Option<String>,
}

impl Usage {
    /// A page of rows, from `after` on: the `next` of an earlier page. See [`ROWS_PER_PAGE`].
    ///
    /// # Errors
    /// When the database fails.
    pub async fn page(&self, group: GroupBy, days: DayRange, after: Option<&str>) -> Result<UsagePage, UsageError> {
        match group {
            GroupBy::Key => self.by_key(days, after.and_then(|id| id.parse().ok())).await,
            GroupBy::Day => self.by_day(days).await,
            GroupBy::Model => self.by_word(WorkGroup::Model, days, after).await,
            GroupBy::Project => self.by_word(WorkGroup::Project, days, after).await,
        }
    }

    /// The usage of all keys in the days. Its cost is rounded by itself: it is not the sum of rounded costs.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn total(&self, days: DayRange) -> Result<UsageRow, UsageError> {
        let mut total = WorkSum::default();
        for (_, sum) in self.jobs.usage_buffer().sums(WorkGroup::Day, days, None, days.days()).await? {
            total.include(&sum);
        }
        let requests = self.keys.all_requests_by_day(days).await?.iter().map(|(_, requests)| requests).sum();
        Ok(self.row("total".to_owned(), Some(requests), total))
    }

    fn row(&self, group: String, requests: Option<u64>, WorkSum { jobs, work }: WorkSum) -> UsageRow {
        UsageRow { group, name: None, requests, jobs, work, cost: self.cost(&work) }
    }

    async fn by_day(&self, days: DayRange) -> Result<UsagePage, UsageError> {
        let sums = self.jobs.usage_buffer().sums(WorkGroup::Day, days, None, days.days()).await?;
        let day_of = |word: &str| word.parse::<i32>().ok().map(Day::from_number);
        let mut sums: BTreeMap<Day, WorkSum> =
            sums.into_iter().filter_map(|(word, sum)| Some((day_of(&word)?, sum))).collect();
        let mut requests: BTreeMap<Day, u64> = self.keys.all_requests_by_day(days).await?.into_iter().collect();
        let mut row = |day: Day| {
            let requests = requests.remove(&day).unwrap_or_default();
            self.row(day.to_string(), Some(requests), sums.remove(&day).unwrap_or_default())
        };
        Ok(UsagePage { rows: days.iter().map(&mut row).collect(), next: None })
    }

    /// Keys that have sent requests or have work, in the order of their ids. Both lists are read as far as a page goes; a
    /// list that is full says nothing about ids after its last one, so these are left to the next page.
    async fn by_key(&self, days: DayRange, after: Option<KeyId>) -> Result<UsagePage, UsageError> {
        let after_text = after.map(|id| id.to_string());
        let work = self.jobs.usage_buffer();
        let sums = work.sums(WorkGroup::Key, days, after_text.as_deref(), ROWS_PER_PAGE).await?;
        let requests = self.keys.requests_by_key(days, after, ROWS_PER_PAGE).await?;
        let is_full = |rows: usize| rows >= ROWS_PER_PAGE as usize;
        let sums_end = sums.iter().rev().find_map(|(id, _)| id.parse::<KeyId>().ok()).filter(|_| is_full(sums.len()));
        let requests_end = requests.last().map(|(id, _)| *id).filter(|_| is_full(requests.len()));
        let end = [sums_end, requests_end].into_iter().flatten().min();
        let is_within = |id: &KeyId| end.is_none_or(|end| *id <= end);
        let mut keys: BTreeMap<KeyId, (u64, WorkSum)> = BTreeMap::new();
        for (id, sum) in sums.iter().filter_map(|(id, sum)| Some((id.parse::<KeyId>().ok()?, sum))) {
            if is_within(&id) {
                keys.entry(id).or_default().1.include(sum);
            }
        }
        for (id, count) in requests.into_iter().filter(|(id, _)| is_within(id)) {
            keys.entry(id).or_default().0 += count;
        }
        let ids: Vec<KeyId> = keys.keys().copied().collect();
        let mut names = self.keys.names(&ids).await?;
        let rows = keys.into_iter().map(|(id, (requests, sum))| {
            let group = if id == KeyId::NONE { PLAYGROUND.to_owned() } else { id.to_string() };
            UsageRow { name: names.remove(&id).map(|key| key.name), ..self.row(group, Some(requests), sum) }
        });
        Ok(UsagePage { rows: rows.collect(), next: end.map(|id| id.to_string()) })
    }

    async fn by_word(&self, group: WorkGroup, days: DayRange, after: Option<&str>) -> Result<UsagePage, UsageError> {
        let sums = self.jobs.usage_buffer().sums(group, days, after, ROWS_PER_PAGE).await?;
        let next = sums.last().map(|(word, _)| word.clone()).filter(|_| sums.len() >= ROWS_PER_PAGE as usize);
        let mut names: BTreeMap<String, String> = BTreeMap::new();
        if group == WorkGroup::Project {
            let named = self.keys.projects().await?.into_iter().map(|project| (project.id.to_string(), project.name));
            names.extend(named);
        }
        let rows = sums.into_iter().map(|(word, sum)| {
            let name = names.remove(&word);
            let group = match (word.as_str(), group) {
                ("", WorkGroup::Model) => UNKNOWN_MODEL.to_owned(),
                ("", _) => NO_PROJECT.to_owned(),
                _ => word,
            };
            UsageRow { name, ..self.row(group, None, sum) }
        });
        Ok(UsagePage { rows: rows.collect(), next })
    }
}
