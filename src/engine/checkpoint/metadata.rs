//! What weight files say of themselves, made fit for a terminal. None of it is trusted: anyone can write anything there, in
//! any length.

use std::fmt;

/// Longest value that is shown, in characters.
const VALUE_CHARS_MAX: usize = 160;

/// Longest key that is shown, in characters.
const KEY_CHARS_MAX: usize = 64;

/// Longest name of a tensor that is shown, in characters.
const NAME_CHARS_MAX: usize = 160;

/// Maximum lines for a file.
const LINES_MAX: usize = 24;

/// What stands for a character that is not shown.
const REPLACEMENT: char = '\u{FFFD}';

/// What a file says of itself, as lines of bounded length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileMetadata {
    /// The file's path.
    pub file: String,
    /// Keys and values.
    pub lines: Vec<String>,
}

impl fmt::Display for FileMetadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "  {} says of itself, unverified:", cleaned(&self.file, usize::MAX).0)?;
        self.lines.iter().try_for_each(|line| write!(f, "\n    {line}"))
    }
}

/// A value in a file.
pub(super) enum Value<'a> {
    Text(&'a str),
    /// A number or a truth value, in words.
    Scalar(String),
    /// One that is not shown: what it is, and its size.
    Omitted {
        what: String,
        bytes: usize,
    },
}

/// Lines for keys and values, in their order. What is beyond the most lines is counted.
pub(super) fn lines<'a>(mut entries: impl Iterator<Item = (&'a str, Value<'a>)>) -> Vec<String> {
    let mut lines: Vec<String> = entries.by_ref().take(LINES_MAX).map(|(key, value)| line(key, &value)).collect();
    let rest = entries.count();
    if rest > 0 {
        lines.push(format!("and {rest} more"));
    }
    lines
}

fn line(key: &str, value: &Value) -> String {
    let shown = match value {
        Value::Text(text) if is_image(key, text) => omitted("an image", text.len()),
        Value::Text(text) if text.trim_start().starts_with(['{', '[']) => omitted("a table", text.len()),
        Value::Text(text) => match cleaned(text, VALUE_CHARS_MAX) {
            (shown, true) => shown,
            (shown, false) => format!("{shown}… ({} bytes)", text.len()),
        },
        Value::Scalar(scalar) => scalar.clone(),
        Value::Omitted { bytes, .. } if names_image(key) => omitted("an image", *bytes),
        Value::Omitted { what, bytes } => omitted(what, *bytes),
    };
    let (key, is_complete) = cleaned(key, KEY_CHARS_MAX);
    format!("{key}{}: {shown}", if is_complete { "" } else { "…" })
}

fn omitted(what: &str, bytes: usize) -> String {
    format!("({what}, {bytes} bytes)")
}

fn names_image(key: &str) -> bool {
    key.to_ascii_lowercase().contains("thumbnail")
}

fn is_image(key: &str, text: &str) -> bool {
    names_image(key) || text.trim_start().starts_with("data:")
}

/// The first characters of a text without those that move the cursor, change the direction or are invisible; and whether that is
/// all of it.
fn cleaned(text: &str, chars_max: usize) -> (String, bool) {
    let mut chars = text.chars();
    let shown = chars.by_ref().take(chars_max).map(|letter| if is_shown(letter) { letter } else { REPLACEMENT });
    let shown = shown.collect();
    (shown, chars.next().is_none())
}

/// A name in a file, fit for a terminal.
pub(crate) fn shown(name: &str) -> String {
    let (shown, is_complete) = cleaned(name, NAME_CHARS_MAX);
    if is_complete { shown } else { format!("{shown}…") }
}

fn is_shown(letter: char) -> bool {
    let is_invisible = matches!(letter,
        '\u{00AD}' | '\u{061C}' | '\u{180E}' | '\u{200B}'..='\u{200F}' | '\u{2028}'..='\u{202E}' | '\u{2060}'..='\u{206F}'
        | '\u{FEFF}' | '\u{FFF9}'..='\u{FFFB}' | '\u{E0000}'..='\u{E007F}');
    !letter.is_control() && !is_invisible
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(key: &str, text: &str) -> String {
        lines(std::iter::once((key, Value::Text(text)))).concat()
    }

    #[test]
    fn a_value_is_one_line_of_bounded_length() {
        assert_eq!(of("modelspec.title", "A tune"), "modelspec.title: A tune");
        assert_eq!(of("a", "one\ntwo\r\x1b[31mred\u{7}"), "a: one\u{FFFD}two\u{FFFD}\u{FFFD}[31mred\u{FFFD}");
        assert_eq!(of("a", "\u{202E}evil\u{200B}\u{2066}\u{9B}2J"), "a: \u{FFFD}evil\u{FFFD}\u{FFFD}\u{FFFD}2J");
        assert_eq!(of("ключ", "лиса"), "ключ: лиса");
        let long = of("a", &"ß".repeat(VALUE_CHARS_MAX + 1));
        assert_eq!(long, format!("a: {}… (322 bytes)", "ß".repeat(VALUE_CHARS_MAX)));
        let exact = of("a", &"x".repeat(VALUE_CHARS_MAX));
        assert!(exact.ends_with('x'), "{exact}");
        let key = of(&"k\t".repeat(200), "v");
        assert_eq!(key, format!("{}…: v", "k\u{FFFD}".repeat(KEY_CHARS_MAX / 2)));
    }

    #[test]
    fn a_name_cannot_write_to_the_terminal() {
        assert_eq!(shown("x.lora_A\n\x1b[2J"), "x.lora_A\u{FFFD}\u{FFFD}[2J");
        assert_eq!(shown(&"x".repeat(500)).chars().count(), NAME_CHARS_MAX + 1);
    }

    #[test]
    fn images_and_tables_are_named_with_their_sizes() {
        let image = format!("data:image/jpeg;base64,{}", "A".repeat(1000));
        assert_eq!(of("modelspec.thumbnail", &image), "modelspec.thumbnail: (an image, 1023 bytes)");
        assert_eq!(of("cover", &image), "cover: (an image, 1023 bytes)");
        assert_eq!(of("ss_tag_frequency", r#" {"fox": 3}"#), "ss_tag_frequency: (a table, 11 bytes)");
        let omitted = |key| {
            let value = Value::Omitted { what: "a table of 3 values".to_owned(), bytes: 24 };
            lines(std::iter::once((key, value))).concat()
        };
        assert_eq!(omitted("tokenizer.ggml.scores"), "tokenizer.ggml.scores: (a table of 3 values, 24 bytes)");
        assert_eq!(omitted("general.Thumbnail"), "general.Thumbnail: (an image, 24 bytes)");
    }

    #[test]
    fn further_lines_are_counted() {
        let keys: Vec<String> = (0..1000).map(|number| format!("key {number}")).collect();
        let lines = lines(keys.iter().map(|key| (key.as_str(), Value::Scalar("1".to_owned()))));
        assert_eq!((lines.len(), lines[LINES_MAX].as_str()), (LINES_MAX + 1, "and 976 more"));
        let metadata = FileMetadata { file: "a\nb.gguf".to_owned(), lines };
        assert_eq!(metadata.to_string().lines().count(), LINES_MAX + 2);
    }
}
