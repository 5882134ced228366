//! Bodies of `multipart/form-data`, read piece by piece, so that a file of any size passes through little memory.

/// Longest head of a part, in bytes.
const HEAD_BYTES_MAX: usize = 8 * 1024;

/// What was read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// A part begins.
    Part {
        /// The name of its field.
        name: String,
        /// The name of its file, if it is one.
        file_name: Option<String>,
    },
    /// Bytes of the part.
    Content(Vec<u8>),
}

/// A body that is not of this form, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is not a complete multipart/form-data body: {0}")]
pub(super) struct Malformed(&'static str);

/// Where the reader is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before the first delimiter.
    Preamble,
    /// Behind a delimiter.
    Delimited,
    /// In the head of a part.
    Head,
    /// In the content of a part.
    Content,
    /// Behind the last delimiter.
    End,
}

/// A reader of such a body.
#[derive(Debug)]
pub(super) struct Multipart {
    /// The line break, the two dashes and the boundary.
    delimiter: Vec<u8>,
    /// What was received and not read.
    rest: Vec<u8>,
    state: State,
}

impl Multipart {
    pub(super) fn new(boundary: &str) -> Self {
        let delimiter = format!("\r\n--{boundary}").into_bytes();
        // The first delimiter begins the body, without a line break before it.
        Self { delimiter, rest: b"\r\n".to_vec(), state: State::Preamble }
    }

    /// Reads more of the body.
    pub(super) fn push(&mut self, bytes: &[u8], events: &mut Vec<Event>) -> Result<(), Malformed> {
        self.rest.extend_from_slice(bytes);
        while self.advance(events)? {}
        Ok(())
    }

    /// Ends the body.
    pub(super) fn finish(&self) -> Result<(), Malformed> {
        if self.state == State::End { Ok(()) } else { Err(Malformed("it ends before its last boundary")) }
    }

    /// Reads one thing. `false`: it needs more of the body.
    fn advance(&mut self, events: &mut Vec<Event>) -> Result<bool, Malformed> {
        match self.state {
            State::Preamble | State::Content => {
                let is_content = self.state == State::Content;
                let found = find(&self.rest, &self.delimiter);
                // The rest may hold the beginning of a delimiter.
                let end = found.unwrap_or(self.rest.len().saturating_sub(self.delimiter.len() - 1));
                let read: Vec<u8> = self.rest.drain(..end).collect();
                if is_content && !read.is_empty() {
                    events.push(Event::Content(read));
                }
                if found.is_some() {
                    self.rest.drain(..self.delimiter.len());
                    self.state = State::Delimited;
                }
                Ok(found.is_some())
            }
            State::Delimited => match self.rest.first_chunk() {
                None => Ok(false),
                Some(b"--") => {
                    self.state = State::End;
                    Ok(true)
                }
                Some(b"\r\n") => {
                    self.rest.drain(..2);
                    self.state = State::Head;
                    Ok(true)
                }
                Some(_) => Err(Malformed("a boundary is followed by something else")),
            },
            State::Head => {
                let Some(end) = find(&self.rest, b"\r\n\r\n") else {
                    let is_too_long = self.rest.len() > HEAD_BYTES_MAX;
                    return if is_too_long { Err(Malformed("the head of a part is too long")) } else { Ok(false) };
                };
                let head: Vec<u8> = self.rest.drain(..end + 4).collect();
                events.push(part_of(&head)?);
                self.state = State::Content;
                Ok(true)
            }
            State::End => {
                self.rest.clear();
                Ok(false)
            }
        }
    }
}

/// The part whose head this is.
fn part_of(head: &[u8]) -> Result<Event, Malformed> {
    let head = str::from_utf8(head).map_err(|_| Malformed("the head of a part is not UTF-8"))?;
    let value = head.split("\r\n").find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.trim().eq_ignore_ascii_case("content-disposition").then_some(value)
    });
    let value = value.ok_or(Malformed("a part has no Content-Disposition"))?;
    let name = parameter(value, "name").ok_or(Malformed("a part has no name"))?;
    Ok(Event::Part { name, file_name: parameter(value, "filename") })
}

/// A parameter of a header's value: `form-data; name="file"`.
pub(super) fn parameter(value: &str, wanted: &str) -> Option<String> {
    let mut rest = value.split_once(';')?.1;
    loop {
        let (name, after) = rest.split_once('=')?;
        let (text, next) = if let Some(quoted) = after.trim_start().strip_prefix('"') {
            unquoted(quoted)?
        } else {
            let (text, next) = after.split_once(';').unwrap_or((after, ""));
            (text.trim().to_owned(), next)
        };
        if name.trim().eq_ignore_ascii_case(wanted) {
            return Some(text);
        }
        rest = next.trim_start().trim_start_matches(';');
    }
}

/// A text up to its closing quotation mark, and what follows it.
fn unquoted(quoted: &str) -> Option<(String, &str)> {
    let (mut text, mut is_escaped) = (String::new(), false);
    for (at, letter) in quoted.char_indices() {
        match letter {
            '"' if !is_escaped => return Some((text, &quoted[at + 1..])),
            '\\' if !is_escaped => is_escaped = true,
            letter => {
                text.push(letter);
                is_escaped = false;
            }
        }
    }
    None
}

/// Where `needle` begins, which must not be empty.
fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    let mut from = 0;
    while let Some(at) = haystack[from..].iter().position(|byte| *byte == needle[0]) {
        if haystack[from + at..].starts_with(needle) {
            return Some(from + at);
        }
        from += at + 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is read of a body that arrives in pieces of this size, with contents joined.
    fn read(body: &[u8], piece: usize) -> Result<Vec<Event>, Malformed> {
        let (mut reader, mut events) = (Multipart::new("x-y"), Vec::new());
        for piece in body.chunks(piece) {
            reader.push(piece, &mut events)?;
        }
        reader.finish()?;
        let mut joined: Vec<Event> = Vec::new();
        for event in events {
            match (joined.last_mut(), event) {
                (Some(Event::Content(before)), Event::Content(more)) => before.extend(more),
                (_, event) => joined.push(event),
            }
        }
        Ok(joined)
    }

    #[test]
    fn parts_are_read_whatever_the_pieces() {
        let body = b"--x-y\r\ncontent-disposition: form-data; name=\"name\"\r\n\r\na pen\r\n--x-y\r\n\
                     Content-Disposition: form-data; name=\"file\"; filename=\"a \\\"b\\\"; c.safetensors\"\r\n\
                     Content-Type: application/octet-stream\r\n\r\n\r\n--x-\r\n-\r\r\n\r\n--x-y--\r\nepilogue";
        let part = |name: &str, file_name: Option<&str>| Event::Part {
            name: name.to_owned(),
            file_name: file_name.map(str::to_owned),
        };
        let expected = [
            part("name", None),
            Event::Content(b"a pen".to_vec()),
            part("file", Some("a \"b\"; c.safetensors")),
            Event::Content(b"\r\n--x-\r\n-\r\r\n".to_vec()),
        ];
        for piece in [1, 2, 3, 7, 64, body.len()] {
            assert_eq!(read(body, piece).expect("complete"), expected, "in pieces of {piece}");
        }
    }

    #[test]
    fn a_body_of_another_form_is_refused() {
        let head = "--x-y\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\n";
        for body in [
            "",
            "--x-y",
            "--x-yz\r\n\r\n",
            "no boundary at all",
            &format!("{head}cut short"),
            &format!("{head}cut short\r\n--x-y"),
            "--x-y\r\n\r\n\r\n--x-y--",
            "--x-y\r\nContent-Disposition: form-data\r\n\r\n\r\n--x-y--",
            &format!("--x-y\r\n{}", "a: b\r\n".repeat(HEAD_BYTES_MAX)),
        ] {
            assert!(read(body.as_bytes(), 5).is_err(), "{body:.80}");
        }
    }

    #[test]
    fn parameters_are_found() {
        let value = r#"form-data; name="a; b=c" ; filename = plain.bin; empty="""#;
        for (name, text) in [("name", "a; b=c"), ("FILENAME", "plain.bin"), ("empty", "")] {
            assert_eq!(parameter(value, name).as_deref(), Some(text), "{name}");
        }
        for (value, name) in [(value, "other"), ("form-data", "name"), ("form-data; name=\"open", "name")] {
            assert_eq!(parameter(value, name), None, "{value}");
        }
    }
}
