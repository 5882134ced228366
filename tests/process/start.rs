//! What a start needs, and what it refuses.

use super::*;

/// The same command, with a limit of open files set by `ulimit`.
#[cfg(target_os = "linux")]
fn with_open_files(ulimit: &str, command: &Command) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("ulimit {ulimit} && exec \"$@\""), "sh"]);
    shell.arg(command.get_program()).args(command.get_args());
    shell.env_clear().env("PATH", "/usr/bin:/bin");
    shell.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    shell.current_dir(command.get_current_dir().expect("one"));
    shell
}

#[cfg(target_os = "linux")]
#[test]
fn the_limit_of_open_files_is_raised_and_too_low_a_maximum_is_refused() {
    let (_folder, data) = folder();
    let mut server = Server::of(with_open_files("-S -n 64", &serving(&data)).stderr(Stdio::null()));
    let url = server.url();
    let key = server.line("A demo key, shown this once: ");
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", server.child.id())).expect("limits");
    let limit = limits.lines().find(|line| line.starts_with("Max open files")).expect("a limit");
    let numbers: Vec<&str> = limit.split_whitespace().filter(|word| word.parse::<u64>().is_ok()).collect();
    assert!(numbers.len() == 2 && numbers[0] == numbers[1], "{limit}");
    let address = url.strip_prefix("http://").expect("by http");
    let silent: Vec<_> = (0..200).map(|_| std::net::TcpStream::connect(address).expect("connected")).collect();
    assert!(answers(&url));
    let job = submit(&url, &key, &json!({ "model": MODEL, "prompt": "a fox", "steps": 2, "seed": 1 }));
    until("it succeeds", || {
        let status = get(&format!("{url}/v1/inference/jobs/{job}"), &key)["status"].clone();
        assert_ne!(status, "failed");
        (status == "succeeded").then_some(())
    });
    drop(silent);
    exits(&mut server);

    let refused = |ulimit: &str| {
        let output = with_open_files(ulimit, &serving(&data)).output().expect("it runs");
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let said = text(&output.stderr);
        assert!(said.contains("`http.connections_max`") && said.contains("ulimit -n"), "{said}");
        said
    };
    assert!(refused("-n 64").contains("64 files"));
    let said = refused("-n 256");
    let fit = said.split("to at most ").nth(1).and_then(|rest| rest.split(',').next()).expect("a number").to_owned();
    let mut command = serving(&data);
    command.env("FLUXSERVE_HTTP_CONNECTIONS_MAX", &fit);
    let mut server = Server::of(with_open_files("-n 256", &command).stderr(Stdio::null()));
    let url = server.url();
    // New connections are accepted or wait; a few are reserved for health checks.
    let address = url.strip_prefix("http://").expect("by http");
    let _silent: Vec<_> = (0..120).map(|_| std::net::TcpStream::connect(address).expect("connected")).collect();
    assert!(answers(&url));
    server.line(&format!("{MODEL} is ready"));
    exits(&mut server);
}

#[test]
fn a_password_is_read_from_a_file_and_serving_without_https_is_warned_about() {
    let (folder, data) = folder();
    let file = folder.path().join("password");
    std::fs::write(&file, "a password from a file\n").expect("written");
    let (mut log, writer) = std::io::pipe().expect("a pipe");
    let mut command = serving_at(&data, "0.0.0.0:0", "cpu");
    command.env("FLUXSERVE_ADMIN_PASSWORD_FILE", &file).env("FLUXSERVE_METRICS_LISTEN", "off").stderr(writer);
    let mut server = Server::of(&mut command);
    drop(command);
    let url = server.url();
    server.line("Generate an image:");
    let request = ureq::post(format!("{url}/v1/session")).header("content-type", "application/json");
    let signed_in = request.send(json!({ "password": "a password from a file" }).to_string()).expect("an answer");
    assert_eq!(signed_in.status().as_u16(), 201);
    exits(&mut server);
    let mut said = String::new();
    log.read_to_string(&mut said).expect("a log");
    assert!(said.contains("WARN") && said.contains("without https") && said.contains("--admin-listen"), "{said}");
    assert!(!said.contains("a password from a file"), "{said}");
    let keys = run(&data, &["keys", "list"]);
    assert!(!text(&keys.stdout).contains("demo"), "an operator manages it");

    let output = serving(&data).env("FLUXSERVE_ADMIN_PASSWORD_FILE", "/nowhere").stderr(Stdio::piped()).output();
    let said = text(&output.expect("it runs").stderr);
    assert!(said.contains("FLUXSERVE_ADMIN_PASSWORD_FILE") && said.contains("/nowhere"), "{said}");
    // On loopback there is nothing to warn about.
    let (mut log, writer) = std::io::pipe().expect("a pipe");
    let mut command = serving(&data);
    let mut server = Server::of(command.env("FLUXSERVE_METRICS_LISTEN", "off").stderr(writer));
    drop(command);
    server.line("Generate an image:");
    exits(&mut server);
    let mut said = String::new();
    log.read_to_string(&mut said).expect("a log");
    assert!(!said.contains("https"), "{said}");
}

#[test]
fn a_failed_start_gives_the_reason_and_leaves_the_demo_key_to_the_next_start() {
    let (_folder, data) = folder();
    let failed = run(&data, &["serve", "--listen", "127.0.0.1:0", "--device", "cuda:99"]);
    assert!(!failed.status.success());
    let errors = text(&failed.stderr);
    let last = errors.lines().last().expect("a reason");
    assert!(last.contains(MODEL) && last.to_lowercase().contains("cuda"), "{errors}");
    assert!(!text(&failed.stdout).contains("demo key") && !text(&failed.stdout).contains("password"));
    let keys = run(&data, &["keys", "list"]);
    assert!(!text(&keys.stdout).contains("demo"), "{}", text(&keys.stdout));

    let mut server = Server::start(&data, &[]);
    let url = server.url();
    let password = server.line("The administrator's password, shown this once: ");
    let key = server.line("A demo key, shown this once: ");
    assert_eq!(server.line("  it is valid for "), "30 days");
    let keys = text(&run(&data, &["keys", "list"]).stdout);
    let demo = keys.lines().find(|line| line.starts_with(&key[..13])).expect("listed");
    let expires = time::OffsetDateTime::now_utc() + time::Duration::days(30) - time::Duration::MINUTE;
    let days = [expires, expires + 2 * time::Duration::MINUTE].map(|moment| moment.date().to_string());
    assert!(days.iter().any(|day| demo.contains(day.as_str())), "it expires: {demo}");
    let sign_in = |url: &str| {
        let request = ureq::post(format!("{url}/v1/session")).header("content-type", "application/json");
        request.send(json!({ "password": password }).to_string()).map(|answer| answer.status().as_u16())
    };
    assert_eq!(sign_in(&url).expect("an answer"), 201);
    // Applies to the running server's next request.
    let mut set = program(&data)
        .args(["admin", "set-password"])
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("a process");
    set.stdin.take().expect("piped").write_all(b"another password\n").expect("read");
    assert!(set.wait().expect("an end").success());
    assert!(matches!(sign_in(&url), Err(ureq::Error::StatusCode(401))));
    assert!(server.stop().success());
}

#[test]
fn a_data_folder_belongs_to_one_worker_and_keys_can_be_created_meanwhile() {
    let (_folder, data) = folder();
    let mut server = Server::start(&data, &[]);
    server.line("A demo key");
    let second = run(&data, &["serve", "--listen", "127.0.0.1:0"]);
    let errors = text(&second.stderr);
    assert!(!second.status.success());
    assert!(errors.contains(&data.display().to_string()) && errors.contains("--data-dir"), "{errors}");
    let made = run(&data, &["keys", "create", "--name", "beside", "--scope", "inference"]);
    assert!(made.status.success() && text(&made.stdout).starts_with("rgpu_"), "{}", text(&made.stderr));
    assert!(server.stop().success());
    // A stopped worker has released it.
    let mut next = Server::start(&data, &[]);
    next.line(&format!("{MODEL} is ready"));
    assert!(next.stop().success());
}

#[test]
fn two_models_are_served_side_by_side() {
    let (_folder, data) = folder();
    let reference = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/FLUX.1-dev");
    let other = "black-forest-labs/FLUX.1-dev";
    let source = format!("{other}={}", reference.display());
    let mut server = Server::start(&data, &["--model", MODEL, "--model", &source]);
    let url = server.url();
    let key = server.line("A demo key, shown this once: ");
    let jobs = [MODEL, other].map(|model| {
        let body = json!({ "model": model, "prompt": "a fox", "width": 64, "height": 64, "steps": 2, "seed": 1 });
        submit(&url, &key, &body)
    });
    for job in jobs {
        let status = || get(&format!("{url}/v1/inference/jobs/{job}"), &key)["status"].clone();
        until("it succeeds", || (status() == "succeeded").then_some(()));
    }
    let runtime = get(&format!("{url}/v1/inference/runtime/models"), &key);
    let available = runtime["models"].as_array().expect("a list").iter().filter(|model| model["available"] == true);
    let ids: Vec<&str> = available.filter_map(|model| model["id"].as_str()).collect();
    assert_eq!(ids, [other, MODEL]);
    assert!(server.stop().success());
}
