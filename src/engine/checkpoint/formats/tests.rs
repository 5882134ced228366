//! What the readers of all formats have in common: which file is which, what is sound, how much memory a header takes.

mod memory;
mod mutations;

use std::path::{Path, PathBuf};

use super::*;

/// A sound safetensors file.
fn sound() -> Vec<u8> {
    let header = br#"{"__metadata__":{"a":"b"},"x":{"dtype":"F8_E4M3","shape":[2,3],"data_offsets":[0,6]},"y":{"dtype":"F32","shape":[],"data_offsets":[6,10]}}"#;
    safetensors_of(header, 10)
}

/// A safetensors file of this header, with so many bytes of data.
fn safetensors_of(header: &[u8], data: usize) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header, &vec![0; data]].concat()
}

/// The folder of small files of every kind.
fn corpus_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/headers")
}

/// What is true of every header that is accepted.
pub(super) fn check_sound(header: &Header, length: usize) {
    let mut ranges: Vec<&Range<usize>> = Vec::new();
    for info in header.tensors.values() {
        assert!(info.range.start <= info.range.end && info.range.end <= length);
        if let FileDtype::Blocks(kind) = info.dtype {
            assert_eq!(info.elements() / kind.numbers() * kind.bytes(), info.range.len());
        }
        ranges.push(&info.range);
    }
    ranges.sort_by_key(|range| (range.start, range.end));
    assert!(ranges.windows(2).all(|pair| pair[0].end <= pair[1].start));
}

#[test]
fn a_sound_file_is_read() {
    let header = read_header(&Blob::made("made", sound())).expect("sound");
    assert_eq!((header.metadata["a"].as_str(), header.said.as_slice()), ("b", &["a: b".to_owned()][..]));
    assert_eq!((header.tensors["x"].shape.as_slice(), header.tensors["y"].range.len()), (&[2, 3][..], 4));
    assert_eq!(header.tensors["x"].dtype, FileDtype::Blocks(BlockType::F8E4M3));
}

fn error_of(bytes: &[u8]) -> String {
    read_header(&Blob::made("made", bytes.to_vec())).expect_err("no weights")
}

#[test]
fn what_is_no_weight_file_is_said_to_be_what_it_is() {
    let cases: [(&[u8], &str); 6] = [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "a Git LFS pointer"),
        (b"\n<!DOCTYPE html><html>", "a web page"),
        (b"<html>", "a web page"),
        (b"PK\x03\x04 data.pkl", "a PyTorch archive"),
        (b"GGUF", "not a complete GGUF file"),
        (b"\x08", "not a complete safetensors file: it has 1 bytes"),
    ];
    for (bytes, words) in cases {
        let error = error_of(bytes);
        assert!(error.starts_with(words), "{error}");
    }
}

#[test]
fn a_wrong_safetensors_header_is_refused_with_its_reason() {
    let row = |name: &str, dtype: &str, shape: &str, offsets: &str| {
        format!(r#""{name}":{{"dtype":{dtype},"shape":{shape},"data_offsets":{offsets}}}"#)
    };
    let x = row("x", r#""F32""#, "[1]", "[0,4]");
    let long = "n".repeat(NAME_BYTES_MAX + 1);
    let cases = [
        (String::new(), "EOF"),
        ("[]".to_owned(), "an object with the tensors by name"),
        (r#""x""#.to_owned(), "where an object must be"),
        (format!("{{{x}}} x"), "trailing characters"),
        (format!("{{{x},{x}}}"), "`x` is there twice"),
        (r#"{"x":7}"#.to_owned(), "tensor `x`: invalid type: integer `7`"),
        (r#"{"x":"y"}"#.to_owned(), "where an object must be"),
        (r#"{"x":{"dtype":"F32","shape":[1]}}"#.to_owned(), "it must have a `dtype`"),
        (r#"{"x":{"dtype":"F32","dtype":"F32"}}"#.to_owned(), "`dtype` is there twice"),
        (format!("{{{}}}", row("x", r#""F33""#, "[1]", "[0,4]")), "F33"),
        (format!("{{{}}}", row("x", &format!("{long:?}"), "[1]", "[0,4]")), "`dtype` is longer than any"),
        (format!("{{{}}}", row("x", "4", "[1]", "[0,4]")), "it must have a `dtype`"),
        (format!("{{{}}}", row("x", r#""F32""#, "[-1]", "[0,4]")), "invalid type: integer `-1`"),
        (format!("{{{}}}", row("x", r#""F32""#, "[[1]]", "[0,4]")), "something else than whole numbers"),
        (format!("{{{}}}", row("x", r#""F32""#, "[1,1,1,1,1,1,1,1,1]", "[0,4]")), "more than 8 numbers"),
        (format!("{{{}}}", row("x", r#""F32""#, "[1]", "[0,4,4]")), "must be two numbers"),
        (format!("{{{}}}", row("x", r#""F32""#, "[2]", "[0,4]")), "not as many as [2] in F32"),
        (format!("{{{}}}", row("x", r#""F32""#, "[1]", "[4,0]")), "not as many"),
        (format!("{{{}}}", row("x", r#""F4""#, "[1]", "[0,1]")), "not as many"),
        (format!("{{{}}}", row("x", r#""F32""#, "[4294967296,4294967296]", "[0,4]")), "not as many"),
        (format!("{{{}}}", row("x", r#""F32""#, "[1]", "[4,8]")), "`x` begins at byte 4 of the data"),
        (format!("{{{x},{}}}", row("y", r#""F32""#, "[1]", "[0,4]")), "the one before it ends at 4"),
        (format!("{{{}}}", row(&long, r#""F32""#, "[1]", "[0,4]")), "a name is longer than 1024 bytes"),
        (format!(r#"{{"__metadata__":{{"a":1}},{x}}}"#), "metadata `a` is no text"),
        (format!(r#"{{"__metadata__":{{"a":"","a":""}},{x}}}"#), "metadata `a` is there twice"),
        (format!(r#"{{"__metadata__":[],{x}}}"#), "an object with texts by name"),
    ];
    for (header, reason) in cases {
        let error = error_of(&safetensors_of(header.as_bytes(), 4));
        assert!(error.starts_with("not a complete safetensors file: ") && error.contains(reason), "{reason}: {error}");
    }
    let header = format!(r#"{{"__metadata__":null,{x}}}"#);
    let with_more = header.replace(r#""dtype""#, r#""more":{"a":[{}]},"dtype""#);
    for header in [header, with_more] {
        assert!(read_header(&Blob::made("made", safetensors_of(header.as_bytes(), 4))).is_ok(), "{header}");
    }
}
