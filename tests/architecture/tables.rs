//! The tables of the rules. ARCHITECTURE.md has the first three, for people.

/// A module and the modules it may import. ARCHITECTURE.md has the same table, for people.
pub(crate) const MODULES: &[(&str, &[&str])] = &[
    ("domain", &[]),
    ("telemetry", &[]),
    ("store", &[]),
    ("config", &["domain"]),
    ("catalog", &["domain"]),
    ("outgoing", &[]),
    ("hub", &["domain", "outgoing"]),
    ("objects", &["domain", "outgoing", "telemetry"]),
    ("encode", &["domain"]),
    ("decode", &["domain"]),
    ("engine", &["domain", "telemetry"]),
    ("queue", &["domain", "telemetry"]),
    ("auth", &["domain", "store", "telemetry"]),
    ("kubernetes", &["domain", "store", "telemetry"]),
    ("loras", &["auth", "domain", "store", "telemetry"]),
    ("uploads", &["auth", "decode", "domain", "store"]),
    ("moderation", &["auth", "domain", "outgoing", "telemetry"]),
    ("jobs", &["catalog", "decode", "domain", "encode", "objects", "queue", "store", "telemetry"]),
    ("usage", &["auth", "domain", "jobs", "store", "telemetry"]),
    ("hooks", &["auth", "domain", "jobs", "outgoing", "store", "telemetry"]),
    (
        "http",
        &[
            "auth",
            "catalog",
            "decode",
            "domain",
            "hooks",
            "jobs",
            "kubernetes",
            "loras",
            "telemetry",
            "uploads",
            "usage",
        ],
    ),
    ("shutdown", &["auth", "config", "domain", "queue", "store", "telemetry"]),
    (
        "app",
        &[
            "auth",
            "catalog",
            "config",
            "decode",
            "domain",
            "encode",
            "engine",
            "hooks",
            "http",
            "hub",
            "jobs",
            "kubernetes",
            "loras",
            "moderation",
            "objects",
            "queue",
            "shutdown",
            "store",
            "telemetry",
            "uploads",
            "usage",
        ],
    ),
    ("cli", &["app", "auth", "config", "domain", "loras", "queue", "shutdown", "store", "telemetry"]),
    ("main", &["app", "auth", "cli", "config", "domain", "queue", "shutdown", "store", "telemetry"]),
];

/// Outside crates and the only files that may name them. `*` stands for any characters; a folder's name stands for all files
/// in it.
pub(crate) const HOMES: &[(&[&str], &[&str])] = &[
    (&["axum", "axum_*", "hyper", "hyper_*", "tower", "tower_*", "utoipa", "utoipa_*"], &["http"]),
    (&["candle_*", "cudarc", "half"], &["engine"]),
    (&["gemm"], &["engine/ops/gemm"]),
    (&["pulp"], &["engine/ops/vector"]),
    (&["rand_mt"], &["engine/noise"]),
    (&["safetensors"], &["engine/checkpoint/formats", "engine/stages"]),
    (&["tokenizers"], &["engine/models/flux1/text/tokens"]),
    (&["libc"], &["app/heap"]),
    (&["memmap2"], &["store/changes"]),
    (&["rustix"], &["app/compute_threads", "app/open_files", "config/own_file", "engine/adapted/background"]),
    (&["hf_hub"], &["hub"]),
    (&["object_store"], &["objects"]),
    (
        &["reqwest"],
        &["hooks/resolver", "hooks/sender", "hooks/target", "hub", "moderation/client", "objects/client"],
    ),
    (&["rustls_platform_verifier"], &["outgoing"]),
    (&["sha1"], &["hub/checksum"]),
    (&["sha2"], &["hooks/signature", "hub/checksum", "loras/files", "uploads/files"]),
    (&["hmac"], &["hooks/signature"]),
    (&["fs4"], &["app/convert", "hub/download", "jobs/results"]),
    (&["tokio_rustls"], &["http/server/tls", "outgoing"]),
    (
        &["opentelemetry", "opentelemetry_*", "rustls", "rustls_native_certs", "tracing_opentelemetry", "ureq"],
        &["telemetry/otlp"],
    ),
    (&["argon2"], &["auth/hash"]),
    (
        &["base64"],
        &[
            "app/lora_report",
            "hooks/secret",
            "hooks/signature",
            "http/api/events",
            "http/api/input_images",
            "http/api/openai/edit_request",
            "http/api/openai/images",
            "http/api/openai/stream",
            "http/api/sdapi/answer",
            "http/api/sdapi/progress",
            "http/extract/caller",
            "kubernetes/cluster",
            "kubernetes/manifest",
            "kubernetes/token",
            "moderation/wire",
        ],
    ),
    (&["k8s_openapi", "kube"], &["kubernetes/cluster"]),
    (&["exif"], &["encode"]),
    (&["ipnet"], &["domain/networks"]),
    (&["image"], &["decode", "encode"]),
    (&["sqlx"], &["store", "*/store*"]),
    (&["clap", "clap_*", "console"], &["cli", "main"]),
    (&["metrics_exporter_prometheus"], &["telemetry"]),
];

/// Outside crates and the modules that must not use them.
pub(crate) const KEPT_OUT: &[(&[&str], &[&str])] = &[(&["tokio", "tokio_*"], &["domain", "engine"])];

/// A file with this many lines is too long. Test code does not count.
pub(crate) const LINES_LIMIT: usize = 400;

/// Import cycles that are allowed, and why. Each must exist.
pub(crate) const ALLOWED_CYCLES: &[(&[&str], &str)] = &[];
