//! Files that commands write and read.

use super::*;

#[test]
fn a_backup_is_written_under_its_name_even_if_that_looks_like_a_uri() {
    use std::os::unix::fs::PermissionsExt as _;

    let (folder, data) = folder();
    assert!(run(&data, &["keys", "create", "--name", "n", "--scope", "all"]).status.success());
    // In its own working directory: the name is relative to that.
    let here = folder.path().join("here");
    std::fs::create_dir(&here).expect("made");
    for name in ["file:copy.db", "file:copy.db?mode=memory", "./file:other.db", ":memory:", "plain.db"] {
        let mut command = program(&data);
        let output = command.current_dir(&here).args(["backup", name]).output().expect("it runs");
        let said = text(&output.stderr);
        assert!(output.status.success(), "{name}: {said}");
        let file = here.join(name);
        let metadata = std::fs::metadata(&file).expect("under its name");
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600, "{name}");
        assert!(said.contains(&format!("{} bytes", metadata.len())) && metadata.len() > 4096, "{name}: {said}");
        assert!(std::fs::read(&file).expect("readable").starts_with(b"SQLite format 3\0"), "{name}");
    }
    let mut found: Vec<_> =
        std::fs::read_dir(&here).expect("there").map(|entry| entry.expect("one").file_name()).collect();
    found.sort();
    assert_eq!(found, [":memory:", "file:copy.db", "file:copy.db?mode=memory", "file:other.db", "plain.db"]);
}

#[test]
fn nothing_from_a_foreign_working_directory_is_executed() {
    use std::os::unix::fs::PermissionsExt as _;

    let (folder, data) = folder();
    let evil = folder.path().join("evil");
    std::fs::create_dir(&evil).expect("made");
    let proof = evil.join("was-run");
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "x",
        "clusters": [{ "name": "c", "cluster": { "server": "https://127.0.0.1:1" } }],
        "users": [{ "name": "u", "user": { "exec": {
            "apiVersion": "client.authentication.k8s.io/v1", "interactiveMode": "Never",
            "command": "touch", "args": [proof],
        } } }],
        "contexts": [{ "name": "x", "context": { "cluster": "c", "user": "u" } }],
    });
    std::fs::write(evil.join("kubeconfig"), kubeconfig.to_string()).expect("written");
    let file = evil.join("fluxserve.toml");
    let check = || {
        let output = program(&data).current_dir(&evil).args(["kubernetes", "check"]).output().expect("it runs");
        assert!(!output.status.success() && !proof.exists(), "{output:?}");
        text(&output.stderr)
    };
    // A file of the user's own runs no program either, unless it allows that.
    std::fs::write(&file, "[kubernetes]\nkubeconfig = \"kubeconfig\"\n").expect("written");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).expect("ours");
    let said = check();
    assert!(said.contains("`touch`") && said.contains("kubernetes.allow_exec_plugins"), "{said}");
    // Nor does a data folder in the working directory.
    std::fs::create_dir_all(data.join("kubernetes")).expect("made");
    std::fs::copy(evil.join("kubeconfig"), data.join("kubernetes/kubeconfig")).expect("copied");
    std::fs::write(&file, "").expect("written");
    let said = check();
    assert!(said.contains("kubernetes.allow_exec_plugins"), "{said}");

    std::fs::write(&file, "[kubernetes]\nkubeconfig = \"kubeconfig\"\nallow_exec_plugins = true\n").expect("written");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o666)).expect("ours");
    let said = check();
    assert!(said.contains("fluxserve.toml") && said.contains("others than its owner can write"), "{said}");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).expect("ours");
    // Only root can change a file's owner.
    if std::os::unix::fs::chown(&file, Some(54_321), None).is_ok() {
        let said = check();
        assert!(said.contains("belongs to user 54321") && said.contains("--config"), "{said}");
        std::os::unix::fs::chown(&file, Some(0), None).expect("back");
    }
    let allowed = program(&data).current_dir(&evil).args(["kubernetes", "check"]).output().expect("it runs");
    assert!(!allowed.status.success() && proof.exists(), "it is allowed: {allowed:?}");
}

#[test]
fn an_image_is_generated_from_an_input_image_without_a_server() {
    let (folder, data) = folder();
    let place = |name: &str| folder.path().join(name);
    let generate = |output: &str, more: &[&str], provenance: &str| -> Output {
        let mut command = program(&data);
        command.args(["generate", "--model", MODEL, "--prompt", "a red circle on a blue background", "--steps", "10"]);
        command.args(["--seed", "7", "--output", output]).args(more);
        command.env("FLUXSERVE_RESULTS_PROVENANCE", provenance).output().expect("it runs")
    };
    let provenance_of = |name: &str| {
        let bytes = std::fs::read(place(name)).expect("a file");
        let read = exif::Reader::new().read_from_container(&mut std::io::Cursor::new(&bytes)).ok()?;
        let comment = read.get_field(exif::Tag::UserComment, exif::In::PRIMARY)?;
        let exif::Value::Undefined(comment, _) = &comment.value else { panic!("bytes") };
        Some(serde_json::from_slice::<Value>(&comment[8..]).expect("JSON"))
    };
    let first = generate("first.png", &["--width", "96", "--height", "64"], "true");
    assert!(first.status.success(), "{first:?}");
    let expected = json!({ "model": MODEL, "seed": 7, "steps": 10, "guidance": 3.5, "width": 96, "height": 64 });
    assert_eq!(provenance_of("first.png"), Some(expected.clone()));

    let from_first = ["--image", "first.png", "--strength", "0.3"];
    for (output, provenance) in [("second.png", "true"), ("again.png", "true"), ("bare.png", "false")] {
        let done = generate(output, &from_first, provenance);
        assert!(done.status.success(), "{done:?}");
    }
    let mut expected = expected;
    expected["strength"] = json!(0.3);
    expected["images"] = json!({ "input": 1 });
    assert_eq!(provenance_of("second.png"), Some(expected), "in the input image's size");
    let read = |name: &str| std::fs::read(place(name)).expect("a file");
    assert!(read("second.png") == read("again.png"), "the same file each time");
    assert_eq!(provenance_of("bare.png"), None);
    let pixels = |name: &str| image::open(place(name)).expect("an image").to_rgb8().into_raw();
    assert!(pixels("bare.png") == pixels("second.png"));
    let away = |name: &str| -> u64 {
        pixels("first.png").iter().zip(pixels(name)).map(|(a, b)| u64::from(a.abs_diff(b))).sum()
    };
    assert!(
        away("second.png") > 0 && away("second.png") < 96 * 64 * 3 * 12,
        "much of the input image is left: {}",
        away("second.png")
    );

    std::fs::write(place("notes.txt"), "no image").expect("written");
    let refused = generate("third.png", &["--image", "notes.txt"], "true");
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(text.contains("--image: `notes.txt` is not a PNG, JPEG or WebP file"), "{text}");
    let refused = generate("third.png", &["--image", "first.png", "--strength", "1.5"], "true");
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(text.contains("--strength: must be above 0 and at most 1, not 1.5"), "{text}");
}
