//! Images of finished jobs, and previews of running ones.

use std::sync::Arc;

use super::links::ResultLink;
use super::state::Inner;
use super::{Image, Job, JobService, JobsError, Visibility};
use crate::domain::format::OutputFormat;
use crate::domain::ids::{JobId, KeyId};
use crate::domain::image::RgbImage;
use crate::domain::job::JobStatus;
use crate::encode::encode;

impl JobService {
    /// The image of a visible job.
    ///
    /// # Errors
    /// When there is no such job, or no image of it.
    pub async fn image(&self, visibility: impl Into<Visibility>, id: JobId) -> Result<Image, JobsError> {
        let job = self.0.within(visibility.into(), id).await?;
        self.0.read_image(job).await
    }

    /// A preview of a visible, running job: small and rough, PNG. The first call only requests one. Where images are reviewed
    /// before they are stored, only who sees all jobs sees previews.
    ///
    /// # Errors
    /// When there is no such job, or [`JobsError::NoPreview`].
    pub async fn preview(&self, visibility: impl Into<Visibility>, id: JobId) -> Result<Image, JobsError> {
        let visibility = visibility.into();
        self.0.within(visibility, id).await?;
        if self.0.hides_previews(visibility) {
            return Err(JobsError::NoPreview);
        }
        let previews = self.0.live().get(&id).map(|live| live.previews.clone());
        let preview = previews.and_then(|previews| previews.look()).ok_or(JobsError::NoPreview)?;
        encoded(preview, OutputFormat::Png).await
    }

    /// The owner of a link's image. The link is valid only while the owner's key is, which the caller has to check.
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
pub(super) async fn encoded(preview: Arc<RgbImage>, format: OutputFormat) -> Result<Image, JobsError> {
    let encoded = tokio::task::spawn_blocking(move || encode(&preview, format)).await;
    let bytes = encoded.map_err(JobsError::storage)?.map_err(JobsError::storage)?;
    Ok(Image { bytes, format })
}

impl Inner {
    async fn read_image(&self, job: Job) -> Result<Image, JobsError> {
        if job.status != JobStatus::Succeeded {
            return Err(JobsError::NoImage(job.status));
        }
        match tokio::fs::read(self.files.path(job.id, job.output_format)).await {
            Ok(bytes) => Ok(Image { bytes, format: job.output_format }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(JobsError::ImageGone),
            Err(error) => Err(error.into()),
        }
    }
}
