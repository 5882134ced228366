//! Commands that measure.

use super::*;

#[tokio::test]
async fn times_are_a_table_and_a_file() {
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
async fn times_of_loading_are_two_tables_and_a_file() {
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
async fn distances_of_a_lossy_precision_are_a_table_and_a_file() {
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
async fn what_a_cache_saves_and_changes_is_a_table_and_a_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let json = folder.path().join("caching.json");
    let start =
        ["bench", "fidelity", "--model", "fluxserve/flux-shapes", "--device", "cpu", "--prompt", "a red circle"];
    let options = ["--seeds", "3", "--size", "64x64", "--steps", "3", "--json", json.to_str().expect("text")];
    let thresholds = ["--cache-thresholds", "0.000001,0.9"];
    let (table, notes) = run_in(folder.path(), &[&start[..], &options, &thresholds].concat()).await.expect("compared");
    let title = ": cached (lossy) against uncached, full, 64x64, 3 steps\n";
    assert!(table.starts_with("fluxserve/flux-shapes on cpu, ") && table.contains(title), "{table}");
    assert!(table.contains("\na red circle  3     0.000001   0 of 3 "), "{table}");
    assert_eq!(notes, "no cache: image 1 of 3\nthreshold 0.000001: image 2 of 3\nthreshold 0.9: image 3 of 3\n");
    let text = std::fs::read_to_string(&json).expect("written");
    let report: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let image = &report["pictures"][0];
    assert_eq!((&image["threshold"], &image["steps_skipped"], &image["steps"]), (&1e-6.into(), &0.into(), &3.into()));
    assert_eq!((&image["latents_final"], &image["psnr_db"]), (&0.0.into(), &serde_json::Value::Null));
}

#[tokio::test]
async fn intermediate_tensors_are_written_or_the_error_has_a_reason() {
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
    assert!(error.to_string().contains("create `/nowhere` first"), "{error}");
}
