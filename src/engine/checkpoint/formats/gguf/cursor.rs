//! Reads a header from its beginning, in pieces, and never beyond the file.

use crate::engine::checkpoint::source::Blob;

/// Bytes that are read from the file at a time.
const WINDOW_BYTES: usize = 64 << 10;

/// Longest header that is read; thumbnails and vocabularies take a few megabytes.
const HEADER_BYTES_MAX: usize = 256 << 20;

/// A place in a file.
pub(super) struct Cursor<'a> {
    blob: &'a Blob,
    at: usize,
    /// Bytes of the file from `window_at` on.
    window: Vec<u8>,
    window_at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(blob: &'a Blob) -> Self {
        Self::starting_at(blob, 0)
    }

    pub(super) fn starting_at(blob: &'a Blob, at: usize) -> Self {
        Self { blob, at, window: Vec::new(), window_at: at }
    }

    /// The next byte's place in the file.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// Passes over bytes.
    ///
    /// # Errors
    /// When the file, or the longest header, ends before them.
    pub(super) fn skip(&mut self, bytes: usize) -> Result<(), String> {
        self.at = self.end_of(bytes)?;
        Ok(())
    }

    pub(super) fn take<const BYTES: usize>(&mut self) -> Result<[u8; BYTES], String> {
        let end = self.end_of(BYTES)?;
        if self.at < self.window_at || end > self.window_at + self.window.len() {
            self.window.resize(WINDOW_BYTES.min(self.blob.bytes() - self.at), 0);
            self.blob.read(self.at, &mut self.window)?;
            self.window_at = self.at;
        }
        let mut taken = [0; BYTES];
        taken.copy_from_slice(&self.window[self.at - self.window_at..end - self.window_at]);
        self.at = end;
        Ok(taken)
    }

    pub(super) fn u32(&mut self) -> Result<u32, String> {
        self.take().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, String> {
        self.take().map(u64::from_le_bytes)
    }

    /// The length of a text or an array in bytes, all of which are in the file.
    pub(super) fn length(&mut self) -> Result<usize, String> {
        let length = usize::try_from(self.u64()?).map_err(|_| too_long())?;
        self.end_of(length).map(|_| length)
    }

    /// A text of a known length.
    pub(super) fn text(&mut self, length: usize) -> Result<String, String> {
        let end = self.end_of(length)?;
        let mut bytes = vec![0; length];
        self.blob.read(self.at, &mut bytes)?;
        self.at = end;
        String::from_utf8(bytes).map_err(|_| "not UTF-8".to_owned())
    }

    /// A text with its length before it, which must not be empty.
    pub(super) fn short_text(&mut self, what: &str, bytes_max: usize) -> Result<String, String> {
        let length = self.length()?;
        if length == 0 || length > bytes_max {
            return Err(format!("a {what} has {length} bytes, from 1 to {bytes_max} are supported"));
        }
        self.text(length).map_err(|error| format!("a {what}: {error}"))
    }

    fn end_of(&self, bytes: usize) -> Result<usize, String> {
        let end = self.at.checked_add(bytes);
        end.filter(|&end| end <= self.blob.bytes() && end <= HEADER_BYTES_MAX).ok_or_else(too_long)
    }
}

fn too_long() -> String {
    "its header would be longer than the file, or than any header".to_owned()
}
