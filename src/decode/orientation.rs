//! Orientation of a camera image, from a file's EXIF data.
//!
//! The standard says that the tag is a SHORT. Some programs write a LONG, so both are read here.

use image::metadata::Orientation;

/// Prefix that some programs write even where the file's format does not have it.
const PREFIX: &[u8] = b"Exif\0\0";
const ORIENTATION_TAG: u16 = 0x0112;
const SHORT: u16 = 3;
const LONG: u16 = 4;
/// Tag, type, count and value of one entry.
const ENTRY_BYTES: usize = 12;

/// The orientation in the first directory of the data; none if it is missing or unreadable.
pub(super) fn of_exif(data: &[u8]) -> Orientation {
    let data = data.strip_prefix(PREFIX).unwrap_or(data);
    let value = Tiff::new(data).and_then(|tiff| tiff.orientation());
    value.and_then(|value| Orientation::from_exif(u8::try_from(value).ok()?)).unwrap_or(Orientation::NoTransforms)
}

struct Tiff<'a> {
    data: &'a [u8],
    is_little_endian: bool,
}

impl<'a> Tiff<'a> {
    fn new(data: &'a [u8]) -> Option<Self> {
        match data.get(..4)? {
            b"II\x2a\0" => Some(Self { data, is_little_endian: true }),
            b"MM\0\x2a" => Some(Self { data, is_little_endian: false }),
            _ => None,
        }
    }

    fn orientation(&self) -> Option<u32> {
        let directory = usize::try_from(self.long(4)?).ok()?;
        let count = usize::from(self.short(directory)?);
        let first = directory.checked_add(2)?;
        let mut entries = self.data.get(first..)?.chunks_exact(ENTRY_BYTES).take(count).enumerate();
        let at = entries.find_map(|(index, _)| {
            let at = first + index * ENTRY_BYTES;
            (self.short(at) == Some(ORIENTATION_TAG)).then_some(at)
        })?;
        match (self.short(at + 2)?, self.long(at + 4)?) {
            (SHORT, 1) => self.short(at + 8).map(u32::from),
            (LONG, 1) => self.long(at + 8),
            _ => None,
        }
    }

    fn short(&self, at: usize) -> Option<u16> {
        let bytes = self.data.get(at..at.checked_add(2)?)?.try_into().ok()?;
        Some(if self.is_little_endian { u16::from_le_bytes(bytes) } else { u16::from_be_bytes(bytes) })
    }

    fn long(&self, at: usize) -> Option<u32> {
        let bytes = self.data.get(at..at.checked_add(4)?)?.try_into().ok()?;
        Some(if self.is_little_endian { u32::from_le_bytes(bytes) } else { u32::from_be_bytes(bytes) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_read_as_short_and_as_long_in_either_byte_order() {
        let files: [&[u8]; 5] = [
            b"II\x2a\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0",
            b"II\x2a\0\x08\0\0\0\x01\0\x12\x01\x04\0\x01\0\0\0\x06\0\0\0\0\0\0\0",
            b"MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0",
            b"MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x04\0\0\0\x01\0\0\0\x06\0\0\0\0",
            b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x04\0\0\0\x01\0\0\0\x06\0\0\0\0",
        ];
        for file in files {
            assert_eq!(of_exif(file), Orientation::Rotate90, "{file:?}");
        }
    }

    #[test]
    fn unreadable_data_turns_nothing() {
        let complete = b"II\x2a\0\x08\0\0\0\x01\0\x12\x01\x04\0\x01\0\0\0\x06\0\0\0\0\0\0\0";
        for length in 0..22 {
            assert_eq!(of_exif(&complete[..length]), Orientation::NoTransforms, "{length}");
        }
        for (at, byte) in [(0, b'X'), (4, 0xff), (7, 0xff), (8, 0), (12, 2), (14, 2), (18, 9), (19, 1), (21, 1)] {
            let mut other = *complete;
            other[at] = byte;
            assert_eq!(of_exif(&other), Orientation::NoTransforms, "{at}");
        }
    }
}
