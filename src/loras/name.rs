//! Names of LoRAs. They are written in prompts (`<lora:NAME:0.8>`) and in lists with commas, so they have none of those signs.

use super::{LoraError, NAME_CHARS_MAX};
use crate::domain::adapter::AdapterId;

/// The name of a file without one.
const UNNAMED: &str = "lora";

/// Stands for no limit on the command line.
const NONE: &str = "none";

fn is_letter(letter: char) -> bool {
    letter.is_alphanumeric() || "-_. ".contains(letter)
}

/// The name without blanks around it, if it can be one.
pub(super) fn checked(name: &str) -> Result<String, LoraError> {
    let name = name.trim();
    let is_length = (1..=NAME_CHARS_MAX).contains(&name.chars().count());
    let is_spelled = name.starts_with(char::is_alphanumeric) && name.chars().all(is_letter);
    let is_reserved = name == NONE || name.parse::<AdapterId>().is_ok();
    if is_length && is_spelled && !is_reserved { Ok(name.to_owned()) } else { Err(LoraError::Name) }
}

/// A name from the name of a file.
pub(super) fn of_file(file: &str) -> String {
    let file = file.rsplit(['/', '\\']).next().unwrap_or(file);
    let stem = file.rsplit_once('.').map_or(file, |(stem, _)| stem);
    let spelled = stem.chars().map(|letter| if is_letter(letter) { letter } else { '-' });
    let spelled: String = spelled.skip_while(|letter| !letter.is_alphanumeric()).take(NAME_CHARS_MAX).collect();
    checked(&spelled).unwrap_or_else(|_| UNNAMED.to_owned())
}

/// The names to try for a file, in their order, when it was given none: its own, then with numbers.
pub(super) fn alternatives(name: &str) -> impl Iterator<Item = String> {
    let stem: String = name.chars().take(NAME_CHARS_MAX - "-9999".len()).collect();
    let numbered = (2..10_000).map(move |number| format!("{stem}-{number}"));
    std::iter::once(name.to_owned()).chain(numbered)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_can_be_written_in_prompts_and_lists() {
        for name in ["pen", " Tinte & Feder ".replace('&', "und").as_str(), "v1.0_final-2", "ß", "7"] {
            assert_eq!(checked(name).ok().as_deref(), Some(name.trim()), "{name}");
        }
        let id = "a5".repeat(32);
        for name in ["", " ", ".hidden", "-x", "a:b", "a,b", "a<b", "a/b", "a\nb", "none", &id, &"x".repeat(101)] {
            assert!(checked(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn a_file_gives_a_name() {
        for (file, name) in [
            ("pen.safetensors", "pen"),
            ("C:\\loras\\ink.v2.safetensors", "ink.v2"),
            ("a/b/__Fuchs (v1), final.safetensors", "Fuchs -v1-- final"),
            ("", "lora"),
            (".safetensors", "lora"),
            ("none.safetensors", "lora"),
            ("💡.safetensors", "lora"),
        ] {
            assert_eq!(of_file(file), name, "{file}");
        }
        assert_eq!(of_file(&"x".repeat(200)).len(), NAME_CHARS_MAX);
        let names: Vec<String> = alternatives("pen").take(3).collect();
        assert_eq!(names, ["pen", "pen-2", "pen-3"]);
        assert_eq!(alternatives(&"x".repeat(100)).nth(1), Some(format!("{}-2", "x".repeat(95))));
    }
}
