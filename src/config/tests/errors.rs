//! Errors name their place and how to fix them.

use super::*;

#[test]
fn an_error_names_its_place_and_a_hint() {
    assert_named(&[
        ("listen = \"here\"", &["field `listen`", "`here`"]),
        ("admin_listen = \"9001\"", &["field `admin_listen`", "`9001`", "127.0.0.1:8080"]),
        (
            "[tls]\ncertificate = \"a.pem\"",
            &["field `tls.certificate`", "`tls.private_key`", "FLUXSERVE_TLS_PRIVATE_KEY"],
        ),
        ("[tls]\nprivate_key = \"a.pem\"", &["field `tls.private_key`", "`tls.certificate`"]),
        ("device = \"gpu\"", &["field `device`", "`auto`, `cpu`"]),
        ("[engine]\noffload = \"vae\"", &["field `engine.offload`", "`auto`, `none`, `text` or `blocks`"]),
        ("[engine]\nprecision = \"f16\"", &["field `engine.precision`", "`f16`", "use `full`, or `bf16` or `fp8`"]),
        ("models = []", &["field `models`", "from 1 to"]),
        ("models = [\"a\", \"a=/x\"]", &["field `models`", "`a` twice"]),
        ("models = [\"=x\"]", &["field `models`", "ID=PATH"]),
        ("[max_input_images]\n\"a/b\" = 5", &["field `max_input_images`", "`a/b` must be 0 or 1, or up to 4", "not 5"]),
        (
            "[[models]]\nid = \"a/b\"\ncontrolnets = { \"my net\" = \"/x\" }",
            &["field `models`", "`controlnets` of `a/b`: `my net` is no name"],
        ),
        ("[[models]]\nid = \"a/b\"\ncontrolnets = [\"/x\"]", &["a table of id, path,", "controlnets, redux and depth"]),
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
    ]);
}

#[test]
fn an_error_about_a_service_names_its_place_and_a_hint() {
    assert_named(&[
        ("[moderation]\nsecret = \"hush\"", &["field `moderation.secret`", "set `moderation.url`"]),
        ("[moderation]\non_failure = \"allow\"", &["field `moderation.on_failure`", "set `moderation.url`"]),
        (
            "[moderation]\nurl = \"moderation.example.org\"",
            &["field `moderation.url`", "https://moderation.example.org/review"],
        ),
        (
            "[moderation]\nurl = \"https://a.b/c\"\nbefore = false\nafter = false",
            &["field `moderation.url`", "`moderation.before` or `moderation.after`"],
        ),
        ("[moderation]\non_failure = \"ask\"", &["field `moderation.on_failure`", "`refuse` or `allow`"]),
        ("[moderation]\ntimeout_seconds = 0", &["field `moderation.timeout_seconds`", "from 1 to 120"]),
        ("[webhooks]\nallowed_hosts = [\"a.b:80\"]", &["field `webhooks.allowed_hosts`", "`a.b:80`", "10.0.0.0/8"]),
        ("[webhooks]\nonly_allowed_hosts = true", &["field `webhooks.only_allowed_hosts`", "`webhooks.allowed_hosts`"]),
        (
            "[webhooks]\nalerts_url = \"https://a.b\"",
            &["field `webhooks.alerts_url`", "`webhooks.alerts_secret`", "FLUXSERVE_WEBHOOKS_ALERTS_SECRET"],
        ),
        (
            "[webhooks]\nalerts_secret = \"whsec_hush\"",
            &["field `webhooks.alerts_secret`", "`webhooks.alerts_url`", "FLUXSERVE_WEBHOOKS_ALERTS_URL"],
        ),
    ]);
}

#[track_caller]
fn assert_named(cases: &[(&str, &[&str])]) {
    for (text, parts) in cases {
        let error = Sources::new().file(text).error();
        for part in [&[DEFAULT_FILE][..], parts].concat() {
            assert!(error.contains(part), "{part:?} in {error}");
        }
    }
}

#[test]
fn an_error_names_its_variable_or_flag() {
    let variable_cases = [
        ("FLUXSERVE_LISTEN", "8080", "127.0.0.1:8080"),
        ("FLUXSERVE_QUEUE_JOBS_MAX", "many", "a whole number, not `many`"),
        ("FLUXSERVE_HTTP_WAIT_SECONDS_MAX", "999999", "from 0 to 3600"),
        ("FLUXSERVE_MODELS", "a,,b", "ID=PATH"),
        ("FLUXSERVE_MAX_INPUT_IMAGES", "a/b", "must be like `ID=1`, not `a/b`"),
        ("FLUXSERVE_MAX_INPUT_IMAGES", "a/b=many", "must be like `ID=1`"),
        ("FLUXSERVE_MAX_INPUT_IMAGES", "a/b=18446744073709551615", "`a/b` must be 0 or 1, or up to 4"),
        ("FLUXSERVE_LORA_BYTES_MAX", "2", "from 1048576 to"),
        ("FLUXSERVE_LORA_IN_PROMPT", "yes", "`true` or `false`"),
        ("FLUXSERVE_RESULTS_PROVENANCE", "no", "`true` or `false`"),
        ("FLUXSERVE_SDAPI", "on", "`true` or `false`"),
        ("FLUXSERVE_MODERATION_SECRET", "two words", "one word"),
        ("FLUXSERVE_LOG_FORMAT", "JSON", "`text` or `json`"),
        ("FLUXSERVE_ENGINE_PRECISION", "e4m3", "use `full`, or `bf16` or `fp8`"),
        ("FLUXSERVE_ENGINE_WEIGHTS", "packed", "use `auto`, `as-stored` or `expanded`"),
        ("FLUXSERVE_ENGINE_THREADS", "0", "must be from 1 to 1024, not 0"),
    ];
    for (name, value, part) in variable_cases {
        let error = Sources::new().variable(name, value).error();
        assert!(error.contains(name) && error.contains(part), "{error}");
    }
    let error = Sources::new().variable("FLUXSERVE_MODERATION_SECRET", "two words").error();
    assert!(!error.contains("two words"), "{error}");
    let receiver = Sources::new().variable("FLUXSERVE_WEBHOOKS_ALERTS_URL", "https://a.b/c?token=hush");
    let error = receiver.variable("FLUXSERVE_WEBHOOKS_ALERTS_SECRET", "two words").error();
    assert!(error.contains("FLUXSERVE_WEBHOOKS_ALERTS_SECRET") && error.contains("one word"), "{error}");
    assert!(!error.contains("two words") && !error.contains("hush"), "{error}");
    for url in ["http:///x", "ftp://a.b", "https://me:hush@a.b", "https:///a", "https://a.b/c#d"] {
        let error = Sources::new().variable("FLUXSERVE_MODERATION_URL", url).error();
        assert!(error.contains("FLUXSERVE_MODERATION_URL") && !error.contains(url), "{error}");
    }
    let twice = vec!["a".parse().expect("a model"), "a".parse().expect("a model")];
    let error = Sources::new().flags(Flags { models: twice, ..Flags::default() }).error();
    assert!(error.contains("--model") && error.contains("twice"), "{error}");
}
