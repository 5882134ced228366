//! What the program says about itself: models in their order, completions, manual pages, version.

use super::*;

#[tokio::test]
async fn models_are_listed_with_those_that_are_served_first_and_those_that_are_here_next() {
    let folder = tempfile::tempdir().expect("a folder");
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let repository = folder.path().join("hub/models--black-forest-labs--FLUX.1-schnell");
    std::fs::create_dir_all(repository.join("snapshots").join(commit)).expect("made");
    std::fs::create_dir_all(repository.join("refs")).expect("made");
    std::fs::write(repository.join("refs/main"), commit).expect("written");
    let config = Config {
        models: vec!["z/tune=/weights".parse().expect("a source")],
        hub: crate::config::HubConfig { cache_dir: Some(folder.path().join("hub")), ..Default::default() },
        ..Config::default()
    };
    let mut out = Vec::new();
    app::list_models(&config, &mut out).expect("listed");
    let table = String::from_utf8(out).expect("text");
    let ids: Vec<&str> = table.lines().filter_map(|line| line.split(' ').next()).collect();
    let family = |name: &str| format!("black-forest-labs/FLUX.1-{name}");
    let expected = ["z/tune".to_owned(), family("schnell"), "fluxserve/flux-shapes".to_owned()];
    assert_eq!(ids[..3], expected, "{table}");
    let not_here: Vec<&str> = ids[3..].iter().copied().take_while(|id| !id.ends_with("FLUX.2-klein-4B")).collect();
    assert!(not_here.is_sorted() && not_here.len() == 12, "{table}");
    let (krea, dev) = (family("Krea-dev"), family("dev"));
    for id in [krea.as_str(), dev.as_str(), "Comfy-Org/flux1-dev", "city96/FLUX.1-dev-gguf"] {
        assert!(not_here.contains(&id), "{id}: {table}");
    }
    assert!(table.lines().skip(15).all(|line| line.contains(" not yet ")), "{table}");
}

/// The names of all commands, with those above them: `keys create`.
fn commands() -> Vec<String> {
    fn collect(command: &clap::Command, above: &str, found: &mut Vec<String>) {
        for command in command.get_subcommands().filter(|command| !command.is_hide_set()) {
            let name = format!("{above}{}", command.get_name());
            collect(command, &format!("{name} "), found);
            found.push(name);
        }
    }
    let mut found = Vec::new();
    collect(&<Cli as clap::CommandFactory>::command(), "", &mut found);
    found
}

#[tokio::test]
async fn completions_know_every_command() {
    let folder = tempfile::tempdir().expect("a folder");
    for shell in ["bash", "zsh", "fish"] {
        let (script, _) = run_in(folder.path(), &["completions", shell]).await.expect("printed");
        for name in commands() {
            let word = name.split(' ').next_back().expect("a word");
            assert!(script.contains(word), "{word} for {shell}");
        }
        assert!(script.contains("max-sequence-length"), "options for {shell}");
        if shell == "bash" {
            let path = folder.path().join("fluxserve.bash");
            std::fs::write(&path, &script).expect("written");
            let checked = std::process::Command::new("bash").arg("-n").arg(&path).output().expect("bash");
            assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
        }
    }
    assert_eq!(parse_error(&["completions", "cmd"]).kind(), ErrorKind::InvalidValue);
    assert!(!folder.path().join("fluxserve.db").exists(), "nothing is opened for that");
}

#[tokio::test]
async fn every_command_has_a_manual_page() {
    let folder = tempfile::tempdir().expect("a folder");
    let pages = folder.path().join("share/man/man1");
    run_in(folder.path(), &["man", pages.to_str().expect("text")]).await.expect("written");
    for name in commands() {
        let page = pages.join(format!("fluxserve-{}.1", name.replace(' ', "-")));
        let text = std::fs::read_to_string(&page).unwrap_or_else(|error| panic!("{}: {error}", page.display()));
        assert!(text.contains(".SH SYNOPSIS"), "{text}");
    }
    let (printed, _) = run_in(folder.path(), &["man"]).await.expect("printed");
    assert_eq!(printed, std::fs::read_to_string(pages.join("fluxserve.1")).expect("a page"));
    assert!(printed.contains("FLUXSERVE_LISTEN"), "the environment is described: {printed}");
}

#[test]
fn the_version_is_short_or_says_everything() {
    let short = parse_error(&["-V"]);
    assert_eq!(short.kind(), ErrorKind::DisplayVersion);
    assert_eq!(short.to_string(), format!("fluxserve {}\n", env!("CARGO_PKG_VERSION")));
    let long = parse_error(&["--version"]).to_string();
    let lines: Vec<&str> = long.lines().collect();
    let labels = [short.to_string().trim_end().to_owned(), "commit:".into(), "features:".into(), "date:".into()];
    assert_eq!(lines.len(), labels.len(), "{long}");
    for (line, label) in lines.iter().zip(labels) {
        assert!(line.starts_with(&label), "{long}");
    }
    assert_eq!(lines[2].contains("cuda (sm_"), cfg!(feature = "cuda"), "{long}");
    assert_eq!(lines[2].contains("otlp"), cfg!(feature = "otlp"), "{long}");
}
