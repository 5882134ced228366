//! Requests to the hub. Follows redirects itself: the token goes to the hub and to no other host.

use std::time::Duration;

use reqwest::header::{AUTHORIZATION, CONTENT_RANGE, HeaderMap, HeaderValue, LOCATION, RANGE, RETRY_AFTER};
use reqwest::{NoProxy, Proxy, Response, StatusCode, Url};

use super::repository::{RepositoryId, Revision};
use super::{HubError, HubSettings, Patience, Progress};
use crate::domain::hub_token::{HUB_TOKEN_BYTES_MAX, HubToken};
use crate::outgoing;

/// Maximum redirects in a row.
const REDIRECTS_MAX: usize = 8;
/// Longest part of the hub's error message that is repeated.
const SAID_CHARS_MAX: usize = 300;
/// Maximum rate-limit pauses in a row, including those of zero seconds.
const RATE_LIMIT_PAUSES_MAX: u32 = 30;
/// Pause when a rate-limited answer does not say how long.
const RATE_LIMIT_WAIT: Duration = Duration::from_secs(30);

/// The token, and its origin.
struct Credential {
    token: HubToken,
    /// Origin of the token, for messages.
    place: String,
}

/// HTTP client of the hub.
pub(super) struct Client<'a> {
    http: reqwest::Client,
    endpoint: Url,
    credential: Option<Credential>,
    /// Where a token is looked for, for messages.
    token_file: String,
    pub(super) patience: Patience,
    progress: &'a dyn Progress,
}

/// Target of a request, for messages.
pub(super) struct RequestTarget<'a> {
    pub(super) repository: &'a RepositoryId,
    pub(super) revision: &'a Revision,
    /// `None`: the listing.
    pub(super) path: Option<&'a str>,
}

/// Meaning of an answer.
enum Verdict {
    Good(Response),
    Redirect(Url),
    /// Worth another attempt after a pause.
    Later {
        wait: Option<Duration>,
        error: HubError,
    },
}

impl<'a> Client<'a> {
    pub(super) fn new(settings: &HubSettings, progress: &'a dyn Progress) -> Result<Self, HubError> {
        let unusable = |error: &dyn std::fmt::Display| HubError::Client(error.to_string());
        let endpoint = Url::parse(&settings.endpoint).map_err(|error| unusable(&error))?;
        let tls = outgoing::tls(endpoint.scheme() == "https");
        let tls = tls.map_err(|error| HubError::Client(format!("https: {error}")))?;
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(settings.patience.connect)
            .read_timeout(settings.patience.read)
            .tls_backend_preconfigured(tls)
            // The configuration has read the environment's proxies already.
            .no_proxy();
        let except = || settings.proxy.except.as_deref().and_then(NoProxy::from_string);
        if let Some(url) = &settings.proxy.https {
            builder = builder.proxy(Proxy::https(url).map_err(|error| unusable(&error))?.no_proxy(except()));
        }
        if let Some(url) = &settings.proxy.http {
            builder = builder.proxy(Proxy::http(url).map_err(|error| unusable(&error))?.no_proxy(except()));
        }
        let http = builder.build().map_err(|error| unusable(&error))?;
        let token_file = settings
            .token_file
            .as_ref()
            .map_or_else(|| "HF_HOME/token".to_owned(), |path| format!("`{}`", path.display()));
        Ok(Self {
            http,
            endpoint,
            credential: credential(settings)?,
            token_file,
            patience: settings.patience,
            progress,
        })
    }

    /// The hub's host, for messages.
    pub(super) fn host(&self) -> String {
        host_of(&self.endpoint)
    }

    /// Requests a repository's listing at a revision: JSON of at most `bytes_max` bytes.
    pub(super) async fn revision(
        &self,
        repository: &RepositoryId,
        revision: &Revision,
        bytes_max: usize,
    ) -> Result<Vec<u8>, HubError> {
        let segments = ["api", "models"].into_iter().chain(repository.segments());
        let mut url = self.url(segments.chain(["revision", revision.as_str()]));
        url.set_query(Some("blobs=true"));
        let target = RequestTarget { repository, revision, path: None };
        let mut tries = 0;
        loop {
            let mut answer = self.get(&url, 0, &target).await?;
            match read_body(&mut answer, bytes_max).await {
                Ok(Some(body)) => return Ok(body),
                Ok(None) => {
                    let reason = format!("its listing is longer than {bytes_max} bytes");
                    return Err(HubError::Malformed { host: self.host(), reason });
                }
                Err(error) => {
                    tries += 1;
                    if tries >= self.patience.tries_max {
                        return Err(HubError::Unreachable { host: self.host(), reason: reason_of(&error) });
                    }
                    self.pause(tries, "the connection broke off").await;
                }
            }
        }
    }

    /// Requests a file at a commit from byte `start` on. Returns where the body begins: at 0 if the hub ignores ranges.
    pub(super) async fn file(&self, target: &RequestTarget<'_>, start: u64) -> Result<(u64, Response), HubError> {
        let path = target.path.unwrap_or_default();
        let segments = target.repository.segments().chain(["resolve", target.revision.as_str()]);
        let answer = self.get(&self.url(segments.chain(path.split('/'))), start, target).await?;
        if answer.status() != StatusCode::PARTIAL_CONTENT {
            return Ok((0, answer));
        }
        let range = answer.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
        let begins_at = range.and_then(|range| range.strip_prefix("bytes ")?.split_once('-')?.0.parse::<u64>().ok());
        match begins_at {
            Some(begins_at) if begins_at == start => Ok((start, answer)),
            _ => {
                let reason = format!("a request for `{path}` from byte {start} on returned another range");
                Err(HubError::Malformed { host: host_of(answer.url()), reason })
            }
        }
    }

    fn url<'s>(&self, segments: impl Iterator<Item = &'s str>) -> Url {
        let mut url = self.endpoint.clone();
        // An endpoint with a scheme and a host always has segments.
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(segments);
        }
        url
    }

    /// Repeats a request until it succeeds or another attempt would not help.
    async fn get(&self, first: &Url, start: u64, target: &RequestTarget<'_>) -> Result<Response, HubError> {
        let (mut url, mut redirects, mut tries) = (first.clone(), 0, 0);
        let mut paused = Duration::ZERO;
        loop {
            let (wait, error) = match self.ask(&url, start, target).await? {
                Verdict::Good(answer) => return Ok(answer),
                Verdict::Redirect(next) => {
                    redirects += 1;
                    if redirects > REDIRECTS_MAX {
                        let reason = format!("it redirects more than {REDIRECTS_MAX} times in a row");
                        return Err(HubError::Malformed { host: host_of(&url), reason });
                    }
                    url = next;
                    continue;
                }
                Verdict::Later { wait, error } => (wait, error),
            };
            // A signed address expires.
            (url, redirects) = (first.clone(), 0);
            tries += 1;
            let (error, patience) = (error.with_tries(tries), self.patience);
            match wait {
                Some(wait) => {
                    paused += wait;
                    if paused > patience.rate_limit_wait_max || tries >= RATE_LIMIT_PAUSES_MAX {
                        return Err(error);
                    }
                    self.progress.waiting("the hub limits the rate of requests", wait);
                    tokio::time::sleep(wait).await;
                }
                None if tries >= patience.tries_max => return Err(error),
                None => self.pause(tries, &error.to_string()).await,
            }
        }
    }

    /// Waits; each attempt in a row that brings nothing doubles the pause.
    pub(super) async fn pause(&self, tries: u32, reason: &str) {
        let wait = self.patience.pause * 2_u32.saturating_pow(tries.saturating_sub(1).min(6));
        self.progress.waiting(reason, wait);
        tokio::time::sleep(wait).await;
    }

    async fn ask(&self, url: &Url, start: u64, target: &RequestTarget<'_>) -> Result<Verdict, HubError> {
        let mut request = self.http.get(url.clone());
        if let Some(credential) = self.credential.as_ref().filter(|_| url.origin() == self.endpoint.origin()) {
            let mut value = HeaderValue::from_str(&format!("Bearer {}", credential.token.reveal()))
                .map_err(|error| HubError::Client(error.to_string()))?;
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        if start > 0 {
            request = request.header(RANGE, format!("bytes={start}-"));
        }
        match request.send().await {
            Ok(answer) => self.judge(answer, target),
            Err(error) => {
                let error = HubError::Unreachable { host: host_of(url), reason: reason_of(&error) };
                Ok(Verdict::Later { wait: None, error })
            }
        }
    }

    fn judge(&self, answer: Response, target: &RequestTarget<'_>) -> Result<Verdict, HubError> {
        let (status, headers) = (answer.status(), answer.headers());
        if status.is_success() {
            return Ok(Verdict::Good(answer));
        }
        if status.is_redirection() {
            return redirect_target(answer.url(), headers).map(Verdict::Redirect);
        }
        match status {
            StatusCode::TOO_MANY_REQUESTS => {
                let wait = retry_after(headers).unwrap_or(RATE_LIMIT_WAIT);
                let error = HubError::RateLimited { wait_seconds: wait.as_secs() };
                Ok(Verdict::Later { wait: Some(wait), error })
            }
            status if status.is_server_error() || status == StatusCode::REQUEST_TIMEOUT => {
                Ok(Verdict::Later { wait: None, error: other(status, headers, target) })
            }
            _ => Err(self.refusal(status, headers, target)),
        }
    }

    /// The error of a status that another attempt would not change.
    fn refusal(&self, status: StatusCode, headers: &HeaderMap, target: &RequestTarget<'_>) -> HubError {
        let (repository, revision) = (target.repository.to_string(), target.revision.to_string());
        let code = headers.get("x-error-code").and_then(|value| value.to_str().ok()).unwrap_or_default();
        let hub = self.host();
        let page = |rest: &str| format!("{}/{repository}{rest}", self.endpoint.as_str().trim_end_matches('/'));
        let tokens_page = format!("{}/settings/tokens", self.endpoint.as_str().trim_end_matches('/'));
        let token_file = self.token_file.clone();
        let said = said(headers);
        let token_place = self.credential.as_ref().map(|credential| credential.place.clone());
        match (status, code, token_place) {
            (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, "GatedRepo", None) => {
                HubError::GatedWithoutToken { page: page(""), repository, tokens_page, token_file }
            }
            (StatusCode::FORBIDDEN, "GatedRepo", Some(token_place)) => {
                HubError::GatedNotAccepted { page: page(""), repository, token_place, said }
            }
            // The hub hides private repositories behind this status.
            (StatusCode::UNAUTHORIZED, "RepoNotFound", Some(_)) => HubError::NoRepository { repository, hub },
            (StatusCode::UNAUTHORIZED, _, Some(token_place)) => {
                HubError::TokenRefused { token_place, tokens_page, said }
            }
            (StatusCode::UNAUTHORIZED, _, None) => HubError::NotThereOrPrivate { repository, hub, token_file },
            (StatusCode::FORBIDDEN, _, _) => HubError::Forbidden { what: what(target), said },
            (StatusCode::NOT_FOUND, "RevisionNotFound", _) => {
                HubError::NoRevision { page: page("/refs"), repository, revision }
            }
            (StatusCode::NOT_FOUND, code, _) => match target.path {
                Some(path) if code != "RepoNotFound" => HubError::NoFile { repository, path: path.to_owned() },
                _ => HubError::NoRepository { repository, hub },
            },
            _ => other(status, headers, target),
        }
    }
}

impl HubError {
    fn with_tries(mut self, count: u32) -> Self {
        if let Self::Status { tries, .. } = &mut self {
            *tries = count;
        }
        self
    }
}

fn what(target: &RequestTarget) -> String {
    target.path.map_or_else(|| target.repository.to_string(), |path| format!("{}/{path}", target.repository))
}

fn other(status: StatusCode, headers: &HeaderMap, target: &RequestTarget) -> HubError {
    HubError::Status { status: status.as_u16(), what: what(target), tries: 1, said: said(headers) }
}

/// The hub's own error message, to append to ours.
fn said(headers: &HeaderMap) -> String {
    let text = headers.get("x-error-message").and_then(|value| value.to_str().ok()).unwrap_or_default();
    let text: String = text.chars().filter(|letter| !letter.is_control()).take(SAID_CHARS_MAX).collect();
    if text.is_empty() { text } else { format!(" (the hub says: {text})") }
}

/// Pause that the hub asks for: `Retry-After` in seconds, or the `t` of its `RateLimit`.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let seconds = text(RETRY_AFTER.as_str()).or_else(|| {
        let mut parameters = text("ratelimit")?.split([';', ',']);
        parameters.find_map(|parameter| parameter.trim().strip_prefix("t="))
    });
    seconds?.trim().parse().map(Duration::from_secs).ok()
}

/// Target of a redirect: http or https, and not from https to http.
fn redirect_target(from: &Url, headers: &HeaderMap) -> Result<Url, HubError> {
    let malformed = |reason: &str| HubError::Malformed { host: host_of(from), reason: reason.to_owned() };
    let location = headers.get(LOCATION).and_then(|value| value.to_str().ok());
    let location = location.ok_or_else(|| malformed("it redirects without a location"))?;
    let url = from.join(location).map_err(|_| malformed("it redirects to an invalid address"))?;
    match (from.scheme(), url.scheme()) {
        (_, "https") | ("http", "http") => Ok(url),
        _ => Err(malformed("it redirects from https to another scheme")),
    }
}

fn host_of(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// The innermost cause. The outer ones repeat the address, which may contain a signature.
pub(super) fn reason_of(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "timed out".to_owned();
    }
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    if cause.downcast_ref::<reqwest::Error>().is_some() { "unknown cause".to_owned() } else { cause.to_string() }
}

/// Reads a body of at most `bytes_max` bytes; `None` for a longer one.
async fn read_body(answer: &mut Response, bytes_max: usize) -> reqwest::Result<Option<Vec<u8>>> {
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await? {
        if body.len() + chunk.len() > bytes_max {
            return Ok(None);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Some(body))
}

fn credential(settings: &HubSettings) -> Result<Option<Credential>, HubError> {
    if let Some(token) = &settings.token {
        return Ok(Some(Credential { token: token.clone(), place: "HF_TOKEN".to_owned() }));
    }
    let Some(path) = &settings.token_file else { return Ok(None) };
    let unfit = |reason: String| HubError::TokenFile { path: path.clone(), reason };
    match std::fs::metadata(path) {
        Ok(found) if found.len() > HUB_TOKEN_BYTES_MAX as u64 => return Err(unfit("too long for a token".to_owned())),
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unfit(error.to_string())),
    }
    let text = std::fs::read_to_string(path).map(zeroize::Zeroizing::new).map_err(|error| unfit(error.to_string()))?;
    if text.trim().is_empty() {
        return Ok(None);
    }
    let token = text.parse().map_err(|error: crate::domain::hub_token::UnfitToken| unfit(error.to_string()))?;
    Ok(Some(Credential { token, place: format!("`{}`", path.display()) }))
}
