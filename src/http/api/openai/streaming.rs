//! The fields by which a request asks to be streamed, on the routes that can.

use serde_json::Value;
use utoipa::openapi::schema::{ObjectBuilder, Type};

use crate::domain::engine::DRAFTS_MAX;
use crate::http::extract::json::Fields;
use crate::http::openapi::schema::{ObjectSchema, integer};

const STREAM: &str = "stream";
const PARTIAL_IMAGES: &str = "partial_images";

const ABOUT_STREAM: &str = "Whether the answer is a stream of events, in which the image can be seen to form. Then `n` must be 1, \
                            and `response_format` `b64_json`. Defaults to false.";
const ABOUT_PARTIAL_IMAGES: &str = "How many times the image is sent before it is complete, at evenly spaced steps. There are \
                                    fewer where it has fewer steps or is complete first. Only with `stream`. Defaults to 0.";

/// What a stream is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Generation,
    Edit,
}

impl Kind {
    /// The event with an image that is not complete.
    pub(super) fn partial_image(self) -> &'static str {
        match self {
            Self::Generation => "image_generation.partial_image",
            Self::Edit => "image_edit.partial_image",
        }
    }

    /// The event with the result, which is the last one.
    pub(super) fn completed(self) -> &'static str {
        match self {
            Self::Generation => "image_generation.completed",
            Self::Edit => "image_edit.completed",
        }
    }
}

/// A stream that is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Streaming {
    pub(super) kind: Kind,
    pub(super) partial_images: u32,
}

impl Streaming {
    /// Reads its fields. `None`: the client waits for the whole answer.
    pub(super) fn read(fields: &mut Fields, kind: Kind) -> Option<Self> {
        let partial_images = fields.small_number(PARTIAL_IMAGES).unwrap_or(0);
        let is_streamed = match fields.given(STREAM) {
            None | Some(Value::Null) => false,
            Some(Value::Bool(is_streamed)) => is_streamed,
            Some(_) => {
                fields.refuse(STREAM, "must be true or false");
                return None;
            }
        };
        if partial_images > DRAFTS_MAX {
            fields.refuse(PARTIAL_IMAGES, format!("must be from 0 to {DRAFTS_MAX}"));
        } else if partial_images > 0 && !is_streamed {
            fields.refuse(PARTIAL_IMAGES, "needs `stream`: true");
        }
        is_streamed.then_some(Self { kind, partial_images })
    }

    /// Adds its fields to a schema.
    pub(super) fn schema(object: ObjectSchema) -> ObjectSchema {
        let stream = ObjectBuilder::new().schema_type(Type::Boolean).description(Some(ABOUT_STREAM));
        let partial_images = integer(0).maximum(Some(DRAFTS_MAX)).description(Some(ABOUT_PARTIAL_IMAGES));
        object.optional(STREAM, stream).optional(PARTIAL_IMAGES, partial_images)
    }
}
