//! Checks ARCHITECTURE.md's rules for modules: allowed imports, homes of outside crates, import cycles, sizes of files. Reads
//! the sources as the compiler does, from `lib.rs` and `main.rs` down. Test code is exempt.

mod cycles;
mod examples;
mod references;
mod rules;
mod sources;
mod tables;

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use crate::cycles::Graph;
use crate::sources::Sources;
use crate::tables::{ALLOWED_CYCLES, HOMES, KEPT_OUT, MODULES};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn every_file_keeps_the_rules() {
    let src = root().join("src");
    let violations = rules::violations(&Sources::read(&src), &src);
    assert!(violations.is_empty(), "\n{}\n", violations.join("\n"));
}

#[test]
fn files_import_each_other_only_where_that_is_allowed() {
    let graph = Graph::of(&Sources::read(&root().join("src")));
    let cycles = graph.cycles();
    let mut wrong = Vec::new();
    for cycle in cycles.iter().filter(|cycle| ALLOWED_CYCLES.iter().all(|(files, _)| files != cycle)) {
        wrong.push(format!("an import cycle: {}\n  {}", cycle.join(", "), graph.imports_within(cycle).join("\n  ")));
    }
    for (files, _) in ALLOWED_CYCLES.iter().filter(|(files, _)| !cycles.iter().any(|cycle| files == cycle)) {
        wrong.push(format!("allowed, but no longer an import cycle: {}", files.join(", ")));
    }
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

/// A closure cannot be told to become part of its caller. Where it does not, it is compiled for any processor, and called with its vectors
/// in memory: that made products by AVX2 five times slower.
#[test]
fn code_for_a_vector_unit_has_no_closures() {
    let tile = fs::read_to_string(root().join("src/engine/ops/gemm/tile.rs")).expect("the tile of products");
    assert!(tile.contains("#[target_feature("), "the code for vector units is elsewhere");
    // Alternatives of a pattern have spaces around what separates them.
    let with_closure: Vec<&str> = tile.lines().filter(|line| line.replace(" | ", " ").contains('|')).collect();
    assert!(with_closure.is_empty(), "{with_closure:#?}");
}

#[test]
fn no_two_modules_may_import_each_other() {
    let mut settled: BTreeSet<&str> = BTreeSet::new();
    for (name, allowed) in MODULES {
        for target in *allowed {
            assert!(settled.contains(target), "`{name}` may import `{target}`, which does not stand above it");
        }
        settled.insert(name);
    }
}

/// The cells of the rows of the table that follows `heading`; of each cell the words in backticks.
fn document_table(heading: &str) -> Vec<Vec<Vec<String>>> {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md");
    let (_, section) = text.split_once(heading).unwrap_or_else(|| panic!("ARCHITECTURE.md has no `{heading}`"));
    let rows = section.lines().skip_while(|line| !line.starts_with("|---")).skip(1);
    let words = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect();
    rows.take_while(|line| line.starts_with('|'))
        .map(|line| line.trim_matches('|').split('|').map(words).collect())
        .collect()
}

#[test]
fn the_document_has_the_same_tables() {
    let owned = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
    let modules = document_table("## Who may import whom");
    assert_eq!(modules.len(), MODULES.len());
    for (row, (name, allowed)) in modules.iter().zip(MODULES) {
        assert_eq!((&row[0], &row[1]), (&owned(&[name]), &owned(allowed)));
    }
    let crates = document_table("## Where outside crates live");
    assert_eq!(crates.len(), HOMES.len() + KEPT_OUT.len());
    for (row, (names, places)) in crates.iter().zip(HOMES.iter().chain(KEPT_OUT)) {
        assert_eq!((&row[0], &row[1]), (&owned(names), &owned(places)));
    }
}
