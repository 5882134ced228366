//! The subset of AUTOMATIC1111's API that its clients need, such as SillyTavern and Open WebUI. The routes exist only where the
//! operator wants them. Jobs, keys, limits and models are as on the other routes; errors have the format that these clients read
//! ([`crate::http::dialect`]). `docs/sdapi.md` says of each field what becomes of it.

mod answer;
pub(in crate::http) mod generate;
pub(in crate::http) mod lists;
pub(in crate::http) mod options;
mod others;
pub(in crate::http) mod progress;
pub(in crate::http) mod request;
pub(in crate::http) mod session;
