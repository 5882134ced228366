use std::path::Path;

use proptest::collection::vec;
use proptest::prelude::*;

use super::super::tests::check_sound;
use super::*;
use crate::engine::checkpoint::source::Blob;
use crate::engine::models::flux1::text::tokens::{PIECES_MAX, PieceKind};

/// A file that is put together by hand.
struct Made {
    version: u32,
    alignment: usize,
    entries: Vec<Vec<u8>>,
    rows: Vec<Vec<u8>>,
    data: Vec<u8>,
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

impl Made {
    fn new() -> Self {
        Self { version: 3, alignment: 32, entries: Vec::new(), rows: Vec::new(), data: Vec::new() }
    }

    fn entry(mut self, key: &str, kind: u32, value: &[u8]) -> Self {
        self.entries.push([&text(key), &kind.to_le_bytes()[..], value].concat());
        self
    }

    fn aligned(self, alignment: u32) -> Self {
        let mut made = self.entry(ALIGNMENT_KEY, 4, &alignment.to_le_bytes());
        made.alignment = alignment as usize;
        made
    }

    /// `sizes` in the file's order: the fastest dimension first.
    fn tensor(mut self, name: &str, sizes: &[u64], kind: u32, bytes: usize) -> Self {
        self.data.resize(self.data.len().next_multiple_of(self.alignment), 0);
        let offset = self.data.len() as u64;
        self.data.resize(self.data.len() + bytes, 7);
        self.row(name, sizes, kind, offset)
    }

    fn row(mut self, name: &str, sizes: &[u64], kind: u32, offset: u64) -> Self {
        let sizes_bytes: Vec<u8> = sizes.iter().flat_map(|size| size.to_le_bytes()).collect();
        let count = (sizes.len() as u32).to_le_bytes();
        self.rows.push([&text(name), &count[..], &sizes_bytes, &kind.to_le_bytes(), &offset.to_le_bytes()].concat());
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let counts = [self.rows.len() as u64, self.entries.len() as u64].map(u64::to_le_bytes).concat();
        let mut bytes = [&MAGIC[..], &self.version.to_le_bytes(), &counts].concat();
        bytes.extend(self.entries.iter().chain(&self.rows).flatten());
        bytes.resize(bytes.len().next_multiple_of(self.alignment), 0);
        bytes.extend(&self.data);
        bytes
    }

    fn read(&self) -> Result<Header, String> {
        read(self.bytes())
    }
}

fn read(bytes: Vec<u8>) -> Result<Header, String> {
    read_header(&Blob::made("made.gguf", bytes))
}

fn error_of(made: &Made) -> String {
    made.read().expect_err("not a sound file")
}

fn sound() -> Made {
    Made::new()
        .entry("general.architecture", 8, &text("flux"))
        .entry("a.list", 9, &[&8_u32.to_le_bytes()[..], &2_u64.to_le_bytes(), &text("one"), &text("")].concat())
        .tensor("img_in.weight", &[64, 3], 8, 3 * 2 * 34)
        .tensor("img_in.bias", &[3], 0, 12)
}

#[test]
fn a_file_says_its_tensors_in_torchs_order_of_dimensions() {
    for version in [2, 3] {
        let header = Made { version, ..sound() }.read().expect("sound");
        assert_eq!(header.metadata["general.architecture"], "flux");
        let weight = &header.tensors["img_in.weight"];
        assert_eq!((&weight.dtype, &weight.shape[..]), (&FileDtype::Blocks(BlockType::Q8_0), &[3, 64][..]));
        let bias = &header.tensors["img_in.bias"];
        assert_eq!((&bias.dtype, &bias.shape[..]), (&FileDtype::Blocks(BlockType::F32), &[3][..]));
        assert_eq!((weight.range.len(), bias.range.len()), (204, 12));
        assert_eq!(bias.range.start - weight.range.start, 224);
    }
}

#[test]
fn what_a_file_says_of_itself_is_shown_without_its_tables() {
    let long = "x".repeat(100_000);
    let file = sound()
        .entry("general.file_type", 4, &14_u32.to_le_bytes())
        .entry("general.rate", 12, &1e300_f64.to_le_bytes())
        .entry("general.notes", 8, &text(&long))
        .entry("general.name", 8, &text("a\x1b[2Jfox"));
    let expected = [
        "general.architecture: flux",
        "general.file_type: 14",
        "general.name: a\u{FFFD}[2Jfox",
        "general.notes: (a text, 100000 bytes)",
        "general.rate: 1e300",
        "a.list: (a table of 2 values, 19 bytes)",
    ];
    assert_eq!(file.read().expect("sound").said, expected);
}

#[test]
fn tensors_begin_where_the_alignment_says() {
    for alignment in [1, 8, 64, 4096, 96] {
        let file = Made::new().aligned(alignment).tensor("a", &[1], 0, 4).tensor("b", &[1], 0, 4);
        let header = file.read().expect("sound");
        let [a, b] = ["a", "b"].map(|name| header.tensors[name].range.clone());
        assert!(a.start.is_multiple_of(alignment as usize) && b.start.is_multiple_of(alignment as usize));
        assert_eq!(b.end, file.bytes().len());
    }
    for alignment in [0, u32::MAX] {
        let file = Made { alignment: 32, ..Made::new().entry(ALIGNMENT_KEY, 4, &alignment.to_le_bytes()) };
        assert!(error_of(&file).contains("must be a number from 1"));
    }
}

#[test]
fn a_tensor_without_a_shape_has_one_number() {
    let header = Made::new().tensor("logit_scale", &[], 0, 4).read().expect("sound");
    assert_eq!(header.tensors["logit_scale"].shape, [0_usize; 0]);
    assert_eq!(header.tensors["logit_scale"].range.len(), 4);
}

#[test]
fn a_reshaped_tensor_has_its_own_shape() {
    let sizes = |sizes: &[i32]| {
        let bytes: Vec<u8> = sizes.iter().flat_map(|size| size.to_le_bytes()).collect();
        [&5_u32.to_le_bytes()[..], &(sizes.len() as u64).to_le_bytes(), &bytes].concat()
    };
    let file = |original: &[i32]| {
        let made = Made::new().entry(&format!("{SHAPE_KEY}img_in.weight"), 9, &sizes(original));
        made.tensor("img_in.weight", &[256, 3], 12, 3 * 144)
    };
    assert_eq!(file(&[12, 64]).read().expect("sound").tensors["img_in.weight"].shape, [12, 64]);
    for wrong in [&[12, 65][..], &[-12, -64], &[], &[1; 5]] {
        assert!(error_of(&file(wrong)).contains("is no shape of as many numbers as [3, 256]"), "{wrong:?}");
    }
}

#[test]
fn a_type_that_cannot_be_decoded_is_named() {
    let header = Made::new().row("a", &[256], 21, 0).row("b", &[256], 999, 0).read().expect("sound");
    assert_eq!(header.tensors["a"].dtype, FileDtype::Other("IQ3_S".to_owned()));
    assert_eq!(header.tensors["b"].dtype, FileDtype::Other("number 999".to_owned()));
}

#[test]
fn a_wrong_header_is_refused_with_its_reason() {
    let cases = [
        (Made { version: 1, ..sound() }, "version 1"),
        (Made { version: 4, ..sound() }, "version 4"),
        (Made { version: 3_u32.swap_bytes(), ..sound() }, "big-endian"),
        (sound().row("over", &[4], 0, 16), "no multiple of 32"),
        (sound().row("over", &[4], 0, 0), "overlap"),
        (sound().row("far", &[4], 0, 1 << 40), "the file has"),
        (sound().row("far", &[4], 0, u64::MAX - 31), "too large"),
        (sound().row("large", &[1 << 40, 1 << 40], 0, 0), "too large"),
        (sound().row("large", &[u64::MAX], 1, 0), "too large"),
        (sound().row("odd", &[33, 2], 2, 0), "blocks of 32"),
        (sound().row("wide", &[128, 2], 12, 0), "Q4_K's blocks of 256"),
        (sound().row("deep", &[1; 5], 0, 0), "5 dimensions"),
        (sound().row("", &[1], 0, 0), "name of a tensor has 0 bytes"),
        (sound().tensor("img_in.bias", &[1], 0, 4), "is there twice"),
        (sound().entry("general.architecture", 8, &text("flux")), "is there twice"),
        (sound().entry("bad", 77, &[]), "type 77 is unknown"),
        (sound().entry("bad", 9, &[&9_u32.to_le_bytes()[..], &1_u64.to_le_bytes()].concat()), "nested"),
        (sound().entry("bad", 9, &[&4_u32.to_le_bytes()[..], &u64::MAX.to_le_bytes()].concat()), "too long"),
        (
            sound().entry("bad", 9, &[&8_u32.to_le_bytes()[..], &u64::MAX.to_le_bytes()].concat()),
            "header would be longer",
        ),
        (sound().entry("bad", 8, &u64::MAX.to_le_bytes()), "header would be longer"),
        (sound().entry("bad", 8, &[&2_u64.to_le_bytes()[..], &[0xff, 0xff]].concat()), "not UTF-8"),
    ];
    for (made, reason) in cases {
        let error = error_of(&made);
        assert!(error.contains(reason), "{reason}: {error}");
    }
}

#[test]
fn counts_beyond_any_file_are_refused_before_anything_is_read() {
    for (tensors, entries, what) in [(u64::MAX, 0, "tensors"), (0, 1 << 60, "metadata")] {
        let counts = [tensors, entries].map(u64::to_le_bytes).concat();
        let error = read([&MAGIC[..], &3_u32.to_le_bytes(), &counts].concat()).expect_err("refused");
        assert!(error.contains(what) && error.contains("at most"), "{error}");
    }
}

#[test]
fn a_truncated_file_is_refused_wherever_it_ends() {
    let bytes = sound().bytes();
    for length in 0..bytes.len() {
        assert!(read(bytes[..length].to_vec()).is_err(), "{length} of {}", bytes.len());
    }
    assert!(read(bytes).is_ok());
}

#[test]
fn megabytes_of_metadata_are_read_over() {
    let long = text(&"x".repeat(3 << 20));
    let floats = [&6_u32.to_le_bytes()[..], &(1_u64 << 20).to_le_bytes(), &vec![1; 4 << 20]].concat();
    let file = Made::new().entry("thumbnail", 8, &long).entry("scores", 9, &floats).tensor("a", &[1], 0, 4);
    let header = file.read().expect("sound");
    assert!(header.metadata.is_empty(), "long texts are not kept");
    assert_eq!(header.tensors.len(), 1);
}

/// A list of elements of one type.
fn list(kind: u32, count: usize, elements: &[u8]) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &(count as u64).to_le_bytes(), elements].concat()
}

fn list_of_texts(texts: &[&str]) -> Vec<u8> {
    let elements: Vec<u8> = texts.iter().flat_map(|element| text(element)).collect();
    list(8, texts.len(), &elements)
}

fn list_of_floats(numbers: &[f32]) -> Vec<u8> {
    let elements: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    list(6, numbers.len(), &elements)
}

fn list_of_integers(numbers: &[i32]) -> Vec<u8> {
    let elements: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    list(5, numbers.len(), &elements)
}

/// A file with a tokenizer of four pieces, of which the special ones are named by their ids.
fn with_vocabulary() -> Made {
    let id = |id: u32| id.to_le_bytes();
    Made::new()
        .entry("tokenizer.ggml.model", 8, &text("t5"))
        .entry("tokenizer.ggml.tokens", 9, &list_of_texts(&["<pad>", "<end>", "<unk>", "\u{2581}a"]))
        .entry("tokenizer.ggml.scores", 9, &list_of_floats(&[0.0, 0.0, 0.0, -1.5]))
        .entry("tokenizer.ggml.eos_token_id", 4, &id(1))
        .entry("tokenizer.ggml.padding_token_id", 4, &id(u32::MAX))
        .entry("tokenizer.ggml.unknown_token_id", 4, &id(2))
}

fn vocabulary_of(made: &Made) -> Result<Option<Vocabulary>, String> {
    read_vocabulary(&Blob::made("made.gguf", made.bytes()))
}

#[test]
fn a_vocabulary_is_read_with_and_without_what_may_be_absent() {
    let found = vocabulary_of(&with_vocabulary()).expect("sound").expect("there");
    let pieces: Vec<_> = found.pieces.iter().map(|piece| (piece.text.as_str(), piece.score, piece.kind)).collect();
    let expected = [
        ("<pad>", 0.0, PieceKind::Normal),
        ("<end>", 0.0, PieceKind::Control),
        ("<unk>", 0.0, PieceKind::Unknown),
        ("\u{2581}a", -1.5, PieceKind::Normal),
    ];
    assert_eq!(pieces, expected);
    assert_eq!((found.end, found.padding), (Some(1), None), "the largest id stands for none");
    assert!(found.adds_space && found.removes_spaces && found.charsmap.is_empty());
    for rules in [list(0, 3, &[1, 2, 255]), list(1, 3, &[1, 2, 255]), list_of_integers(&[1, 2, 255])] {
        let made = with_vocabulary()
            .entry("tokenizer.ggml.token_type", 9, &list_of_integers(&[3, 3, 2, 5]))
            .entry("tokenizer.ggml.precompiled_charsmap", 9, &rules)
            .entry("tokenizer.ggml.add_space_prefix", 7, &[0])
            .entry("tokenizer.ggml.remove_extra_whitespaces", 7, &[0]);
        let found = vocabulary_of(&made).expect("sound").expect("there");
        assert_eq!((found.pieces[0].kind, found.pieces[3].kind), (PieceKind::Control, PieceKind::Unused));
        assert_eq!(found.charsmap, [1, 2, 255]);
        assert!(!found.adds_space && !found.removes_spaces);
    }
}

#[test]
fn a_vocabulary_that_is_absent_or_malformed_is_told_apart() {
    for made in [sound(), sound().entry("tokenizer.ggml.model", 8, &text("llama"))] {
        assert!(vocabulary_of(&made).expect("sound").is_none());
    }
    let only = |tokens: &[u8]| {
        Made::new().entry("tokenizer.ggml.model", 8, &text("t5")).entry("tokenizer.ggml.tokens", 9, tokens)
    };
    let short = only(&list_of_texts(&["a"])).entry("tokenizer.ggml.scores", 9, &list_of_floats(&[]));
    for (made, reason) in [
        (only(&list_of_texts(&["a"])), "metadata `tokenizer.ggml.scores` is missing"),
        (short, "metadata `tokenizer.ggml.scores` has 0 elements, `tokenizer.ggml.tokens` has 1"),
        (only(&list_of_floats(&[1.0])), "metadata `tokenizer.ggml.tokens` is no list of its kind"),
        (only(&list(0, PIECES_MAX + 1, &vec![0; PIECES_MAX + 1])), "or is too long"),
        (
            with_vocabulary().entry("tokenizer.ggml.token_type", 9, &list_of_integers(&[3, 3, 2, 9])),
            "metadata `tokenizer.ggml.token_type`: type 9 is unknown",
        ),
        (
            with_vocabulary().entry("tokenizer.ggml.precompiled_charsmap", 9, &list_of_integers(&[256])),
            "metadata `tokenizer.ggml.precompiled_charsmap` is no list of its kind",
        ),
    ] {
        let error = vocabulary_of(&made).expect_err("refused");
        assert!(error.contains(reason), "{reason}: {error}");
    }
}

#[test]
fn every_recorded_file_is_read() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/quant/FLUX.1-dev-256");
    let mut tensors = Vec::new();
    for name in ["tiny-flux-Q2_K", "tiny-flux-Q4_K_S", "tiny-flux-mixed", "t5-v1_1-tiny-encoder-Q4_K_M"] {
        let bytes = std::fs::read(folder.join(format!("{name}.gguf"))).expect("a reference file");
        let blob = Blob::made(name, bytes);
        assert!(is_gguf(&blob));
        let header = read_header(&blob).expect("sound");
        assert_eq!(header.metadata["general.architecture"], if name.starts_with("t5") { "t5encoder" } else { "flux" });
        assert!(header.tensors.values().all(|info| matches!(info.dtype, FileDtype::Blocks(_))));
        tensors.push(header.tensors.len());
    }
    assert_eq!(tensors, [52, 52, 52, 21]);
    let bytes = std::fs::read(folder.join("t5-v1_1-tiny-encoder-Q4_K_M.gguf")).expect("a reference file");
    let vocabulary = read_vocabulary(&Blob::made("t5", bytes)).expect("sound").expect("there");
    assert_eq!((vocabulary.pieces.len(), vocabulary.end, vocabulary.padding), (448, Some(1), Some(0)));
}

/// Bytes, and numbers at the edges of their types.
fn patch() -> impl Strategy<Value = Vec<u8>> {
    let edges = [0, 1, 31, 32, 33, 255, 256, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 60, 1 << 63, u64::MAX];
    prop_oneof![
        vec(any::<u8>(), 1..5),
        proptest::sample::select(edges.to_vec()).prop_map(|edge: u64| edge.to_le_bytes().to_vec()),
        proptest::sample::select(edges.to_vec()).prop_map(|edge: u64| edge.to_le_bytes()[..4].to_vec()),
    ]
}

proptest! {
    #[test]
    fn a_damaged_file_is_refused_or_sound(
        patches in vec((any::<proptest::sample::Index>(), patch()), 1..6),
        cut in proptest::option::of(any::<proptest::sample::Index>()),
    ) {
        let mut bytes = sound().bytes();
        for (at, patch) in patches {
            let at = at.index(bytes.len());
            let end = (at + patch.len()).min(bytes.len());
            bytes[at..end].copy_from_slice(&patch[..end - at]);
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let length = bytes.len();
        if let Ok(header) = read(bytes) {
            check_sound(&header, length);
        }
    }

    #[test]
    fn a_damaged_vocabulary_is_refused_or_sound(
        patches in vec((any::<proptest::sample::Index>(), patch()), 1..6),
    ) {
        let mut bytes = with_vocabulary().bytes();
        for (at, patch) in patches {
            let at = at.index(bytes.len());
            let end = (at + patch.len()).min(bytes.len());
            bytes[at..end].copy_from_slice(&patch[..end - at]);
        }
        let length = bytes.len();
        if let Ok(Some(vocabulary)) = read_vocabulary(&Blob::made("made.gguf", bytes)) {
            prop_assert!(vocabulary.pieces.len() <= length / 8, "each takes its length at least");
            prop_assert!(vocabulary.end.is_none_or(|id| (id as usize) < vocabulary.pieces.len()));
        }
    }

    #[test]
    fn any_bytes_behind_the_magic_are_refused_or_sound(bytes in vec(any::<u8>(), 0..400), version in 2_u32..4) {
        let bytes = [&MAGIC[..], &version.to_le_bytes(), &[1, 0, 0, 0, 0, 0, 0, 0], &bytes].concat();
        let length = bytes.len();
        if let Ok(header) = read(bytes) {
            check_sound(&header, length);
        }
    }
}
