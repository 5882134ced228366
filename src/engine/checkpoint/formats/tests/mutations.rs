//! Mutated files: any of them is refused, or sound, and takes little memory. `PROPTEST_CASES` says how many are tried.

use std::sync::LazyLock;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::memory::read_within;
use super::*;

/// Bytes of memory, beyond twice the file's, that a small file may take: its rows and texts in their maps.
const SMALL_BYTES: usize = 128 << 10;

/// The files of the corpus, by name.
static CORPUS: LazyLock<Vec<(String, Vec<u8>)>> = LazyLock::new(|| {
    let files = std::fs::read_dir(corpus_folder()).expect("the corpus");
    let mut files: Vec<_> = files
        .map(|file| {
            let path = file.expect("a file").path();
            let name = path.file_name().and_then(std::ffi::OsStr::to_str).expect("a name").to_owned();
            (name, std::fs::read(&path).expect("readable"))
        })
        .collect();
    files.sort();
    files
});

/// A change to a file.
#[derive(Debug, Clone)]
enum Edit {
    /// Other bytes in place of as many.
    Write(Index, Vec<u8>),
    Insert(Index, Vec<u8>),
    /// Takes out so many bytes.
    Remove(Index, usize),
    /// So many bytes once more, at another place.
    Copy(Index, Index, usize),
    /// Ends as another file of the corpus.
    Splice(Index, Index),
    Cut(Index),
}

impl Edit {
    fn apply(&self, bytes: &mut Vec<u8>) {
        // One more, since the end is a place, too.
        let place = |index: &Index, bytes: &[u8]| index.index(bytes.len() + 1);
        match self {
            Self::Write(at, new) => {
                let at = place(at, bytes);
                let end = (at + new.len()).min(bytes.len());
                bytes[at..end].copy_from_slice(&new[..end - at]);
            }
            Self::Insert(at, new) => {
                let at = place(at, bytes);
                drop(bytes.splice(at..at, new.iter().copied()));
            }
            Self::Remove(at, count) => {
                let at = place(at, bytes);
                bytes.drain(at..(at + count).min(bytes.len()));
            }
            Self::Copy(from, to, count) => {
                let (from, to) = (place(from, bytes), place(to, bytes));
                let copied = bytes[from..(from + count).min(bytes.len())].to_vec();
                drop(bytes.splice(to..to, copied));
            }
            Self::Splice(at, other) => {
                let (at, (_, other)) = (place(at, bytes), other.get(CORPUS.as_slice()));
                bytes.truncate(at);
                bytes.extend(other.get(at..).unwrap_or_default());
            }
            Self::Cut(at) => bytes.truncate(place(at, bytes)),
        }
    }
}

/// Bytes that mean something: any, numbers at the edges of their types, and pieces of JSON.
fn pieces() -> impl Strategy<Value = Vec<u8>> {
    const EDGES: &[u64] =
        &[0, 1, 8, 9, 31, 32, 33, 255, 256, 65_536, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 60, 1 << 63, u64::MAX];
    const JSON: &[&str] = &[
        "{",
        "}",
        "[",
        "]",
        "\"",
        ",",
        ":",
        "\\",
        "\\ud800",
        "null",
        "-1",
        "1e400",
        "18446744073709551615",
        "0,0,0,0,0,0,0,0,0",
        r#""__metadata__":{"a":"b"},"#,
        r#""z":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"#,
    ];
    prop_oneof![
        vec(any::<u8>(), 1..9),
        select(EDGES).prop_map(|edge: u64| edge.to_le_bytes().to_vec()),
        select(EDGES).prop_map(|edge: u64| edge.to_le_bytes()[..4].to_vec()),
        select(JSON).prop_map(|text: &str| text.as_bytes().to_vec()),
        vec(b'0'..=b'9', 1..4),
    ]
}

fn edit() -> impl Strategy<Value = Edit> {
    let at = any::<Index>;
    prop_oneof![
        4 => (at(), pieces()).prop_map(|(at, new)| Edit::Write(at, new)),
        3 => (at(), pieces()).prop_map(|(at, new)| Edit::Insert(at, new)),
        2 => (at(), 1..40_usize).prop_map(|(at, count)| Edit::Remove(at, count)),
        2 => (at(), at(), 1..400_usize).prop_map(|(from, to, count)| Edit::Copy(from, to, count)),
        1 => (at(), at()).prop_map(|(at, other)| Edit::Splice(at, other)),
        1 => at().prop_map(Edit::Cut),
    ]
}

/// Makes the length that a safetensors file begins with the header's own, so that the header is read.
fn correct_length(bytes: &mut [u8]) {
    let Some((length, rest)) = bytes.split_first_chunk_mut::<8>() else { return };
    let end = rest.iter().rposition(|&byte| byte == b'}').map_or(0, |last| last + 1);
    *length = (end as u64).to_le_bytes();
}

proptest! {
    #[test]
    fn a_mutated_file_is_refused_or_sound_and_takes_little_memory(
        seed in any::<Index>(),
        edits in vec(edit(), 1..8),
        has_its_length in any::<bool>(),
    ) {
        let (name, file) = seed.get(CORPUS.as_slice());
        let mut bytes = file.clone();
        for edit in &edits {
            edit.apply(&mut bytes);
        }
        if has_its_length && name.ends_with(".safetensors") {
            correct_length(&mut bytes);
        }
        // Whether it is refused, and why, depends on the edits.
        drop(read_within(bytes, SMALL_BYTES));
    }
}

#[test]
fn every_seed_is_read_and_the_seeds_have_every_type() {
    let mut kinds = Vec::new();
    for (name, file) in &*CORPUS {
        let header = read_within(file.clone(), SMALL_BYTES).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(name.starts_with("empty.") || !header.tensors.is_empty(), "{name}");
        kinds.extend(header.tensors.into_values().map(|info| format!("{:?}", info.dtype)));
    }
    kinds.sort();
    kinds.dedup();
    let blocks = kinds.iter().filter(|kind| kind.starts_with("Blocks(")).count();
    assert_eq!(blocks, 17, "of those that can be decoded: {kinds:?}");
    for other in ["IQ3_S", "F64"] {
        assert!(kinds.contains(&format!("Other({other:?})")), "{other}: {kinds:?}");
    }
}

#[test]
fn a_seed_is_refused_wherever_it_is_cut() {
    // Of a GGUF file without tensors, the end is padding.
    for (name, file) in CORPUS.iter().filter(|(name, _)| name != "empty.gguf") {
        for length in 0..file.len() {
            assert!(read_within(file[..length].to_vec(), SMALL_BYTES).is_err(), "{name}: {length} of {}", file.len());
        }
    }
}
