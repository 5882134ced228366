//! A LoRA in requests and responses.

use serde::Serialize;
use time::OffsetDateTime;
use time::serde::rfc3339;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::Schema;
use utoipa::{PartialSchema, ToSchema};

use crate::http::extract::json::{Fields, FromFields};
use crate::http::extract::upload::{FILE, NAME};
use crate::http::openapi::schema::{ObjectSchema, text};
use crate::loras::{ChangedComponent, HubFile, Lora, LoraReport, NAME_CHARS_MAX};

/// The schema of the form of an upload.
pub(in crate::http) fn upload_schema() -> RefOr<Schema> {
    let file = text().content_media_type("application/octet-stream").description(Some("The file, safetensors."));
    let name = text().max_length(Some(NAME_CHARS_MAX)).description(Some("Its name. By default that of its file."));
    ObjectSchema::new("A LoRA to add.").required(FILE, file).optional(NAME, name).into()
}

/// A LoRA of the hub to add.
pub(in crate::http) struct FetchLora {
    pub(in crate::http) file: HubFile,
    pub(in crate::http) name: Option<String>,
}

impl FromFields for FetchLora {
    fn from_fields(fields: &mut Fields) -> Option<Self> {
        let (repository, revision) = (fields.required_text("repository"), fields.text("revision"));
        let (file, name) = (fields.text(FILE), fields.text(NAME));
        Some(Self { file: HubFile { repository: repository?, revision, file }, name })
    }
}

impl ToSchema for FetchLora {}

impl PartialSchema for FetchLora {
    fn schema() -> RefOr<Schema> {
        let file = "The file, by its name or a part of it. By default the only weight file.";
        let revision = "A branch, a tag or a commit. By default the default branch.";
        ObjectSchema::new("A LoRA of the hub to add.")
            .required("repository", text().description(Some("The repository: `owner/name`.")))
            .optional("revision", text().description(Some(revision)))
            .optional(FILE, text().description(Some(file)))
            .optional(NAME, text().max_length(Some(NAME_CHARS_MAX)).description(Some("Its name.")))
            .into()
    }
}

/// A LoRA.
#[derive(Serialize, ToSchema)]
#[schema(as = Lora)]
pub(in crate::http) struct LoraView {
    /// The SHA-256 of its file.
    id: String,
    name: String,
    /// The size of its file.
    bytes: u64,
    /// The family of models that it is for.
    base: String,
    /// What it changes, by component of the model.
    components: Vec<ComponentView>,
    /// Kinds of changes and their numbers.
    kinds: Vec<KindView>,
    rank_min: Option<usize>,
    rank_max: Option<usize>,
    /// The types of its numbers.
    dtypes: Vec<String>,
    /// The spellings of its names.
    dialects: Vec<String>,
    /// Tensors in its file.
    tensors: usize,
    /// Tensors that are not used, and why.
    unused: Vec<String>,
    /// Whether it needs a control image.
    needs_control_image: bool,
    /// The title that the file gives itself. Like the next two not verified.
    title: Option<String>,
    /// The words that trigger it.
    trigger_words: Vec<String>,
    license: Option<String>,
    has_thumbnail: bool,
    #[serde(with = "rfc3339")]
    created_at: OffsetDateTime,
    /// Who added it: `administrator` or `command_line`.
    added_by: String,
}

/// What a LoRA changes of a component.
#[derive(Serialize, ToSchema)]
#[schema(as = LoraComponent)]
struct ComponentView {
    /// `transformer`, `text_encoder` (CLIP) or `text_encoder_2` (T5).
    name: String,
    /// Linear layers of which something is changed.
    layers: usize,
    /// Linear layers that the component has.
    of: usize,
    /// Norms that are changed.
    norms: usize,
}

/// A kind of changes, and their number.
#[derive(Serialize, ToSchema)]
#[schema(as = LoraKind)]
struct KindView {
    kind: String,
    count: usize,
}

impl From<Lora> for LoraView {
    fn from(lora: Lora) -> Self {
        let Lora { id, name, bytes, report, has_thumbnail, added_by, created_at } = lora;
        let LoraReport { base, components, kinds, ranks, dtypes, dialects, tensors, unused, .. } = report;
        let component = |ChangedComponent { name, layers, of, norms }| ComponentView { name, layers, of, norms };
        Self {
            id: id.to_string(),
            name,
            bytes,
            base,
            components: components.into_iter().map(component).collect(),
            kinds: kinds.into_iter().map(|(kind, count)| KindView { kind, count }).collect(),
            rank_min: ranks.map(|(least, _)| least),
            rank_max: ranks.map(|(_, greatest)| greatest),
            dtypes,
            dialects,
            tensors,
            unused,
            needs_control_image: report.needs_control_image,
            title: report.title,
            trigger_words: report.trigger_words,
            license: report.license,
            has_thumbnail,
            created_at,
            added_by,
        }
    }
}

/// All LoRAs.
#[derive(Serialize, ToSchema)]
#[schema(as = LoraList)]
pub(in crate::http) struct LoraListView {
    pub(in crate::http) data: Vec<LoraView>,
}
