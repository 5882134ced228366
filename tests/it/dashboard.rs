//! The dashboard in `deploy/grafana` queries existing metrics and labels, and omits none. It is read as by Grafana; of
//! PromQL only the names are parsed.

use std::collections::BTreeSet;

use fluxserve::telemetry::metrics::{Kind, METRICS, Metric};
use serde_json::Value;

const DASHBOARD: &str = include_str!("../../deploy/grafana/fluxserve.json");
/// Suffixes of a histogram's series.
const SUFFIXES: [&str; 3] = ["_bucket", "_sum", "_count"];

fn dashboard() -> Value {
    serde_json::from_str(DASHBOARD).expect("JSON")
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn panels(dashboard: &Value) -> impl Iterator<Item = &Value> {
    list(dashboard, "/panels").iter().filter(|panel| panel["type"] != "row")
}

/// Names in a query: letters, digits and underscores, outside quotes.
fn words(expression: &str) -> impl Iterator<Item = &str> {
    let unquoted = expression.split('"').step_by(2);
    unquoted.flat_map(|part| part.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_'))
}

/// The metric of a series.
fn metric_of(series: &str) -> Option<Metric> {
    METRICS.into_iter().find(|metric| match metric.kind {
        Kind::Histogram => SUFFIXES.iter().any(|suffix| series.strip_suffix(suffix) == Some(metric.name)),
        Kind::Counter | Kind::Gauge => series == metric.name,
    })
}

/// The labels in selectors, `{…}`, and in aggregations, `by (…)`.
fn labels(expression: &str) -> BTreeSet<&str> {
    let mut found = BTreeSet::new();
    for (opening, closing) in [("{", '}'), (" by (", ')')] {
        for rest in expression.split(opening).skip(1) {
            let (inside, _) = rest.split_once(closing).expect("closed");
            found.extend(words(inside).filter(|word| !word.is_empty()));
        }
    }
    found
}

/// The errors of a query, and its metrics.
fn check_query(expression: &str, legend: &str) -> (Vec<String>, BTreeSet<&'static str>) {
    let (mut faults, mut asked) = (Vec::new(), BTreeSet::new());
    for series in words(expression).filter(|word| word.starts_with("fluxserve_")) {
        let Some(metric) = metric_of(series) else {
            faults.push(format!("there is no `{series}`"));
            continue;
        };
        asked.insert(metric.name);
        let in_legend = legend.split("{{").skip(1).filter_map(|rest| rest.split_once("}}")).map(|(label, _)| label);
        for label in labels(expression).into_iter().chain(in_legend) {
            let is_bucket = label == "le" && series.ends_with("_bucket");
            if !is_bucket && !metric.labels.contains(&label) {
                faults.push(format!("`{series}` has no label `{label}`"));
            }
        }
    }
    (faults, asked)
}

#[test]
fn the_dashboard_queries_every_metric_and_no_unknown_ones() {
    let dashboard = dashboard();
    let mut asked = BTreeSet::new();
    for panel in panels(&dashboard) {
        let targets = list(panel, "/targets");
        assert!(!targets.is_empty(), "{}", panel["title"]);
        for target in targets {
            let (faults, metrics) = check_query(text(target, "/expr"), text(target, "/legendFormat"));
            assert!(faults.is_empty() && !metrics.is_empty(), "{}: {faults:?}", panel["title"]);
            asked.extend(metrics);
        }
    }
    assert_eq!(asked, METRICS.iter().map(|metric| metric.name).collect(), "every metric is in a panel");
}

#[test]
fn every_panel_has_a_description_a_unit_and_the_chosen_source() {
    let dashboard = dashboard();
    let variables: Vec<&str> =
        list(&dashboard, "/templating/list").iter().map(|variable| text(variable, "/name")).collect();
    assert_eq!(variables, ["datasource", "model"]);
    let (faults, _) = check_query(text(&dashboard, "/templating/list/1/definition"), "{{model}}");
    assert!(faults.is_empty(), "{faults:?}");
    let (mut ids, mut titles) = (BTreeSet::new(), BTreeSet::new());
    for panel in panels(&dashboard) {
        let title = text(panel, "/title");
        assert!(titles.insert(title) && !title.is_empty(), "{title}");
        assert!(ids.insert(panel["id"].as_u64()), "{title}: its id is taken");
        assert!(text(panel, "/description").ends_with('.'), "{title}: a sentence says what it shows");
        assert!(!text(panel, "/fieldConfig/defaults/unit").is_empty(), "{title}: no unit");
        for asking in [panel].into_iter().chain(list(panel, "/targets")) {
            assert_eq!(text(asking, "/datasource/uid"), "${datasource}", "{title}");
        }
    }
}

#[test]
fn a_query_without_an_answer_is_found() {
    let faults = |expression: &str, legend: &str| check_query(expression, legend).0;
    assert_eq!(faults("rate(fluxserve_jobs[1m])", ""), ["there is no `fluxserve_jobs`"]);
    assert_eq!(faults("fluxserve_step_tokens", ""), ["there is no `fluxserve_step_tokens`"]);
    assert_eq!(faults("fluxserve_jobs_total_bucket", ""), ["there is no `fluxserve_jobs_total_bucket`"]);
    let unlabelled = ["`fluxserve_jobs_total` has no label `model`"];
    assert_eq!(faults("fluxserve_jobs_total{model=~\"$model\"}", ""), unlabelled);
    assert_eq!(faults("sum by (model) (rate(fluxserve_jobs_total[1m]))", ""), unlabelled);
    assert_eq!(faults("sum(rate(fluxserve_jobs_total[1m]))", "{{model}}"), unlabelled);
    assert_eq!(faults("sum by (le) (fluxserve_jobs_total)", ""), ["`fluxserve_jobs_total` has no label `le`"]);
    assert!(faults("sum by (le, model) (rate(fluxserve_step_tokens_bucket{model=\"x\"}[1m]))", "{{model}}").is_empty());
}
