//! The memory that a header takes: at most twice the file's bytes, and a constant for its tables, whatever it says.

use super::*;
use crate::engine::counted_heap::most_held;

/// Bytes of memory, beyond twice the file's, that the longest tables may take.
const TABLES_BYTES: usize = 32 << 20;

/// The same for a file with few tensors: what is read at a time, and the longest text that is kept.
const FEW_BYTES: usize = 4 << 20;

/// Reads a file's header, which must not take more memory than twice the file's bytes and so many more.
pub(super) fn read_within(bytes: Vec<u8>, more: usize) -> Result<Header, String> {
    let length = bytes.len();
    let blob = Blob::made("made", bytes);
    let (header, most) = most_held(|| read_header(&blob));
    assert!(most <= 2 * length + more, "{most} bytes of memory for a file of {length}");
    if let Ok(header) = &header {
        check_sound(header, length);
    }
    header
}

/// A GGUF file of these parts.
fn gguf_of(tensors: u64, entries: u64, rest: &[u8]) -> Vec<u8> {
    let mut bytes = [&b"GGUF"[..], &3_u32.to_le_bytes(), &tensors.to_le_bytes(), &entries.to_le_bytes(), rest].concat();
    bytes.resize(bytes.len().next_multiple_of(32), 0);
    bytes
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

/// An entry of the metadata: an array that says it has `count` elements.
fn array(key: &str, kind: u32, count: u64, elements: &[u8]) -> Vec<u8> {
    [&text(key)[..], &9_u32.to_le_bytes(), &kind.to_le_bytes(), &count.to_le_bytes(), elements].concat()
}

#[test]
fn a_count_alone_takes_no_memory() {
    const MORE_BYTES: usize = 16 << 10;
    for count in [1 << 20, 1 << 32, 1 << 60, u64::MAX] {
        for kind in [0, 6, 8, 12] {
            let file = gguf_of(0, 1, &array("a", kind, count, &[]));
            assert!(read_within(file, MORE_BYTES).is_err(), "{count} of type {kind}");
        }
        assert!(read_within(gguf_of(count, 0, &[]), MORE_BYTES).is_err(), "{count} tensors");
        assert!(read_within(gguf_of(0, count, &[]), MORE_BYTES).is_err(), "{count} entries");
        assert!(read_within(gguf_of(0, 1, &count.to_le_bytes()), MORE_BYTES).is_err(), "a key of {count} bytes");
        let long = [&text("a")[..], &8_u32.to_le_bytes(), &count.to_le_bytes()].concat();
        assert!(read_within(gguf_of(0, 1, &long), MORE_BYTES).is_err(), "a text of {count} bytes");
        let mut file = sound();
        file[..8].copy_from_slice(&count.to_le_bytes());
        assert!(read_within(file, MORE_BYTES).is_err(), "a header of {count} bytes");
    }
    // As many as are allowed, but not there.
    assert!(read_within(gguf_of(TENSORS_MAX, METADATA_MAX, &[]), MORE_BYTES).is_err());
}

#[test]
fn long_arrays_and_texts_are_not_kept() {
    let strings = text("").repeat(1 << 17);
    let mut entries = array("strings", 8, 1 << 17, &strings);
    entries.extend(array("numbers", 12, 1 << 17, &vec![0; 8 << 17]));
    entries.extend([&text("thumbnail")[..], &8_u32.to_le_bytes(), &text(&"x".repeat(3 << 20))].concat());
    let header = read_within(gguf_of(0, 3, &entries), FEW_BYTES).expect("sound");
    assert!(header.metadata.is_empty());

    for end in ["", "\\n", "\\ud83e\\udd8a"] {
        let text = "x".repeat(5 << 20) + end;
        let header = format!(r#"{{"__metadata__":{{"thumbnail":"{text}","a":"b"}}}}"#);
        let header = read_within(safetensors_of(header.as_bytes(), 0), FEW_BYTES).expect("sound");
        assert_eq!(header.metadata.into_iter().collect::<Vec<_>>(), [("a".to_owned(), "b".to_owned())]);
    }
}

#[test]
fn a_wrong_value_takes_no_more_memory_than_a_sound_one() {
    let (zeros, text) = ("0,".repeat(1 << 20) + "0", "\\u0000".repeat(1 << 19) + "x");
    let deep = "[".repeat(1 << 20);
    for header in [
        format!(r#"{{"x":{{"dtype":"U8","shape":[{zeros}],"data_offsets":[0,0]}}}}"#),
        format!(r#"{{"x":{{"dtype":"U8","shape":[0],"data_offsets":[{zeros}]}}}}"#),
        format!(r#"{{"x":{{"dtype":"{text}","shape":[0],"data_offsets":[0,0]}}}}"#),
        format!(r#"{{"x":{{"dtype":"U8","shape":"{text}","data_offsets":[0,0]}}}}"#),
        format!(r#"{{"x":{{"{text}":"U8","shape":[0],"data_offsets":[0,0]}}}}"#),
        format!(r#"{{"x":"{text}"}}"#),
        format!(r#"{{"{text}":0}}"#),
        format!(r#"{{"__metadata__":"{text}"}}"#),
        format!(r#"{{"__metadata__":{{"{text}":""}}}}"#),
        format!(r#"{{"__metadata__":{{"a":[{zeros}]}}}}"#),
        format!(r#""{text}""#),
        deep.clone(),
        format!(r#"{{"x":{deep}"#),
        format!(r#"{{"x":{{"other":{deep}"#),
    ] {
        let error = read_within(safetensors_of(header.as_bytes(), 0), FEW_BYTES).expect_err("malformed");
        assert!(error.len() < 2 * NAME_BYTES_MAX, "a message of {} bytes", error.len());
    }
}

/// The rows of a header that take most memory for their bytes: short names, no data.
fn gguf_rows(count: u64) -> Vec<u8> {
    let row = |index: u64| {
        let name = text(&format!("{index:x}"));
        [&name[..], &0_u32.to_le_bytes(), &999_u32.to_le_bytes(), &0_u64.to_le_bytes()].concat()
    };
    (0..count).flat_map(row).collect()
}

#[test]
fn the_longest_tables_are_read_and_longer_ones_refused() {
    let entry = |index: u64| [&text(&format!("{index:x}"))[..], &8_u32.to_le_bytes(), &text("")].concat();
    let entries: Vec<u8> = (0..METADATA_MAX).flat_map(entry).collect();
    let rest = [entries, gguf_rows(TENSORS_MAX)].concat();
    let header = read_within(gguf_of(TENSORS_MAX, METADATA_MAX, &rest), TABLES_BYTES).expect("sound");
    assert_eq!((header.tensors.len() as u64, header.metadata.len() as u64), (TENSORS_MAX, METADATA_MAX));

    let tables = |tensors: u64, entries: u64| {
        let row = |index: u64| format!(r#","{index:x}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#);
        let rows: Vec<String> = (0..tensors).map(row).collect();
        let entries: Vec<String> = (0..entries).map(|index| format!(r#""{index:x}":"""#)).collect();
        let header = format!(r#"{{"__metadata__":{{{}}}{}}}"#, entries.join(","), rows.concat());
        read_within(safetensors_of(header.as_bytes(), 0), TABLES_BYTES)
    };
    let header = tables(TENSORS_MAX, METADATA_MAX).expect("sound");
    assert_eq!((header.tensors.len() as u64, header.metadata.len() as u64), (TENSORS_MAX, METADATA_MAX));
    for (tensors, entries, what) in [(TENSORS_MAX + 1, 0, "65537 tensors"), (1, METADATA_MAX + 1, "16385 entries")] {
        let error = tables(tensors, entries).expect_err("too many");
        assert!(error.contains(what), "{error}");
    }
}
