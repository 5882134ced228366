//! Tests of the rules on small examples.

use std::fs;

use tempfile::TempDir;

use crate::cycles::Graph;
use crate::rules;
use crate::sources::{SourceFile, Sources};
use crate::tables::LINES_LIMIT;

/// Violations of a file with one line below its `//!`.
fn verdict(name: &str, code: &str) -> Vec<String> {
    let module = if name == "lib" { Vec::new() } else { name.split('/').map(str::to_owned).collect() };
    rules::file_violations(&SourceFile::parse(name, module, format!("//! Owns an example.\n{code}\n")))
}

#[test]
fn a_forbidden_import_is_found_however_it_is_written() {
    for code in [
        "use crate::http;",
        "use crate::http::error::ApiError;",
        "use crate::{domain::ids::JobId, http::{self, error}};",
        "pub use crate::http as web;",
        "use super::http::router;",
        "mod inner { use super::super::http; }",
        "fn f() { crate::http::router(); }",
        "fn f(router: &crate::http::Router) {}",
        "fn f<T: Into<crate::http::Router>>() {}",
        "fn f() { println!(\"{}\", crate::http::NAME); }",
        "macro_rules! route { () => { $crate::http::router() }; }",
        "#[derive(crate::http::Answer)] struct S;",
        "#[serde(with = \"crate::http::text\")] struct S;",
        "impl crate::http::Answer for u8 {}",
    ] {
        assert_eq!(verdict("queue", code), ["src/queue.rs:2: `queue` must not import `http`"], "{code}");
    }
    assert_eq!(verdict("queue/entry", "use super::super::http;").len(), 1);
    assert_eq!(verdict("main", "use fluxserve::http;"), ["src/main.rs:2: `main` must not import `http`"]);
    assert_eq!(verdict("queue", "use crate::*;"), ["src/queue.rs:2: `queue` must not import `*`"]);
    assert_eq!(verdict("queue", "use crate as all;"), ["src/queue.rs:2: `queue` must not import `the whole crate`"]);
    assert_eq!(verdict("attic", "use crate::http;"), ["src/attic.rs:2: `attic` has no row in the table of modules"]);
}

#[test]
fn an_outside_crate_beyond_its_home_is_found() {
    for (name, code) in [
        ("queue", "use candle_core::Tensor;"),
        ("auth", "use axum::Router;"),
        ("auth", "extern crate axum;"),
        ("jobs", "fn f() -> Result<(), ::sqlx::Error> { Ok(()) }"),
        ("auth/service", "#[derive(sqlx::FromRow)] struct Row;"),
        ("auth/service", "use argon2::Argon2;"),
        ("engine/checkpoint/files", "use memmap2::Mmap;"),
        ("engine", "use tokio::sync::mpsc;"),
        ("domain/clock", "use tokio::time;"),
    ] {
        let found = verdict(name, code);
        assert_eq!(found.len(), 1, "{name}: {code}: {found:?}");
    }
}

#[test]
fn allowed_imports_pass() {
    for (name, code) in [
        ("queue", "use crate::domain::engine::StepEngine; use super::telemetry; use self::entry::Entry;"),
        ("queue/entry", "use super::*; use super::super::domain; pub(crate) struct S;"),
        ("auth/store", "use sqlx::SqlitePool;"),
        ("jobs/store_tests", "use sqlx::SqlitePool;"),
        ("engine/ops", "use candle_core::Tensor;"),
        ("http/api/jobs", "use axum::Router; use tower_http::limit;"),
        ("main", "use fluxserve::cli; use clap::Parser as _;"),
        ("queue", "#[cfg(test)] mod tests { use crate::http; use axum::Router; }"),
        ("queue", "#[cfg(test)] use crate::http;"),
    ] {
        let found = verdict(name, code);
        assert!(found.is_empty(), "{name}: {code}: {found:?}");
    }
}

#[test]
fn a_file_that_is_too_long_undocumented_or_unused_is_found() {
    let long = "const ONE: u8 = 1;\n".repeat(LINES_LIMIT - 2);
    assert_eq!(verdict("queue", &long), ["src/queue.rs: 400 lines, 400 are too many"]);
    assert!(verdict("queue", &format!("#[cfg(test)]\nmod tests {{\n{long}}}")).is_empty());

    let folder = folder_of(&[
        ("lib.rs", "mod queue;"),
        ("main.rs", "//! The program."),
        ("queue.rs", "#[cfg(test)] mod tests;"),
        ("queue/tests.rs", "use crate::http;"),
        ("queue/lost.rs", ""),
    ]);
    let found = rules::violations(&Sources::read(folder.path()), folder.path());
    let expected = ["src/queue.rs: no `//!` that says what the module owns", "src/queue/lost.rs: belongs to no module"];
    assert_eq!(found, expected);
}

fn folder_of(files: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, text) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(path, text).expect("a file");
    }
    folder
}

/// The import cycles between files `a.rs`, `b.rs` and so on; their children are `a/x.rs`, `b/x.rs`.
fn cycles(files: &[(&str, &str)]) -> Vec<Vec<String>> {
    let lib = ("lib.rs", "mod a; mod b; mod c;");
    let mut all = vec![lib, ("main.rs", ""), ("a.rs", ""), ("b.rs", ""), ("c.rs", "")];
    all.extend(files);
    let folder = folder_of(&all);
    let graph = Graph::of(&Sources::read(folder.path()));
    graph.cycles().into_iter().map(|files| files.into_iter().map(str::to_owned).collect()).collect()
}

#[test]
fn files_that_import_each_other_are_found_however_it_is_written() {
    for (a, b) in [
        ("use crate::b::B; pub struct A;", "use crate::a::A; pub struct B;"),
        ("use super::b::B; pub struct A;", "pub struct B(super::a::A);"),
        ("use crate::b::*; pub struct A;", "use crate::a::A as Other; pub struct B;"),
        ("use crate::b; pub struct A(b::B);", "use crate::{a::{self, A}}; pub struct B;"),
        ("pub fn f() { println!(\"{}\", crate::b::B); }", "pub const B: u8 = 0; fn g() { crate::a::f() }"),
        ("pub use crate::b::B; pub struct A;", "pub use crate::a::A; pub struct B;"),
        ("mod inner { use crate::b::B; pub struct A; } pub use inner::A;", "use crate::a::A; pub struct B;"),
        ("made!(A); use crate::b::B;", "made!(B); use crate::a::A;"),
    ] {
        assert_eq!(cycles(&[("a.rs", a), ("b.rs", b)]), [["a", "b"]], "{a} {b}");
    }
    let three = [
        ("a.rs", "use crate::b::B; pub struct A;"),
        ("b.rs", "use crate::c::C; pub struct B;"),
        ("c.rs", "use crate::a::A; pub struct C;"),
    ];
    assert_eq!(cycles(&three), [["a", "b", "c"]]);
}

#[test]
fn an_import_through_a_parents_reexport_counts_as_one_from_the_sibling() {
    for (parent, x, y) in [
        ("pub use x::X; pub use y::Y;", "use super::Y; pub struct X;", "use crate::a::X; pub struct Y;"),
        ("pub use x::*; use y::Y;", "pub struct X(super::Y);", "use super::*; pub struct Y(X);"),
        ("pub use x::X;", "use super::y; pub struct X(y::Y);", "pub struct Y; fn f(x: crate::a::X) {}"),
    ] {
        let parent = format!("mod x; mod y; {parent}");
        assert_eq!(cycles(&[("a.rs", &parent), ("a/x.rs", x), ("a/y.rs", y)]), [["a/x", "a/y"]], "{parent} {x} {y}");
    }
}

#[test]
fn a_parent_and_its_children_are_no_import_cycle() {
    for (parent, child) in [
        ("mod x; use x::X; pub struct A;", "pub struct X;"),
        ("mod x; pub use x::X; pub struct A;", "use super::A; pub struct X;"),
        ("mod x; pub use x::*; pub struct A;", "use super::A; pub struct X;"),
        ("mod x; use x::X; pub struct A(X);", "use super::A; pub struct X;"),
        ("mod x; pub use x::X; pub use crate::b::B;", "use super::B; pub struct X;"),
        (
            "mod x; use x::X; #[cfg(test)] mod tests { use super::*; }",
            "#[cfg(all(test, unix))] use super::X as Y; pub struct X;",
        ),
    ] {
        let found = cycles(&[("a.rs", parent), ("a/x.rs", child), ("b.rs", "pub struct B;")]);
        assert!(found.is_empty(), "{parent} {child}: {found:?}");
    }
}
