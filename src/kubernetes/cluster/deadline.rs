//! The deadline of calls to the API server.

use std::time::Duration;

use super::error::ClusterError;

/// Longest time of a call, with retries.
const CALL_DEADLINE: Duration = Duration::from_secs(5);

/// Waits for `call` until the deadline.
pub(super) async fn in_time<T>(call: impl Future<Output = Result<T, kube::Error>>) -> Result<T, ClusterError> {
    match tokio::time::timeout(CALL_DEADLINE, call).await {
        Ok(outcome) => Ok(outcome?),
        Err(_) => Err(ClusterError::Unreachable(format!("no answer within {} s", CALL_DEADLINE.as_secs()))),
    }
}
