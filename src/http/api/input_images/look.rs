//! A look at an image before it is known what the image is for.

use super::ImageDecoder;
use crate::domain::ids::KeyId;
use crate::http::error::{ApiError, ErrorCode};

impl ImageDecoder {
    /// Does `work` on an image of `owner`'s off the async threads, in turns with the decodings: it takes as much memory as one.
    /// What has to outlive a client that hangs up belongs to `work`.
    ///
    /// # Errors
    /// If too many requests are waiting, or on an internal error.
    pub(in crate::http) async fn look<T: Send + 'static>(
        &self,
        owner: KeyId,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let Some(permit) = self.permits.acquire(owner).await else {
            return Err(ApiError::too_many_bodies("too many images are waiting to be decoded"));
        };
        let seen = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            work()
        });
        seen.await.map_err(|error| ApiError::new(ErrorCode::Internal).with_cause(&error))
    }
}
