//! What there is to choose from, as clients of AUTOMATIC1111's API ask for it: models and LoRAs; one sampler, one schedule, no
//! upscalers, and no other autoencoders.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::http::error::{ApiError, ErrorCode};
use crate::http::extract::caller::InferenceCaller;
use crate::http::openapi::{Operation, Tag};
use crate::http::state::HttpState;

/// The only sampler: the steps of FLUX's flow are Euler's.
pub(super) const SAMPLER: &str = "Euler";
/// The only schedule.
pub(super) const SCHEDULER: &str = "Simple";

/// A model that this worker serves.
#[derive(Serialize, ToSchema)]
#[schema(as = SdapiModel)]
pub(in crate::http) struct ModelView {
    /// The model's id, by which requests name it.
    title: String,
    /// The same.
    model_name: String,
    hash: Option<String>,
    sha256: Option<String>,
    /// The same: paths are not shown.
    filename: String,
    config: Option<String>,
}

/// A sampler.
#[derive(Serialize, ToSchema)]
#[schema(as = SdapiSampler)]
pub(in crate::http) struct SamplerView {
    name: &'static str,
    aliases: Vec<&'static str>,
    #[schema(value_type = Object)]
    options: Value,
}

/// A schedule of noise.
#[derive(Serialize, ToSchema)]
#[schema(as = SdapiScheduler)]
pub(in crate::http) struct SchedulerView {
    name: &'static str,
    label: &'static str,
    aliases: Vec<&'static str>,
    default_rho: f64,
    need_inner_model: bool,
}

/// An upscaler: only the one that does nothing.
#[derive(Serialize, ToSchema)]
#[schema(as = SdapiUpscaler)]
pub(in crate::http) struct UpscalerView {
    name: &'static str,
    model_name: Option<String>,
    model_path: Option<String>,
    model_url: Option<String>,
    scale: u32,
}

/// A LoRA that the key may use.
#[derive(Serialize, ToSchema)]
#[schema(as = SdapiLora)]
pub(in crate::http) struct LoraView {
    /// The name that prompts use, `<lora:NAME:0.8>`, where the operator allows that.
    name: String,
    /// The same.
    alias: String,
    /// Always empty: paths are not shown.
    path: String,
    #[schema(value_type = Object)]
    metadata: Value,
}

fn operation(id: &'static str, summary: &'static str) -> Operation {
    Operation::new(Tag::Sdapi, id, summary).refuses([ErrorCode::NotFound])
}

pub(in crate::http) async fn models(State(state): State<HttpState>, _: InferenceCaller) -> Json<Vec<ModelView>> {
    let view = |id: &str| ModelView {
        title: id.to_owned(),
        model_name: id.to_owned(),
        hash: None,
        sha256: None,
        filename: id.to_owned(),
        config: None,
    };
    Json(state.catalog.served().iter().map(|(card, _)| view(card.id.as_str())).collect())
}

pub(in crate::http) fn models_operation() -> Operation {
    operation("list_sdapi_models", "The models that this worker serves")
        .answers_list::<ModelView>(StatusCode::OK, "The models, by id.")
}

pub(in crate::http) async fn samplers(_: InferenceCaller) -> Json<Vec<SamplerView>> {
    Json(vec![SamplerView { name: SAMPLER, aliases: vec!["euler"], options: json!({}) }])
}

pub(in crate::http) fn samplers_operation() -> Operation {
    operation("list_sdapi_samplers", "The samplers: one")
        .answers_list::<SamplerView>(StatusCode::OK, "The only one. Requests may name any; it has no effect.")
}

pub(in crate::http) async fn schedulers(_: InferenceCaller) -> Json<Vec<SchedulerView>> {
    let only = SchedulerView {
        name: "simple",
        label: SCHEDULER,
        aliases: Vec::new(),
        default_rho: -1.0,
        need_inner_model: false,
    };
    Json(vec![only])
}

pub(in crate::http) fn schedulers_operation() -> Operation {
    operation("list_sdapi_schedulers", "The schedules of noise: one")
        .answers_list::<SchedulerView>(StatusCode::OK, "The only one. Requests may name any; it has no effect.")
}

pub(in crate::http) async fn upscalers(_: InferenceCaller) -> Json<Vec<UpscalerView>> {
    let none = UpscalerView { name: "None", model_name: None, model_path: None, model_url: None, scale: 1 };
    Json(vec![none])
}

pub(in crate::http) fn upscalers_operation() -> Operation {
    operation("list_sdapi_upscalers", "The upscalers: none")
        .answers_list::<UpscalerView>(StatusCode::OK, "The one that does nothing.")
}

/// Lists that are always empty.
pub(in crate::http) async fn nothing(_: InferenceCaller) -> Json<[Value; 0]> {
    Json([])
}

pub(in crate::http) fn latent_modes_operation() -> Operation {
    operation("list_sdapi_latent_modes", "The ways to upscale latents: none").answers_bytes(
        StatusCode::OK,
        "application/json",
        "An empty list.",
    )
}

pub(in crate::http) fn autoencoders_operation() -> Operation {
    operation("list_sdapi_autoencoders", "Other autoencoders than the models' own: none").answers_bytes(
        StatusCode::OK,
        "application/json",
        "An empty list.",
    )
}

pub(in crate::http) async fn loras(
    State(state): State<HttpState>,
    InferenceCaller(caller): InferenceCaller,
) -> Result<Json<Vec<LoraView>>, ApiError> {
    let mut loras = state.loras.list().await?;
    loras.retain(|lora| caller.limits.allows_lora(&lora.id, &lora.name));
    let view = |name: String| LoraView { alias: name.clone(), name, path: String::new(), metadata: json!({}) };
    Ok(Json(loras.into_iter().map(|lora| view(lora.name)).collect()))
}

pub(in crate::http) fn loras_operation() -> Operation {
    operation("list_sdapi_loras", "The LoRAs that the calling key may use")
        .answers_list::<LoraView>(StatusCode::OK, "The LoRAs, by name.")
        .refuses([ErrorCode::StorageUnavailable])
}
