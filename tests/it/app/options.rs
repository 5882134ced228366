//! How a worker differs from the default one.

use std::sync::Arc;
use std::time::Duration;

use fluxserve::domain::model::ModelCard;
use fluxserve::domain::money::Prices;
use fluxserve::domain::precision::Precision;
use fluxserve::hooks::Lookup;
use fluxserve::http::HttpSettings;
use fluxserve::kubernetes::ClusterSettings;
use fluxserve::moderation::ModerationSettings;
use fluxserve::uploads::UploadLimits;

use super::PATIENCE;
use crate::fake_engine::EngineControl;

/// How a worker differs from the default one.
#[expect(clippy::struct_excessive_bools, reason = "each is an independent switch, named where it is set")]
pub(crate) struct Options {
    pub(crate) jobs_max: usize,
    pub(crate) results_bytes_max: u64,
    pub(crate) storage_patience: Duration,
    pub(crate) ended_jobs_per_owner_max: u32,
    pub(crate) input_images_bytes_max: u64,
    pub(crate) writes_provenance: bool,
    pub(crate) lora_bytes_max: u64,
    pub(crate) moderation: Option<ModerationSettings>,
    pub(crate) http: HttpSettings,
    pub(crate) control: EngineControl,
    pub(crate) waits_for_ready: bool,
    pub(crate) has_password: bool,
    pub(crate) cluster: Option<ClusterSettings>,
    pub(crate) auto_open: bool,
    pub(crate) precision: Precision,
    pub(crate) prices: Option<Prices>,
    pub(crate) stall_min: Duration,
    pub(crate) uploads: UploadLimits,
    /// Changes the card of the model.
    pub(crate) change_card: fn(&mut ModelCard),
    pub(crate) has_webhooks: bool,
    /// Receivers of webhooks that are allowed.
    pub(crate) webhook_hosts: Vec<String>,
    /// How names of receivers are resolved.
    pub(crate) lookup: Option<Arc<Lookup>>,
}

impl Default for Options {
    fn default() -> Self {
        let http = HttpSettings {
            body_bytes_max: 16 * 1024,
            body_deadline: Duration::from_millis(200),
            wait_max: Duration::from_secs(20),
            request_deadline: Duration::from_secs(30),
            has_sdapi: true,
            ..HttpSettings::default()
        };
        Self {
            jobs_max: 16,
            results_bytes_max: u64::MAX,
            storage_patience: PATIENCE,
            ended_jobs_per_owner_max: 100,
            input_images_bytes_max: 1024 * 1024,
            writes_provenance: true,
            lora_bytes_max: 8 * 1024 * 1024,
            moderation: None,
            http,
            control: EngineControl::default(),
            waits_for_ready: true,
            has_password: true,
            cluster: None,
            auto_open: false,
            precision: Precision::default(),
            prices: None,
            stall_min: Duration::from_mins(1),
            uploads: UploadLimits::default(),
            change_card: |_| {},
            has_webhooks: true,
            webhook_hosts: vec!["127.0.0.1".into()],
            lookup: None,
        }
    }
}
