//! API keys: their format, hashing, storage, and the check of a caller. Knows nothing of inference, Kubernetes or HTTP.
