use super::*;
use crate::domain::device::{DeviceChoice, Kernels};
use crate::domain::networks::Networks;

struct Sources {
    folder: tempfile::TempDir,
    variables: Vec<(&'static str, &'static str)>,
    flags: Flags,
}

impl Sources {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("a folder"), variables: Vec::new(), flags: Flags::default() }
    }

    fn file(self, text: &str) -> Self {
        std::fs::write(self.default_file(), text).expect("written");
        self
    }

    fn variable(mut self, name: &'static str, value: &'static str) -> Self {
        self.variables.push((name, value));
        self
    }

    fn flags(mut self, flags: Flags) -> Self {
        self.flags = flags;
        self
    }

    fn default_file(&self) -> PathBuf {
        self.folder.path().join(DEFAULT_FILE)
    }

    fn load(self) -> Result<Config, ConfigError> {
        let lookup = |name: &str| {
            let found = self.variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| OsString::from(value))
        };
        Config::from_sources(self.flags.clone(), &self.default_file(), &lookup)
    }

    fn error(self) -> String {
        self.load().expect_err("a mistake").to_string()
    }
}

const WHOLE_FILE: &str = r#"
listen = "0.0.0.0:9000"
admin_listen = "127.0.0.1:9001"
metrics_listen = "127.0.0.1:9002"
data_dir = "/var/lib/fluxserve"
models = ["black-forest-labs/FLUX.1-dev=/weights", "fluxserve/flux-shapes"]
device = "cuda:1"
max_input_images = { "black-forest-labs/FLUX.1-dev" = 1, "fluxserve/flux-shapes" = 0 }
drain_deadline_seconds = 10

[engine]
offload = "text"
deterministic = true
kernels = "portable"
precision = "fp8"

[http]
body_limit_bytes = 2048
bodies_bytes_max = 8388608
key_bodies_bytes_max = 4194304
wait_seconds_max = 60
connections_max = 64
header_deadline_seconds = 5
public_url = "https://images.example.org/"
hosts = ["images.internal", "10.0.0.7"]
cors_origins = ["https://pages.example.org"]
trusted_proxies = ["10.0.0.0/8"]

[queue]
jobs_max = 8

[results]
retention_seconds = 3600
link_seconds = 600
bytes_max = 1048576
provenance = false

[log]
filter = "warn"
format = "json"

[telemetry]
otlp_endpoint = "http://localhost:4318"

[kubernetes]
kubeconfig = "/etc/fluxserve/kubeconfig"
in_cluster = false
server = "https://cluster.example.org:6443"
namespace = "images"
auto_open = true
allow_exec_plugins = true

[tls]
certificate = "/etc/fluxserve/certificate.pem"
private_key = "/etc/fluxserve/key.pem"

[hub]
download = true
"#;

#[test]
fn nothing_said_means_the_defaults() {
    let config = Sources::new().load().expect("valid");
    assert_eq!(config, Config::default());
    assert_eq!(config.listen.to_string(), "127.0.0.1:8080");
    assert_eq!(config.database_path(), Path::new("data/fluxserve.db"));
}

#[test]
fn every_field_of_the_file_is_read() {
    let config = Sources::new().file(WHOLE_FILE).load().expect("valid");
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
        },
        admin_password: None,
        drain_deadline_seconds: 10,
        http: HttpConfig {
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
        },
        queue: QueueConfig { jobs_max: 8 },
        results: ResultsConfig { retention_seconds: 3600, link_seconds: 600, bytes_max: 1_048_576, provenance: false },
        log: LogConfig { filter: "warn".into(), format: LogFormat::Json },
        telemetry: TelemetryConfig { otlp_endpoint: Some("http://localhost:4318".into()) },
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
        .variable("FLUXSERVE_LOG_FILTER", "warn")
        .variable("FLUXSERVE_LOG_FORMAT", "json")
        .variable("FLUXSERVE_TELEMETRY_OTLP_ENDPOINT", "http://localhost:4318/")
        .variable("FLUXSERVE_KUBERNETES_KUBECONFIG", "/etc/fluxserve/kubeconfig")
        .variable("FLUXSERVE_KUBERNETES_IN_CLUSTER", "false")
        .variable("FLUXSERVE_KUBERNETES_SERVER", "https://cluster.example.org:6443/")
        .variable("FLUXSERVE_KUBERNETES_NAMESPACE", "images")
        .variable("FLUXSERVE_KUBERNETES_AUTO_OPEN", "true")
        .variable("FLUXSERVE_KUBERNETES_ALLOW_EXEC_PLUGINS", "true")
        .variable("FLUXSERVE_HUB_DOWNLOAD", "true");
    let ours = VARIABLES.iter().filter(|variable| variable.name.starts_with("FLUXSERVE_"));
    assert_eq!(sources.variables.len() + 3, ours.count(), "all but the file's own name and the password's two");
    let from_file = Sources::new().file(WHOLE_FILE).load().expect("valid");
    assert_eq!(sources.load().expect("valid"), from_file);
}

#[test]
fn the_environment_wins_over_the_file_and_flags_over_both() {
    let layered = || Sources::new().file(WHOLE_FILE).variable("FLUXSERVE_LISTEN", "127.0.0.2:1");
    let config = layered().variable("FLUXSERVE_DEVICE", "").load().expect("valid");
    assert_eq!(config.listen.port(), 1);
    assert_eq!(config.device, DeviceChoice::Cuda(1).into(), "an empty variable is none");
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
fn another_file_can_be_named_and_must_then_be_there() {
    let folder = tempfile::tempdir().expect("a folder");
    let other = folder.path().join("other.toml");
    let flags = Flags { config_file: Some(other.clone()), ..Flags::default() };
    let error = Sources::new().flags(flags.clone()).error();
    assert!(error.contains("cannot read") && error.contains("other.toml"), "{error}");
    std::fs::write(&other, "[queue]\njobs_max = 3").expect("written");
    let config = Sources::new().file(WHOLE_FILE).flags(flags).load().expect("valid");
    assert_eq!((config.queue.jobs_max, config.listen.port()), (3, 8080), "instead of the default one");
}

#[cfg(unix)]
#[test]
fn a_file_that_nobody_named_must_be_the_users_own() {
    use std::os::unix::fs::PermissionsExt as _;

    for mode in [0o664, 0o646, 0o666] {
        let sources = Sources::new().file("[queue]\njobs_max = 3");
        let file = sources.default_file();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).expect("ours");
        let folder = sources.folder.path().to_owned();
        let named = Flags { config_file: Some(file), ..Flags::default() };
        let lookup = |_: &str| None;
        let config = Config::from_sources(named, &folder.join("none.toml"), &lookup).expect("who names it knows it");
        assert_eq!(config.queue.jobs_max, 3);
        let error = sources.error();
        for part in ["others than its owner", &format!("mode {mode:o}"), "chmod go-w", "--config"] {
            assert!(error.contains(part), "{part:?} in {error}");
        }
    }
    // That it must not be another user's is tested where it is found out: only root can give a file away.
}

#[test]
fn tildes_and_variables_in_paths_are_read_by_whoever_says_them() {
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
fn a_mistake_is_named_with_its_place_and_the_way_out() {
    let file_cases = [
        ("listen = \"here\"", &["field `listen`", "`here`"][..]),
        ("admin_listen = \"9001\"", &["field `admin_listen`", "`9001`", "127.0.0.1:8080"]),
        (
            "[tls]\ncertificate = \"a.pem\"",
            &["field `tls.certificate`", "`tls.private_key`", "FLUXSERVE_TLS_PRIVATE_KEY"],
        ),
        ("[tls]\nprivate_key = \"a.pem\"", &["field `tls.private_key`", "`tls.certificate`"]),
        ("device = \"gpu\"", &["field `device`", "`auto`, `cpu`"]),
        ("[engine]\noffload = \"vae\"", &["field `engine.offload`", "`none` or `text`"]),
        ("[engine]\nprecision = \"bf16\"", &["field `engine.precision`", "`bf16`", "use `full`, or `fp8`"]),
        ("models = []", &["field `models`", "from 1 to"]),
        ("models = [\"a\", \"a=/x\"]", &["field `models`", "`a` twice"]),
        ("models = [\"=x\"]", &["field `models`", "ID=DIR"]),
        ("[max_input_images]\n\"a/b\" = 2", &["field `max_input_images`", "`a/b` must be 0 or 1, not 2"]),
        ("max_input_images = 1", &["line 1", "map"]),
        ("[queue]\njobs_max = 0", &["field `queue.jobs_max`", "from 1 to 100000, not 0"]),
        ("[queue]\njobs_max = -1", &["line 2", "-1"]),
        ("[queue]\njobs_maximum = 1", &["line 2", "unknown field `jobs_maximum`", "`jobs_max`"]),
        ("[http]\nbody_limit_bytes = \"1 MiB\"", &["line 2", "string"]),
        ("[http]\nconnections_max = 0", &["field `http.connections_max`", "from 2"]),
        ("[http]\npublic_url = \"example.org\"", &["field `http.public_url`", "https://images.example.org"]),
        ("[http]\ncors_origins = [\"a.b\"]", &["field `http.cors_origins`", "https://images.example.org"]),
        ("[http]\ntrusted_proxies = [\"a.b\"]", &["field `http.trusted_proxies`", "10.0.0.0/8"]),
        ("[http]\nhosts = [\"a.b:80\"]", &["field `http.hosts`", "`a.b:80`", "without a port"]),
        ("[results]\nretention_seconds = 1", &["field `results.retention_seconds`", "from 60"]),
        ("[log]\nformat = \"xml\"", &["field `log.format`", "`text` or `json`"]),
        (
            "[telemetry]\notlp_endpoint = \"localhost:4318\"",
            &["field `telemetry.otlp_endpoint`", "http://localhost:4318"],
        ),
        ("[kubernetes]\nserver = \"http://c\"", &["field `kubernetes.server`", "https://cluster.example.org"]),
        ("[kubernetes]\nserver = \"https://c'; reboot\"", &["field `kubernetes.server`"]),
        ("[kubernetes]\nnamespace = \"A\"", &["field `kubernetes.namespace`", "lowercase"]),
        ("[kubernetes]\nin_cluster = true", &["field `kubernetes.in_cluster`", "needs `kubernetes.server`"]),
        (
            "[kubernetes]\nin_cluster = true\nkubeconfig = \"k\"\nserver = \"https://c\"",
            &["field `kubernetes.in_cluster`", "one cluster"],
        ),
        ("port = 8080", &["unknown field `port`"]),
        ("listen", &["line 1"]),
    ];
    for (text, parts) in file_cases {
        let error = Sources::new().file(text).error();
        for part in [&[DEFAULT_FILE][..], parts].concat() {
            assert!(error.contains(part), "{part:?} in {error}");
        }
    }
    let variable_cases = [
        ("FLUXSERVE_LISTEN", "8080", "127.0.0.1:8080"),
        ("FLUXSERVE_QUEUE_JOBS_MAX", "many", "a whole number, not `many`"),
        ("FLUXSERVE_HTTP_WAIT_SECONDS_MAX", "999999", "from 0 to 3600"),
        ("FLUXSERVE_MODELS", "a,,b", "ID=DIR"),
        ("FLUXSERVE_MAX_INPUT_IMAGES", "a/b", "must be like `ID=1`, not `a/b`"),
        ("FLUXSERVE_MAX_INPUT_IMAGES", "a/b=many", "must be like `ID=1`"),
        ("FLUXSERVE_MAX_INPUT_IMAGES", "a/b=3", "`a/b` must be 0 or 1, not 3"),
        ("FLUXSERVE_RESULTS_PROVENANCE", "no", "`true` or `false`"),
        ("FLUXSERVE_LOG_FORMAT", "JSON", "`text` or `json`"),
        ("FLUXSERVE_ENGINE_PRECISION", "e4m3", "use `full`, or `fp8`"),
    ];
    for (name, value, part) in variable_cases {
        let error = Sources::new().variable(name, value).error();
        assert!(error.contains(name) && error.contains(part), "{error}");
    }
    let twice = vec!["a".parse().expect("a model"), "a".parse().expect("a model")];
    let error = Sources::new().flags(Flags { models: twice, ..Flags::default() }).error();
    assert!(error.contains("--model") && error.contains("twice"), "{error}");
}

#[test]
fn the_password_comes_from_the_environment_alone_and_is_never_shown() {
    let sources = || Sources::new().file(WHOLE_FILE);
    let config = sources().variable("FLUXSERVE_ADMIN_PASSWORD", "a good password").load().expect("valid");
    assert_eq!(config.admin_password.as_ref().map(AdminPassword::reveal), Some("a good password"));
    assert!(!format!("{config:?}").contains("a good password"));
    let error = sources().variable("FLUXSERVE_ADMIN_PASSWORD", "too short").error();
    assert!(error.contains("FLUXSERVE_ADMIN_PASSWORD") && error.contains("12 to 256"), "{error}");
    assert!(!error.contains("too short"), "{error}");
    let error = Sources::new().file("admin_password = \"a good password\"").error();
    assert!(error.contains("unknown field `admin_password`"), "{error}");
}

#[test]
fn the_password_may_stand_in_a_file_that_the_environment_names() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("password");
    let name: &'static str = file.to_str().expect("a text").to_owned().leak();
    let sources = || Sources::new().file(WHOLE_FILE).variable("FLUXSERVE_ADMIN_PASSWORD_FILE", name);
    let with = |content: &[u8]| {
        std::fs::write(&file, content).expect("written");
        sources()
    };
    for content in ["a good password", "a good password\n", "a good password\r\n"] {
        let config = with(content.as_bytes()).load().expect("valid");
        assert_eq!(config.admin_password.as_ref().map(AdminPassword::reveal), Some("a good password"), "{content:?}");
    }
    let longest = "\u{1F511}".repeat(256);
    let config = with(format!("{longest}\n").as_bytes()).load().expect("valid");
    assert_eq!(config.admin_password.as_ref().map(AdminPassword::reveal), Some(&*longest));
    let endless = vec![b'x'; 100_000];
    for (content, part) in [
        ("too short\n".as_bytes(), "12 to 256"),
        (b"two of them\nin a file\n", "12 to 256"),
        (b"", "empty"),
        (b"\n", "empty"),
        (b"not a text: \xff\xff\xff", "UTF-8"),
        (&endless, "12 to 256"),
    ] {
        let error = with(content).error();
        assert!(error.contains("FLUXSERVE_ADMIN_PASSWORD_FILE") && error.contains(part), "{error}");
        assert!(!error.contains("too short") && !error.contains("two of them"), "{error}");
    }
    let error = with(b"a good password").variable("FLUXSERVE_ADMIN_PASSWORD", "another password").error();
    assert!(error.contains("FLUXSERVE_ADMIN_PASSWORD_FILE") && error.contains("beside"), "{error}");
    let config = with(b"a good password").variable("FLUXSERVE_ADMIN_PASSWORD", "").load().expect("valid");
    assert!(config.admin_password.is_some(), "an empty variable is none");
    std::fs::remove_file(&file).expect("removed");
    let error = sources().error();
    assert!(error.contains("FLUXSERVE_ADMIN_PASSWORD_FILE") && error.contains(name), "{error}");
    let error = Sources::new().file("admin_password_file = \"password\"").error();
    assert!(error.contains("unknown field `admin_password_file`"), "{error}");
}

#[test]
fn the_hub_is_where_its_own_tools_have_it() {
    let hub = |sources: Sources| sources.load().expect("valid").hub;
    let at_home = hub(Sources::new().variable("HOME", "/home/ann"));
    assert_eq!(at_home.endpoint, DEFAULT_HUB);
    assert_eq!(at_home.cache_dir, Some("/home/ann/.cache/huggingface/hub".into()));
    assert_eq!(at_home.token_file, Some("/home/ann/.cache/huggingface/token".into()));
    let elsewhere = Sources::new().variable("HOME", "/home/ann").variable("XDG_CACHE_HOME", "/cache");
    assert_eq!(hub(elsewhere).cache_dir, Some("/cache/huggingface/hub".into()));
    let named = || Sources::new().variable("HOME", "/home/ann").variable("HF_HOME", "/hf");
    assert_eq!(hub(named()).cache_dir, Some("/hf/hub".into()));
    assert_eq!(hub(named().variable("HF_HUB_CACHE", "/models")).cache_dir, Some("/models".into()));
    assert_eq!(hub(named().variable("HF_TOKEN_PATH", "/run/token")).token_file, Some("/run/token".into()));
    // Recorded from huggingface_hub 2.4 on Python 3.11: HF_HUB_CACHE and HF_TOKEN_PATH of `huggingface_hub.constants`.
    for (name, text, cache, token) in [
        ("HF_HOME", "~/hf", "/home/ann/hf/hub", "/home/ann/hf/token"),
        ("HF_HOME", "$WHERE/hf", "/mnt/hf/hub", "/mnt/hf/token"),
        ("HF_HOME", "$NOT/hf", "$NOT/hf/hub", "$NOT/hf/token"),
        ("HF_HUB_CACHE", "${WHERE}/hub", "/mnt/hub", "/home/ann/.cache/huggingface/token"),
        ("HF_HUB_CACHE", "~/hub", "/home/ann/hub", "/home/ann/.cache/huggingface/token"),
        ("HF_TOKEN_PATH", "$WHERE/token", "/home/ann/.cache/huggingface/hub", "/mnt/token"),
        ("HF_TOKEN_PATH", "~/token", "/home/ann/.cache/huggingface/hub", "/home/ann/token"),
        ("XDG_CACHE_HOME", "~/c", "/home/ann/c/huggingface/hub", "/home/ann/c/huggingface/token"),
        ("XDG_CACHE_HOME", "$WHERE/c", "/mnt/c/huggingface/hub", "/mnt/c/huggingface/token"),
    ] {
        let found = hub(Sources::new().variable("HOME", "/home/ann").variable("WHERE", "/mnt").variable(name, text));
        assert_eq!(found.cache_dir, Some(cache.into()), "{name}={text}");
        assert_eq!(found.token_file, Some(token.into()), "{name}={text}");
    }
    for (text, is_offline) in [("1", true), ("ON", true), ("true", true), ("0", false), ("no", false)] {
        assert_eq!(hub(Sources::new().variable("HF_HUB_OFFLINE", text)).is_offline, is_offline, "{text}");
    }
    let mirror = hub(Sources::new().variable("HF_ENDPOINT", "https://mirror.example.org/hf/"));
    assert_eq!(mirror.endpoint, "https://mirror.example.org/hf");
    let proxies = Sources::new().variable("all_proxy", "proxy:3128").variable("HTTPS_PROXY", "http://other:1");
    let proxy = hub(proxies.variable("no_proxy", "localhost")).proxy;
    assert_eq!(proxy.https.as_ref().map(ProxyUrl::reveal), Some("http://other:1"));
    assert_eq!(proxy.http.as_ref().map(ProxyUrl::reveal), Some("http://proxy:3128"));
    assert_eq!(proxy.except.as_deref(), Some("localhost"));
}

#[test]
fn a_blank_token_is_none() {
    let token = |text| Sources::new().variable("HF_TOKEN", text).load().expect("valid").hub.token;
    for blank in ["", " ", "\n", " \t\n"] {
        assert_eq!(token(blank), None, "{blank:?}");
    }
    assert!(token(" hf_x\n").is_some());
}

#[test]
fn a_mistake_in_a_variable_of_the_hub_is_named_and_no_secret_is_shown() {
    for (name, value, part) in [
        ("HF_ENDPOINT", "huggingface.co", DEFAULT_HUB),
        ("HF_TOKEN", "two words", "one word"),
        ("HTTPS_PROXY", "ftp://ann:secret@proxy", "http://proxy.example.org:3128"),
    ] {
        let error = Sources::new().variable(name, value).error();
        assert!(error.contains(name) && error.contains(part), "{error}");
        assert!(!error.contains("two words") && !error.contains("secret"), "{error}");
    }
    let sources = Sources::new().variable("HF_TOKEN", "hf_secret").variable("HTTP_PROXY", "http://ann:secret@proxy");
    let config = sources.load().expect("valid");
    assert_eq!(config.hub.token.as_ref().map(crate::domain::hub_token::HubToken::reveal), Some("hf_secret"));
    assert!(!format!("{config:?}").contains("secret"));
}

#[test]
fn variables_of_others_are_let_pass() {
    let sources = Sources::new().variable("FLUXSERVE_PORT", "tcp://10.0.0.1:80");
    assert_eq!(sources.load().expect("valid"), Config::default());
}

#[test]
fn each_variable_is_named_after_its_field() {
    for variable in VARIABLES.iter().filter(|variable| !variable.field.is_empty()) {
        assert_eq!(variable.name, format!("FLUXSERVE_{}", variable.field.to_uppercase().replace('.', "_")));
    }
}
