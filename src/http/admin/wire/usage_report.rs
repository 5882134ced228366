//! Reports of usage in responses: as JSON, as CSV for spreadsheets, and as lines of JSON.

use std::fmt::Write as _;

use serde::Serialize;
use utoipa::ToSchema;

use crate::domain::money::Prices;
use crate::domain::usage::{DayRange, Work};
use crate::usage::UsageRow;

const MICROS: u64 = 1_000_000;

/// The usage of one key, model, day or project.
#[derive(Serialize, ToSchema)]
#[schema(as = UsageRow)]
pub(in crate::http) struct UsageRowView {
    /// What it is the usage of: the id of a key or project, `playground` for jobs of the console, `none` for keys without a
    /// project; a model, or `unknown`; a day.
    group: String,
    /// The name of the key or project.
    name: Option<String>,
    /// Accepted requests. They are counted by key and by day only.
    requests: Option<u64>,
    /// Jobs that ended, with or without an image.
    jobs: u64,
    images: u64,
    megapixel_steps: f64,
    engine_seconds: f64,
    /// In the currency of the prices, with six decimals. Only if the server has prices.
    #[serde(skip_serializing_if = "Option::is_none")]
    cost: Option<String>,
}

impl From<UsageRow> for UsageRowView {
    fn from(row: UsageRow) -> Self {
        let UsageRow { group, name, requests, jobs, work, cost } = row;
        Self {
            group,
            name,
            requests,
            jobs,
            images: work.images,
            megapixel_steps: work.megapixel_steps(),
            engine_seconds: work.engine_time.as_secs_f64(),
            cost: cost.map(|cost| cost.to_string()),
        }
    }
}

/// What the server charges.
#[derive(Serialize, ToSchema)]
#[schema(as = Prices)]
pub(in crate::http) struct PricesView {
    per_megapixel_step: String,
    per_engine_second: String,
    currency: String,
}

impl From<&Prices> for PricesView {
    fn from(prices: &Prices) -> Self {
        Self {
            per_megapixel_step: prices.per_megapixel_step.to_string(),
            per_engine_second: prices.per_engine_second.to_string(),
            currency: prices.currency.to_string(),
        }
    }
}

/// Usage from one day to another.
#[derive(Serialize, ToSchema)]
#[schema(as = UsageReport)]
pub(in crate::http) struct UsageReportView {
    /// The first UTC day.
    from: String,
    /// The last UTC day.
    to: String,
    /// `null` if the server has none.
    prices: Option<PricesView>,
    /// The sum of all rows, those of other pages included.
    total: UsageRowView,
    data: Vec<UsageRowView>,
    next_cursor: Option<String>,
}

impl UsageReportView {
    pub(in crate::http) fn new(days: DayRange, prices: Option<&Prices>, total: UsageRow) -> Self {
        Self {
            from: days.from.to_string(),
            to: days.to.to_string(),
            prices: prices.map(PricesView::from),
            total: total.into(),
            data: Vec::new(),
            next_cursor: None,
        }
    }

    pub(in crate::http) fn with_page(self, rows: Vec<UsageRow>, next_cursor: Option<String>) -> Self {
        Self { data: rows.into_iter().map(UsageRowView::from).collect(), next_cursor, ..self }
    }
}

/// A report as CSV (RFC 4180). With prices it has two more columns.
pub(in crate::http) struct Csv {
    currency: Option<String>,
}

impl Csv {
    pub(in crate::http) fn new(prices: Option<&Prices>) -> Self {
        Self { currency: prices.map(|prices| prices.currency.to_string()) }
    }

    /// The first line. `group` names its first column.
    pub(in crate::http) fn head(&self, group: &str) -> String {
        let more = if self.currency.is_some() { ",cost,currency" } else { "" };
        format!("{group},name,requests,jobs,images,megapixel_steps,engine_seconds{more}\r\n")
    }

    /// A line for each row. Numbers are exact.
    pub(in crate::http) fn lines(&self, rows: &[UsageRow]) -> String {
        let mut text = String::new();
        for row in rows {
            let UsageRow { group, name, requests, jobs, work, cost } = row;
            let Work { images, pixel_steps, engine_time } = work;
            let requests = requests.map(|requests| requests.to_string()).unwrap_or_default();
            let micros = u64::try_from(engine_time.as_micros()).unwrap_or(u64::MAX);
            let (group, name) = (cell(group), cell(name.as_deref().unwrap_or_default()));
            let (steps, seconds) = (millionths(*pixel_steps), millionths(micros));
            // Writing to a string cannot fail.
            let _ = write!(text, "{group},{name},{requests},{jobs},{images},{steps},{seconds}");
            if let Some(currency) = &self.currency {
                let _ = write!(text, ",{},{currency}", cost.unwrap_or_default());
            }
            text.push_str("\r\n");
        }
        text
    }
}

/// A number of millionths as an exact decimal number.
fn millionths(number: u64) -> String {
    format!("{}.{:06}", number / MICROS, number % MICROS)
}

/// A text as a cell. One that a spreadsheet would take for a formula begins with an apostrophe.
fn cell(text: &str) -> String {
    let is_formula = text.starts_with(['=', '+', '-', '@', '\t', '\r']);
    let guarded = if is_formula { format!("'{text}") } else { text.to_owned() };
    if guarded.contains([',', '"', '\r', '\n']) { format!("\"{}\"", guarded.replace('"', "\"\"")) } else { guarded }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn cells_are_quoted_and_no_formulas() {
        for (text, written) in [
            ("web shop", "web shop"),
            ("=1+2", "'=1+2"),
            ("+41", "'+41"),
            ("-x", "'-x"),
            ("@SUM(A1)", "'@SUM(A1)"),
            ("a,b", "\"a,b\""),
            ("a \"b\"", "\"a \"\"b\"\"\""),
            ("=HYPERLINK(\"x\",\"y\")", "\"'=HYPERLINK(\"\"x\"\",\"\"y\"\")\""),
            ("", ""),
        ] {
            assert_eq!(cell(text), written);
        }
    }

    #[test]
    fn lines_have_exact_numbers_and_costs_where_there_are_prices() {
        let work =
            Work { images: 2, pixel_steps: 9_007_199_254_740_993, engine_time: Duration::from_micros(1_000_001) };
        let prices = Prices {
            per_megapixel_step: "1".parse().expect("a price"),
            per_engine_second: "0".parse().expect("a price"),
            currency: "EUR".parse().expect("a currency"),
        };
        let cost = Some(prices.cost(&work));
        let row = UsageRow { group: "2030-01-31".into(), name: None, requests: Some(3), jobs: 2, work, cost };
        let rows = [row.clone(), UsageRow { group: "x/y".into(), name: Some("n".into()), requests: None, ..row }];
        let plain = Csv::new(None);
        assert_eq!(plain.head("day"), "day,name,requests,jobs,images,megapixel_steps,engine_seconds\r\n");
        assert_eq!(
            plain.lines(&rows),
            "2030-01-31,,3,2,2,9007199254.740993,1.000001\r\nx/y,n,,2,2,9007199254.740993,1.000001\r\n"
        );
        let priced = Csv::new(Some(&prices));
        assert!(priced.head("day").ends_with("engine_seconds,cost,currency\r\n"));
        assert_eq!(priced.lines(&rows[..1]), "2030-01-31,,3,2,2,9007199254.740993,1.000001,9007199254.740993,EUR\r\n");
    }
}
