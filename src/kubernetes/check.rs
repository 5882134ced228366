//! `kubernetes check`: what works and what is missing.

use time::{Duration, OffsetDateTime};

use super::cluster::{Cluster, Right};
use super::manifest::USER_ROLE;

/// Largest difference of the clocks that is not reported. A token's expiry is by the API server's clock, and kubectl requests
/// a new one half a minute before.
const SKEW_MAX: Duration = Duration::seconds(20);

/// Result of a check: a fact, or what is missing and how to fix it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckLine {
    /// What was checked.
    pub subject: &'static str,
    /// What was found.
    pub found: Result<String, String>,
}

fn line(subject: &'static str, found: Result<String, String>) -> CheckLine {
    CheckLine { subject, found }
}

/// Runs all checks once. `now` is this machine's time.
pub async fn check(cluster: &Cluster, auto_open: bool, now: OffsetDateTime) -> Vec<CheckLine> {
    let version = cluster.version().await;
    let is_away = version.is_err();
    let server = &cluster.server().url;
    let found = version.map(|version| format!("{server}, Kubernetes {version}"));
    let mut lines = vec![line("API server", found.map_err(|error| format!("{server}: {error}")))];
    if is_away {
        return lines;
    }
    lines.push(line("server for clients", Ok(for_clients(server))));
    lines.push(line("server's certificate", certificate(cluster.server().is_unverified)));
    lines.push(account_and_clock(cluster, now).await);
    lines.push(own_rights(cluster, auto_open).await);
    lines.push(no_more_rights(cluster).await);
    lines.push(line("own token", own_token(cluster, now)));
    lines
}

fn for_clients(server: &str) -> String {
    let host = server.trim_start_matches("https://");
    let is_here = ["127.", "localhost", "[::1]", "0.0.0.0"].iter().any(|here| host.starts_with(here));
    if is_here {
        format!("{server} is this machine: kubectl elsewhere needs `kubernetes.server` with the API server's address")
    } else {
        format!("kubeconfigs say {server}")
    }
}

/// The setting of the worker's kubeconfig goes into the kubeconfigs of all keys.
fn certificate(is_unverified: bool) -> Result<String, String> {
    if is_unverified {
        return Err(
            "is not verified, neither by the worker nor by kubectl with the kubeconfigs from here: anybody in between can \
                    read their tokens; replace `insecure-skip-tls-verify` by `certificate-authority` in the \
                    kubeconfig, and run `fluxserve kubernetes connect` again"
                .to_owned(),
        );
    }
    Ok("is verified, by kubectl with the kubeconfigs from here too".to_owned())
}

async fn account_and_clock(cluster: &Cluster, now: OffsetDateTime) -> CheckLine {
    let found = match cluster.mint_own().await {
        Err(error) => Err(format!("{error}; apply what `fluxserve kubernetes manifest` prints")),
        // The token's time is in whole seconds.
        Ok(minted) => match minted.token.claims().and_then(|claims| claims.made_at()).map(|made_at| made_at - now) {
            Some(skew) if skew.abs() > SKEW_MAX => {
                let seconds = skew.whole_seconds();
                Err(format!("this machine's clock and the API server's differ by {seconds} s: set them by NTP"))
            }
            Some(_) => Ok("the worker's account exists, and the clocks agree".to_owned()),
            None => Ok("the worker's account exists; its token does not have the API server's time".to_owned()),
        },
    };
    line("account and clock", found)
}

async fn own_rights(cluster: &Cluster, auto_open: bool) -> CheckLine {
    let holder = Some(cluster.holder().as_str());
    let own = |verb, resource| Right { verb, resource, group: "", namespace: holder, name: None };
    let of_rbac =
        |verb, resource, name| Right { verb, resource, group: "rbac.authorization.k8s.io", namespace: None, name };
    let mut rights = vec![own("create", "serviceaccounts/token"), own("create", "secrets"), own("delete", "secrets")];
    if auto_open {
        rights.extend([own("create", "serviceaccounts"), own("delete", "serviceaccounts")]);
        rights.extend([of_rbac("create", "rolebindings", None), of_rbac("delete", "rolebindings", None)]);
        rights.push(of_rbac("bind", "clusterroles", Some(USER_ROLE)));
        let of_namespaces = |verb| Right { verb, resource: "namespaces", group: "", namespace: None, name: None };
        rights.extend([of_namespaces("get"), of_namespaces("patch")]);
    }
    let mut lacking = Vec::new();
    for right in rights {
        match cluster.may(right).await {
            Ok(true) => {}
            Ok(false) => lacking.push(right.to_string()),
            Err(error) => return line("own rights", Err(error.to_string())),
        }
    }
    if lacking.is_empty() {
        return line("own rights", Ok("complete".to_owned()));
    }
    let option = if auto_open { " --auto-open" } else { "" };
    let hint = format!("apply what `fluxserve kubernetes manifest{option}` prints");
    line("own rights", Err(format!("lacking: {}; {hint}", lacking.join(", "))))
}

/// A worker with an administrator's credentials would work, and would be worth stealing.
async fn no_more_rights(cluster: &Cluster) -> CheckLine {
    let elsewhere = Right { verb: "get", resource: "secrets", group: "", namespace: None, name: None };
    let found = match cluster.may(elsewhere).await {
        Ok(false) => Ok("no Secret of the cluster can be read".to_owned()),
        Ok(true) => Err("the worker can read every Secret of the cluster: give it an account of its own with \
                         `fluxserve kubernetes connect`"
            .to_owned()),
        Err(error) => Err(error.to_string()),
    };
    line("rights elsewhere", found)
}

fn own_token(cluster: &Cluster, now: OffsetDateTime) -> Result<String, String> {
    let Some(file) = cluster.token_file() else {
        return Ok("not renewed by the worker".to_owned());
    };
    let text = std::fs::read_to_string(file).map_err(|error| format!("`{}`: {error}", file.display()))?;
    let claims = super::token::Token::new(text.trim().to_owned()).claims();
    match claims.and_then(|claims| claims.ends_at()) {
        Some(end) if end <= now => Err("has expired: run `fluxserve kubernetes connect` again".to_owned()),
        Some(end) => Ok(format!("valid for {} more hours; a running worker renews it", (end - now).whole_hours())),
        None => Ok("does not have an expiry".to_owned()),
    }
}
