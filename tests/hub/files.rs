//! Repositories of single files: which file is meant, and how it is used then.

use std::path::{Path, PathBuf};

use fluxserve::hub::{self, HubError, Request, known_files};

use super::Client;
use super::program::Machine;
use super::stub::{COMMIT, Fault, ID, LICENSE, quantized, reference, sha256};

const Q2: &str = "flux1-dev-Q2_K.gguf";
const Q4: &str = "flux1-dev-Q4_K_S.gguf";

/// A repository of two transformers and a text encoder.
fn repository() -> std::collections::BTreeMap<String, Vec<u8>> {
    let mut files = quantized(&[
        (Q2, "FLUX.1-dev-256/tiny-flux-Q2_K.gguf"),
        (Q4, "FLUX.1-dev-256/tiny-flux-Q4_K_S.gguf"),
        ("t5/t5-encoder-Q4_K_M.gguf", "FLUX.1-dev-256/t5-v1_1-tiny-encoder-Q4_K_M.gguf"),
    ]);
    files.insert("README.md".to_owned(), b"about it".to_vec());
    files
}

fn named(names: &[&str]) -> Request {
    Request { files: names.iter().map(|name| (*name).to_owned()).collect(), ..Client::request() }
}

fn reference_file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference").join(path)
}

#[test]
fn only_the_named_files_are_downloaded_and_found_again() {
    let mut client = Client::new();
    client.hub.conduct().files = repository();
    let downloaded = client.ask(&named(&["q4_k_s", "t5/t5-encoder-Q4_K_M.gguf"])).expect("downloaded");
    let snapshot = client.repository_folder().join("snapshots").join(COMMIT);
    assert_eq!(downloaded.chosen, [snapshot.join(Q4), snapshot.join("t5/t5-encoder-Q4_K_M.gguf")]);
    assert_eq!(downloaded.files, 2);
    assert!(!snapshot.join(Q2).exists() && !snapshot.join("README.md").exists());
    let size = client.hub.conduct().files[Q4].len() as u64;
    assert_eq!(client.recorded.chosen.lock().expect("no panic")[0], (Q4.to_owned(), size));
    for file in known_files(&snapshot) {
        assert_eq!(hub::checksum_of(&file.content, &file.checksum).expect("read"), file.checksum, "{}", file.path);
    }
    // Without asking the hub: the files that are here, and no others.
    client.settings.is_offline = true;
    client.hub.forget();
    assert_eq!(client.ask(&named(&["Q4_K_S"])).expect("here").chosen, [snapshot.join(Q4)]);
    let text = client.ask(&named(&["Q2_K"])).expect_err("not here").to_string();
    assert!(text.contains("HF_HUB_OFFLINE") && client.hub.seen().is_empty(), "{text}");
}

#[test]
fn a_file_that_is_larger_than_the_caller_takes_is_not_downloaded() {
    let client = Client::new();
    client.hub.conduct().files = repository();
    let size = client.hub.conduct().files[Q4].len() as u64;
    let limited = |bytes_max: u64| Request { file_bytes_max: Some(bytes_max), ..named(&["q4_k_s"]) };
    let Err(HubError::FileTooLarge { path, bytes, .. }) = client.ask(&limited(size - 1)) else { panic!("too large") };
    assert_eq!((path.as_str(), bytes), (Q4, size));
    assert!(!client.repository_folder().join("snapshots").join(COMMIT).join(Q4).exists());
    assert!(client.ask(&limited(size)).is_ok());
}

#[test]
fn without_a_name_several_files_are_listed_and_a_single_one_is_downloaded() {
    let client = Client::new();
    client.hub.conduct().files = repository();
    let Err(HubError::SeveralFiles { files, .. }) = client.download() else { panic!("several") };
    assert_eq!(files.len(), 3, "{files:?}");
    let text = client.ask(&named(&["K_"])).expect_err("several").to_string();
    assert!(text.contains("more than one file `K_`") && text.contains(Q4), "{text}");
    let text = client.ask(&named(&["Q8_0"])).expect_err("none").to_string();
    assert!(text.contains("no file `Q8_0`") && text.contains(Q2), "{text}");
    assert!(client.hub.seen().iter().all(|seen| !seen.at_storage), "only the listing was requested");
    client.hub.conduct().files.retain(|path, _| [Q2, "README.md"].contains(&path.as_str()));
    let downloaded = client.download().expect("the only one");
    assert_eq!(downloaded.chosen.len(), 1);
    assert!(downloaded.chosen[0].ends_with(Q2));
}

#[test]
fn a_named_file_resumes_and_is_verified_like_any_other() {
    let client = Client::new();
    client.hub.conduct().files = repository();
    client.hub.fails(Q4, &[Fault::Cut(10_000), Fault::Cut(0)]);
    client.ask(&named(&["Q4_K_S"])).expect("downloaded");
    let starts: Vec<u64> =
        client.hub.seen_of(Q4).into_iter().filter(|seen| seen.at_storage).map(|seen| seen.start).collect();
    assert_eq!(starts, [0, 10_000, 10_000]);
    let client = Client::new();
    client.hub.conduct().files = repository();
    client.hub.fails(Q4, &[Fault::Damaged]);
    let text = client.ask(&named(&["Q4_K_S"])).expect_err("damaged").to_string();
    assert!(text.contains(&format!("`{Q4}` arrived damaged")), "{text}");
    assert!(!client.repository_folder().join("refs/main").exists());
}

#[test]
fn a_few_files_of_a_new_commit_do_not_replace_a_complete_snapshot() {
    let client = Client::new();
    let older = "f".repeat(40);
    let (refs, snapshots) = (client.repository_folder().join("refs"), client.repository_folder().join("snapshots"));
    std::fs::create_dir_all(snapshots.join(&older)).expect("made");
    std::fs::create_dir_all(&refs).expect("made");
    std::fs::write(refs.join("main"), &older).expect("written");
    let downloaded = client.ask(&named(&["ae.safetensors"])).expect("downloaded");
    assert_eq!(downloaded.chosen, [snapshots.join(COMMIT).join("ae.safetensors")]);
    assert_eq!(std::fs::read_to_string(refs.join("main")).expect("a ref"), older);
    client.download().expect("all of it");
    assert_eq!(std::fs::read_to_string(refs.join("main")).expect("a ref"), COMMIT);
}

#[test]
fn the_program_lists_files_that_fit_downloads_one_and_says_how_to_serve_it() {
    let machine = Machine::new();
    let (_, out, _) = machine.run(&["models", "list"]);
    assert!(
        out.contains("`fluxserve models download city96/FLUX.1-dev-gguf` lists its files of 3.8 GiB to 22.2 GiB;"),
        "{out}"
    );
    machine.hub.conduct().files = repository();
    machine.hub.conduct().listed_sizes.insert(Q2.to_owned(), 1 << 50);
    let (is_done, out, errors) = machine.run(&["models", "download", ID]);
    assert!(!is_done && out.is_empty(), "{out}");
    let row = |name: &str| errors.lines().find(|line| line.ends_with(name)).unwrap_or_default().to_owned();
    assert!(row(Q4).contains(" 2.6 MiB "), "{errors}");
    assert!(row(Q2).contains("1048576.0 GiB") && !row(Q2).contains("fits"), "{errors}");
    assert!(errors.contains(&format!("for example: fluxserve models download {ID} --file ")), "{errors}");
    machine.hub.conduct().listed_sizes.clear();

    let (is_done, out, notes) = machine.run(&["models", "download", ID, "--file", "Q4_K_S"]);
    assert!(is_done, "{notes}");
    let path = machine.snapshot().join(Q4);
    assert_eq!(Path::new(out.trim()), path);
    let before = notes.find("1 file, ").unwrap_or_default();
    assert!(notes[..before].contains(&format!("`{Q4}`, ")), "its size is said first: {notes}");
    let serve = format!("serve it with `fluxserve serve --model {ID}={} --base {ID} --download`", path.display());
    assert!(notes.contains(&serve), "{notes}");
    let (is_done, _, notes) = machine.run(&["models", "download", ID, "--file", "t5-encoder", "--to", "files"]);
    assert!(is_done && notes.contains("with `--text-encoder files/t5/t5-encoder-Q4_K_M.gguf`"), "{notes}");

    // What the file says of itself is shown.
    let model = format!("my/flux={}", path.display());
    let base = reference_file("quant/FLUX.1-dev-256");
    let (is_done, out, errors) = machine.run(&["models", "check", &model, "--base", base.to_str().expect("UTF-8")]);
    assert!(is_done && out.contains("says of itself, unverified:"), "{out}{errors}");
    assert!(out.contains("    general.architecture: flux"), "{out}");
}

#[test]
fn a_downloaded_page_in_place_of_weights_is_refused() {
    let machine = Machine::new();
    machine.hub.conduct().files = [("tune.gguf".to_owned(), b"<html>sign in</html>".to_vec())].into();
    let (is_done, _, errors) = machine.run(&["models", "download", ID]);
    assert!(!is_done && errors.contains("cannot be used") && errors.contains("a web page"), "{errors}");
}

#[test]
fn a_missing_base_is_downloaded_with_the_model() {
    let machine = Machine::new();
    let file = reference_file("quant/fp8/flux1-dev-fp8-scaled.safetensors");
    let model = format!("my/flux={}", file.display());
    let rest = ["--prompt", "a fox", "--width", "64", "--height", "64", "--steps", "1", "--device", "cpu"];
    let generate = [&["generate", "--model", &model, "--base", ID, "--output", "fox.png"][..], &rest].concat();
    let (is_done, _, errors) = machine.run(&generate);
    assert!(!is_done && errors.contains(&format!("`fluxserve models download {ID}` downloads it")), "{errors}");
    assert!(machine.hub.seen().is_empty());

    let (is_done, _, errors) = machine.run(&[&generate[..], &["--download"]].concat());
    assert!(is_done && machine.path("fox.png").is_file(), "{errors}");
    assert_eq!(std::fs::read_to_string(machine.snapshot().join("LICENSE.md")).expect("the license"), LICENSE);
    // It is here now: nothing is asked for.
    machine.hub.forget();
    let (is_done, _, errors) = machine.run(&[&generate[..], &["--download"]].concat());
    assert!(is_done && machine.hub.seen().is_empty(), "{errors}");
    let blob = machine.blobs().join(sha256(&reference()[super::SHARD]));
    assert!(blob.is_file(), "the base is a complete model");
}

#[test]
fn a_base_behind_a_license_says_which_repositories_need_no_account() {
    let machine = Machine::new();
    machine.hub.conduct().gate = Some("hf_accepted".into());
    let file = reference_file("quant/fp8/flux1-dev-fp8-scaled.safetensors");
    let model = format!("my/flux={}", file.display());
    let serve = ["serve", "--listen", "127.0.0.1:0", "--model", &model, "--base", ID, "--download"];
    let (is_done, _, errors) = machine.run(&serve);
    assert!(!is_done, "{errors}");
    for part in [
        format!("downloading `{ID}`, the base of `my/flux`").as_str(),
        "accepted its license",
        "`Comfy-Org/flux1-dev` (autoencoder, CLIP, T5)",
        "`city96/t5-v1_1-xxl-encoder-gguf` (T5)",
        "--text-encoder",
    ] {
        assert!(errors.contains(part), "{part} in {errors}");
    }
    let (_, _, errors) = machine.run(&["models", "download", ID]);
    assert!(!errors.contains("city96"), "a model is not completed from parts: {errors}");
}
