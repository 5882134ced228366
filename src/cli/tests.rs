use clap::error::ErrorKind;

use super::*;
use crate::domain::device::{DeviceChoice, Kernels, Offload};
use crate::domain::precision::Precision;
use crate::domain::spec::GenerateParams;

fn parse(arguments: &[&str]) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(std::iter::once("fluxserve").chain(arguments.iter().copied()))
}

fn parse_error(arguments: &[&str]) -> clap::Error {
    parse(arguments).expect_err("a mistake")
}

/// Runs a command in a folder of its own: what it wrote to `out` and to `notes`.
async fn run_in(data_dir: &std::path::Path, arguments: &[&str]) -> anyhow::Result<(String, String)> {
    run_with_input(data_dir, arguments, "").await
}

async fn run_with_input(
    data_dir: &std::path::Path,
    arguments: &[&str],
    input: &str,
) -> anyhow::Result<(String, String)> {
    let mut input = input.as_bytes();
    let mut cli = parse(arguments)?;
    cli.shared.data_dir = Some(data_dir.to_owned());
    let (mut out, mut notes) = (Vec::new(), Vec::new());
    run(cli, PasswordInput::Line(&mut input), &mut out, &mut notes).await?;
    Ok((String::from_utf8(out)?, String::from_utf8(notes)?))
}

#[test]
fn the_definition_is_consistent() {
    use clap::CommandFactory as _;
    Cli::command().debug_assert();
    let help = Cli::command().render_long_help().to_string();
    assert!(VARIABLES.iter().all(|variable| help.contains(variable.name)));
}

#[test]
fn no_command_means_serve_and_the_data_dir_goes_anywhere() {
    assert!(parse(&[]).expect("valid").command.is_none());
    for arguments in
        [&["--data-dir", "x", "keys", "list"][..], &["keys", "list", "--data-dir", "x"], &["--data-dir", "x"]]
    {
        assert_eq!(parse(arguments).expect("valid").shared.data_dir, Some("x".into()));
    }
    for command in [&["serve"][..], &["doctor"], &["models", "list"], &["models", "check", "a/b=/c"]] {
        let arguments = [command, &["--data-dir", "x", "--config", "y.toml"]].concat();
        let shared = parse(&arguments).expect("valid").shared;
        assert_eq!((shared.data_dir, shared.config), (Some("x".into()), Some("y.toml".into())));
    }
}

#[test]
fn serve_takes_several_models() {
    let arguments = ["serve", "--listen", "0.0.0.0:80", "--model", "a", "--model", "b=/c", "--device", "cuda:1"];
    let Some(Command::Serve(serve)) = parse(&arguments).expect("valid").command else { panic!("serve") };
    assert_eq!(serve.listen.map(|address| address.port()), Some(80));
    assert_eq!(serve.models.iter().map(ToString::to_string).collect::<Vec<_>>(), ["a", "b=/c"]);
    assert_eq!(serve.device, Some(DeviceChoice::Cuda(1).into()));
    assert!(!serve.download, "only when asked");
    assert_eq!(serve.engine, EngineArgs::default());
}

#[test]
fn how_engines_are_built_can_be_said_wherever_one_is() {
    let engine = ["--offload", "text", "--deterministic", "--kernels", "portable", "--precision", "fp8"];
    let asked = EngineArgs {
        offload: Some(Offload::Text),
        deterministic: true,
        kernels: Some(Kernels::Portable),
        precision: Some(Precision::Fp8),
    };
    let generate = ["generate", "--model", "a", "--prompt", "b", "--output", "c.png"];
    let Some(Command::Serve(serve)) = parse(&[&["serve"][..], &engine[..]].concat()).expect("valid").command else {
        panic!("serve")
    };
    let Some(Command::Generate(generate)) = parse(&[&generate[..], &engine[..]].concat()).expect("valid").command
    else {
        panic!("generate")
    };
    assert_eq!((serve.engine, generate.engine), (asked.clone(), asked));
    let refused = parse(&["serve", "--offload", "vae"]).expect_err("no such thing").to_string();
    assert!(refused.contains("use `none` or `text`"), "{refused}");
    let refused = parse(&["serve", "--precision", "int8"]).expect_err("no such thing").to_string();
    assert!(refused.contains("use `full`, or `fp8`"), "{refused}");
}

#[tokio::test]
async fn models_are_listed_with_their_licences_and_those_that_do_not_work_yet_say_so() {
    let folder = tempfile::tempdir().expect("a folder");
    let (table, _) = run_in(folder.path(), &["models", "list"]).await.expect("listed");
    let row = |id: &str| {
        let row = table.lines().find(|line| line.starts_with(&format!("{id} ")));
        row.unwrap_or_else(|| panic!("no {id} in {table}")).to_owned()
    };
    let shapes = row("fluxserve/flux-shapes");
    assert!(shapes.contains(" served ") && shapes.ends_with("in the program"), "{shapes}");
    let schnell = row("black-forest-labs/FLUX.1-schnell");
    assert!(schnell.contains(" known ") && schnell.contains(" Apache-2.0 "), "{schnell}");
    let kontext = row("black-forest-labs/FLUX.1-Kontext-dev");
    assert!(kontext.contains(" not yet ") && kontext.contains("it edits an input image"), "{kontext}");
    for command in [
        &["models", "check"][..],
        &["models", "download"],
        &["generate", "--prompt", "", "--output", "x.png", "--model"],
    ] {
        let arguments = [command, &["black-forest-labs/FLUX.1-Kontext-dev"]].concat();
        let error = run_in(folder.path(), &arguments).await.expect_err("refused").to_string();
        assert!(error.contains("does not work yet: it edits an input image"), "{error}");
    }
}

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
    assert_eq!(ids[3..5], [family("Krea-dev"), family("dev")], "{table}");
    assert!(table.lines().skip(5).all(|line| line.contains(" not yet ")), "{table}");
}

/// The names of all commands, with those above them: `keys create`.
fn commands() -> Vec<String> {
    fn collect(command: &clap::Command, above: &str, found: &mut Vec<String>) {
        for command in command.get_subcommands() {
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

#[test]
fn mistakes_are_usage_errors() {
    let generate = ["generate", "--model", "a", "--output", "x.png"];
    let with_prompt = [&generate[..], &["--prompt", "fox"]].concat();
    let cases = [
        (vec!["paint"], ErrorKind::InvalidSubcommand),
        (vec!["serve", "--listen", "8080"], ErrorKind::ValueValidation),
        (vec!["serve", "--device", "gpu"], ErrorKind::ValueValidation),
        (vec!["keys", "create", "--name", "n"], ErrorKind::MissingRequiredArgument),
        (vec!["keys", "create", "--name", "n", "--scope", "admin"], ErrorKind::ValueValidation),
        (
            vec!["keys", "create", "--name", "n", "--scope", "all", "--expires-at", "tomorrow"],
            ErrorKind::ValueValidation,
        ),
        (
            vec!["keys", "create", "--name", "n", "--scope", "all", "--expires-at", "2030-01-01T00:00:00"],
            ErrorKind::ValueValidation,
        ),
        (vec!["keys", "edit", "rgpu_00000000"], ErrorKind::MissingRequiredArgument),
        (
            vec!["keys", "edit", "rgpu_00000000", "--never-expires", "--expires-at", "2030-01-01T00:00:00Z"],
            ErrorKind::ArgumentConflict,
        ),
        (vec!["keys", "edit", "rgpu_00000000", "--concurrent-jobs", "many"], ErrorKind::ValueValidation),
        (vec!["keys", "edit", "rgpu_00000000", "--priority", "urgent"], ErrorKind::ValueValidation),
        (vec!["keys", "create", "--name", "n", "--scope", "all", "--priority", "4"], ErrorKind::ValueValidation),
        (vec!["keys", "usage", "rgpu_00000000", "--days", "0"], ErrorKind::ValueValidation),
        (vec!["keys", "rotate", "rgpu_00000000", "--grace-seconds", "604801"], ErrorKind::ValueValidation),
        (vec!["admin", "set-password", "an argument is read by others"], ErrorKind::UnknownArgument),
        (vec!["backup"], ErrorKind::MissingRequiredArgument),
        (vec!["models", "download"], ErrorKind::MissingRequiredArgument),
        (generate.to_vec(), ErrorKind::MissingRequiredArgument),
        ([&with_prompt[..], &["--true-cfg-scale", "4"]].concat(), ErrorKind::MissingRequiredArgument),
        ([&with_prompt[..], &["--seed", "9007199254740992"]].concat(), ErrorKind::ValueValidation),
        (vec!["generate", "--model", "a", "--prompt", "fox", "--output", "x.gif"], ErrorKind::ValueValidation),
        (vec!["bench", "time"], ErrorKind::MissingRequiredArgument),
        (vec!["bench", "time", "--model", "a", "--sizes", "512x512,1024"], ErrorKind::ValueValidation),
        (vec!["bench", "time", "--model", "a", "--counts", "0"], ErrorKind::ValueValidation),
        (vec!["bench", "time", "--model", "a", "--steps", "101"], ErrorKind::ValueValidation),
        (vec!["bench", "load", "--device", "cpu"], ErrorKind::MissingRequiredArgument),
        (vec!["bench", "stages", "--model", "a", "--prompt", ""], ErrorKind::MissingRequiredArgument),
        (vec!["bench", "fidelity"], ErrorKind::MissingRequiredArgument),
        (vec!["bench", "fidelity", "--model", "a", "--precision", "fp4"], ErrorKind::ValueValidation),
        (vec!["bench", "fidelity", "--model", "a", "--seeds", "-1"], ErrorKind::UnknownArgument),
    ];
    for (arguments, kind) in cases {
        let error = parse_error(&arguments);
        assert_eq!(error.kind(), kind, "{arguments:?}: {error}");
        assert_eq!(error.exit_code(), 2);
    }
    assert_eq!(parse_error(&["--help"]).exit_code(), 0);
}

#[test]
fn generate_passes_everything_on() {
    let arguments = [
        "generate",
        "--model",
        "a=/b",
        "--prompt",
        "-fox",
        "--prompt-2",
        "two",
        "--negative-prompt",
        "",
        "--true-cfg-scale",
        "4",
        "--width",
        "100",
        "--height",
        "512",
        "--steps",
        "7",
        "--guidance",
        "2.5",
        "--seed",
        "9007199254740991",
        "--max-sequence-length",
        "256",
        "--image",
        "from.jpg",
        "--strength",
        "0.3",
        "--output",
        "x.PNG",
    ];
    let Some(Command::Generate(generate)) = parse(&arguments).expect("valid").command else { panic!("generate") };
    let mut notes = Vec::new();
    let no_draw = || -> anyhow::Result<u64> { panic!("the seed is given") };
    let request = generate.into_request(&Config::default(), no_draw, &mut notes).expect("a request");
    let expected = GenerateParams {
        prompt: "-fox".into(),
        prompt_2: Some("two".into()),
        negative_prompt: Some(String::new()),
        true_cfg_scale: Some(4.0),
        width: Some(96),
        height: Some(512),
        steps: Some(7),
        guidance: Some(2.5),
        seed: 9_007_199_254_740_991,
        sequence_length: Some(256),
        input_images: Vec::new(),
        strength: Some(0.3),
    };
    assert_eq!((request.params, request.image), (expected, Some("from.jpg".into())));
    assert_eq!((request.model.to_string(), request.output), ("a=/b".into(), "x.PNG".into()));
    assert_eq!(String::from_utf8(notes).expect("text"), "width 100 is not a multiple of 16: drawing 96\n");
}

#[test]
fn a_seed_that_was_drawn_is_printed() {
    let arguments = ["generate", "--model", "a", "--prompt", "", "--output", "x.png"];
    let Some(Command::Generate(generate)) = parse(&arguments).expect("valid").command else { panic!("generate") };
    let mut notes = Vec::new();
    let request = generate.into_request(&Config::default(), || Ok(42), &mut notes).expect("a request");
    assert_eq!((request.params.seed, request.params.width), (42, None));
    assert_eq!(String::from_utf8(notes).expect("text"), "seed: 42\n");
    for _ in 0..100 {
        assert!(crate::domain::spec::random_seed().expect("random bytes") <= crate::domain::spec::SEED_MAX);
    }
}

#[tokio::test]
async fn keys_are_made_listed_and_revoked() {
    let folder = tempfile::tempdir().expect("a folder");
    let data_dir = folder.path().join("data");
    let create =
        ["keys", "create", "--name", "my laptop", "--scope", "inference", "--expires-at", "2999-12-31T23:30:00-01:00"];
    let (out, notes) = run_in(&data_dir, &create).await.expect("made");
    let value = out.strip_suffix('\n').expect("a line");
    assert_eq!(value.len(), 51, "the key alone");
    assert!(!notes.contains(value) && notes.contains(&value[..13]));
    run_in(&data_dir, &["keys", "create", "--name", "other", "--scope", "kubernetes-exec:all"]).await.expect("made");
    let nowhere = "kubernetes-exec:018f3c1e-9d5b-7a2c-8e4f-6a1b2c3d4e5f";
    let refused = run_in(&data_dir, &["keys", "create", "--name", "other", "--scope", nowhere]).await;
    assert!(refused.expect_err("refused").to_string().contains("no namespace with the id 018f3c1e"));

    let (table, _) = run_in(&data_dir, &["keys", "list"]).await.expect("listed");
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 3, "{table}");
    assert!(
        lines[0].starts_with("PREFIX         NAME       STATE   SCOPE                PRIORITY  CREATED"),
        "{table}"
    );
    assert!(lines[1].starts_with(&format!("{}  my laptop  active  inference ", &value[..13])), "{table}");
    assert!(lines[1].ends_with("3000-01-01T00:30:00Z  -"), "{table}");
    assert!(!table.contains(value));

    for _ in 0..2 {
        let (out, notes) = run_in(&data_dir, &["keys", "revoke", &value[..13]]).await.expect("revoked, also twice");
        assert!(out.is_empty() && notes.contains("my laptop"), "{notes}");
    }
    let (table, _) = run_in(&data_dir, &["keys", "list"]).await.expect("listed");
    assert!(table.lines().nth(1).is_some_and(|line| line.contains(" revoked ")), "{table}");
}

#[tokio::test]
async fn a_key_has_the_priority_it_was_given() {
    let folder = tempfile::tempdir().expect("a folder");
    let run = async |arguments: &[&str]| run_in(folder.path(), arguments).await;
    let create = ["keys", "create", "--name", "shop", "--scope", "inference"];
    let (value, _) = run(&[&create[..], &["--priority", "high"]].concat()).await.expect("made");
    run(&create).await.expect("made");
    let priorities = async || {
        let (table, _) = run(&["keys", "list"]).await.expect("listed");
        let column = table.find("PRIORITY").expect("a column");
        table.lines().skip(1).map(|line| line[column..].split(' ').next().map(str::to_owned)).collect::<Vec<_>>()
    };
    assert_eq!(priorities().await, [Some("high".to_owned()), Some("normal".to_owned())]);
    let (_, notes) = run(&["keys", "edit", &value[..13], "--priority", "low"]).await.expect("edited");
    assert!(notes.contains("(shop): active, scope inference, expires never, priority low"), "{notes}");
    run(&["keys", "edit", &value[..13], "--name", "outlet"]).await.expect("edited");
    assert_eq!(priorities().await, [Some("low".to_owned()), Some("normal".to_owned())]);
}

#[tokio::test]
async fn keys_are_rotated_and_edited() {
    let folder = tempfile::tempdir().expect("a folder");
    let run = async |arguments: &[&str]| run_in(folder.path(), arguments).await;
    let (out, _) = run(&["keys", "create", "--name", "ci", "--scope", "all"]).await.expect("made");
    let first = out[..13].to_owned();
    let (out, notes) = run(&["keys", "rotate", &first, "--grace-seconds", "3600"]).await.expect("rotated");
    let value = out.strip_suffix('\n').expect("a line");
    assert_eq!(value.len(), 51, "the key alone");
    assert!(!notes.contains(value) && notes.contains(&format!("the old value {first} works until ")), "{notes}");
    let second = &value[..13];
    let edit =
        ["keys", "edit", &first, "--name", "build", "--scope", "inference", "--expires-at", "2999-01-01T00:00:00Z"];
    let (_, notes) = run(&edit).await.expect("edited, by the old prefix");
    assert!(notes.contains("(build): active, scope inference, expires 2999-01-01T00:00:00Z"), "{notes}");
    let (_, notes) = run(&["keys", "edit", second, "--never-expires"]).await.expect("edited");
    assert!(notes.contains("(build): active, scope inference, expires never"), "{notes}");
    let (_, notes) = run(&["keys", "rotate", second]).await.expect("rotated");
    assert!(notes.contains("the old value does not work any more"), "{notes}");
    let third = out_prefix(&run(&["keys", "list"]).await.expect("listed").0);
    let limits = ["--requests-per-minute", "60", "--concurrent-jobs", "none", "--megapixel-steps-per-day", "1000"];
    run(&[&["keys", "edit", &third][..], &limits].concat()).await.expect("edited");
    let error = run(&["keys", "edit", &third, "--concurrent-jobs", "0"]).await.expect_err("no limit");
    assert!(error.to_string().contains("from 1 to"), "{error}");
    let (table, _) = run(&["keys", "usage", &third, "--days", "2"]).await.expect("shown");
    assert_eq!(table.lines().count(), 3, "{table}");
    assert!(table.lines().nth(2).is_some_and(|line| line.split_whitespace().skip(1).eq(["0", "0", "0.0", "0.0"])));
    let error = run(&["keys", "edit", second, "--name", "gone"]).await.expect_err("replaced without a grace");
    assert!(error.to_string().contains(second), "{error}");
}

/// The prefix in the first row of a table.
fn out_prefix(table: &str) -> String {
    table.lines().nth(1).expect("a row")[..13].to_owned()
}

#[tokio::test]
async fn a_password_is_read_from_the_input_and_a_backup_is_a_database() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    let set = ["admin", "set-password"];
    let error = run_with_input(&data, &set, "short\n").await.expect_err("too short");
    assert!(error.to_string().contains("12 to 256") && !data.exists(), "{error}");
    let (out, notes) = run_with_input(&data, &set, "a good password\n").await.expect("set");
    assert!(out.is_empty() && !notes.contains("a good password"), "{notes}");
    let copy = folder.path().join("copy").join("fluxserve.db");
    let path = copy.to_str().expect("text");
    let error = run_in(&data, &["backup", path]).await.expect_err("no folder");
    assert!(error.to_string().contains(path), "{error}");
    std::fs::create_dir(folder.path().join("copy")).expect("made");
    let (_, notes) = run_in(&data, &["backup", path]).await.expect("copied");
    assert!(notes.contains(path), "{notes}");
    run_in(&data, &["backup", path]).await.expect_err("is there already");
    let config = Config { data_dir: folder.path().join("copy"), ..Config::default() };
    let restored = app::Keys::open_existing(&config).await.expect("a database");
    let client = std::net::Ipv4Addr::LOCALHOST.into();
    restored.admin.sign_in("a good password", client).await.expect("the password is in the copy");
}

#[tokio::test]
async fn what_cannot_be_done_says_why() {
    let folder = tempfile::tempdir().expect("a folder");
    let missing = folder.path().join("typo");
    let error = run_in(&missing, &["keys", "list"]).await.expect_err("nothing there");
    assert!(error.to_string().contains("no database"), "{error}");
    assert!(!missing.exists());

    let past = ["keys", "create", "--name", "n", "--scope", "all", "--expires-at", "2001-01-01T00:00:00Z"];
    let error = run_in(folder.path(), &past).await.expect_err("in the past");
    assert!(error.to_string().contains("in the future"), "{error}");
    let error = run_in(folder.path(), &["keys", "revoke", "rgpu_00000000"]).await.expect_err("unknown");
    assert!(error.to_string().contains("rgpu_00000000"), "{error}");
}

#[tokio::test]
async fn the_first_start_makes_one_key() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = Config { data_dir: folder.path().to_owned(), ..Config::default() };
    let keys = app::Keys::open(&config).await.expect("opens");
    let demo = keys.demo_key(&config).await.expect("made").expect("the first");
    assert_eq!(demo.record.scope.to_string(), "inference");
    assert!(keys.demo_key(&config).await.expect("counted").is_none());
}

#[tokio::test]
async fn the_first_start_makes_a_password_unless_one_is_given() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = |name: &str| Config { data_dir: folder.path().join(name), ..Config::default() };
    let client = std::net::Ipv4Addr::LOCALHOST.into();
    let keys = app::Keys::open(&config("fresh")).await.expect("opens");
    let password = keys.first_password().await.expect("made").expect("the first");
    keys.admin.sign_in(password.reveal(), client).await.expect("in");
    assert!(keys.first_password().await.expect("looked").is_none());

    let given = Config { admin_password: "a good password".parse().ok(), ..config("given") };
    let keys = app::Keys::open(&given).await.expect("opens");
    keys.apply_password(&given).await.expect("set");
    assert!(keys.first_password().await.expect("looked").is_none());
    keys.admin.sign_in("a good password", client).await.expect("in");
    assert!(keys.demo_key(&given).await.expect("looked").is_none(), "who gives a password sees to keys");

    let keys = app::Keys::open(&config("used")).await.expect("opens");
    keys.demo_key(&config("used")).await.expect("made").expect("the first");
    assert!(keys.first_password().await.expect("looked").is_none(), "an older worker's database");
    assert!(!keys.admin.has_password().await.expect("looked"));
}

#[tokio::test]
async fn what_was_timed_is_a_table_and_a_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let json = folder.path().join("time.json");
    let model = ["--model", "fluxserve/flux-shapes", "--device", "cpu"];
    let options = ["--sizes", "64x64", "--counts", "1", "--steps", "2", "--repeat", "1", "--json"];
    let arguments = [&["bench", "time"][..], &model, &options, &[json.to_str().expect("text")]].concat();
    let (table, notes) = run_in(folder.path(), &arguments).await.expect("timed");
    assert!(table.starts_with("fluxserve/flux-shapes on cpu, "), "{table}");
    assert!(table.contains("\nstep 64x64 ") && table.contains("\nimage 64x64, 2 steps "), "{table}");
    assert!(notes.starts_with("loaded in ") && notes.contains("\nstep 64x64: "), "{notes}");
    let text = std::fs::read_to_string(&json).expect("written");
    let report: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let step = report["timings"].as_array().expect("a list").iter().find(|timing| timing["part"] == "step");
    let step = step.expect("a step");
    assert_eq!((&step["pictures"], &step["outcome"]), (&serde_json::json!([[64, 64]]), &"measured".into()));
    assert!(step["median_seconds"].as_f64().is_some_and(|seconds| seconds > 0.0), "{step}");
}

#[tokio::test]
async fn what_loading_took_is_two_tables_and_a_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let json = folder.path().join("load.json");
    let model = ["--model", "fluxserve/flux-shapes", "--device", "cpu"];
    let arguments = [&["bench", "load"][..], &model, &["--json", json.to_str().expect("text")]].concat();
    let (tables, _) = run_in(folder.path(), &arguments).await.expect("timed");
    assert!(tables.starts_with("fluxserve/flux-shapes on cpu, "), "{tables}");
    for line in
        ["reading alone, before ", "weights onto the device ", "reading alone, after ", "first image ", "ready "]
    {
        assert!(tables.contains(&format!("\n{line}")), "{line}: {tables}");
    }
    let text = std::fs::read_to_string(&json).expect("written");
    let report: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(report["weights"]["bytes"], report["reading_before"]["bytes"]);
    assert!(report["share_of_reading"].as_f64().is_some_and(|share| share > 0.0), "{report}");
    let (tables, _) = run_in(folder.path(), &[&arguments[..], &["--at-once"]].concat()).await.expect("timed");
    assert!(!tables.contains("before") && tables.contains("\nreading alone, after "), "{tables}");
}

#[tokio::test]
async fn what_a_lossy_precision_costs_is_a_table_and_a_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let json = folder.path().join("fidelity.json");
    let start =
        ["bench", "fidelity", "--model", "fluxserve/flux-shapes", "--device", "cpu", "--prompt", "a red circle"];
    let options = ["--seeds", "3", "--size", "64x64", "--steps", "2", "--json", json.to_str().expect("text")];
    let (table, notes) = run_in(folder.path(), &[&start[..], &options].concat()).await.expect("compared");
    assert!(
        table.starts_with("fluxserve/flux-shapes on cpu, ") && table.contains(": fp8 (lossy) against full"),
        "{table}"
    );
    assert!(table.contains("\na red circle  3 "), "{table}");
    assert_eq!(notes, "full: image 1 of 1\nfp8: image 1 of 1\n");
    let text = std::fs::read_to_string(&json).expect("written");
    let report: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((&report["precision"], &report["steps"]), (&"fp8".into(), &2.into()));
    let image = &report["pictures"][0];
    assert!(image["velocity_first"].as_f64().is_some_and(|x| x > 0.0) && image["psnr_db"].is_f64(), "{image}");
}

#[tokio::test]
async fn an_image_is_laid_open_or_the_reason_is_said() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("stages.safetensors");
    let start = ["bench", "stages", "--model", "fluxserve/flux-shapes", "--device", "cpu", "--prompt", "a circle"];
    let out = ["--out", file.to_str().expect("text")];
    run_in(folder.path(), &[&start[..], &["--size", "64x64"], &out].concat()).await.expect("written");
    assert!(file.metadata().expect("a file").len() > 64 * 64 * 3 * 4);
    let error = run_in(folder.path(), &[&start[..], &["--size", "65x64"], &out].concat()).await.expect_err("no size");
    assert!(error.to_string().starts_with("width: must be a multiple of 16"), "{error}");
    let nowhere = ["--out", "/nowhere/stages.safetensors"];
    let error = run_in(folder.path(), &[&start[..], &nowhere].concat()).await.expect_err("no folder");
    assert!(error.to_string().contains("make `/nowhere` first"), "{error}");
}
