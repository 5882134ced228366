//! LoRAs on the command line and in uploads that are interrupted.

use std::net::TcpStream;

use super::*;

const PASSWORD: &str = "the password of this test";
/// The size of the demo model's layers, `models/flux-shapes/transformer/config.json`.
const WIDTH: usize = 160;

/// A LoRA of the demo model, with numbers that follow from `seed`.
fn lora(seed: u16) -> Vec<u8> {
    let module = "transformer.transformer_blocks.0.attn.to_q";
    let bytes = WIDTH * size_of::<f32>();
    let tensor =
        |shape: [usize; 2], at: usize| json!({ "dtype": "F32", "shape": shape, "data_offsets": [at, at + bytes] });
    let header = json!({
        "__metadata__": { "modelspec.trigger_phrase": "pen, ink" },
        format!("{module}.lora_A.weight"): tensor([1, WIDTH], 0),
        format!("{module}.lora_B.weight"): tensor([WIDTH, 1], bytes),
    });
    let header = header.to_string().into_bytes();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    file.extend((0..2 * WIDTH).flat_map(|_| f32::from(seed).to_le_bytes()));
    file
}

fn start(data: &Path) -> (Server, String) {
    let mut command = serving(data);
    let server = Server::of(command.env("FLUXSERVE_ADMIN_PASSWORD", PASSWORD));
    let url = server.url();
    (server, url)
}

fn sign_in(url: &str) -> String {
    let request = ureq::post(format!("{url}/v1/session")).header("content-type", "application/json");
    let answer = request.send(json!({ "password": PASSWORD }).to_string()).expect("an answer");
    answer.headers()["set-cookie"].to_str().expect("text").split(';').next().expect("a pair").to_owned()
}

fn list(url: &str, cookie: &str) -> Value {
    let mut answer = ureq::get(format!("{url}/v1/loras")).header("cookie", cookie).call().expect("an answer");
    serde_json::from_str(&answer.body_mut().read_to_string().expect("a text")).expect("JSON")
}

/// The files in the folder of LoRAs, with their sizes.
fn files(data: &Path) -> Vec<(String, u64)> {
    let Ok(entries) = std::fs::read_dir(data.join("loras")) else { return Vec::new() };
    let entries = entries.map(|entry| entry.expect("one"));
    let named = |entry: std::fs::DirEntry| entry.file_name().into_string().expect("UTF-8");
    entries
        .map(|entry| (entry.metadata().expect("one").len(), named(entry)))
        .map(|(bytes, name)| (name, bytes))
        .collect()
}

#[test]
fn a_kill_during_an_upload_leaves_nothing_half_there() {
    let (_folder, data) = folder();
    let (mut server, url) = start(&data);
    let cookie = sign_in(&url);
    let file = lora(1);
    let half = file.len() / 2;
    let mut stream = TcpStream::connect(url.trim_start_matches("http://")).expect("connects");
    let head = format!(
        "POST /v1/loras?name=pen HTTP/1.1\r\nhost: {}\r\ncookie: {cookie}\r\ncontent-type: application/octet-stream\r\n\
         content-length: {}\r\n\r\n",
        url.trim_start_matches("http://"),
        file.len()
    );
    stream.write_all(head.as_bytes()).expect("sent");
    stream.write_all(&file[..half]).expect("sent");
    let is_part = |name: &str| Path::new(name).extension().is_some_and(|extension| extension == "part");
    let arrived = || files(&data).into_iter().find(|(name, bytes)| is_part(name) && *bytes == half as u64);
    until("half of the file is there", arrived);
    server.tell("-KILL");
    server.child.wait().expect("a child");
    drop(server);
    assert_eq!(files(&data).len(), 1, "the crash has left it");

    let (mut server, url) = start(&data);
    let cookie = sign_in(&url);
    assert!(files(&data).is_empty(), "{:?}", files(&data));
    assert_eq!(list(&url, &cookie), json!({ "data": [] }));
    let request = ureq::post(format!("{url}/v1/loras?name=pen")).header("cookie", &cookie);
    let mut answer = request.header("content-type", "application/octet-stream").send(&file[..]).expect("an answer");
    let added = answer.body_mut().read_to_string().expect("a text");
    // What was acknowledged is there, however the process ends.
    server.tell("-KILL");
    server.child.wait().expect("a child");
    drop(server);
    let (mut server, url) = start(&data);
    let listed = list(&url, &sign_in(&url));
    assert_eq!(listed["data"][0], serde_json::from_str::<Value>(&added).expect("JSON"));
    assert_eq!(listed["data"][0]["trigger_words"], json!(["pen", "ink"]));
    let id = listed["data"][0]["id"].as_str().expect("an id");
    assert_eq!(files(&data), [(format!("{id}.safetensors"), file.len() as u64)]);
    exits(&mut server);
}

#[test]
fn loras_are_added_and_removed_beside_a_running_server() {
    let (folder, data) = folder();
    let (mut server, url) = start(&data);
    let cookie = sign_in(&url);
    let file = folder.path().join("pen.safetensors");
    std::fs::write(&file, lora(2)).expect("written");
    let path = file.to_str().expect("UTF-8");
    let added = run(&data, &["loras", "add", path]);
    assert!(added.status.success(), "{added:?}");
    let id = text(&added.stdout).trim().to_owned();
    assert!(text(&added.stderr).contains("the LoRA `pen` is added"), "{added:?}");
    let lora = list(&url, &cookie)["data"][0].clone();
    assert_eq!((&lora["id"], &lora["added_by"]), (&json!(id), &json!("command_line")));
    let changed = &lora["components"][0];
    assert_eq!((&changed["name"], &changed["layers"]), (&json!("transformer"), &json!(1)));
    let again = run(&data, &["loras", "add", path, "--name", "other"]);
    assert!(text(&again.stderr).contains("the LoRA `pen` was there already"), "{again:?}");
    let listed = text(&run(&data, &["loras", "list"]).stdout);
    assert!(listed.lines().count() == 2 && listed.contains("pen") && listed.contains(&id), "{listed}");

    std::fs::write(&file, &self::lora(3)[..500]).expect("written");
    let refused = run(&data, &["loras", "add", path]);
    let said = text(&refused.stderr);
    assert!(!refused.status.success() && said.contains("pen.safetensors") && !said.contains(".part"), "{said}");
    let removed = run(&data, &["loras", "remove", "pen"]);
    assert!(removed.status.success() && text(&removed.stderr).contains("`pen`"), "{removed:?}");
    assert_eq!((files(&data), list(&url, &cookie)), (Vec::new(), json!({ "data": [] })));
    assert!(!run(&data, &["loras", "remove", "pen"]).status.success());
    exits(&mut server);
}
