//! The answer with images: as base64, with what they were made of in the words of AUTOMATIC1111's API.

use std::fmt::Write as _;

use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::task::spawn_blocking;
use utoipa::ToSchema;

use super::lists::{SAMPLER, SCHEDULER};
use super::request::Common;
use crate::http::error::{ApiError, ErrorCode};
use crate::jobs::{Image, Job, JobReport};

/// Images.
#[derive(Serialize, ToSchema)]
#[schema(as = SdapiImages)]
pub(super) struct ImagesView {
    /// PNG files in base64.
    images: Vec<String>,
    /// What was asked for, with the defaults filled in.
    #[schema(value_type = Object)]
    parameters: Value,
    /// JSON as text: `seed`, `all_seeds`, `infotexts` and more, and the `job_ids` of this worker.
    info: String,
}

/// The numbers of a request that its jobs do not know.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    batch_size: u32,
    n_iter: u32,
    pub(super) sends_images: bool,
}

impl Asked {
    pub(super) fn of(request: &Common) -> Self {
        let Common { batch_size, n_iter, sends_images, .. } = *request;
        Self { batch_size, n_iter, sends_images }
    }
}

/// The answer with the images of these jobs, which differ only in their seeds.
pub(super) async fn answer(asked: Asked, reports: Vec<JobReport>, images: Vec<Image>) -> Result<Response, ApiError> {
    // Megabytes for each image: not on the async threads.
    let written = spawn_blocking(move || {
        let jobs: Vec<Job> = reports.into_iter().map(|report| report.job).collect();
        let first = jobs.first().expect("at least one image was requested");
        let view = ImagesView {
            images: images.iter().map(|image| STANDARD.encode(&image.bytes)).collect(),
            parameters: parameters(first, asked),
            info: info(first, &jobs, asked).to_string(),
        };
        serde_json::to_vec(&view)
    });
    let internal = |error: &dyn std::fmt::Display| ApiError::new(ErrorCode::Internal).with_cause(error);
    let body = written.await.map_err(|error| internal(&error))?.map_err(|error| internal(&error))?;
    Ok(([(CONTENT_TYPE, "application/json")], body).into_response())
}

/// Strength of true guidance; 1 stands for none.
fn cfg_scale(job: &Job) -> f64 {
    job.request.true_cfg_scale.map_or(1.0, |scale| scale.0)
}

fn parameters(first: &Job, Asked { batch_size, n_iter, sends_images }: Asked) -> Value {
    let request = &first.request;
    json!({
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt.as_deref().unwrap_or_default(),
        "seed": request.seed,
        "steps": request.steps,
        "width": request.width,
        "height": request.height,
        "cfg_scale": cfg_scale(first),
        "distilled_cfg_scale": request.guidance.0,
        "denoising_strength": request.strength.map(|strength| strength.0),
        "sampler_name": SAMPLER,
        "scheduler": SCHEDULER,
        "batch_size": batch_size,
        "n_iter": n_iter,
        "send_images": sends_images,
        "override_settings": { "sd_model_checkpoint": request.model.as_str() },
    })
}

fn info(first: &Job, jobs: &[Job], asked: Asked) -> Value {
    let request = &first.request;
    let negative = request.negative_prompt.as_deref().unwrap_or_default();
    json!({
        "prompt": request.prompt,
        "all_prompts": vec![&request.prompt; jobs.len()],
        "negative_prompt": negative,
        "all_negative_prompts": vec![negative; jobs.len()],
        "seed": request.seed,
        "all_seeds": jobs.iter().map(|job| job.request.seed).collect::<Vec<_>>(),
        "subseed": request.seed,
        "all_subseeds": jobs.iter().map(|job| job.request.seed).collect::<Vec<_>>(),
        "subseed_strength": 0,
        "width": request.width,
        "height": request.height,
        "sampler_name": SAMPLER,
        "cfg_scale": cfg_scale(first),
        "steps": request.steps,
        "batch_size": asked.batch_size,
        "restore_faces": false,
        "sd_model_name": request.model.as_str(),
        "sd_model_hash": null,
        "denoising_strength": request.strength.map(|strength| strength.0),
        "extra_generation_params": {},
        "index_of_first_image": 0,
        "infotexts": jobs.iter().map(infotext).collect::<Vec<_>>(),
        "styles": [],
        "clip_skip": 1,
        "job_ids": jobs.iter().map(|job| job.id.to_string()).collect::<Vec<_>>(),
    })
}

/// What an image was made of, in the lines that A1111's tools write and read.
fn infotext(job: &Job) -> String {
    let request = &job.request;
    let mut text = request.prompt.clone();
    if let Some(negative) = &request.negative_prompt {
        text.push_str("\nNegative prompt: ");
        text.push_str(negative);
    }
    let written = write!(
        text,
        "\nSteps: {}, Sampler: {SAMPLER}, Schedule type: {SCHEDULER}, CFG scale: {}, Distilled CFG Scale: {}, Seed: {}, \
         Size: {}x{}, Model: {}",
        request.steps,
        cfg_scale(job),
        request.guidance.0,
        request.seed,
        request.width,
        request.height,
        request.model,
    );
    written.expect("a text takes any text");
    if let Some(strength) = request.strength {
        text.push_str(", Denoising strength: ");
        text.push_str(&strength.0.to_string());
    }
    text
}
