//! The models, without authentication: their limits, and whether they are ready.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

use crate::catalog::{Availability, Catalog, Loaded, Replicas};
use crate::domain::ids::ModelId;
use crate::domain::model::{ModelCard, ParameterDefaults, ParameterLimits};
use crate::domain::precision::Precision;
use crate::http::openapi::{Operation, Tag};
use crate::http::state::HttpState;

/// The models that this worker knows.
#[derive(Serialize, ToSchema)]
#[schema(as = ModelList)]
pub(in crate::http) struct ModelListView {
    models: Vec<ModelView>,
}

/// A model as described by its card.
#[derive(Serialize, ToSchema)]
#[schema(as = Model)]
struct ModelView {
    #[schema(value_type = String)]
    id: ModelId,
    min_input_images: usize,
    max_input_images: usize,
    max_prompt_chars: usize,
    parameter_defaults: ParameterDefaultsView,
    parameter_limits: ParameterLimitsView,
}

/// The defaults for fields that a request leaves out.
#[derive(Serialize, ToSchema)]
#[schema(as = ParameterDefaults)]
struct ParameterDefaultsView {
    /// Pixels.
    width: u32,
    /// Pixels.
    height: u32,
    /// Denoising steps.
    steps: u32,
    guidance: f64,
}

/// The limits of a request's fields. All bounds are inclusive.
#[derive(Serialize, ToSchema)]
#[schema(as = ParameterLimits)]
struct ParameterLimitsView {
    width_min: u32,
    width_max: u32,
    height_min: u32,
    height_max: u32,
    /// Width and height must be multiples of this many pixels.
    size_multiple_of: u32,
    /// Maximum pixels in one image: width times height.
    pixels_max: u32,
    steps_min: u32,
    steps_max: u32,
    guidance_min: f64,
    guidance_max: f64,
}

/// The state of the models.
#[derive(Serialize, ToSchema)]
#[schema(as = RuntimeModelList)]
pub(in crate::http) struct RuntimeModelListView {
    models: Vec<RuntimeModelView>,
}

/// The state of a model.
#[derive(Serialize, ToSchema)]
#[schema(as = RuntimeModel)]
pub(in crate::http) struct RuntimeModelView {
    #[schema(value_type = String)]
    id: ModelId,
    available: bool,
    /// Engines that are ready. A replica is one engine on one device.
    ready_replicas: u32,
    /// Engines that should be ready.
    desired_replicas: u32,
    /// How much of its weights has been loaded, while they are being loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    loading: Option<LoadingView>,
    /// `fp8`: the model runs in fp8, which is lossy; images differ from those of the published model. Absent: it runs
    /// in full precision.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    precision: Option<Precision>,
}

/// How much of a model's weights has been loaded, summed over all engines that are loading.
#[derive(Serialize, ToSchema)]
#[schema(as = Loading)]
struct LoadingView {
    /// Bytes loaded.
    bytes: u64,
    /// Bytes in total.
    bytes_total: u64,
}

impl From<Loaded> for LoadingView {
    fn from(Loaded { bytes, bytes_total }: Loaded) -> Self {
        Self { bytes, bytes_total }
    }
}

pub(in crate::http) async fn models(State(state): State<HttpState>) -> Json<ModelListView> {
    let models = state.catalog.cards().into_iter().map(|card| view(card)).collect();
    Json(ModelListView { models })
}

pub(in crate::http) fn models_operation() -> Operation {
    Operation::new(Tag::Models, "list_models", "Models with their limits and defaults")
        .answers::<ModelListView>(StatusCode::OK, "All models of the catalog, served or not.")
}

fn view(card: &ModelCard) -> ModelView {
    ModelView {
        id: card.id.clone(),
        min_input_images: card.input_images_min,
        max_input_images: card.input_images_max,
        max_prompt_chars: card.prompt_chars_max,
        parameter_defaults: card.defaults.into(),
        parameter_limits: card.limits.into(),
    }
}

impl From<ParameterDefaults> for ParameterDefaultsView {
    fn from(defaults: ParameterDefaults) -> Self {
        let ParameterDefaults { width, height, steps, guidance } = defaults;
        Self { width, height, steps, guidance }
    }
}

impl From<ParameterLimits> for ParameterLimitsView {
    fn from(limits: ParameterLimits) -> Self {
        Self {
            width_min: limits.width_min,
            width_max: limits.width_max,
            height_min: limits.height_min,
            height_max: limits.height_max,
            size_multiple_of: limits.size_multiple_of,
            pixels_max: limits.pixels_max,
            steps_min: limits.steps_min,
            steps_max: limits.steps_max,
            guidance_min: limits.guidance_min,
            guidance_max: limits.guidance_max,
        }
    }
}

pub(in crate::http) async fn runtime_models(State(state): State<HttpState>) -> Json<RuntimeModelListView> {
    Json(RuntimeModelListView { models: runtime_model_views(&state.catalog) })
}

pub(in crate::http) fn runtime_model_views(catalog: &Catalog) -> Vec<RuntimeModelView> {
    let views = catalog.cards().into_iter().map(|card| {
        let availability = catalog.availability(&card.id);
        let Replicas { ready, desired } = catalog.replicas(&card.id);
        RuntimeModelView {
            id: card.id.clone(),
            available: availability == Availability::Ready,
            ready_replicas: ready,
            desired_replicas: desired,
            loading: catalog.loading(&card.id).map(Into::into),
            precision: catalog.precision().if_lossy().filter(|_| desired > 0),
        }
    });
    views.collect()
}

pub(in crate::http) fn runtime_models_operation() -> Operation {
    Operation::new(Tag::Models, "list_runtime_models", "State of the models")
        .answers::<RuntimeModelListView>(StatusCode::OK, "The present state, also while models are loading.")
}
