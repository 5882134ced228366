//! What a crash left behind: jobs that were accepted and have not ended are drawn again, or end with a reason.

use std::sync::Arc;

use super::input_images;
use super::service::{Inner, JobToRun};
use super::store::{Ending, JobEnd, OpenJob, UnreadableJob};
use super::{Job, JobError, JobsError};
use crate::domain::engine::RgbImage;
use crate::domain::spec::GenerateSpec;
use crate::queue::Reservation;

/// Times the engine may begin a job in lives of the process that did not end cleanly. A job that takes the process
/// down each time must not do so for ever. From the second time on it is drawn alone, so that those that were only there
/// when it happened are not counted again.
const ATTEMPTS_MAX: i64 = 3;

/// Why a job is not drawn again.
struct Hopeless {
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
        match reservation_for(inner, &open).await? {
            Ok((reservation, spec)) => {
                let allowance = inner.allowances.enter_again(open.job.owner, &spec);
                let is_suspect = open.attempts > 0;
                inner.hand_over(&open.job, JobToRun { spec, reservation, allowance, is_suspect });
                resumed += 1;
            }
            Err(hopeless) => give_up(inner, &open.job.id.to_string(), &hopeless).await?,
        }
    }
    Ok(resumed)
}

const UNREADABLE: Hopeless =
    Hopeless { code: "job_unreadable", reason: "the worker can no longer read what was asked for" };

async fn give_up(inner: &Inner, row_id: &str, Hopeless { code, reason }: &Hopeless) -> Result<(), JobsError> {
    tracing::warn!(row_id, code, "an unfinished job is given up");
    let ending = Ending::Failed(JobError { code: (*code).into(), reason: (*reason).into() });
    let end = JobEnd { ending, at: inner.clock.now(), began_at: None, drawn: None };
    inner.store.set_final(row_id, &end).await
}

async fn reservation_for(
    inner: &Inner,
    open: &OpenJob,
) -> Result<Result<(Reservation, GenerateSpec), Hopeless>, JobsError> {
    let Job { id, request, .. } = &open.job;
    let kept = if request.input_images > 0 { inner.store.input_image(*id).await? } else { None };
    let input_image = match kept {
        Some(kept) => input_images::from_kept(kept).await,
        None => None,
    };
    if request.input_images > 0 && input_image.is_none() {
        let reason = "the worker can no longer read the input image";
        return Ok(Err(Hopeless { reason, ..UNREADABLE }));
    }
    Ok(place_with(inner, open, Vec::from_iter(input_image)))
}

fn place_with(
    inner: &Inner,
    open: &OpenJob,
    input_images: Vec<Arc<RgbImage>>,
) -> Result<(Reservation, GenerateSpec), Hopeless> {
    if open.attempts >= ATTEMPTS_MAX {
        let reason = "the worker went down each time it drew this image";
        return Err(Hopeless { code: "worker_crashed", reason });
    }
    let Job { request, .. } = &open.job;
    let not_served = Hopeless { code: "model_not_served", reason: "the worker no longer serves this model" };
    let (Some(queue), Some(card)) = (inner.queues.get(&request.model), inner.catalog.card(&request.model)) else {
        return Err(not_served);
    };
    let spec = request.to_spec(card, input_images).map_err(|_| Hopeless {
        code: "request_outdated",
        reason: "the model's limits have changed since the job was accepted",
    })?;
    let reservation = queue.reserve_again(open.job.owner).map_err(|_| Hopeless {
        code: "queue_full",
        reason: "the worker came back with a smaller queue, which has no reservation for this job",
    })?;
    Ok((reservation, spec))
}
