//! `~` and `$VARIABLE` in paths. Shells expand them, but not between quotes or in the environment file of a service or
//! container; there Python's tools do it themselves, and a program that shares their folders has to do the same.

use std::ffi::OsString;
use std::path::PathBuf;

/// The environment.
pub(super) type Lookup<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// A variable that is not set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unset {
    /// Its name stays, as with Python's `expandvars`.
    Stays,
    /// It is an error: otherwise a folder of that name would be created.
    IsRefused,
}

/// Expands `~` and variables as Python's `os.path.expanduser` and `expandvars` do, in this order.
///
/// # Errors
/// A message, when a value is not known.
pub(super) fn expanded(path: PathBuf, lookup: Lookup<'_>, unset: Unset) -> Result<PathBuf, String> {
    // A path that is not UTF-8 is left as it is.
    let Some(text) = path.to_str() else { return Ok(path) };
    variables(&at_home(text, lookup)?, lookup, unset).map(PathBuf::from)
}

/// Replaces `~` at the beginning with the user's home folder.
pub(super) fn at_home(text: &str, lookup: Lookup<'_>) -> Result<String, String> {
    let Some(rest) = text.strip_prefix('~') else { return Ok(text.to_owned()) };
    if !rest.is_empty() && !rest.starts_with('/') {
        return Err(format!(
            "`{text}`: home folders of other users are not expanded: write the path out, or `./{text}`"
        ));
    }
    let home = lookup("HOME").and_then(|home| home.into_string().ok()).filter(|home| !home.is_empty());
    let Some(home) = home else {
        return Err(format!("`{text}`: the variable HOME is not set, so `~` is not known"));
    };
    let joined = format!("{}{rest}", home.trim_end_matches('/'));
    Ok(if joined.is_empty() { "/".to_owned() } else { joined })
}

/// Replaces `$NAME` and `${NAME}` with the variable's value, which is not expanded again.
fn variables(text: &str, lookup: Lookup<'_>, unset: Unset) -> Result<String, String> {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find('$') {
        let (before, from_here) = rest.split_at(start);
        result.push_str(before);
        let (name, length) = name_in(from_here);
        let (written, after) = from_here.split_at(length);
        let value = name.and_then(lookup).and_then(|value| value.into_string().ok());
        match (value, name) {
            (Some(value), _) => result.push_str(&value),
            (None, Some(name)) if unset == Unset::IsRefused => {
                return Err(format!("`{text}`: there is no variable {name}"));
            }
            (None, _) => result.push_str(written),
        }
        rest = after;
    }
    result.push_str(rest);
    Ok(result)
}

/// The variable's name in a text that begins with `$`, if any, and its length with `$` and braces.
fn name_in(text: &str) -> (Option<&str>, usize) {
    if let Some(braced) = text.strip_prefix("${") {
        return match braced.find('}') {
            Some(end) => (Some(&braced[..end]).filter(|name| !name.is_empty()), end + 3),
            None => (None, 2),
        };
    }
    let is_of_a_name = |character: char| character.is_ascii_alphanumeric() || character == '_';
    let end = text[1..].find(|character| !is_of_a_name(character)).map_or(text.len(), |end| end + 1);
    if end == 1 { (None, 1) } else { (Some(&text[1..end]), end) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lookup(name: &str) -> Option<OsString> {
        let value = match name {
            "HOME" => "/home/ann/",
            "A" => "/a",
            "_b2" => "two",
            "EMPTY" => "",
            "TILDE" => "~",
            "DOLLAR" => "$A",
            "a b" => "blank",
            _ => return None,
        };
        Some(value.into())
    }

    /// Recorded from Python 3.11: `os.path.expandvars(os.path.expanduser(text))`, with these variables.
    #[test]
    fn paths_are_expanded_as_python_does() {
        for (text, expected) in [
            ("", ""),
            ("~", "/home/ann"),
            ("~/", "/home/ann/"),
            ("~/x", "/home/ann/x"),
            ("/x/~", "/x/~"),
            ("./~/x", "./~/x"),
            ("$A", "/a"),
            ("$A/x", "/a/x"),
            ("${A}x", "/ax"),
            ("$Ax", "$Ax"),
            ("x$_b2-$_b2", "xtwo-two"),
            ("$EMPTY/x", "/x"),
            ("$NOT/x", "$NOT/x"),
            ("${NOT}/x", "${NOT}/x"),
            ("${A", "${A"),
            ("${a b}/x", "blank/x"),
            ("${}x", "${}x"),
            ("$/x", "$/x"),
            ("$$A", "$/a"),
            ("x$", "x$"),
            ("$TILDE/x", "~/x"),
            ("$DOLLAR/x", "$A/x"),
            ("$é$A", "$é/a"),
        ] {
            let found = expanded(PathBuf::from(text), &lookup, Unset::Stays);
            assert_eq!(found, Ok(PathBuf::from(expected)), "{text}");
        }
    }

    #[test]
    fn unknown_values_are_refused() {
        let refused = |text: &str, lookup: Lookup<'_>| {
            expanded(PathBuf::from(text), lookup, Unset::IsRefused).expect_err("unknown")
        };
        assert!(refused("~bob/x", &lookup).contains("./~bob/x"));
        assert!(refused("~/x", &|_| None).contains("HOME"));
        assert!(refused("/x/$NOT/y", &lookup).contains("no variable NOT"));
        assert!(refused("${NOT}", &lookup).contains("no variable NOT"));
        assert_eq!(expanded("$A/$".into(), &lookup, Unset::IsRefused), Ok("/a/$".into()));
    }
}
