//! Files, variables and flags, and which of them wins.

use super::*;
use crate::domain::money::Prices;

#[test]
fn without_sources_the_defaults_apply() {
    let config = Sources::new().load().expect("valid");
    assert_eq!(config, Config::default());
    assert_eq!(config.listen.to_string(), "127.0.0.1:8080");
    assert_eq!(config.database_path(), Path::new("data/fluxserve.db"));
}

#[test]
fn a_model_may_be_a_table_of_its_parts() {
    let file = r#"models = ["a", { id = "b", path = "/b.gguf", base = "a/c", text_encoders = ["/t5", "/clip"], vae = "/ae" }]"#;
    let models = Sources::new().file(file).load().expect("valid").models;
    assert_eq!(models[0], "a".parse().expect("a model"));
    assert_eq!((models[1].id.as_str(), &models[1].directory), ("b", &Some("/b.gguf".into())));
    let parts = &models[1].parts;
    assert_eq!((&parts.base, &parts.vae), (&Some("a/c".into()), &Some("/ae".into())));
    assert_eq!(parts.text_encoders, [Path::new("/t5"), Path::new("/clip")]);
    let fields = "a table of id, path, base, text_encoders, vae, controlnets, redux and depth";
    for (file, words) in [
        ("models = [{ path = \"/x\" }]", fields),
        ("models = [{ id = \"a\", part = \"/x\" }]", fields),
        ("models = [{ id = \"\", path = \"/x\" }]", "not a model"),
    ] {
        let error = Sources::new().file(file).load().expect_err("refused").to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn a_table_names_what_is_loaded_beside_a_model() {
    let file = r#"
        [[models]]
        id = "black-forest-labs/FLUX.1-dev"
        controlnets = { union = "/nets/union", canny = "/nets/canny.safetensors" }
        redux = "/redux"
        depth = "/depth"
    "#;
    let models = Sources::new().file(file).load().expect("valid").models;
    let attachments = &models[0].parts.attachments;
    let nets: Vec<(&str, &Path)> =
        attachments.controlnets.iter().map(|(name, path)| (name.as_ref(), path.as_path())).collect();
    assert_eq!(nets, [("canny", Path::new("/nets/canny.safetensors")), ("union", Path::new("/nets/union"))]);
    assert_eq!((&attachments.redux, &attachments.depth), (&Some("/redux".into()), &Some("/depth".into())));
    assert_eq!(models[0].directory, None, "it may be a downloaded model");
}

fn complete_http() -> HttpConfig {
    HttpConfig {
        body_limit_bytes: 2048,
        bodies_bytes_max: 8_388_608,
        key_bodies_bytes_max: 4_194_304,
        wait_seconds_max: 60,
        connections_max: 64,
        header_deadline_seconds: 5,
        public_url: Some("https://images.example.org".parse().expect("a URL")),
        hosts: Some(HostNames::These(vec!["images.internal".to_owned(), "10.0.0.7".to_owned()])),
        cors_origins: CorsOrigins::These(vec!["https://pages.example.org".to_owned()]),
        trusted_proxies: Networks::of(&["10.0.0.0/8".to_owned()]).expect("networks"),
    }
}

#[test]
fn every_field_of_the_file_is_read() {
    let config = Sources::new().file(COMPLETE_FILE).load().expect("valid");
    let expected = Config {
        listen: "0.0.0.0:9000".parse().expect("an address"),
        admin_listen: Some("127.0.0.1:9001".parse().expect("an address")),
        metrics_listen: MetricsListen::At("127.0.0.1:9002".parse().expect("an address")),
        tls: Some(TlsConfig {
            certificate: "/etc/fluxserve/certificate.pem".into(),
            private_key: "/etc/fluxserve/key.pem".into(),
        }),
        data_dir: "/var/lib/fluxserve".into(),
        models: ["black-forest-labs/FLUX.1-dev=/weights", "fluxserve/flux-shapes"]
            .map(|text| text.parse().expect("a model"))
            .to_vec(),
        max_input_images: [("black-forest-labs/FLUX.1-dev", 1), ("fluxserve/flux-shapes", 0)]
            .map(|(id, count)| (ModelId::new(id), count))
            .into(),
        device: DeviceChoice::Cuda(1).into(),
        engine: EngineConfig {
            offload: Offload::Text,
            is_deterministic: true,
            kernels: Kernels::Portable,
            precision: Precision::Fp8,
            weights: WeightStorage::Expanded,
            memory_budget: Some(ByteSize(12 << 30)),
            uses_graphs: false,
            threads: Some(3),
        },
        admin_password: None,
        drain_deadline_seconds: 10,
        http: complete_http(),
        queue: QueueConfig { jobs_max: 8 },
        results: ResultsConfig { retention_seconds: 3600, link_seconds: 600, bytes_max: 1_048_576, provenance: false },
        loras: LoraConfig { file_bytes_max: 4_194_304, in_prompt: true },
        prices: Some(Prices {
            per_megapixel_step: "0.0004".parse().expect("a price"),
            per_engine_second: "0.01".parse().expect("a price"),
            currency: "EUR".parse().expect("a currency"),
        }),
        sdapi: true,
        moderation: ModerationConfig {
            url: Some("https://moderation.example.org/review".into()),
            before: false,
            after: true,
            on_failure: OnFailure::Allow,
            timeout_seconds: 3,
            secret: Some("hush".parse().expect("a secret")),
        },
        log: LogConfig { filter: "warn".into(), command_filter: "warn".into(), format: LogFormat::Json },
        telemetry: TelemetryConfig { otlp_endpoint: Some("http://localhost:4318".into()) },
        webhooks: WebhooksConfig {
            enabled: false,
            allow_http: true,
            allowed_hosts: AllowedHosts::of(&["hooks.internal".to_owned(), "10.0.0.0/8".to_owned()]).expect("a list"),
            only_allowed_hosts: true,
        },
        kubernetes: KubernetesConfig {
            kubeconfig: Some("/etc/fluxserve/kubeconfig".into()),
            in_cluster: false,
            server: Some("https://cluster.example.org:6443".into()),
            namespace: "images".parse().expect("a name"),
            auto_open: true,
            allow_exec_plugins: true,
        },
        hub: HubConfig { download: true, ..HubConfig::default() },
    };
    assert_eq!(config, expected);
}

#[test]
fn every_variable_sets_the_field_it_names() {
    let sources = Sources::new()
        .variable("FLUXSERVE_LISTEN", "0.0.0.0:9000")
        .variable("FLUXSERVE_ADMIN_LISTEN", "127.0.0.1:9001")
        .variable("FLUXSERVE_METRICS_LISTEN", "127.0.0.1:9002")
        .variable("FLUXSERVE_TLS_CERTIFICATE", "/etc/fluxserve/certificate.pem")
        .variable("FLUXSERVE_TLS_PRIVATE_KEY", "/etc/fluxserve/key.pem")
        .variable("FLUXSERVE_DATA_DIR", "/var/lib/fluxserve")
        .variable("FLUXSERVE_MODELS", "black-forest-labs/FLUX.1-dev=/weights, fluxserve/flux-shapes")
        .variable("FLUXSERVE_MAX_INPUT_IMAGES", "black-forest-labs/FLUX.1-dev=1, fluxserve/flux-shapes=0")
        .variable("FLUXSERVE_DEVICE", "cuda:1")
        .variable("FLUXSERVE_ENGINE_OFFLOAD", "text")
        .variable("FLUXSERVE_ENGINE_DETERMINISTIC", "true")
        .variable("FLUXSERVE_ENGINE_KERNELS", "portable")
        .variable("FLUXSERVE_ENGINE_PRECISION", "fp8")
        .variable("FLUXSERVE_ENGINE_WEIGHTS", "expanded")
        .variable("FLUXSERVE_ENGINE_MEMORY_BUDGET", "12GiB")
        .variable("FLUXSERVE_ENGINE_THREADS", "3")
        .variable("FLUXSERVE_DRAIN_DEADLINE_SECONDS", "10")
        .variable("FLUXSERVE_HTTP_BODY_LIMIT_BYTES", "2048")
        .variable("FLUXSERVE_HTTP_BODIES_BYTES_MAX", "8388608")
        .variable("FLUXSERVE_HTTP_KEY_BODIES_BYTES_MAX", "4194304")
        .variable("FLUXSERVE_HTTP_WAIT_SECONDS_MAX", "60")
        .variable("FLUXSERVE_HTTP_CONNECTIONS_MAX", "64")
        .variable("FLUXSERVE_HTTP_HEADER_DEADLINE_SECONDS", "5")
        .variable("FLUXSERVE_HTTP_PUBLIC_URL", "https://images.example.org")
        .variable("FLUXSERVE_HTTP_HOSTS", "images.internal, 10.0.0.7")
        .variable("FLUXSERVE_HTTP_CORS_ORIGINS", "https://pages.example.org")
        .variable("FLUXSERVE_HTTP_TRUSTED_PROXIES", "10.0.0.0/8")
        .variable("FLUXSERVE_QUEUE_JOBS_MAX", "8")
        .variable("FLUXSERVE_RESULTS_RETENTION_SECONDS", "3600")
        .variable("FLUXSERVE_RESULTS_LINK_SECONDS", "600")
        .variable("FLUXSERVE_RESULTS_BYTES_MAX", "1048576")
        .variable("FLUXSERVE_RESULTS_PROVENANCE", "false")
        .variable("FLUXSERVE_LORA_BYTES_MAX", "4194304")
        .variable("FLUXSERVE_LORA_IN_PROMPT", "true")
        .variable("FLUXSERVE_PRICES_PER_MEGAPIXEL_STEP", "0.0004")
        .variable("FLUXSERVE_PRICES_PER_ENGINE_SECOND", "0.01")
        .variable("FLUXSERVE_PRICES_CURRENCY", "EUR")
        .variable("FLUXSERVE_SDAPI", "true")
        .variable("FLUXSERVE_MODERATION_URL", "https://moderation.example.org/review")
        .variable("FLUXSERVE_MODERATION_BEFORE", "false")
        .variable("FLUXSERVE_MODERATION_AFTER", "true")
        .variable("FLUXSERVE_MODERATION_ON_FAILURE", "allow")
        .variable("FLUXSERVE_MODERATION_TIMEOUT_SECONDS", "3")
        .variable("FLUXSERVE_MODERATION_SECRET", "hush")
        .variable("FLUXSERVE_LOG_FILTER", "warn")
        .variable("FLUXSERVE_LOG_FORMAT", "json")
        .variable("FLUXSERVE_TELEMETRY_OTLP_ENDPOINT", "http://localhost:4318/")
        .variable("FLUXSERVE_WEBHOOKS_ENABLED", "false")
        .variable("FLUXSERVE_WEBHOOKS_ALLOW_HTTP", "true")
        .variable("FLUXSERVE_WEBHOOKS_ALLOWED_HOSTS", "hooks.internal, 10.0.0.0/8")
        .variable("FLUXSERVE_WEBHOOKS_ONLY_ALLOWED_HOSTS", "true")
        .variable("FLUXSERVE_KUBERNETES_KUBECONFIG", "/etc/fluxserve/kubeconfig")
        .variable("FLUXSERVE_KUBERNETES_IN_CLUSTER", "false")
        .variable("FLUXSERVE_KUBERNETES_SERVER", "https://cluster.example.org:6443/")
        .variable("FLUXSERVE_KUBERNETES_NAMESPACE", "images")
        .variable("FLUXSERVE_KUBERNETES_AUTO_OPEN", "true")
        .variable("FLUXSERVE_KUBERNETES_ALLOW_EXEC_PLUGINS", "true")
        .variable("FLUXSERVE_HUB_DOWNLOAD", "true");
    let ours = VARIABLES.iter().filter(|variable| variable.name.starts_with("FLUXSERVE_"));
    assert_eq!(sources.variables.len() + 3, ours.count(), "all but the file's own name and the password's two");
    let from_file = Sources::new().file(COMPLETE_FILE).load().expect("valid");
    assert_eq!(sources.load().expect("valid"), from_file);
}

#[test]
fn the_environment_wins_over_the_file_and_flags_over_both() {
    let layered = || Sources::new().file(COMPLETE_FILE).variable("FLUXSERVE_LISTEN", "127.0.0.2:1");
    let config = layered().variable("FLUXSERVE_DEVICE", "").load().expect("valid");
    assert_eq!(config.listen.port(), 1);
    assert_eq!(config.device, DeviceChoice::Cuda(1).into(), "an empty variable counts as absent");
    let flags = Flags {
        listen: Some("127.0.0.3:2".parse().expect("an address")),
        admin_listen: Some("127.0.0.3:3".parse().expect("an address")),
        data_dir: Some("elsewhere".into()),
        models: vec!["other/model".parse().expect("a model")],
        device: Some(DeviceChoice::Cpu.into()),
        config_file: None,
        download: true,
        ..Flags::default()
    };
    let config = layered().flags(flags.clone()).load().expect("valid");
    assert_eq!((config.listen.port(), config.admin_listen.map(|address| address.port())), (2, Some(3)));
    assert_eq!((config.data_dir, config.models), ("elsewhere".into(), flags.models));
    assert_eq!((config.device, config.queue.jobs_max), (DeviceChoice::Cpu.into(), 8));
    let off = layered().variable("FLUXSERVE_HUB_DOWNLOAD", "false");
    assert!(!off.load().expect("valid").hub.download);
    let flags = Flags { download: true, ..Flags::default() };
    assert!(Sources::new().flags(flags).load().expect("valid").hub.download);
}

#[test]
fn a_named_file_is_read_and_must_exist() {
    let folder = tempfile::tempdir().expect("a folder");
    let other = folder.path().join("other.toml");
    let flags = Flags { config_file: Some(other.clone()), ..Flags::default() };
    let error = Sources::new().flags(flags.clone()).error();
    assert!(error.contains("cannot read") && error.contains("other.toml"), "{error}");
    std::fs::write(&other, "[queue]\njobs_max = 3").expect("written");
    let config = Sources::new().file(COMPLETE_FILE).flags(flags).load().expect("valid");
    assert_eq!((config.queue.jobs_max, config.listen.port()), (3, 8080), "instead of the default file");
}

#[cfg(unix)]
#[test]
fn an_unnamed_file_must_be_the_users_own() {
    use std::os::unix::fs::PermissionsExt as _;

    for mode in [0o664, 0o646, 0o666] {
        let sources = Sources::new().file("[queue]\njobs_max = 3");
        let file = sources.default_file();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).expect("ours");
        let folder = sources.folder.path().to_owned();
        let named = Flags { config_file: Some(file), ..Flags::default() };
        let lookup = |_: &str| None;
        let config = Config::from_sources(named, &folder.join("none.toml"), &lookup).expect("a named file is trusted");
        assert_eq!(config.queue.jobs_max, 3);
        let error = sources.error();
        for part in ["others than its owner", &format!("mode {mode:o}"), "chmod go-w", "--config"] {
            assert!(error.contains(part), "{part:?} in {error}");
        }
    }
    // That it must not be another user's is tested in `own_file`: only root can change an owner.
}

#[test]
fn tildes_and_variables_in_paths_are_expanded() {
    let at_home = || Sources::new().variable("HOME", "/home/ann").variable("WHERE", "/mnt");
    for (sources, data_dir) in [
        (at_home().variable("FLUXSERVE_DATA_DIR", "~/data"), "/home/ann/data"),
        (at_home().variable("FLUXSERVE_DATA_DIR", "${WHERE}/data"), "/mnt/data"),
        (at_home().file("data_dir = \"$WHERE/data\""), "/mnt/data"),
        (at_home().flags(Flags { data_dir: Some("~/data".into()), ..Flags::default() }), "/home/ann/data"),
        (at_home().flags(Flags { data_dir: Some("$WHERE".into()), ..Flags::default() }), "$WHERE"),
    ] {
        assert_eq!(sources.load().expect("valid").data_dir, Path::new(data_dir));
    }
    let tls =
        at_home().variable("FLUXSERVE_TLS_CERTIFICATE", "~/c.pem").variable("FLUXSERVE_TLS_PRIVATE_KEY", "$WHERE/k");
    let tls = tls.load().expect("valid").tls.expect("a pair");
    assert_eq!((tls.certificate, tls.private_key), ("/home/ann/c.pem".into(), "/mnt/k".into()));
    for (sources, parts) in [
        (at_home().variable("FLUXSERVE_DATA_DIR", "$NOT/data"), ["FLUXSERVE_DATA_DIR", "no variable NOT"]),
        (at_home().variable("FLUXSERVE_DATA_DIR", "~bob/data"), ["FLUXSERVE_DATA_DIR", "`./~bob/data`"]),
        (Sources::new().variable("FLUXSERVE_DATA_DIR", "~/data"), ["FLUXSERVE_DATA_DIR", "HOME"]),
        (at_home().file("data_dir = \"$NOT\""), ["field `data_dir`", "no variable NOT"]),
        (at_home().variable("FLUXSERVE_CONFIG", "$NOT"), ["FLUXSERVE_CONFIG", "no variable NOT"]),
    ] {
        let error = sources.error();
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    }
}

#[test]
fn unknown_variables_are_ignored() {
    let sources = Sources::new().variable("FLUXSERVE_PORT", "tcp://10.0.0.1:80");
    assert_eq!(sources.load().expect("valid"), Config::default());
}

#[test]
fn each_variable_is_named_after_its_field() {
    for variable in VARIABLES.iter().filter(|variable| !variable.field.is_empty()) {
        assert_eq!(variable.name, format!("FLUXSERVE_{}", variable.field.to_uppercase().replace('.', "_")));
    }
}
