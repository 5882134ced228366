//! The subset of OpenAI's API that its clients need: they work with this worker once they have its base URL and a key.
//! Errors have OpenAI's format ([`crate::http::dialect`]); everything else is as on the other routes.

pub(in crate::http) mod edit_request;
pub(in crate::http) mod edits;
pub(in crate::http) mod images;
pub(in crate::http) mod models;
pub(in crate::http) mod request;
pub(in crate::http) mod variations;
