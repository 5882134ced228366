//! The pictures of jobs: those that are done, and what can be seen of those that are not.

use std::sync::Arc;

use super::links::ResultLink;
use super::service::Inner;
use super::{Job, JobService, JobsError, Picture, Reach};
use crate::domain::engine::RgbImage;
use crate::domain::format::OutputFormat;
use crate::domain::ids::{JobId, KeyId};
use crate::domain::job::JobStatus;
use crate::encode::encode;

impl JobService {
    /// The picture of one of the jobs within reach.
    ///
    /// # Errors
    /// When there is no such job, or no picture of it.
    pub async fn picture(&self, reach: impl Into<Reach>, id: JobId) -> Result<Picture, JobsError> {
        let job = self.0.within(reach.into(), id).await?;
        self.0.read_picture(job).await
    }

    /// What one of the jobs within reach looks like while it is being drawn: small and rough, PNG. The first call only says
    /// that somebody looks.
    ///
    /// # Errors
    /// When there is no such job, or [`JobsError::NoPreview`].
    pub async fn preview(&self, reach: impl Into<Reach>, id: JobId) -> Result<Picture, JobsError> {
        self.0.within(reach.into(), id).await?;
        let previews = self.0.live().get(&id).map(|live| live.previews.clone());
        let preview = previews.and_then(|previews| previews.look()).ok_or(JobsError::NoPreview)?;
        encoded(preview, OutputFormat::Png).await
    }

    /// Whose picture a link leads to. It is good for as long as that key is, which whoever asks has to see to.
    ///
    /// # Errors
    /// [`JobsError::LinkRefused`], or as [`JobService::get`].
    pub async fn owner_by_link(&self, id: JobId, link: &ResultLink) -> Result<KeyId, JobsError> {
        if !self.0.signer.accepts(id, link, self.0.clock.now()) {
            return Err(JobsError::LinkRefused);
        }
        Ok(self.0.store.get(id).await?.owner)
    }
}

/// Encodes a preview off the async threads.
pub(super) async fn encoded(preview: Arc<RgbImage>, format: OutputFormat) -> Result<Picture, JobsError> {
    let encoded = tokio::task::spawn_blocking(move || encode(&preview, format)).await;
    let bytes = encoded.map_err(JobsError::storage)?.map_err(JobsError::storage)?;
    Ok(Picture { bytes, format })
}

impl Inner {
    async fn read_picture(&self, job: Job) -> Result<Picture, JobsError> {
        if job.status != JobStatus::Succeeded {
            return Err(JobsError::NoPicture(job.status));
        }
        match tokio::fs::read(self.files.path(job.id, job.output_format)).await {
            Ok(bytes) => Ok(Picture { bytes, format: job.output_format }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(JobsError::PictureGone),
            Err(error) => Err(error.into()),
        }
    }
}
