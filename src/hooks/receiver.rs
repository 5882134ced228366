//! The operator's receiver of alerts, as configured. Nothing of it is stored but its host.

use std::fmt;
use std::sync::Arc;

use super::secret::{GIVEN_BYTES, SigningSecret};
use super::target::{BadUrl, host_of, origin_of};

/// Why the operator's receiver cannot be used. Names the setting; repeats neither the URL nor the secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadReceiver {
    /// Its URL is refused.
    #[error("`webhooks.alerts_url` {0}")]
    Url(BadUrl),
    /// Its secret has another form.
    #[error(
        "`webhooks.alerts_secret` is no secret for webhooks: it must be whsec_ and {} to {} random bytes in base64, as \
         `echo \"whsec_$(openssl rand -base64 32)\"` makes one",
        GIVEN_BYTES.start(),
        GIVEN_BYTES.end()
    )]
    Secret,
}

/// The operator's receiver of alerts: where they go, and what signs them.
#[derive(Clone)]
pub struct AlertReceiver {
    url: String,
    secret: Arc<SigningSecret>,
}

impl AlertReceiver {
    /// A receiver at `url`, whose messages are signed with `secret`: `whsec_` and base64. The URL is checked by
    /// [`super::WebhookSettings::check`].
    ///
    /// # Errors
    /// [`BadReceiver::Secret`] when the secret has another form or length.
    pub fn new(url: String, secret: &str) -> Result<Self, BadReceiver> {
        let secret = SigningSecret::given(secret).ok_or(BadReceiver::Secret)?;
        Ok(Self { url, secret: Arc::new(secret) })
    }

    /// Where alerts go.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// What signs them.
    pub(super) fn secret(&self) -> &Arc<SigningSecret> {
        &self.secret
    }

    /// Its host, without a port.
    pub(super) fn host(&self) -> String {
        host_of(&self.url)
    }

    /// Its URL without path and query, which may hold a secret.
    pub(super) fn origin(&self) -> String {
        origin_of(&self.url)
    }
}

impl fmt::Debug for AlertReceiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AlertReceiver").field("host", &self.host()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_secret_of_the_standards_form_is_taken_and_none_is_shown() {
        let url = "https://hooks.example.org:8443/alerts?token=private";
        // 24, 32 and 64 bytes.
        for secret in ["A".repeat(32), format!("{}=", "A".repeat(43)), format!("{}==", "A".repeat(86))] {
            let receiver = AlertReceiver::new(url.to_owned(), &format!("whsec_{secret}")).expect("a receiver");
            assert_eq!(receiver.host(), "hooks.example.org");
            assert_eq!(receiver.origin(), "https://hooks.example.org:8443");
            let shown = format!("{receiver:?}");
            assert!(shown.contains("hooks.example.org"), "{shown}");
            assert!(!shown.contains("private") && !shown.contains("AAAA"), "{shown}");
        }
        // No prefix; then with it nothing, 21 and 66 bytes, and what is no base64.
        let a = |count| "A".repeat(count);
        let after_prefix = [String::new(), a(28), a(88), format!("{}-", a(31)), a(33)];
        let prefixed = after_prefix.map(|text| format!("whsec_{text}"));
        for secret in prefixed.into_iter().chain(["A".repeat(32)]) {
            let refused = AlertReceiver::new(url.to_owned(), &secret).expect_err("refused").to_string();
            assert!(refused.contains("`webhooks.alerts_secret`") && refused.contains("24 to 64"), "{refused}");
            assert!(!refused.contains("AAAA"), "{refused}");
        }
    }
}
