//! The variables of the hub.

use super::*;

#[test]
fn the_hub_has_the_paths_of_its_own_tools() {
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
fn a_blank_token_counts_as_absent() {
    let token = |text| Sources::new().variable("HF_TOKEN", text).load().expect("valid").hub.token;
    for blank in ["", " ", "\n", " \t\n"] {
        assert_eq!(token(blank), None, "{blank:?}");
    }
    assert!(token(" hf_x\n").is_some());
}

#[test]
fn an_error_in_a_variable_of_the_hub_shows_no_secret() {
    for (name, value, part) in [
        ("HF_ENDPOINT", "huggingface.co", DEFAULT_HUB),
        ("HF_TOKEN", "two words", "one word"),
        ("HTTPS_PROXY", "ftp://ann:hush@proxy", "http://proxy.example.org:3128"),
    ] {
        let error = Sources::new().variable(name, value).error();
        assert!(error.contains(name) && error.contains(part), "{error}");
        assert!(!error.contains("two words") && !error.contains("hush"), "{error}");
    }
    let sources = Sources::new().variable("HF_TOKEN", "hf_hush").variable("HTTP_PROXY", "http://ann:hush@proxy");
    let config = sources.load().expect("valid");
    assert_eq!(config.hub.token.as_ref().map(crate::domain::hub_token::HubToken::reveal), Some("hf_hush"));
    assert!(!format!("{config:?}").contains("hush"));
}
