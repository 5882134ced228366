//! Recovery after a crash: unfinished jobs are generated again, fail with a reason, or are canceled where that was asked for.

use std::sync::Arc;

use super::input_images;
use super::launch::JobToRun;
use super::state::Inner;
use super::store::{Ending, JobEnd, OpenJob, UnreadableJob};
use super::{Job, JobError, JobsError, LoraText, RequestedLora};
use crate::domain::image::RgbImage;
use crate::domain::spec::GenerateSpec;
use crate::domain::usage::Work;
use crate::queue::Reservation;

/// How often a job may be started in processes that crash. A job that crashes the process each time must not do so
/// forever. From the second attempt on it runs unbatched, so that jobs that only shared a step with it are not counted
/// again.
const ATTEMPTS_MAX: i64 = 3;

/// Why a job is not retried.
struct GivenUp {
    code: &'static str,
    reason: &'static str,
}

/// Puts every unfinished job back into its queue, oldest first; returns how many.
pub(super) async fn recover(inner: &Arc<Inner>) -> Result<usize, JobsError> {
    let mut resumed = 0;
    inner.store.set_all_queued().await?;
    for row in inner.store.open_jobs().await? {
        let open = match row {
            Ok(open) => open,
            Err(UnreadableJob { row_id, error }) => {
                tracing::error!(row_id, ?error, "the row of an unfinished job cannot be read");
                give_up(inner, &row_id, &UNREADABLE).await?;
                continue;
            }
        };
        if open.is_canceled {
            end(inner, &open.job.id.to_string(), Ending::Canceled).await?;
            continue;
        }
        match reservation_for(inner, &open).await? {
            Ok((reservation, spec)) => {
                let allowance = inner.allowances.enter_again((open.job.owner, open.project), &spec);
                let is_suspect = open.attempts > 0;
                inner.hand_over(&open.job, JobToRun { spec, reservation, allowance, is_suspect });
                resumed += 1;
            }
            Err(given_up) => give_up(inner, &open.job.id.to_string(), &given_up).await?,
        }
    }
    Ok(resumed)
}

const UNREADABLE: GivenUp =
    GivenUp { code: "job_unreadable", reason: "the worker can no longer read what was asked for" };

async fn give_up(inner: &Inner, row_id: &str, GivenUp { code, reason }: &GivenUp) -> Result<(), JobsError> {
    tracing::warn!(row_id, code, "an unfinished job is failed");
    end(inner, row_id, Ending::Failed(JobError { code: (*code).into(), reason: (*reason).into() })).await
}

async fn end(inner: &Inner, row_id: &str, ending: Ending) -> Result<(), JobsError> {
    let end = JobEnd { ending, at: inner.clock.now(), started_at: None, work: Work::default() };
    inner.store.set_final(row_id, &end).await
}

async fn reservation_for(
    inner: &Inner,
    open: &OpenJob,
) -> Result<Result<(Reservation, GenerateSpec), GivenUp>, JobsError> {
    let Job { id, request, .. } = &open.job;
    let mut images = Vec::new();
    if request.images_count() > 0 {
        let kept = inner.store.input_images(*id).await?;
        images = input_images::decode_stored(kept).await.unwrap_or_default();
        if images.len() != request.images_count() {
            let reason = "the worker can no longer read the images of the request";
            return Ok(Err(GivenUp { reason, ..UNREADABLE }));
        }
    }
    for RequestedLora { id: LoraText(id), .. } in &request.loras {
        // The table of LoRAs keeps the row, but nothing keeps the file of a copied data folder.
        if !tokio::fs::try_exists(id.file_in(&inner.settings.loras_directory)).await? {
            let reason = "the worker no longer has the file of a LoRA that the job uses";
            return Ok(Err(GivenUp { code: "lora_missing", reason }));
        }
    }
    Ok(reservation_with(inner, open, images))
}

fn reservation_with(
    inner: &Inner,
    open: &OpenJob,
    images: Vec<Arc<RgbImage>>,
) -> Result<(Reservation, GenerateSpec), GivenUp> {
    if open.attempts >= ATTEMPTS_MAX {
        let reason = "the worker crashed each time it generated this image";
        return Err(GivenUp { code: "worker_crashed", reason });
    }
    let Job { request, .. } = &open.job;
    let not_served = GivenUp { code: "model_not_served", reason: "the worker no longer serves this model" };
    let (Some(queue), Some(card)) = (inner.queues.get(&request.model), inner.catalog.card(&request.model)) else {
        return Err(not_served);
    };
    let spec = request.to_spec(card, images, &inner.settings.loras_directory).map_err(|_| GivenUp {
        code: "request_outdated",
        reason: "the model's limits have changed since the job was accepted",
    })?;
    let reservation = queue.reserve_again(open.job.owner).map_err(|_| GivenUp {
        code: "queue_full",
        reason: "the worker restarted with a smaller queue, which has no room for this job",
    })?;
    Ok((reservation, spec))
}
