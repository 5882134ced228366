//! The state that every handler can access.

use std::collections::HashSet;
use std::sync::Arc;

use axum::body::Bytes;
use time::OffsetDateTime;

use super::api::input_images::ImageDecoder;
use super::api::sdapi::session::Sessions;
use super::api::write_check::WriteCheck;
use super::error::{ApiError, ErrorCode};
use super::extract::body::BodyBudget;
use super::settings::HttpSettings;
use crate::auth::{AdminService, Authenticator, KeyService};
use crate::catalog::Catalog;
use crate::domain::ids::ModelId;
use crate::domain::model::ModelCard;
use crate::hooks::Webhooks;
use crate::jobs::JobService;
use crate::kubernetes::Kubernetes;
use crate::loras::LoraCatalog;
use crate::telemetry::metrics::MetricsHandle;
use crate::uploads::Uploads;
use crate::usage::Usage;

/// Dependencies of the HTTP API.
pub struct HttpParts {
    /// Jobs.
    pub jobs: JobService,
    /// Models.
    pub catalog: Arc<Catalog>,
    /// The check of API keys.
    pub authenticator: Authenticator,
    /// Management of keys.
    pub keys: KeyService,
    /// The administrator's sessions, and the audit log.
    pub admin: AdminService,
    /// The LoRAs that requests may use.
    pub loras: LoraCatalog,
    /// The images that keys have uploaded.
    pub uploads: Uploads,
    /// Reports of usage, and budgets.
    pub usage: Usage,
    /// The cluster, and access to it.
    pub kubernetes: Kubernetes,
    /// Webhooks of keys and their jobs.
    pub webhooks: Webhooks,
    /// The device that generates images, as a text for the administrator.
    pub device: String,
    /// The content of `/metrics`; `None` if metrics are off.
    pub metrics: Option<MetricsHandle>,
    /// Settings.
    pub settings: HttpSettings,
}

/// State that every handler can access.
#[derive(Clone)]
pub(super) struct HttpState(pub(super) Arc<Shared>);

pub(super) struct Shared {
    pub(super) parts: HttpParts,
    pub(super) write_check: WriteCheck,
    pub(super) images: ImageDecoder,
    /// What is remembered of clients of AUTOMATIC1111's API.
    pub(super) sdapi: Sessions,
    pub(super) bodies: Arc<BodyBudget>,
    pub(super) started_at: OffsetDateTime,
    /// The OpenAPI document, as JSON.
    pub(super) document: Bytes,
    /// The paths in the table that exist only with an administrator password.
    pub(super) management_paths: HashSet<&'static str>,
}

impl HttpState {
    /// The card of the requested model.
    pub(super) fn card_of(&self, model: &ModelId) -> Result<&Arc<ModelCard>, ApiError> {
        match (self.catalog.card(model), self.catalog.not_yet(model)) {
            (Some(card), _) => Ok(card),
            (None, Some(reason)) => {
                let detail = format!("the model is not supported yet: {reason}");
                Err(ApiError::new(ErrorCode::ModelUnavailable).with_detail(detail))
            }
            (None, None) => Err(ApiError::new(ErrorCode::ModelNotFound)),
        }
    }
}

impl std::ops::Deref for HttpState {
    type Target = HttpParts;

    fn deref(&self) -> &HttpParts {
        &self.0.parts
    }
}
