//! The files of a crate, found as the compiler would find them.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::references::{References, is_test_only};

pub(crate) struct SourceFile {
    /// Below `src/`, without `.rs`: `engine/checkpoint/source`.
    pub(crate) name: String,
    /// From the crate's root; `["main"]` for the program.
    pub(crate) module: Vec<String>,
    pub(crate) text: String,
    pub(crate) syntax: syn::File,
    pub(crate) references: References,
}

impl SourceFile {
    pub(crate) fn parse(name: &str, module: Vec<String>, text: String) -> Self {
        let syntax = syn::parse_file(&text).unwrap_or_else(|error| panic!("src/{name}.rs: {error}"));
        let references = References::of(module.clone(), &syntax);
        Self { name: name.to_owned(), module, text, syntax, references }
    }
}

/// The files of a crate, from `lib.rs` and `main.rs` down.
#[derive(Default)]
pub(crate) struct Sources {
    pub(crate) files: Vec<SourceFile>,
    /// Files of test modules, which no rule applies to.
    test_only: BTreeSet<String>,
}

impl Sources {
    pub(crate) fn read(src: &Path) -> Self {
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

    /// The names of files below `src` that no `mod` leads to.
    pub(crate) fn lost(&self, src: &Path) -> Vec<String> {
        let known: BTreeSet<&str> = self.files.iter().map(|file| file.name.as_str()).collect();
        let mut names = names_below(src, "");
        names.retain(|name| !known.contains(name.as_str()) && !self.test_only.contains(name));
        names
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
