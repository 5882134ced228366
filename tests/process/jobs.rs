//! Jobs across restarts, crashes and revocations.

use super::*;

#[test]
fn many_restarts_do_not_fail_a_job_but_many_crashes_do() {
    let (_folder, data) = folder();
    let made = run(&data, &["keys", "create", "--name", "test", "--scope", "inference"]);
    let key = text(&made.stdout).trim().to_owned();
    let mut server = Server::start(&data, &[]);
    let mut url = server.url();
    server.line("Generate an image:");
    // Long enough to be interrupted each time.
    let body = json!({ "model": MODEL, "prompt": "a fox", "width": 256, "height": 256, "steps": 100, "seed": 1 });
    let job = submit(&url, &key, &body);
    let status = |url: &str| get(&format!("{url}/v1/inference/jobs/{job}"), &key);
    let runs = |url: &str| until("it runs", || (status(url)["status"] == "running").then_some(()));
    for is_clean in [true, true, true, true, false, false, false] {
        runs(&url);
        if is_clean {
            assert!(server.stop().success());
        }
        drop(server);
        server = Server::start(&data, &[]);
        url = server.url();
    }
    let view = until("it is given up", || Some(status(&url)).filter(|view| view["status"] == "failed"));
    assert_eq!(view["error"]["code"], "worker_crashed");
    assert!(server.stop().success());
}

#[test]
fn revoking_a_key_on_the_command_line_cancels_its_jobs() {
    let (_folder, data) = folder();
    let mut server = Server::start(&data, &[]);
    let url = server.url();
    let password = server.line("The administrator's password, shown this once: ");
    let staying = server.line("A demo key, shown this once: ");
    let created = run(&data, &["keys", "create", "--name", "leaving", "--scope", "inference"]);
    let leaving = text(&created.stdout).trim().to_owned();
    let body = json!({ "model": MODEL, "prompt": "a fox", "width": 256, "height": 256, "steps": 100, "seed": 1 });
    let job = submit(&url, &leaving, &body);
    let other = submit(&url, &staying, &json!({ "model": MODEL, "prompt": "a fox", "steps": 2, "seed": 1 }));
    let status = |job: &str, key: &str| get(&format!("{url}/v1/inference/jobs/{job}"), key)["status"].clone();
    until("it runs", || (status(&job, &leaving) == "running").then_some(()));
    let prefix = &leaving[..13];
    assert!(run(&data, &["keys", "revoke", prefix]).status.success());
    let signed_in = ureq::post(format!("{url}/v1/session")).header("content-type", "application/json");
    let signed_in = signed_in.send(json!({ "password": password }).to_string()).expect("signed in");
    let cookie =
        signed_in.headers()["set-cookie"].to_str().expect("text").split(';').next().expect("a pair").to_owned();
    until("it is canceled", || {
        let request = ureq::get(format!("{url}/v1/jobs/{job}")).header("cookie", &cookie);
        let text = request.call().expect("an answer").body_mut().read_to_string().expect("a text");
        let view: Value = serde_json::from_str(&text).expect("JSON");
        assert_ne!(view["status"], "succeeded", "it was not canceled");
        (view["status"] == "canceled").then_some(())
    });
    until("the other one succeeds", || (status(&other, &staying) == "succeeded").then_some(()));
    assert!(server.stop().success());
}
