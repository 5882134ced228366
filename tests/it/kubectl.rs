//! The real kubectl with the console's kubeconfig, against a listening worker and a stub API server. Needs kubectl
//! (1.22 or newer) and curl; `scripts/kubectl-test.sh` installs kubectl and requires this test to run.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use fluxserve::http::ConnectionLimits;
use serde_json::json;
use tokio::task::spawn_blocking;

use crate::app::{listen, managing};
use crate::kubernetes::{Site, until};

#[expect(clippy::print_stdout, reason = "a test that was left out has to be seen")]
/// The path of kubectl. `None`: not installed and not required.
fn kubectl() -> Option<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join(".tools/kubernetes/kubectl");
    let on_path = std::env::var_os("PATH");
    let on_path = on_path.iter().flat_map(std::env::split_paths).map(|folder| folder.join("kubectl"));
    let found = [here].into_iter().chain(on_path).find(|path| path.is_file());
    let is_needed = std::env::var_os("FLUXSERVE_TEST_NEEDS_KUBECTL").is_some();
    assert!(
        found.is_some() || !is_needed,
        "no kubectl: tests/e2e/kubernetes/tools.sh --kubectl-only .tools/kubernetes"
    );
    if found.is_none() {
        println!("skipped: no kubectl on this machine; scripts/kubectl-test.sh brings one");
    }
    found
}

/// A user with a key and a kubeconfig.
struct User {
    program: PathBuf,
    home: tempfile::TempDir,
    file: PathBuf,
    key: Option<String>,
}

impl User {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--kubeconfig").arg(&self.file).args(arguments);
        command.env("HOME", self.home.path()).env_remove("REMOTEGPU_API_KEY").env_remove("KUBECONFIG");
        if let Some(key) = &self.key {
            command.env("REMOTEGPU_API_KEY", key);
        }
        command.stdin(Stdio::null());
        command
    }

    /// Returns success and all output.
    async fn run(&self, arguments: &[&str]) -> (bool, String) {
        run(self.command(arguments)).await
    }
}

/// Runs a program to its end. The runtime keeps running: this process answers the program's requests.
async fn run(mut command: Command) -> (bool, String) {
    let ended = tokio::time::timeout(Duration::from_mins(1), spawn_blocking(move || command.output())).await;
    let output = ended.expect("in time").expect("no panic").expect("a process");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.success(), text(&output.stdout) + &text(&output.stderr))
}

/// A program that is killed with its test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

async fn user(site: &Site, worker: SocketAddr, program: &Path, namespace: &str, key: Option<&str>) -> User {
    let cookie = site.app.sign_in().await;
    let mut request = managing(&cookie, "GET", &format!("/v1/kubernetes/namespaces/{namespace}/kubeconfig"), None);
    request.headers_mut().insert("host", worker.to_string().parse().expect("a value"));
    let answer = site.app.send(request).await.json();
    let home = tempfile::tempdir().expect("a folder");
    let file = home.path().join(answer["filename"].as_str().expect("a name"));
    std::fs::write(&file, answer["kubeconfig"].as_str().expect("YAML")).expect("written");
    User { program: program.to_owned(), home, file, key: key.map(str::to_owned) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_kubectl_gets_access_to_its_namespace_only() {
    let Some(program) = kubectl() else { return };
    let site = Site::start().await;
    let (worker, server) = listen(&site.app, ConnectionLimits::default()).await;
    let (first, second) = (site.namespace("team-a").await, site.namespace("team-b").await);
    let (id, one) = site.key(&json!({ "kubernetes_exec": { "namespace_ids": [first] } })).await;
    let (_, inference) = site.key(&json!({ "inference": true })).await;

    let insider = user(&site, worker, &program, &first, Some(&one)).await;
    let (is_well, said) = insider.run(&["get", "pods"]).await;
    assert!(is_well && said.contains("team-a-pod"), "{said}");
    let (is_well, said) = insider.run(&["get", "pods", "--namespace", "team-b"]).await;
    assert!(!is_well && said.contains("Forbidden") && said.contains("team-b"), "{said}");

    // The file of another namespace: the worker refuses without asking the cluster.
    let outsider = user(&site, worker, &program, &second, Some(&one)).await;
    let (is_well, said) = outsider.run(&["get", "pods"]).await;
    assert!(!is_well && said.contains("the key's scope does not include this namespace"), "{said}");
    let inference_user = user(&site, worker, &program, &first, Some(&inference)).await;
    let (is_well, said) = inference_user.run(&["get", "pods"]).await;
    assert!(!is_well && said.contains("the key's scope is inference, not Kubernetes"), "{said}");
    let stranger = user(&site, worker, &program, &first, Some("rgpu_nonsense")).await;
    let (is_well, said) = stranger.run(&["get", "pods"]).await;
    assert!(!is_well && said.contains("A valid API key is required"), "{said}");
    let keyless = user(&site, worker, &program, &first, None).await;
    let (is_well, said) = keyless.run(&["get", "pods"]).await;
    assert!(!is_well && said.contains("REMOTEGPU_API_KEY is not set"), "{said}");

    // A token valid for 34 s is used for 4.
    site.cluster.set_token_seconds(34);
    // Some versions of kubectl request one as soon as they start.
    let before = site.cluster.minted();
    let mut proxy = Running(insider.command(&["proxy", "--port=0"]).stdout(Stdio::piped()).spawn().expect("a process"));
    let mut output = BufReader::new(proxy.0.stdout.take().expect("piped"));
    let mut line = String::new();
    output.read_line(&mut line).expect("a line");
    let line = line.trim();
    let address = line.rsplit(' ').next().expect("an address").to_owned();
    let get = async || {
        let url = format!("http://{address}/api/v1/namespaces/team-a/pods");
        let mut curl = Command::new("curl");
        curl.args(["-sS", "-o", "/dev/null", "-w", "%{http_code}", &url]);
        run(curl).await.1
    };
    for _ in 0..3 {
        assert_eq!(get().await, "200");
    }
    assert_eq!(site.cluster.minted(), before + 1, "one token serves many requests");
    tokio::time::sleep(Duration::from_secs(5)).await;
    for _ in 0..3 {
        assert_eq!(get().await, "200");
    }
    assert_eq!(site.cluster.minted(), before + 2, "it was renewed once");

    site.manage("DELETE", &format!("/v1/api-keys/{id}"), None).await;
    until("who was in is out", async || get().await != "200").await;
    drop(proxy);
    server.abort();
    let (is_well, said) = insider.run(&["get", "pods"]).await;
    assert!(!is_well && said.contains("the worker cannot be reached"), "{said}");
}
