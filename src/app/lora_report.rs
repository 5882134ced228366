//! From a LoRA's file to what its catalog stores of it: the engine's report, and what the file says of itself, made fit to be
//! shown.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::decode;
use crate::domain::format::OutputFormat;
use crate::encode;
use crate::engine::{Adaptable, AdaptedComponent, Adapter, AdapterError, AdapterReport};
use crate::loras::{ChangedComponent, Inspected, LoraReport};

/// The only family of models that is served.
const BASE: &str = "FLUX.1";

/// Longest text that is stored of what a file says of itself, in characters.
const TEXT_CHARS_MAX: usize = 200;
/// Maximum trigger words.
const TRIGGER_WORDS_MAX: usize = 20;
/// Longest thumbnail in a file, as text. They are 256×256 by the standard that defines them.
const THUMBNAIL_CHARS_MAX: usize = 4 * 1024 * 1024;
/// Largest side of a thumbnail, in pixels.
const THUMBNAIL_SIDE_MAX: u32 = 1024;

/// Inspects a file: compares it with the first of the models that it fits, and reads all of its numbers.
///
/// # Errors
/// When it fits none; in the words for the last one.
pub(super) fn inspect(path: &Path, models: &[Adaptable]) -> Result<Inspected, AdapterError> {
    let mut refusal = None;
    for model in models {
        match Adapter::open(path, model).and_then(|adapter| adapter.check().map(|()| adapter)) {
            Ok(adapter) => return Ok(Inspected { report: report_of(&adapter), thumbnail: thumbnail(&adapter) }),
            Err(error) => refusal = Some(error),
        }
    }
    match refusal {
        Some(error) => Err(error),
        None => inspect(path, &[Adaptable::flux_dev()]),
    }
}

fn report_of(adapter: &Adapter) -> LoraReport {
    let AdapterReport { components, kinds, ranks, dtypes, dialects, inputs_added, tensors, unused, .. } =
        adapter.report();
    let component = |AdaptedComponent { name, matrices, of, norms }: &AdaptedComponent| ChangedComponent {
        name: (*name).to_owned(),
        layers: *matrices,
        of: *of,
        norms: *norms,
    };
    let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    let trigger = adapter.says("modelspec.trigger_phrase").unwrap_or_default();
    let words = trigger.split(',').filter_map(fit);
    LoraReport {
        base: BASE.to_owned(),
        components: components.iter().map(component).collect(),
        kinds: kinds.iter().map(|(kind, count)| ((*kind).to_owned(), *count)).collect(),
        ranks: *ranks,
        dtypes: dtypes.clone(),
        dialects: owned(dialects),
        tensors: *tensors,
        unused: unused.iter().map(ToString::to_string).collect(),
        needs_control_image: *inputs_added > 0,
        title: adapter.says("modelspec.title").and_then(fit),
        trigger_words: words.take(TRIGGER_WORDS_MAX).collect(),
        license: adapter.says("modelspec.license").and_then(fit),
    }
}

/// A text of bounded length without control characters, if anything is left of it.
fn fit(text: &str) -> Option<String> {
    let text: String = text.trim().chars().filter(|letter| !letter.is_control()).take(TEXT_CHARS_MAX).collect();
    (!text.is_empty()).then_some(text)
}

/// The thumbnail in a file as a JPEG: decoded and encoded again, so that nothing of the file's bytes is passed on. `None` when
/// there is none, or it is no image.
fn thumbnail(adapter: &Adapter) -> Option<Vec<u8>> {
    let address = adapter.says("modelspec.thumbnail").filter(|text| text.len() <= THUMBNAIL_CHARS_MAX)?;
    let base64 = address.strip_prefix("data:image/")?.split_once(";base64,")?.1;
    let image = decode::decode(&STANDARD.decode(base64.trim()).ok()?).ok()?;
    if image.width().max(image.height()) > THUMBNAIL_SIDE_MAX {
        return None;
    }
    encode::encode(&image, OutputFormat::Jpeg).ok()
}
