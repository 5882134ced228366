//! A LoRA in requests and responses.

use serde::Serialize;
use time::OffsetDateTime;
use time::serde::rfc3339;
use utoipa::ToSchema;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::Schema;

use crate::http::extract::upload::{FILE, NAME};
use crate::http::openapi::schema::{ObjectSchema, text};
use crate::loras::{ChangedComponent, Lora, LoraReport, NAME_CHARS_MAX};

/// The schema of the form of an upload.
pub(in crate::http) fn upload_schema() -> RefOr<Schema> {
    let file = text().content_media_type("application/octet-stream").description(Some("The file, safetensors."));
    let name = text().max_length(Some(NAME_CHARS_MAX)).description(Some("Its name. By default that of its file."));
    ObjectSchema::new("A LoRA to add.").required(FILE, file).optional(NAME, name).into()
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
