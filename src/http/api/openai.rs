//! What clients of OpenAI's API use, in its words: they work with this worker once they are told its address and a key.
//! Errors here have OpenAI's shape ([`crate::http::dialect`]); everything else is as on our own routes.

pub(in crate::http) mod images;
pub(in crate::http) mod models;
pub(in crate::http) mod request;
