//! A job in the administrator's responses.

use serde::Serialize;
use utoipa::ToSchema;

use crate::domain::ids::KeyId;
use crate::http::api::jobs::JobView;
use crate::http::origin::Origin;
use crate::jobs::JobReport;

/// A job and its key.
#[derive(Serialize, ToSchema)]
#[schema(as = AnyJob)]
pub(in crate::http) struct AnyJobView {
    #[serde(flatten)]
    job: JobView,
    /// `null` for a job of the console.
    #[schema(value_type = Option<String>)]
    key_id: Option<KeyId>,
}

impl AnyJobView {
    pub(in crate::http) fn new(report: &JobReport, origin: &Origin) -> Self {
        let owner = report.job.owner;
        Self { job: JobView::new(report, origin), key_id: Some(owner).filter(|owner| *owner != KeyId::NONE) }
    }
}

/// One page of jobs.
#[derive(Serialize, ToSchema)]
#[schema(as = AnyJobList)]
pub(in crate::http) struct AnyJobListView {
    pub(in crate::http) data: Vec<AnyJobView>,
    pub(in crate::http) next_cursor: Option<String>,
}
