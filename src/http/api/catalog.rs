//! The models, for everyone: what can be asked of them, and whether they draw.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

use crate::catalog::{Availability, Catalog, Loaded, Replicas};
use crate::domain::ids::ModelId;
use crate::domain::model::{ModelCard, ParameterDefaults, ParameterLimits};
use crate::domain::precision::Precision;
use crate::http::HttpState;
use crate::http::openapi::{Operation, Tag};

/// The models this worker knows.
#[derive(Serialize, ToSchema)]
#[schema(as = ModelList)]
pub(in crate::http) struct ModelListView {
    models: Vec<ModelView>,
}

/// A model as its card says.
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

/// What counts where a request says nothing.
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

/// What a request may ask for. All bounds are inclusive.
#[derive(Serialize, ToSchema)]
#[schema(as = ParameterLimits)]
struct ParameterLimitsView {
    width_min: u32,
    width_max: u32,
    height_min: u32,
    height_max: u32,
    /// Width and height must be multiples of this many pixels.
    size_multiple_of: u32,
    /// Most pixels in one image: width times height.
    pixels_max: u32,
    steps_min: u32,
    steps_max: u32,
    guidance_min: f64,
    guidance_max: f64,
}

/// Whether the models draw.
#[derive(Serialize, ToSchema)]
#[schema(as = RuntimeModelList)]
pub(in crate::http) struct RuntimeModelListView {
    models: Vec<RuntimeModelView>,
}

/// Whether a model draws.
#[derive(Serialize, ToSchema)]
#[schema(as = RuntimeModel)]
pub(in crate::http) struct RuntimeModelView {
    #[schema(value_type = String)]
    id: ModelId,
    available: bool,
    /// Engines that draw. A replica is one engine on one device.
    ready_replicas: u32,
    /// Engines there should be.
    desired_replicas: u32,
    /// How far its weights have been read, while they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    loading: Option<LoadingView>,
    /// `fp8`: the model draws in eight bits, which is lossy; images differ from those of the model as it is published.
    /// Not there: it draws in full.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    precision: Option<Precision>,
}

/// How far a model's weights have been read, for all of its engines that are reading them.
#[derive(Serialize, ToSchema)]
#[schema(as = Loading)]
struct LoadingView {
    /// Bytes that have been.
    bytes: u64,
    /// Bytes there are.
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
    Operation::new(Tag::Models, "list_models", "What can be asked of each model")
        .answers::<ModelListView>(StatusCode::OK, "The models of the catalog, served or not.")
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
    Operation::new(Tag::Models, "list_runtime_models", "Whether the models draw now")
        .answers::<RuntimeModelListView>(StatusCode::OK, "True at every moment of loading.")
}
