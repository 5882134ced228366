//! The models, without authentication: their limits, and whether they are ready.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

use crate::catalog::{Availability, Catalog, Loaded, Replicas};
use crate::domain::conditioning::{ControlNetCard, ImageRole, Preprocess};
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
    /// Fewest images in the model's main role, which `input_images_base64` takes.
    min_input_images: usize,
    /// Maximum images in the model's main role.
    max_input_images: usize,
    /// How many images of each role a request may have. Roles without any are left out.
    images: ImageCountsView,
    /// The ControlNets for control images.
    controlnets: Vec<ControlNetView>,
    /// What a control map can be made of another image by: `canny` or `depth`.
    #[schema(value_type = Vec<String>)]
    preprocess: Vec<&'static str>,
    max_prompt_chars: usize,
    parameter_defaults: ParameterDefaultsView,
    parameter_limits: ParameterLimitsView,
}

/// How many images of each role a request may have.
#[derive(Serialize, ToSchema)]
#[schema(as = ImageCounts)]
struct ImageCountsView {
    #[serde(skip_serializing_if = "Option::is_none")]
    input: Option<ImageCountView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mask: Option<ImageCountView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    control: Option<ImageCountView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reference: Option<ImageCountView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    style: Option<ImageCountView>,
}

/// How many images of a role a request may have.
#[derive(Serialize, ToSchema)]
#[schema(as = ImageCount)]
struct ImageCountView {
    min: usize,
    max: usize,
}

/// A ControlNet.
#[derive(Serialize, ToSchema)]
#[schema(as = ControlNet)]
struct ControlNetView {
    /// The name that requests use.
    name: String,
    /// How many kinds of control maps it knows, each of which has a number: then a request names one.
    modes: Option<u32>,
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
    /// `bf16` or `fp8`: the model runs in it, which is lossy; images differ from those of the published model. Absent: it runs
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
        images: ImageCountsView::of(card),
        controlnets: card.attached.controlnets.iter().map(ControlNetView::from).collect(),
        preprocess: preprocesses(card),
        max_prompt_chars: card.prompt_chars_max,
        parameter_defaults: card.defaults.into(),
        parameter_limits: card.limits.into(),
    }
}

impl ImageCountsView {
    fn of(card: &ModelCard) -> Self {
        let count = |role| {
            let (min, max) = card.images(role).into_inner();
            (max > 0).then_some(ImageCountView { min, max })
        };
        Self {
            input: count(ImageRole::Input),
            mask: count(ImageRole::Mask),
            control: count(ImageRole::Control),
            reference: count(ImageRole::Reference),
            style: count(ImageRole::Style),
        }
    }
}

impl From<&ControlNetCard> for ControlNetView {
    fn from(net: &ControlNetCard) -> Self {
        Self { name: net.name.to_string(), modes: net.modes }
    }
}

/// Edges are found without a model, depth is not.
fn preprocesses(card: &ModelCard) -> Vec<&'static str> {
    let takes_control = *card.images(ImageRole::Control).end() > 0;
    let is_there = |kind: &Preprocess| match kind {
        Preprocess::Canny => takes_control,
        Preprocess::Depth => takes_control && card.attached.estimates_depth,
    };
    Preprocess::ALL.into_iter().filter(is_there).map(Preprocess::as_str).collect()
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
