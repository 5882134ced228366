//! A route's part of the document, beside its path, method and access.

use std::collections::BTreeMap;

use axum::http::StatusCode;
use serde_json::Value;
use utoipa::ToSchema;
use utoipa::openapi::path::{Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::request_body::{RequestBody, RequestBodyBuilder};
use utoipa::openapi::schema::Schema;
use utoipa::openapi::{ArrayBuilder, ContentBuilder, HeaderBuilder, Ref, RefOr, Required, Response, ResponseBuilder};

use super::schema::{integer, text};
use crate::domain::format::OutputFormat;
use crate::http::dialect::Dialect;
use crate::http::error::ErrorCode;

const JSON: &str = "application/json";
const BYTES: &str = "application/octet-stream";
const FORM: &str = "multipart/form-data";

/// A group of routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::http) enum Tag {
    Images,
    OpenAi,
    Sdapi,
    Jobs,
    Models,
    Session,
    ApiKeys,
    Usage,
    Loras,
    Webhooks,
    Kubernetes,
    Audit,
    Console,
    Health,
}

impl Tag {
    pub(super) const ALL: [Self; 14] = [
        Self::Images,
        Self::OpenAi,
        Self::Sdapi,
        Self::Jobs,
        Self::Models,
        Self::Session,
        Self::ApiKeys,
        Self::Usage,
        Self::Loras,
        Self::Webhooks,
        Self::Kubernetes,
        Self::Audit,
        Self::Console,
        Self::Health,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Images => "Images",
            Self::OpenAi => "OpenAI",
            Self::Sdapi => "AUTOMATIC1111",
            Self::Jobs => "Jobs",
            Self::Models => "Models",
            Self::Session => "Session",
            Self::ApiKeys => "API keys",
            Self::Usage => "Usage",
            Self::Loras => "LoRAs",
            Self::Webhooks => "Webhooks",
            Self::Kubernetes => "Kubernetes",
            Self::Audit => "Audit",
            Self::Console => "Console",
            Self::Health => "Health",
        }
    }

    pub(super) fn description(self) -> &'static str {
        match self {
            Self::Images => "Images from prompts.",
            Self::OpenAi => "The subset of OpenAI's API that its clients need for images.",
            Self::Sdapi => "What AUTOMATIC1111's clients need for images. Only where the operator wants these routes.",
            Self::Jobs => "State and results of image requests. A key sees only its own jobs.",
            Self::Models => "The models, their limits, and whether they are ready.",
            Self::Session => "The administrator's sign-in.",
            Self::ApiKeys => "Create, edit, rotate and revoke keys.",
            Self::Usage => "Who has used what and what it costs, and projects: keys with limits that they share.",
            Self::Loras => "Adapters that requests can use: add, list and remove them.",
            Self::Webhooks => "Signed messages to receivers of yours, when something happens to a job or a budget.",
            Self::Kubernetes => "Cluster namespaces that keys give kubectl access to, and tokens for them.",
            Self::Audit => "Who did what, when and from where.",
            Self::Console => "The console's pages and their data, including the jobs of all keys.",
            Self::Health => "For supervisors, load balancers and monitoring, and this document.",
        }
    }
}

type Schemas = Vec<(String, RefOr<Schema>)>;

/// A route's part of the document. [`super::document`] adds what follows from path, method and access.
pub(in crate::http) struct Operation {
    pub(super) id: &'static str,
    pub(super) tag: Tag,
    pub(super) summary: &'static str,
    pub(super) description: Option<&'static str>,
    pub(super) parameters: Vec<Parameter>,
    pub(super) body: Option<RequestBody>,
    pub(super) answers: BTreeMap<u16, ResponseBuilder>,
    pub(super) refusals: Vec<ErrorCode>,
    pub(super) schemas: Schemas,
}

impl Operation {
    pub(in crate::http) fn new(tag: Tag, id: &'static str, summary: &'static str) -> Self {
        Self {
            id,
            tag,
            summary,
            description: None,
            parameters: Vec::new(),
            body: None,
            answers: BTreeMap::new(),
            refusals: Vec::new(),
            schemas: Vec::new(),
        }
    }

    /// Adds more than the summary says.
    pub(in crate::http) fn description(mut self, description: &'static str) -> Self {
        self.description = Some(description);
        self
    }

    /// Adds an optional query parameter. Unknown ones are refused.
    pub(in crate::http) fn query(mut self, name: &str, schema: impl Into<RefOr<Schema>>, description: &str) -> Self {
        self.parameters.push(parameter(ParameterIn::Query, name, schema, description));
        self.refuses([ErrorCode::InvalidRequest])
    }

    /// Adds `cursor` and `limit`, as every list has them.
    pub(in crate::http) fn pages(self, limit_max: u32) -> Self {
        self.query("cursor", text(), "The `next_cursor` of an earlier page.").query(
            "limit",
            integer(1).maximum(Some(limit_max)),
            "The maximum number of entries in the page.",
        )
    }

    /// Adds an optional request header.
    pub(in crate::http) fn header(mut self, name: &str, description: &str) -> Self {
        self.parameters.push(parameter(ParameterIn::Header, name, text(), description));
        self
    }

    /// Adds a required JSON body.
    pub(in crate::http) fn body<T: ToSchema>(self, example: Value) -> Self {
        self.with_body::<T>(example, Required::True)
    }

    /// Adds an optional JSON body.
    pub(in crate::http) fn optional_body<T: ToSchema>(self, example: Value) -> Self {
        self.with_body::<T>(example, Required::False)
    }

    /// Adds a required body that is a file, with the fields of `form` or by itself.
    pub(in crate::http) fn file_body(self, form: impl Into<RefOr<Schema>>) -> Self {
        self.file_body_of(form, &[BYTES])
    }

    /// Adds a required body that is an image's file, in a form or by itself.
    pub(in crate::http) fn image_body(self, form: impl Into<RefOr<Schema>>) -> Self {
        self.file_body_of(form, &OutputFormat::ALL.map(OutputFormat::content_type))
    }

    fn file_body_of(mut self, form: impl Into<RefOr<Schema>>, media_types: &[&str]) -> Self {
        let form = ContentBuilder::new().schema(Some(form)).build();
        let body = RequestBodyBuilder::new().required(Some(Required::True)).content(FORM, form);
        let with_file = |body: RequestBodyBuilder, media_type: &&str| {
            let file = ContentBuilder::new().schema(Some(text().content_media_type(*media_type))).build();
            body.content(*media_type, file)
        };
        self.body = Some(media_types.iter().fold(body, with_file).build());
        self.refuses([
            ErrorCode::InvalidRequest,
            ErrorCode::BodyTimeout,
            ErrorCode::BodyTooLarge,
            ErrorCode::TooManyBodies,
            ErrorCode::UnsupportedMediaType,
        ])
    }

    /// Adds a required body that is a form.
    pub(in crate::http) fn form_body<T: ToSchema>(mut self) -> Self {
        let content = ContentBuilder::new().schema(Some(self.reference::<T>())).build();
        self.body = Some(RequestBodyBuilder::new().required(Some(Required::True)).content(FORM, content).build());
        self.refuses([
            ErrorCode::InvalidRequest,
            ErrorCode::BodyTimeout,
            ErrorCode::BodyTooLarge,
            ErrorCode::UnsupportedMediaType,
        ])
    }

    /// Adds JSON as another form of the body.
    pub(in crate::http) fn or_body<T: ToSchema>(mut self, example: Value) -> Self {
        let content = ContentBuilder::new().schema(Some(self.reference::<T>())).example(Some(example)).build();
        if let Some(body) = &mut self.body {
            body.content.insert(JSON.to_owned(), content.into());
        }
        self.refuses([ErrorCode::MalformedJson])
    }

    fn with_body<T: ToSchema>(mut self, example: Value, required: Required) -> Self {
        let content = ContentBuilder::new().schema(Some(self.reference::<T>())).example(Some(example)).build();
        self.body = Some(RequestBodyBuilder::new().required(Some(required)).content(JSON, content).build());
        self.refuses([
            ErrorCode::InvalidRequest,
            ErrorCode::MalformedJson,
            ErrorCode::BodyTimeout,
            ErrorCode::BodyTooLarge,
            ErrorCode::UnsupportedMediaType,
        ])
    }

    /// Answers with JSON.
    pub(in crate::http) fn answers<T: ToSchema>(mut self, status: StatusCode, description: &str) -> Self {
        let content = ContentBuilder::new().schema(Some(self.reference::<T>())).build();
        self.answer(status, description, |response| response.content(JSON, content))
    }

    /// Answers with a list in JSON.
    pub(in crate::http) fn answers_list<T: ToSchema>(mut self, status: StatusCode, description: &str) -> Self {
        let list = ArrayBuilder::new().items(self.reference::<T>());
        let content = ContentBuilder::new().schema(Some(list)).build();
        self.answer(status, description, |response| response.content(JSON, content))
    }

    /// Answers with an image in one of our formats.
    pub(in crate::http) fn answers_image(self, status: StatusCode, description: &str) -> Self {
        self.answer(status, description, |response| {
            let content = || ContentBuilder::new().build();
            OutputFormat::ALL
                .iter()
                .fold(response, |response, format| response.content(format.content_type(), content()))
                .header("x-job-id", HeaderBuilder::new().schema(Some(text())).build())
        })
    }

    /// Answers with bytes of a media type that says what they are, or with JSON without a schema.
    pub(in crate::http) fn answers_bytes(self, status: StatusCode, media_type: &str, description: &str) -> Self {
        self.answer(status, description, |response| response.content(media_type, ContentBuilder::new().build()))
    }

    /// Answers with something other than JSON.
    pub(in crate::http) fn answers_text(self, status: StatusCode, media_type: &str, description: &str) -> Self {
        let content = ContentBuilder::new().schema(Some(text())).build();
        self.answer(status, description, |response| response.content(media_type, content))
    }

    /// Answers with Server-Sent Events. OpenAPI before 3.2 cannot describe a stream; by convention the schema describes
    /// one event.
    pub(in crate::http) fn answers_events(self, event: impl Into<RefOr<Schema>>, description: &str) -> Self {
        let content = ContentBuilder::new().schema(Some(event)).build();
        self.answer(StatusCode::OK, description, |response| response.content("text/event-stream", content))
    }

    /// Adds a schema that a description mentions.
    pub(in crate::http) fn mentions<T: ToSchema>(mut self) -> Self {
        self.reference::<T>();
        self
    }

    /// Answers without a body.
    pub(in crate::http) fn answers_nothing(self, status: StatusCode, description: &str) -> Self {
        self.answer(status, description, |response| response)
    }

    fn answer(
        mut self,
        status: StatusCode,
        description: &str,
        add: impl FnOnce(ResponseBuilder) -> ResponseBuilder,
    ) -> Self {
        let fresh = || ResponseBuilder::new().description(description);
        let response = self.answers.remove(&status.as_u16()).unwrap_or_else(fresh);
        self.answers.insert(status.as_u16(), add(response));
        self
    }

    /// Adds errors of its own, beside those that follow from its access, path and body.
    pub(in crate::http) fn refuses(mut self, codes: impl IntoIterator<Item = ErrorCode>) -> Self {
        self.refusals.extend(codes);
        self
    }

    /// A reference to the schema of `T`; adds that schema and all that it refers to.
    fn reference<T: ToSchema>(&mut self) -> RefOr<Schema> {
        let name = T::name().into_owned();
        T::schemas(&mut self.schemas);
        self.schemas.push((name.clone(), T::schema()));
        Ref::from_schema_name(name).into()
    }
}

pub(super) fn parameter(
    place: ParameterIn,
    name: &str,
    schema: impl Into<RefOr<Schema>>,
    description: &str,
) -> Parameter {
    let required = if place == ParameterIn::Path { Required::True } else { Required::False };
    ParameterBuilder::new()
        .name(name)
        .parameter_in(place)
        .required(required)
        .description(Some(description))
        .schema(Some(schema))
        .build()
}

/// The response for any of `codes`, which all have the same status.
pub(super) fn refusal(codes: &[ErrorCode], dialect: Dialect) -> Response {
    let status = codes.first().map(|code| code.status());
    let lines: Vec<String> = codes.iter().map(|code| format!("- `{}`: {}", code.as_str(), code.title())).collect();
    let words = codes.iter().map(|code| code.as_str());
    let (name, _) = dialect.schema();
    let error = utoipa::openapi::AllOfBuilder::new().item(Ref::from_schema_name(name)).item(dialect.code_schema(words));
    let content = ContentBuilder::new().schema(Some(error)).build();
    let response = ResponseBuilder::new().description(lines.join("\n")).content(dialect.media_type(), content);
    let header = |schema: RefOr<Schema>, description: &str| {
        HeaderBuilder::new().schema(Some(schema)).description(Some(description)).build()
    };
    match status {
        Some(StatusCode::UNAUTHORIZED) => {
            response.header("WWW-Authenticate", header(text().into(), "The accepted authentication scheme."))
        }
        Some(StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) => {
            response.header("Retry-After", header(integer(0).into(), "Seconds to wait before a retry, if one helps."))
        }
        _ => response,
    }
    .build()
}
