//! Query parameters, parsed one by one like the fields of a body.

use std::collections::BTreeMap;
use std::str::FromStr;

use axum::extract::{FromRequestParts, Query};
use axum::http::request::Parts;

use crate::domain::spec::FieldError;
use crate::http::error::ApiError;
use crate::http::state::HttpState;

/// Entries in one page by default.
const PAGE_DEFAULT: u32 = 20;

/// The parameters that have not been taken yet.
pub(in crate::http) struct Parameters {
    values: BTreeMap<String, String>,
    errors: Vec<FieldError>,
}

impl FromRequestParts<HttpState> for Parameters {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &HttpState) -> Result<Self, ApiError> {
        let pairs = Query::<Vec<(String, String)>>::from_request_parts(parts, state)
            .await
            .map_err(|_| ApiError::invalid(vec![FieldError::new("query", "cannot be read")]))?;
        let mut parameters = Self { values: BTreeMap::new(), errors: Vec::new() };
        for (name, value) in pairs.0 {
            if parameters.values.insert(name.clone(), value).is_some() {
                parameters.errors.push(FieldError::new(name, "is given twice"));
            }
        }
        Ok(parameters)
    }
}

impl Parameters {
    /// Whether a parameter is present.
    pub(in crate::http) fn has(&self, name: &str) -> bool {
        self.values.contains_key(name)
    }

    /// A parameter as `T`.
    pub(in crate::http) fn take<T: FromStr>(&mut self, name: &str, must_be: &str) -> Option<T> {
        let value = self.values.remove(name)?;
        let read = value.parse().ok();
        if read.is_none() {
            self.errors.push(FieldError::new(name, format!("must be {must_be}")));
        }
        read
    }

    /// The size of a page: `limit`, from 1 to `limit_max`.
    pub(in crate::http) fn take_limit(&mut self, limit_max: u32) -> u32 {
        let must_be = format!("a whole number from 1 to {limit_max}");
        let limit = self.take("limit", &must_be).unwrap_or(PAGE_DEFAULT.min(limit_max));
        if !(1..=limit_max).contains(&limit) {
            self.errors.push(FieldError::new("limit", format!("must be {must_be}")));
        }
        limit
    }

    /// Ignores all parameters but these, with their errors.
    pub(in crate::http) fn retain(&mut self, names: &[&str]) {
        self.values.retain(|name, _| names.contains(&name.as_str()));
        self.errors.retain(|error| names.contains(&error.field.as_str()));
    }

    /// Refuses the request if anything was invalid, or is left over.
    pub(in crate::http) fn finish(self) -> Result<(), ApiError> {
        let mut errors = self.errors;
        errors.extend(self.values.into_keys().map(|name| FieldError::new(name, "is not a known parameter")));
        if errors.is_empty() { Ok(()) } else { Err(ApiError::invalid(errors)) }
    }
}
