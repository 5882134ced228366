//! Holds what ARCHITECTURE.md says about the modules: who may import whom, where outside crates live, how long a file
//! may be. It reads the sources as the compiler would, from `lib.rs` and `main.rs` down. Test code may do as it likes.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{Span, TokenStream, TokenTree};
use syn::spanned::Spanned as _;
use syn::visit::{self, Visit};

/// A module and the modules it may import. ARCHITECTURE.md has the same table, for people.
const MODULES: &[(&str, &[&str])] = &[
    ("domain", &[]),
    ("telemetry", &[]),
    ("store", &[]),
    ("config", &["domain"]),
    ("catalog", &["domain"]),
    ("hub", &["domain"]),
    ("encode", &["domain"]),
    ("decode", &["domain"]),
    ("engine", &["domain", "telemetry"]),
    ("queue", &["domain", "telemetry"]),
    ("auth", &["domain", "store", "telemetry"]),
    ("kubernetes", &["domain", "store", "telemetry"]),
    ("jobs", &["catalog", "decode", "domain", "encode", "queue", "store", "telemetry"]),
    ("http", &["auth", "catalog", "decode", "domain", "jobs", "kubernetes", "telemetry"]),
    ("shutdown", &["auth", "config", "domain", "queue", "store", "telemetry"]),
    (
        "app",
        &[
            "auth",
            "catalog",
            "config",
            "decode",
            "domain",
            "encode",
            "engine",
            "http",
            "hub",
            "jobs",
            "kubernetes",
            "queue",
            "shutdown",
            "store",
            "telemetry",
        ],
    ),
    ("cli", &["app", "auth", "config", "domain", "queue", "shutdown", "store", "telemetry"]),
    ("main", &["app", "auth", "cli", "config", "domain", "queue", "shutdown", "store", "telemetry"]),
];

/// Outside crates and the only files that may name them. `*` stands for anything, also within a name; a folder's name
/// stands for all that is in it.
const HOMES: &[(&[&str], &[&str])] = &[
    (&["axum", "axum_*", "hyper", "hyper_*", "tower", "tower_*", "utoipa", "utoipa_*"], &["http"]),
    (&["candle_*", "cudarc", "half"], &["engine"]),
    (&["gemm"], &["engine/ops/gemm"]),
    (&["pulp"], &["engine/ops/vector"]),
    (&["rand_mt"], &["engine/noise"]),
    (&["safetensors"], &["engine/checkpoint/formats", "engine/stages"]),
    (&["tokenizers"], &["engine/models/flux1/text/tokens"]),
    (&["libc"], &["app/heap"]),
    (&["memmap2"], &["store/changes"]),
    (&["rustix"], &["app/open_files", "config/own_file"]),
    (&["reqwest"], &["hub"]),
    (&["rustls_platform_verifier"], &["hub/client"]),
    (&["sha1", "sha2"], &["hub/checksum"]),
    (&["fs4"], &["hub/download", "jobs/results"]),
    (&["tokio_rustls"], &["http/server/tls", "hub/client"]),
    (
        &["opentelemetry", "opentelemetry_*", "rustls", "rustls_native_certs", "tracing_opentelemetry", "ureq"],
        &["telemetry/otlp"],
    ),
    (&["argon2"], &["auth/hash"]),
    (
        &["base64"],
        &[
            "http/api/events",
            "http/api/input_images",
            "http/api/openai/images",
            "kubernetes/cluster",
            "kubernetes/manifest",
            "kubernetes/token",
        ],
    ),
    (&["k8s_openapi", "kube"], &["kubernetes/cluster"]),
    (&["exif"], &["encode"]),
    (&["ipnet"], &["domain/networks"]),
    (&["image"], &["decode", "encode"]),
    (&["sqlx"], &["store", "*/store*"]),
    (&["clap", "console"], &["cli", "main"]),
    (&["metrics_exporter_prometheus"], &["telemetry"]),
];

/// Outside crates and the modules that must do without them.
const KEPT_OUT: &[(&[&str], &[&str])] = &[(&["tokio", "tokio_*"], &["domain", "engine"])];

/// A file of this many lines is too long. Test code does not count.
const LINES_LIMIT: usize = 400;

struct SourceFile {
    /// Below `src/`, without `.rs`: `engine/checkpoint/source`.
    name: String,
    /// From the crate's root; `["main"]` for the program.
    module: Vec<String>,
    text: String,
    syntax: syn::File,
}

impl SourceFile {
    fn parse(name: &str, module: Vec<String>, text: String) -> Self {
        let syntax = syn::parse_file(&text).unwrap_or_else(|error| panic!("src/{name}.rs: {error}"));
        Self { name: name.to_owned(), module, text, syntax }
    }

    fn violations(&self) -> Vec<String> {
        let mut found = Vec::new();
        let lines = self.text.lines().count() - test_lines(&self.syntax.items);
        if lines >= LINES_LIMIT {
            found.push(format!("src/{}.rs: {lines} lines, {LINES_LIMIT} are too many", self.name));
        }
        if !self.syntax.attrs.iter().any(|attribute| attribute.path().is_ident("doc")) && self.name != "lib" {
            found.push(format!("src/{}.rs: no `//!` that says what the module owns", self.name));
        }
        let mut references = References { module: self.module.clone(), found: Vec::new() };
        references.visit_file(&self.syntax);
        for (line, reference) in references.found {
            let refusal = match &reference {
                Reference::Ours(target) => refuse_ours(&self.module, target),
                Reference::Outside(target) => refuse_outside(&self.name, target),
            };
            found.extend(refusal.map(|reason| format!("src/{}.rs:{line}: {reason}", self.name)));
        }
        found.dedup();
        found
    }
}

fn refuse_ours(module: &[String], target: &str) -> Option<String> {
    // The list of modules in lib.rs imports nothing, and an inline module there would have no name to be judged by.
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

#[derive(Debug, PartialEq, Eq)]
enum Reference {
    /// One of our modules, by its first name.
    Ours(String),
    /// What may be an outside crate, or any other name that is in reach.
    Outside(String),
}

/// Collects the first names of all paths, wherever they stand: imports, code, attributes, macros.
struct References {
    module: Vec<String>,
    found: Vec<(usize, Reference)>,
}

impl References {
    fn record(&mut self, path: &[String], span: Span) {
        let mut absolute = match path[0].as_str() {
            "crate" | "fluxserve" => Vec::new(),
            "self" | "super" => self.module.clone(),
            outside => {
                self.found.push((span.start().line, Reference::Outside(outside.to_owned())));
                return;
            }
        };
        for (at, name) in path.iter().enumerate() {
            match name.as_str() {
                "self" => {}
                "super" => drop(absolute.pop()),
                "crate" | "fluxserve" if at == 0 => {}
                _ => absolute.push(name.clone()),
            }
        }
        // `use crate::*` or `use crate as other` would hide what follows.
        let target = absolute.into_iter().next().unwrap_or_else(|| "the whole crate".to_owned());
        self.found.push((span.start().line, Reference::Ours(target)));
    }

    fn use_tree(&mut self, mut path: Vec<String>, tree: &syn::UseTree) {
        match tree {
            syn::UseTree::Path(part) => {
                path.push(part.ident.to_string());
                self.use_tree(path, &part.tree);
            }
            syn::UseTree::Group(group) => group.items.iter().for_each(|tree| self.use_tree(path.clone(), tree)),
            syn::UseTree::Name(syn::UseName { ident, .. }) | syn::UseTree::Rename(syn::UseRename { ident, .. }) => {
                path.push(ident.to_string());
                self.record(&path, tree.span());
            }
            syn::UseTree::Glob(_) => {
                path.push("*".to_owned());
                self.record(&path, tree.span());
            }
        }
    }

    /// Macros and attributes are only tokens to the parser: looks for `name::name` in them.
    fn tokens(&mut self, tokens: TokenStream) {
        let trees: Vec<TokenTree> = tokens.into_iter().collect();
        let is_colon = |at: usize| matches!(trees.get(at), Some(TokenTree::Punct(mark)) if mark.as_char() == ':');
        let mut at = 0;
        while at < trees.len() {
            match &trees[at] {
                TokenTree::Ident(first) => {
                    let mut path = vec![first.to_string()];
                    while is_colon(at + 1) && is_colon(at + 2) {
                        let Some(TokenTree::Ident(next)) = trees.get(at + 3) else { break };
                        path.push(next.to_string());
                        at += 3;
                    }
                    if path.len() > 1 {
                        self.record(&path, first.span());
                    }
                }
                TokenTree::Group(group) => self.tokens(group.stream()),
                // `#[serde(with = "time::serde::rfc3339")]`
                TokenTree::Literal(literal) => {
                    let text = literal.to_string();
                    let path: Vec<String> = text.trim_matches('"').split("::").map(str::to_owned).collect();
                    let is_name =
                        |name: &String| !name.is_empty() && name.chars().all(|c| c == '_' || c.is_alphanumeric());
                    if path.len() > 1 && path.iter().all(is_name) {
                        self.record(&path, literal.span());
                    }
                }
                TokenTree::Punct(_) => {}
            }
            at += 1;
        }
    }
}

impl<'ast> Visit<'ast> for References {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        if !is_test_only(item_attributes(item)) {
            visit::visit_item(self, item);
        }
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        if !is_test_only(&function.attrs) {
            visit::visit_impl_item_fn(self, function);
        }
    }

    fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
        self.module.push(module.ident.to_string());
        visit::visit_item_mod(self, module);
        self.module.pop();
    }

    fn visit_item_extern_crate(&mut self, item: &'ast syn::ItemExternCrate) {
        self.record(&[item.ident.to_string()], item.ident.span());
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.use_tree(Vec::new(), &item.tree);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        if path.segments.len() > 1 {
            let names: Vec<String> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
            self.record(&names, path.span());
        }
        visit::visit_path(self, path);
    }

    fn visit_token_stream(&mut self, tokens: &'ast TokenStream) {
        self.tokens(tokens.clone());
    }
}

fn is_test_only(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| match &attribute.meta {
        syn::Meta::List(list) => list.path.is_ident("cfg") && list.tokens.to_string() == "test",
        _ => false,
    })
}

fn item_attributes(item: &syn::Item) -> &[syn::Attribute] {
    match item {
        syn::Item::Const(item) => &item.attrs,
        syn::Item::Enum(item) => &item.attrs,
        syn::Item::ExternCrate(item) => &item.attrs,
        syn::Item::Fn(item) => &item.attrs,
        syn::Item::Impl(item) => &item.attrs,
        syn::Item::Macro(item) => &item.attrs,
        syn::Item::Mod(item) => &item.attrs,
        syn::Item::Static(item) => &item.attrs,
        syn::Item::Struct(item) => &item.attrs,
        syn::Item::Trait(item) => &item.attrs,
        syn::Item::Type(item) => &item.attrs,
        syn::Item::Use(item) => &item.attrs,
        // Held to the rules, test or not.
        _ => &[],
    }
}

fn test_lines(items: &[syn::Item]) -> usize {
    let test_items = items.iter().filter(|item| is_test_only(item_attributes(item)));
    test_items.map(|item| item.span().end().line - item.span().start().line + 1).sum()
}

/// The files of a crate, found from `lib.rs` and `main.rs` down.
#[derive(Default)]
struct Sources {
    files: Vec<SourceFile>,
    /// Files of test modules, which need not be read.
    test_only: BTreeSet<String>,
}

impl Sources {
    fn read(src: &Path) -> Self {
        let mut sources = Self::default();
        sources.add(src, "lib", Vec::new(), false);
        sources.add(src, "main", vec!["main".to_owned()], false);
        sources
    }

    fn add(&mut self, src: &Path, name: &str, module: Vec<String>, test_only: bool) {
        let path = src.join(name).with_extension("rs");
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let file = SourceFile::parse(name, module, text);
        self.add_children(src, &file.module, &file.syntax.items, test_only);
        if test_only {
            self.test_only.insert(file.name);
        } else {
            self.files.push(file);
        }
    }

    fn add_children(&mut self, src: &Path, module: &[String], items: &[syn::Item], test_only: bool) {
        for item in items {
            let syn::Item::Mod(child) = item else { continue };
            let test_only = test_only || is_test_only(&child.attrs);
            let module = [module, &[child.ident.to_string()]].concat();
            match &child.content {
                Some((_, items)) => self.add_children(src, &module, items, test_only),
                None => self.add(src, &module.join("/"), module.clone(), test_only),
            }
        }
    }

    fn violations(&self, src: &Path) -> Vec<String> {
        let mut found: Vec<String> = self.files.iter().flat_map(SourceFile::violations).collect();
        let known: BTreeSet<&str> = self.files.iter().map(|file| file.name.as_str()).collect();
        for name in names_below(src, "") {
            if !known.contains(name.as_str()) && !self.test_only.contains(&name) {
                found.push(format!("src/{name}.rs: belongs to no module"));
            }
        }
        found
    }
}

fn names_below(src: &Path, folder: &str) -> Vec<String> {
    let mut names = Vec::new();
    for entry in fs::read_dir(src.join(folder)).expect("a folder of sources") {
        let path = entry.expect("a readable folder").path();
        let stem = path.file_stem().expect("a name").to_str().expect("a name in UTF-8");
        let name = if folder.is_empty() { stem.to_owned() } else { format!("{folder}/{stem}") };
        if path.is_dir() {
            names.extend(names_below(src, &name));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            names.push(name);
        }
    }
    names
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn every_file_keeps_the_rules() {
    let src = root().join("src");
    let violations = Sources::read(&src).violations(&src);
    assert!(violations.is_empty(), "\n{}\n", violations.join("\n"));
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

/// What the rules say about a file of one line (below its `//!`).
fn verdict(name: &str, code: &str) -> Vec<String> {
    let module = if name == "lib" { Vec::new() } else { name.split('/').map(str::to_owned).collect() };
    SourceFile::parse(name, module, format!("//! Owns an example.\n{code}\n")).violations()
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
    assert_eq!(verdict("queue/line", "use super::super::http;").len(), 1);
    assert_eq!(verdict("main", "use fluxserve::http;"), ["src/main.rs:2: `main` must not import `http`"]);
    assert_eq!(verdict("queue", "use crate::*;"), ["src/queue.rs:2: `queue` must not import `*`"]);
    assert_eq!(verdict("queue", "use crate as all;"), ["src/queue.rs:2: `queue` must not import `the whole crate`"]);
    assert_eq!(verdict("attic", "use crate::http;"), ["src/attic.rs:2: `attic` has no row in the table of modules"]);
}

#[test]
fn an_outside_crate_away_from_home_is_found() {
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
fn what_the_rules_allow_passes() {
    for (name, code) in [
        ("queue", "use crate::domain::engine::StepEngine; use super::telemetry; use self::line::Line;"),
        ("queue/line", "use super::*; use super::super::domain; pub(crate) struct S;"),
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
fn a_file_that_is_too_long_says_nothing_or_hangs_loose_is_found() {
    let long = "const ONE: u8 = 1;\n".repeat(LINES_LIMIT - 2);
    assert_eq!(verdict("queue", &long), ["src/queue.rs: 400 lines, 400 are too many"]);
    assert!(verdict("queue", &format!("#[cfg(test)]\nmod tests {{\n{long}}}")).is_empty());

    let folder = tempfile::tempdir().expect("a folder");
    fs::create_dir(folder.path().join("queue")).expect("a folder");
    for (name, text) in [
        ("lib.rs", "mod queue;"),
        ("main.rs", "//! The program."),
        ("queue.rs", "#[cfg(test)] mod tests;"),
        ("queue/tests.rs", "use crate::http;"),
        ("queue/lost.rs", ""),
    ] {
        fs::write(folder.path().join(name), text).expect("a file");
    }
    let found = Sources::read(folder.path()).violations(folder.path());
    let expected = ["src/queue.rs: no `//!` that says what the module owns", "src/queue/lost.rs: belongs to no module"];
    assert_eq!(found, expected);
}
