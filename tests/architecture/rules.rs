//! The rules for one file: who may import whom, where outside crates live, how long a file may be.

use std::path::Path;

use crate::references::test_lines;
use crate::sources::{SourceFile, Sources};
use crate::tables::{HOMES, KEPT_OUT, LINES_LIMIT, MODULES};

/// All violations of the rules, one line each.
pub(crate) fn violations(sources: &Sources, src: &Path) -> Vec<String> {
    let mut found: Vec<String> = sources.files.iter().flat_map(file_violations).collect();
    found.extend(sources.lost(src).iter().map(|name| format!("src/{name}.rs: belongs to no module")));
    found
}

pub(crate) fn file_violations(file: &SourceFile) -> Vec<String> {
    let mut found = Vec::new();
    let lines = file.text.lines().count() - test_lines(&file.syntax.items);
    if lines >= LINES_LIMIT {
        found.push(format!("src/{}.rs: {lines} lines, {LINES_LIMIT} are too many", file.name));
    }
    if !file.syntax.attrs.iter().any(|attribute| attribute.path().is_ident("doc")) && file.name != "lib" {
        found.push(format!("src/{}.rs: no `//!` that says what the module owns", file.name));
    }
    for reference in &file.references.paths {
        let refusal = match absolute(&reference.module, &reference.path) {
            // `use crate::*` or `use crate as other` would hide what follows.
            Some(path) => refuse_ours(&file.module, path.first().map_or("the whole crate", String::as_str)),
            None => refuse_outside(&file.name, &reference.path[0]),
        };
        found.extend(refusal.map(|reason| format!("src/{}.rs:{}: {reason}", file.name, reference.line)));
    }
    found.dedup();
    found
}

/// The path from the crate's root. `None` if it begins with an outside crate or a local name.
pub(crate) fn absolute(module: &[String], path: &[String]) -> Option<Vec<String>> {
    let mut absolute = match path[0].as_str() {
        "crate" | "fluxserve" => Vec::new(),
        "self" | "super" => module.to_vec(),
        _ => return None,
    };
    for (at, name) in path.iter().enumerate() {
        match name.as_str() {
            "self" => {}
            "super" => drop(absolute.pop()),
            "crate" | "fluxserve" if at == 0 => {}
            _ => absolute.push(name.clone()),
        }
    }
    Some(absolute)
}

fn refuse_ours(module: &[String], target: &str) -> Option<String> {
    // lib.rs imports nothing, and an inline module there would have no row of its own.
    let from = module.first().map_or("lib", String::as_str);
    let row = MODULES.iter().find(|(name, _)| *name == from);
    match row {
        None => Some(format!("`{from}` has no row in the table of modules")),
        Some((_, allowed)) if from == target || allowed.contains(&target) => None,
        Some(_) => Some(format!("`{from}` must not import `{target}`")),
    }
}

fn refuse_outside(file: &str, target: &str) -> Option<String> {
    for (crates, homes) in HOMES {
        if crates.iter().any(|name| matches(name, target)) && !homes.iter().any(|home| is_home(home, file)) {
            return Some(format!("`{target}` may be named in {} only", homes.join(" and ")));
        }
    }
    for (crates, modules) in KEPT_OUT {
        if crates.iter().any(|name| matches(name, target)) && modules.iter().any(|module| is_home(module, file)) {
            return Some(format!("`{target}` must not be named in {}", modules.join(" and ")));
        }
    }
    None
}

fn is_home(home: &str, file: &str) -> bool {
    matches(home, file) || matches(&format!("{home}/*"), file)
}

/// Whether `text` fits `pattern`, where `*` stands for any characters.
fn matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((start, rest)) => text
            .strip_prefix(start)
            .is_some_and(|tail| (0..=tail.len()).filter_map(|at| tail.get(at..)).any(|end| matches(rest, end))),
    }
}
