//! What a delivery says.

use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Delivery, Render};
use crate::domain::job::JobStatus;
use crate::domain::webhook::WebhookEvent;
use crate::jobs::JobReport;

/// The body about a job, as it was when the event happened, with links that are valid from now on. `None` for the job if it was
/// deleted since: then there is only its id and its state.
pub(super) fn about_job(delivery: &Delivery, report: Option<JobReport>, origin: &str, render: &Render) -> Value {
    let data = match report {
        Some(report) => render(&at_event(report, delivery.event), origin),
        None => json!({
            "job_id": delivery.job,
            "job_type": "image",
            "status": delivery.event.job_status().map(JobStatus::as_str),
        }),
    };
    body(delivery, &data)
}

/// The body of a test.
pub(super) fn of_test(delivery: &Delivery) -> Value {
    body(delivery, &json!({ "key_id": delivery.key.to_string() }))
}

fn body(delivery: &Delivery, data: &Value) -> Value {
    json!({ "type": delivery.event.as_str(), "timestamp": moment(delivery.happened_at), "data": data })
}

/// The job may have ended since it was started; whoever is told of the start must not see the end in it.
fn at_event(mut report: JobReport, event: WebhookEvent) -> JobReport {
    if event == WebhookEvent::Started && report.job.status.is_final() {
        (report.job.status, report.job.finished_at, report.job.error) = (JobStatus::Running, None, None);
        (report.step, report.queue_position, report.eta_seconds) = (0, Some(0), None);
    }
    report
}

fn moment(moment: OffsetDateTime) -> String {
    // Only years beyond 9999 cannot be formatted.
    moment.format(&Rfc3339).unwrap_or_else(|_| moment.unix_timestamp().to_string())
}
