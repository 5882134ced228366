//! Files in a bucket of an object store: put, read, removed, and opened to others by a link for a short time. Knows nothing of
//! what the files are.
//!
//! Credentials come from where the tools of each store look for them: their environment variables, or the machine's own
//! identity. They are in no configuration of ours, in no error and in no log line.

mod client;
mod error;
mod files;
mod open;

pub use error::ObjectsError;
pub use files::{Objects, REQUESTS_MAX};
pub use open::ObjectsSettings;
