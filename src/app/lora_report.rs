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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::domain::image::RgbImage;
    use crate::domain::model::ModelFiles;

    fn reference(path: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference").join(path)
    }

    fn model() -> Adaptable {
        Adaptable::of(&ModelFiles::Directory(reference("FLUX.1-dev"))).expect("complete")
    }

    /// A recorded adapter whose file says something else of itself.
    fn saying(metadata: &serde_json::Value) -> tempfile::NamedTempFile {
        let bytes = std::fs::read(reference("lora/adapters/c1_ai_toolkit.safetensors")).expect("recorded");
        let (length, rest) = bytes.split_first_chunk().expect("a length");
        let (header, data) = rest.split_at(usize::try_from(u64::from_le_bytes(*length)).expect("small"));
        let mut header: serde_json::Value = serde_json::from_slice(header).expect("JSON");
        header["__metadata__"] = metadata.clone();
        let header = header.to_string();
        let file = tempfile::NamedTempFile::new().expect("a file");
        let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat();
        std::fs::write(file.path(), bytes).expect("written");
        file
    }

    fn png(side: u32) -> String {
        let image = RgbImage::new(side, side, vec![200; (side * side * 3) as usize]).expect("pixels");
        let png = encode::encode(&image, OutputFormat::Png).expect("encoded");
        format!("data:image/png;base64,{}", STANDARD.encode(png))
    }

    #[test]
    fn a_report_has_what_the_file_says_made_fit_to_be_shown() {
        let long = "x".repeat(1000);
        let file = saying(&json!({
            "modelspec.title": "A\u{7} pen", "modelspec.trigger_phrase": "pen, ink,, fox ", "modelspec.license": long,
            "modelspec.thumbnail": png(64),
        }));
        let Inspected { report, thumbnail } = inspect(file.path(), &[model()]).expect("an adapter");
        assert_eq!((report.base.as_str(), report.title.as_deref()), ("FLUX.1", Some("A pen")));
        assert_eq!(report.trigger_words, ["pen", "ink", "fox"]);
        assert_eq!(report.license.map(|license| license.len()), Some(TEXT_CHARS_MAX));
        assert!(report.components.iter().any(|component| component.name == "transformer" && component.layers > 0));
        assert!(report.tensors > 0 && !report.needs_control_image && !report.kinds.is_empty());
        let thumbnail = decode::decode(&thumbnail.expect("one")).expect("an image");
        assert_eq!((thumbnail.width(), thumbnail.height()), (64, 64));
    }

    #[test]
    fn a_thumbnail_that_is_no_small_image_is_left_out() {
        let svg = format!("data:image/svg+xml;base64,{}", STANDARD.encode("<svg onload='alert(1)'/>"));
        let html = format!("data:text/html;base64,{}", STANDARD.encode("<script>"));
        for thumbnail in [svg, html, png(1040), "https://elsewhere.test/a.png".into(), "data:image/png;base64,!".into()]
        {
            let file = saying(&json!({ "modelspec.thumbnail": thumbnail }));
            assert_eq!(inspect(file.path(), &[model()]).expect("an adapter").thumbnail, None, "{thumbnail:.40}");
        }
    }

    #[test]
    fn a_file_has_to_fit_one_of_the_models() {
        let file = reference("lora/adapters/c1_ai_toolkit.safetensors");
        assert!(inspect(&file, &[Adaptable::flux_dev(), model()]).is_ok());
        let refused = inspect(&file, &[model(), Adaptable::flux_dev()]).map(drop);
        assert!(refused.is_ok(), "the first that it fits");
        let refused = inspect(&file, &[]).expect_err("of other dimensions").to_string();
        assert!(refused.contains("has shape"), "{refused}");
    }
}
