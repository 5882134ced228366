//! The models, for everyone: what can be asked of them, and whether they draw.

use axum::Json;
use axum::extract::State;
use serde::Serialize;

use crate::catalog::Availability;
use crate::domain::ids::ModelId;
use crate::domain::model::{ModelCard, ParameterDefaults, ParameterLimits};
use crate::http::HttpState;

#[derive(Serialize)]
pub(in crate::http) struct ModelList<T> {
    models: Vec<T>,
}

/// A model as its card says.
#[derive(Serialize)]
pub(in crate::http) struct ModelView {
    id: ModelId,
    min_input_images: usize,
    max_input_images: usize,
    max_prompt_chars: usize,
    parameter_defaults: ParameterDefaults,
    parameter_limits: ParameterLimits,
}

/// Whether a model draws.
#[derive(Serialize)]
pub(in crate::http) struct RuntimeModelView {
    id: ModelId,
    available: bool,
    /// Engines that draw. A replica is one engine on one device.
    ready_replicas: u32,
    /// Engines there should be.
    desired_replicas: u32,
}

pub(in crate::http) async fn models(State(state): State<HttpState>) -> Json<ModelList<ModelView>> {
    let models = state.catalog.cards().map(|card| view(card)).collect();
    Json(ModelList { models })
}

fn view(card: &ModelCard) -> ModelView {
    ModelView {
        id: card.id.clone(),
        min_input_images: card.input_images_min,
        max_input_images: card.input_images_max,
        max_prompt_chars: card.prompt_chars_max,
        parameter_defaults: card.defaults,
        parameter_limits: card.limits,
    }
}

pub(in crate::http) async fn runtime_models(State(state): State<HttpState>) -> Json<ModelList<RuntimeModelView>> {
    let models = state.catalog.cards().map(|card| {
        let availability = state.catalog.availability(&card.id);
        let available = availability == Availability::Ready;
        RuntimeModelView {
            id: card.id.clone(),
            available,
            ready_replicas: u32::from(available),
            desired_replicas: u32::from(availability != Availability::NotServed),
        }
    });
    Json(ModelList { models: models.collect() })
}
