//! The variables, each with its field in the file.

/// An environment variable and its field in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Variable {
    /// Its name.
    pub name: &'static str,
    /// Its field in the file; empty if it has none.
    pub field: &'static str,
    /// What it sets.
    pub meaning: &'static str,
}

const fn variable(name: &'static str, field: &'static str, meaning: &'static str) -> Variable {
    Variable { name, field, meaning }
}

pub(in crate::config) const CONFIG_FILE: Variable =
    variable("FLUXSERVE_CONFIG", "", "configuration file, fluxserve.toml by default");
pub(in crate::config) const LISTEN: Variable = variable("FLUXSERVE_LISTEN", "listen", "address and port to listen on");
pub(in crate::config) const ADMIN_LISTEN: Variable = variable(
    "FLUXSERVE_ADMIN_LISTEN",
    "admin_listen",
    "another address and port for the console and the management routes",
);
pub(in crate::config) const METRICS_LISTEN: Variable = variable(
    "FLUXSERVE_METRICS_LISTEN",
    "metrics_listen",
    "address and port of /metrics, 127.0.0.1:9090 by default, or off",
);
pub(in crate::config) const DATA_DIR: Variable =
    variable("FLUXSERVE_DATA_DIR", "data_dir", "folder of database and results");
pub(in crate::config) const ADMIN_PASSWORD: Variable =
    variable("FLUXSERVE_ADMIN_PASSWORD", "", "the administrator's password, set at each start; 12 characters or more");
pub(in crate::config) const ADMIN_PASSWORD_FILE: Variable =
    variable("FLUXSERVE_ADMIN_PASSWORD_FILE", "", "file with the administrator's password, instead of the variable");
pub(in crate::config) const MODELS: Variable =
    variable("FLUXSERVE_MODELS", "models", "models to serve, ID or ID=PATH, separated by commas");
pub(in crate::config) const MAX_INPUT_IMAGES: Variable = variable(
    "FLUXSERVE_MAX_INPUT_IMAGES",
    "max_input_images",
    "most input images of a request by model, ID=1, separated by commas",
);
pub(in crate::config) const HUB_DOWNLOAD: Variable =
    variable("FLUXSERVE_HUB_DOWNLOAD", "hub.download", "true: missing models are downloaded before they are served");
pub(in crate::config) const HF_TOKEN: Variable = variable("HF_TOKEN", "", "access token for the hub of models");
pub(in crate::config) const HF_TOKEN_PATH: Variable =
    variable("HF_TOKEN_PATH", "", "file with that token, HF_HOME/token by default");
pub(in crate::config) const HF_HOME: Variable =
    variable("HF_HOME", "", "folder of the hub's cache and token, ~/.cache/huggingface by default");
pub(in crate::config) const HF_HUB_CACHE: Variable =
    variable("HF_HUB_CACHE", "", "folder of downloaded models, HF_HOME/hub by default");
pub(in crate::config) const HF_ENDPOINT: Variable =
    variable("HF_ENDPOINT", "", "another hub than https://huggingface.co");
pub(in crate::config) const HF_HUB_OFFLINE: Variable =
    variable("HF_HUB_OFFLINE", "", "1: no requests to the hub, models come from the cache");
pub(in crate::config) const HTTPS_PROXY: Variable = variable("HTTPS_PROXY", "", "proxy for the hub");
pub(in crate::config) const HTTP_PROXY: Variable = variable("HTTP_PROXY", "", "proxy for a hub without https");
pub(in crate::config) const ALL_PROXY: Variable =
    variable("ALL_PROXY", "", "proxy for the hub, if the two above are not set");
pub(in crate::config) const NO_PROXY: Variable = variable("NO_PROXY", "", "hosts to reach without a proxy");
/// Default location of HF_HOME. Not in the list of variables, because they are standard.
pub(in crate::config) const XDG_CACHE_HOME: Variable = variable("XDG_CACHE_HOME", "", "");
pub(in crate::config) const HOME: Variable = variable("HOME", "", "");
pub(in crate::config) const DEVICE: Variable = variable("FLUXSERVE_DEVICE", "device", "auto, cpu, cuda or cuda:N");
pub(in crate::config) const ENGINE_OFFLOAD: Variable = variable(
    "FLUXSERVE_ENGINE_OFFLOAD",
    "engine.offload",
    "auto, none, text: T5 is on the device only for new prompts, or blocks: so are blocks for each step",
);
pub(in crate::config) const ENGINE_DETERMINISTIC: Variable =
    variable("FLUXSERVE_ENGINE_DETERMINISTIC", "engine.deterministic", "true: batch-invariant on CUDA, too");
pub(in crate::config) const ENGINE_KERNELS: Variable = variable(
    "FLUXSERVE_ENGINE_KERNELS",
    "engine.kernels",
    "auto, or portable: only the kernels that every CUDA device has",
);
pub(in crate::config) const ENGINE_PRECISION: Variable = variable(
    "FLUXSERVE_ENGINE_PRECISION",
    "engine.precision",
    "full; bf16, for the CPU; or fp8: quantized linear layers. Both are lossy, and half as large",
);
pub(in crate::config) const ENGINE_WEIGHTS: Variable = variable(
    "FLUXSERVE_ENGINE_WEIGHTS",
    "engine.weights",
    "auto, as-stored: the file's size in memory, or expanded when loaded",
);
pub(in crate::config) const ENGINE_MEMORY_BUDGET: Variable =
    variable("FLUXSERVE_ENGINE_MEMORY_BUDGET", "engine.memory_budget", "most memory to plan with, such as 12GiB");
pub(in crate::config) const ENGINE_THREADS: Variable = variable(
    "FLUXSERVE_ENGINE_THREADS",
    "engine.threads",
    "threads that compute on the CPU, one for each core by default",
);
pub(in crate::config) const DRAIN_DEADLINE_SECONDS: Variable = variable(
    "FLUXSERVE_DRAIN_DEADLINE_SECONDS",
    "drain_deadline_seconds",
    "time for jobs to finish after the signal to stop",
);
pub(in crate::config) const HTTP_BODY_LIMIT_BYTES: Variable =
    variable("FLUXSERVE_HTTP_BODY_LIMIT_BYTES", "http.body_limit_bytes", "largest request body");
pub(in crate::config) const HTTP_BODIES_BYTES_MAX: Variable =
    variable("FLUXSERVE_HTTP_BODIES_BYTES_MAX", "http.bodies_bytes_max", "most bytes of all large bodies together");
pub(in crate::config) const HTTP_KEY_BODIES_BYTES_MAX: Variable = variable(
    "FLUXSERVE_HTTP_KEY_BODIES_BYTES_MAX",
    "http.key_bodies_bytes_max",
    "most bytes of the large bodies of one key",
);
pub(in crate::config) const HTTP_WAIT_SECONDS_MAX: Variable =
    variable("FLUXSERVE_HTTP_WAIT_SECONDS_MAX", "http.wait_seconds_max", "longest wait of a request for its image");
pub(in crate::config) const HTTP_CONNECTIONS_MAX: Variable =
    variable("FLUXSERVE_HTTP_CONNECTIONS_MAX", "http.connections_max", "most concurrent connections");
pub(in crate::config) const HTTP_HEADER_DEADLINE_SECONDS: Variable = variable(
    "FLUXSERVE_HTTP_HEADER_DEADLINE_SECONDS",
    "http.header_deadline_seconds",
    "time for a request's head to arrive",
);
pub(in crate::config) const HTTP_PUBLIC_URL: Variable = variable(
    "FLUXSERVE_HTTP_PUBLIC_URL",
    "http.public_url",
    "URL of this worker for clients: https://images.example.org",
);
pub(in crate::config) const HTTP_HOSTS: Variable =
    variable("FLUXSERVE_HTTP_HOSTS", "http.hosts", "host names of this worker, separated by commas, or * for any");
pub(in crate::config) const HTTP_CORS_ORIGINS: Variable = variable(
    "FLUXSERVE_HTTP_CORS_ORIGINS",
    "http.cors_origins",
    "sites whose pages may use the API: https://images.example.org, separated by commas, or *",
);
pub(in crate::config) const HTTP_TRUSTED_PROXIES: Variable = variable(
    "FLUXSERVE_HTTP_TRUSTED_PROXIES",
    "http.trusted_proxies",
    "networks of trusted proxies: 10.0.0.0/8, separated by commas",
);
pub(in crate::config) const QUEUE_JOBS_MAX: Variable =
    variable("FLUXSERVE_QUEUE_JOBS_MAX", "queue.jobs_max", "most pending and running jobs");
pub(in crate::config) const RESULTS_STORE: Variable = variable(
    "FLUXSERVE_RESULTS_STORE",
    "results.store",
    "bucket for images, s3://bucket/prefix, gs:// or az://, or a folder, file:///mnt/results",
);
pub(in crate::config) const RESULTS_ENDPOINT: Variable = variable(
    "FLUXSERVE_RESULTS_ENDPOINT",
    "results.endpoint",
    "store that speaks S3, other than Amazon's: https://s3.example.org",
);
pub(in crate::config) const RESULTS_REGION: Variable =
    variable("FLUXSERVE_RESULTS_REGION", "results.region", "region of an S3 bucket");
pub(in crate::config) const RESULTS_ALLOW_HTTP: Variable =
    variable("FLUXSERVE_RESULTS_ALLOW_HTTP", "results.allow_http", "true: that store may be reached without TLS");
pub(in crate::config) const RESULTS_LINKS: Variable = variable(
    "FLUXSERVE_RESULTS_LINKS",
    "results.links",
    "stream: links are answered with the image; redirect: they lead to the bucket",
);
pub(in crate::config) const RESULTS_REDIRECT_SECONDS: Variable = variable(
    "FLUXSERVE_RESULTS_REDIRECT_SECONDS",
    "results.redirect_seconds",
    "how long a link to the bucket works, at most 60",
);
pub(in crate::config) const RESULTS_SPOOL_BYTES_MAX: Variable = variable(
    "FLUXSERVE_RESULTS_SPOOL_BYTES_MAX",
    "results.spool_bytes_max",
    "most disk space for images that wait for the bucket",
);
pub(in crate::config) const RESULTS_RETENTION_SECONDS: Variable =
    variable("FLUXSERVE_RESULTS_RETENTION_SECONDS", "results.retention_seconds", "how long images are stored");
pub(in crate::config) const RESULTS_LINK_SECONDS: Variable =
    variable("FLUXSERVE_RESULTS_LINK_SECONDS", "results.link_seconds", "how long a link to an image works");
pub(in crate::config) const RESULTS_BYTES_MAX: Variable =
    variable("FLUXSERVE_RESULTS_BYTES_MAX", "results.bytes_max", "most space for images, on the disk or in the bucket");
pub(in crate::config) const RESULTS_PROVENANCE: Variable = variable(
    "FLUXSERVE_RESULTS_PROVENANCE",
    "results.provenance",
    "false: image files do not record how they were generated",
);
pub(in crate::config) const LORA_BYTES_MAX: Variable =
    variable("FLUXSERVE_LORA_BYTES_MAX", "lora_bytes_max", "largest file of a LoRA");
pub(in crate::config) const LORA_IN_PROMPT: Variable =
    variable("FLUXSERVE_LORA_IN_PROMPT", "lora_in_prompt", "true: prompts may ask for LoRAs, <lora:NAME:0.8>");
pub(in crate::config) const PRICES_PER_MEGAPIXEL_STEP: Variable = variable(
    "FLUXSERVE_PRICES_PER_MEGAPIXEL_STEP",
    "prices.per_megapixel_step",
    "price of a megapixel-step, for reports and budgets: 0.0004",
);
pub(in crate::config) const PRICES_PER_ENGINE_SECOND: Variable = variable(
    "FLUXSERVE_PRICES_PER_ENGINE_SECOND",
    "prices.per_engine_second",
    "price of a second of engine time, beside or instead of that",
);
pub(in crate::config) const PRICES_CURRENCY: Variable =
    variable("FLUXSERVE_PRICES_CURRENCY", "prices.currency", "currency of the prices: EUR");
pub(in crate::config) const SDAPI: Variable =
    variable("FLUXSERVE_SDAPI", "sdapi", "true: clients of AUTOMATIC1111's API are served, at /sdapi/v1");
pub(in crate::config) const MODERATION_URL: Variable = variable(
    "FLUXSERVE_MODERATION_URL",
    "moderation.url",
    "service that judges prompts and images: https://moderation.example.org/review",
);
pub(in crate::config) const MODERATION_BEFORE: Variable =
    variable("FLUXSERVE_MODERATION_BEFORE", "moderation.before", "false: it is not asked about prompts");
pub(in crate::config) const MODERATION_AFTER: Variable =
    variable("FLUXSERVE_MODERATION_AFTER", "moderation.after", "false: it is not asked about images");
pub(in crate::config) const MODERATION_ON_FAILURE: Variable = variable(
    "FLUXSERVE_MODERATION_ON_FAILURE",
    "moderation.on_failure",
    "refuse, or allow: what happens when it does not answer",
);
pub(in crate::config) const MODERATION_TIMEOUT_SECONDS: Variable =
    variable("FLUXSERVE_MODERATION_TIMEOUT_SECONDS", "moderation.timeout_seconds", "longest time of its answer");
pub(in crate::config) const MODERATION_SECRET: Variable =
    variable("FLUXSERVE_MODERATION_SECRET", "moderation.secret", "sent to it as a bearer token");
pub(in crate::config) const LOG_FILTER: Variable =
    variable("FLUXSERVE_LOG_FILTER", "log.filter", "what is logged: info, or warn,fluxserve=debug");
pub(in crate::config) const LOG_FORMAT: Variable = variable("FLUXSERVE_LOG_FORMAT", "log.format", "text or json");
pub(in crate::config) const TELEMETRY_OTLP_ENDPOINT: Variable = variable(
    "FLUXSERVE_TELEMETRY_OTLP_ENDPOINT",
    "telemetry.otlp_endpoint",
    "collector to send spans to: http://localhost:4318",
);
pub(in crate::config) const WEBHOOKS_ENABLED: Variable =
    variable("FLUXSERVE_WEBHOOKS_ENABLED", "webhooks.enabled", "false: no webhooks");
pub(in crate::config) const WEBHOOKS_ALLOW_HTTP: Variable = variable(
    "FLUXSERVE_WEBHOOKS_ALLOW_HTTP",
    "webhooks.allow_http",
    "true: webhooks may go to receivers without https",
);
pub(in crate::config) const WEBHOOKS_ALLOWED_HOSTS: Variable = variable(
    "FLUXSERVE_WEBHOOKS_ALLOWED_HOSTS",
    "webhooks.allowed_hosts",
    "receivers of webhooks in private networks: hooks.internal, 10.0.0.0/8, separated by commas",
);
pub(in crate::config) const WEBHOOKS_ONLY_ALLOWED_HOSTS: Variable = variable(
    "FLUXSERVE_WEBHOOKS_ONLY_ALLOWED_HOSTS",
    "webhooks.only_allowed_hosts",
    "true: webhooks go to no other receivers than those",
);
pub(in crate::config) const WEBHOOKS_ALERTS_URL: Variable = variable(
    "FLUXSERVE_WEBHOOKS_ALERTS_URL",
    "webhooks.alerts_url",
    "the operator's receiver of alerts of budgets: https://hooks.example.org/alerts",
);
pub(in crate::config) const WEBHOOKS_ALERTS_SECRET: Variable =
    variable("FLUXSERVE_WEBHOOKS_ALERTS_SECRET", "webhooks.alerts_secret", "signs them: whsec_ and base64");
pub(in crate::config) const TLS_CERTIFICATE: Variable =
    variable("FLUXSERVE_TLS_CERTIFICATE", "tls.certificate", "certificate for https, PEM; reloaded when it changes");
pub(in crate::config) const TLS_PRIVATE_KEY: Variable =
    variable("FLUXSERVE_TLS_PRIVATE_KEY", "tls.private_key", "the certificate's private key, PEM");
pub(in crate::config) const KUBERNETES_KUBECONFIG: Variable = variable(
    "FLUXSERVE_KUBERNETES_KUBECONFIG",
    "kubernetes.kubeconfig",
    "the worker's access to a cluster, DATA_DIR/kubernetes/kubeconfig by default",
);
pub(in crate::config) const KUBERNETES_IN_CLUSTER: Variable = variable(
    "FLUXSERVE_KUBERNETES_IN_CLUSTER",
    "kubernetes.in_cluster",
    "true: the cluster is the one that this pod runs in",
);
pub(in crate::config) const KUBERNETES_SERVER: Variable = variable(
    "FLUXSERVE_KUBERNETES_SERVER",
    "kubernetes.server",
    "API server for clients: https://cluster.example.org:6443",
);
pub(in crate::config) const KUBERNETES_NAMESPACE: Variable = variable(
    "FLUXSERVE_KUBERNETES_NAMESPACE",
    "kubernetes.namespace",
    "the worker's own namespace there, fluxserve by default",
);
pub(in crate::config) const KUBERNETES_AUTO_OPEN: Variable = variable(
    "FLUXSERVE_KUBERNETES_AUTO_OPEN",
    "kubernetes.auto_open",
    "true: the worker opens namespaces itself, with full control of the cluster",
);
pub(in crate::config) const KUBERNETES_ALLOW_EXEC_PLUGINS: Variable = variable(
    "FLUXSERVE_KUBERNETES_ALLOW_EXEC_PLUGINS",
    "kubernetes.allow_exec_plugins",
    "true: the kubeconfig's credential plugins may run",
);

/// All variables, in the order of the file's fields.
pub const VARIABLES: [Variable; 80] = [
    CONFIG_FILE,
    ADMIN_PASSWORD,
    ADMIN_PASSWORD_FILE,
    LISTEN,
    ADMIN_LISTEN,
    METRICS_LISTEN,
    DATA_DIR,
    MODELS,
    MAX_INPUT_IMAGES,
    DEVICE,
    ENGINE_OFFLOAD,
    ENGINE_DETERMINISTIC,
    ENGINE_KERNELS,
    ENGINE_PRECISION,
    ENGINE_WEIGHTS,
    ENGINE_MEMORY_BUDGET,
    ENGINE_THREADS,
    DRAIN_DEADLINE_SECONDS,
    HTTP_BODY_LIMIT_BYTES,
    HTTP_BODIES_BYTES_MAX,
    HTTP_KEY_BODIES_BYTES_MAX,
    HTTP_WAIT_SECONDS_MAX,
    HTTP_CONNECTIONS_MAX,
    HTTP_HEADER_DEADLINE_SECONDS,
    HTTP_PUBLIC_URL,
    HTTP_HOSTS,
    HTTP_CORS_ORIGINS,
    HTTP_TRUSTED_PROXIES,
    QUEUE_JOBS_MAX,
    RESULTS_STORE,
    RESULTS_ENDPOINT,
    RESULTS_REGION,
    RESULTS_ALLOW_HTTP,
    RESULTS_LINKS,
    RESULTS_REDIRECT_SECONDS,
    RESULTS_SPOOL_BYTES_MAX,
    RESULTS_RETENTION_SECONDS,
    RESULTS_LINK_SECONDS,
    RESULTS_BYTES_MAX,
    RESULTS_PROVENANCE,
    LORA_BYTES_MAX,
    LORA_IN_PROMPT,
    PRICES_PER_MEGAPIXEL_STEP,
    PRICES_PER_ENGINE_SECOND,
    PRICES_CURRENCY,
    SDAPI,
    MODERATION_URL,
    MODERATION_BEFORE,
    MODERATION_AFTER,
    MODERATION_ON_FAILURE,
    MODERATION_TIMEOUT_SECONDS,
    MODERATION_SECRET,
    LOG_FILTER,
    LOG_FORMAT,
    TELEMETRY_OTLP_ENDPOINT,
    WEBHOOKS_ENABLED,
    WEBHOOKS_ALLOW_HTTP,
    WEBHOOKS_ALLOWED_HOSTS,
    WEBHOOKS_ONLY_ALLOWED_HOSTS,
    WEBHOOKS_ALERTS_URL,
    WEBHOOKS_ALERTS_SECRET,
    TLS_CERTIFICATE,
    TLS_PRIVATE_KEY,
    KUBERNETES_KUBECONFIG,
    KUBERNETES_IN_CLUSTER,
    KUBERNETES_SERVER,
    KUBERNETES_NAMESPACE,
    KUBERNETES_AUTO_OPEN,
    KUBERNETES_ALLOW_EXEC_PLUGINS,
    HUB_DOWNLOAD,
    HF_TOKEN,
    HF_TOKEN_PATH,
    HF_HOME,
    HF_HUB_CACHE,
    HF_ENDPOINT,
    HF_HUB_OFFLINE,
    HTTPS_PROXY,
    HTTP_PROXY,
    ALL_PROXY,
    NO_PROXY,
];
