//! What the HTTP clients of this program have in common: how they verify https. Must not know what is asked, or of whom.

use std::sync::Arc;

use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::{ClientConfig, Error, RootCertStore};

/// TLS that verifies certificates as this machine does. On a machine without certificate authorities only plain http is left,
/// which is an error only if https `is_needed`.
///
/// # Errors
/// When certificates cannot be verified here.
pub(crate) fn tls(is_needed: bool) -> Result<ClientConfig, Error> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider));
    let builder = builder.with_safe_default_protocol_versions()?;
    match rustls_platform_verifier::Verifier::new(provider) {
        Ok(verifier) => {
            Ok(builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier)).with_no_client_auth())
        }
        Err(error) if is_needed => Err(error),
        Err(_) => Ok(builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth()),
    }
}
