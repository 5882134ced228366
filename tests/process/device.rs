//! Commands that use the device without a server: what they log, and what they report about it.

use super::*;

/// Generates a small image in fp8.
fn generate_in_fp8(data: &Path, filter: Option<&str>) -> Output {
    let mut command = program(data);
    command.args(["generate", "--model", MODEL, "--prompt", "a red circle", "--steps", "1", "--seed", "7"]);
    command.args(["--device", "cpu", "--precision", "fp8", "--output", "image.png"]);
    if let Some(filter) = filter {
        command.env("FLUXSERVE_LOG_FILTER", filter);
    }
    let output = command.output().expect("it runs");
    assert!(output.status.success(), "{output:?}");
    output
}

#[test]
fn commands_without_a_server_log_warnings() {
    let (_folder, data) = folder();
    let output = generate_in_fp8(&data, None);
    let log = text(&output.stderr);
    assert!(log.contains("WARN") && log.contains("the engine runs in a lossy precision"), "{log}");
    assert!(!log.contains("INFO") && output.stdout.is_empty(), "{output:?}");
    let log = text(&generate_in_fp8(&data, Some("error")).stderr);
    assert!(!log.contains("lossy"), "{log}");

    let mut command = program(&data);
    command.args(["bench", "kernels", "--device", "cpu"]).env("FLUXSERVE_LOG_FILTER", "fluxserve=info");
    let output = command.output().expect("it runs");
    let log = text(&output.stderr);
    assert!(log.contains("INFO") && log.contains("timing") && log.contains("attention, portable"), "{log}");
    let mut command = program(&data);
    let output = command.args(["doctor"]).env("FLUXSERVE_LOG_FILTER", "fluxserve=nonsense").output().expect("it runs");
    assert!(!output.status.success() && text(&output.stderr).contains("nonsense"), "{output:?}");
}

#[test]
fn operations_are_tested_one_by_one() {
    let (_folder, data) = folder();
    let output = run(&data, &["doctor", "--device", "cpu", "--operations", "fp8", "portable", "--json"]);
    assert!(output.status.success(), "{output:?}");
    let lines = text(&output.stdout);
    let records: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let groups: Vec<&str> = records.iter().map(|record| record["group"].as_str().expect("a group")).collect();
    assert!(groups.len() > 20 && groups.is_sorted(), "in the order asked for: {groups:?}");
    for record in &records {
        assert!(record["operation"].is_string() && record["milliseconds"].is_number(), "{record}");
        assert_eq!((&record["error"], &record["failure"]), (&json!(0.0), &json!(null)), "{record}");
    }
    let lines = text(&run(&data, &["doctor", "--device", "cpu", "--operations", "attention-hopper"]).stdout);
    assert!(
        lines.lines().count() == 2 && lines.lines().all(|line| line.starts_with("ok     attention-hopper  ")),
        "{lines}"
    );

    for refused in [&["--operations", "nonsense"][..], &["--json"]] {
        let output = run(&data, &[&["doctor"], refused].concat());
        assert_eq!(output.status.code(), Some(2), "{output:?}");
    }
    let output = program(&data).args(["doctor", "--operations"]).env("FLUXSERVE_DEVICE", "cpu,cpu").output();
    let said = text(&output.expect("it runs").stderr);
    assert!(said.contains("`cpu,cpu` are several: name one with --device"), "{said}");
}

#[test]
fn single_kernels_are_timed_into_a_file() {
    let (folder, data) = folder();
    let output = run(&data, &["bench", "kernels", "--device", "cpu", "--out", "kernels.json"]);
    assert!(output.status.success(), "{output:?}");
    let report: Value =
        serde_json::from_slice(&std::fs::read(folder.path().join("kernels.json")).expect("a file")).expect("JSON");
    let records = report["kernels"].as_array().expect("a list");
    let table = text(&output.stdout);
    assert!(table.starts_with("cpu, ") && table.contains("\nKERNEL "), "{table}");
    assert_eq!(table.lines().count(), records.len() + 2);
    for name in ["attention, portable", "linear", "linear, GELU", "linear, e4m3", "convolution, doubled, portable"] {
        let record = records.iter().find(|record| record["kernel"] == name).expect(name);
        assert!(record["milliseconds"].as_f64() > Some(0.0) && record["tflops"].as_f64() > Some(0.0), "{record}");
        assert!(record["shape"].is_string() && record["failure"].is_null(), "{record}");
    }
    let norm = records.iter().find(|record| record["kernel"] == "group norm, SiLU").expect("a norm");
    assert!(norm["gigabytes_per_second"].as_f64() > Some(0.0) && norm["tflops"].is_null(), "{norm}");
    let hopper = records.iter().find(|record| record["kernel"] == "attention, hopper").expect("named");
    assert!(hopper["skipped"].is_string() && hopper["milliseconds"].is_null(), "{hopper}");
}
