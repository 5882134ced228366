//! Opens a bucket of each kind.

use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::signer::Signer;
use object_store::{BackoffConfig, ObjectStore, RetryConfig};

use super::client::Connector;
use super::error::ObjectsError;
use super::files::Objects;
use crate::domain::bucket::{BucketKind, BucketLocation};

/// Requests again after a failure that may pass, and for how long at most.
const RETRIES_MAX: usize = 2;
const RETRIES_DEADLINE: Duration = Duration::from_secs(10);
/// Pause before the first of them; doubled before the next.
const RETRY_DELAY: Duration = Duration::from_millis(100);
const RETRY_DELAY_MAX: Duration = Duration::from_secs(2);

/// A bucket, and how it is reached. Its credentials are not among this.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectsSettings {
    /// The bucket.
    pub location: BucketLocation,
    /// Address of a store other than Amazon's that speaks S3. `None`: from the environment, or Amazon's.
    pub endpoint: Option<String>,
    /// Region of an S3 bucket. `None`: from the environment, or `us-east-1`.
    pub region: Option<String>,
    /// Whether the store may be reached without TLS.
    pub allow_http: bool,
}

impl Objects {
    /// Opens a bucket. Nothing is sent yet.
    ///
    /// # Errors
    /// When credentials are incomplete, or https is not possible on this machine.
    pub fn open(settings: &ObjectsSettings) -> Result<Self, ObjectsError> {
        let BucketLocation { kind, name, prefix } = &settings.location;
        match kind {
            BucketKind::S3 => Ok(signing(s3(AmazonS3Builder::from_env(), settings, name).build()?, prefix)),
            BucketKind::Google => {
                let builder = GoogleCloudStorageBuilder::from_env().with_bucket_name(name);
                Ok(signing(builder.with_retry(retries()).with_http_connector(Connector).build()?, prefix))
            }
            BucketKind::Azure => {
                let builder = MicrosoftAzureBuilder::from_env().with_container_name(name);
                Ok(signing(builder.with_retry(retries()).with_http_connector(Connector).build()?, prefix))
            }
        }
    }
}

/// A store that also signs links.
fn signing<S: ObjectStore + Signer>(store: S, prefix: &str) -> Objects {
    let store = Arc::new(store);
    let signer: Arc<dyn Signer> = Arc::<S>::clone(&store);
    Objects::over(store, Some(signer), prefix)
}

/// The settings for a bucket of S3, in place of what `environment` says of the same.
fn s3(environment: AmazonS3Builder, settings: &ObjectsSettings, name: &str) -> AmazonS3Builder {
    let mut builder = environment
        .with_bucket_name(name)
        // Deleting several files by one request is not in every store that speaks S3.
        .with_disable_bulk_delete(true)
        .with_allow_http(settings.allow_http)
        .with_retry(retries())
        .with_http_connector(Connector);
    if let Some(endpoint) = &settings.endpoint {
        // Before the environment's, also before its more special one.
        builder = builder.with_config(AmazonS3ConfigKey::S3Endpoint, endpoint);
    }
    match &settings.region {
        Some(region) => builder.with_region(region),
        None => builder,
    }
}

fn retries() -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig { init_backoff: RETRY_DELAY, max_backoff: RETRY_DELAY_MAX, base: 2.0 },
        max_retries: RETRIES_MAX,
        retry_timeout: RETRIES_DEADLINE,
    }
}

#[cfg(test)]
mod tests {
    use object_store::ClientConfigKey;

    use super::*;

    fn settings(allow_http: bool) -> ObjectsSettings {
        ObjectsSettings {
            location: "s3://pictures/some".parse().expect("a bucket"),
            // Nothing listens there.
            endpoint: Some("http://127.0.0.1:9".into()),
            region: Some("test-1".into()),
            allow_http,
        }
    }

    #[test]
    fn only_the_setting_allows_a_store_without_tls() {
        let allows = |allow_http| {
            let key = AmazonS3ConfigKey::Client(ClientConfigKey::AllowHttp);
            let environment = AmazonS3Builder::new().with_allow_http(true);
            s3(environment, &settings(allow_http), "pictures").get_config_value(&key)
        };
        assert_eq!((allows(true).as_deref(), allows(false).as_deref()), (Some("true"), Some("false")));
    }

    #[tokio::test]
    async fn an_unreachable_store_is_an_error_without_secrets() {
        let builder = s3(AmazonS3Builder::from_env(), &settings(true), "pictures")
            .with_access_key_id("an-id")
            .with_secret_access_key("a-secret");
        let objects = signing(builder.build().expect("a store"), "some");
        let error = objects.put("a.png", b"bytes", "image/png").await.expect_err("unreachable").to_string();
        assert!(error.contains("127.0.0.1:9") && !error.contains("a-secret") && !error.contains("an-id"), "{error}");
        let url = objects.signed_url("a.png", Duration::from_secs(30)).await.expect("signed without a request");
        assert!(url.starts_with("http://127.0.0.1:9/pictures/some/a.png?"), "{url}");
        assert!(url.contains("X-Amz-Expires=30") && url.contains("X-Amz-Signature="), "{url}");
    }
}
