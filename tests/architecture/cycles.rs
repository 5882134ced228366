//! Import cycles between files. ARCHITECTURE.md says under "Circles" what counts as an import.

use std::collections::{BTreeMap, BTreeSet};

use proc_macro2::{TokenStream, TokenTree};

use crate::references::{Kind, Reference};
use crate::rules::absolute;
use crate::sources::Sources;

/// Longest chain of re-exports that is followed; a longer one is circular.
const REEXPORTS_MAX: usize = 16;

/// The names in a module.
#[derive(Default)]
struct Module {
    /// Its file, as an index into the sources.
    file: usize,
    /// Items that it defines.
    items: BTreeSet<String>,
    /// Items that it imports: the path by the local name.
    imports: BTreeMap<String, Vec<String>>,
    /// What it imports with `*`.
    globs: Vec<Vec<String>>,
}

/// What a path resolves to.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Target {
    Module(Vec<String>),
    /// An item of the module of this file.
    Item(usize),
}

/// The imports between the files of a crate.
pub(crate) struct Graph {
    names: Vec<String>,
    modules: BTreeMap<Vec<String>, Module>,
    /// By importing and imported file: the line of the first mention.
    edges: BTreeMap<usize, BTreeMap<usize, usize>>,
}

impl Graph {
    pub(crate) fn of(sources: &Sources) -> Self {
        let names = sources.files.iter().map(|file| file.name.clone()).collect();
        let mut graph = Self { names, modules: BTreeMap::new(), edges: BTreeMap::new() };
        for (at, file) in sources.files.iter().enumerate() {
            graph.add_module(at, &file.module, &file.syntax.items);
            for reference in &file.references.paths {
                graph.add_import(reference);
            }
        }
        for (at, file) in sources.files.iter().enumerate() {
            for reference in file.references.paths.iter().chain(&file.references.names) {
                graph.add_edge(at, reference);
            }
        }
        graph
    }

    fn add_module(&mut self, file: usize, module: &[String], items: &[syn::Item]) {
        self.modules.entry(module.to_vec()).or_default().file = file;
        for item in items {
            if let syn::Item::Mod(syn::ItemMod { ident, content: Some((_, items)), .. }) = item {
                self.add_module(file, &[module, &[ident.to_string()]].concat(), items);
            }
            self.modules.entry(module.to_vec()).or_default().items.extend(item_names(item));
        }
    }

    fn add_import(&mut self, reference: &Reference) {
        let Kind::Use { name } = &reference.kind else { return };
        let Some(module) = self.modules.get_mut(&reference.module) else { return };
        match reference.path.split_last() {
            Some((_, path)) if name == "*" => module.globs.push(path.to_vec()),
            _ => drop(module.imports.insert(name.clone(), reference.path.clone())),
        }
    }

    fn add_edge(&mut self, from: usize, reference: &Reference) {
        let is_glob = reference.path.last().is_some_and(|name| name == "*");
        let path = &reference.path[..reference.path.len() - usize::from(is_glob)];
        let file_of = |module: &Vec<String>| self.modules.get(module).map(|module| module.file);
        let to = match self.resolve(&reference.module, path, 0) {
            // Naming a module alone does not use it; its items are named elsewhere in the file.
            Some(Target::Module(target)) => file_of(&target).filter(|_| is_glob),
            Some(Target::Item(file)) => Some(file),
            None => None,
        };
        if let Some(to) = to.filter(|to| *to != from && !self.are_nested(from, *to)) {
            self.edges.entry(from).or_default().entry(to).or_insert(reference.line);
        }
    }

    /// Whether one of the files is in the folder of the other: `queue` and `queue/worker`.
    fn are_nested(&self, a: usize, b: usize) -> bool {
        let is_in = |inner: usize, outer: usize| {
            let rest = self.names[inner].strip_prefix(&self.names[outer]);
            rest.is_some_and(|rest| rest.starts_with('/'))
        };
        is_in(a, b) || is_in(b, a)
    }

    /// Resolves `path` inside `module`. `None` for a name outside this crate.
    fn resolve(&self, module: &[String], path: &[String], depth: usize) -> Option<Target> {
        if depth > REEXPORTS_MAX {
            return None;
        }
        let (mut at, path) = match absolute(module, path.get(..1)?) {
            Some(_) => (Vec::new(), absolute(module, path)?),
            None => (module.to_vec(), path.to_vec()),
        };
        for (index, name) in path.iter().enumerate() {
            let here = self.modules.get(&at)?;
            let child = [at.as_slice(), std::slice::from_ref(name)].concat();
            if self.modules.contains_key(&child) {
                at = child;
                continue;
            }
            if here.items.contains(name) {
                return Some(Target::Item(here.file));
            }
            let rest = &path[index + 1..];
            if let Some(import) = here.imports.get(name) {
                return self.resolve(&at, &[import, rest].concat(), depth + 1);
            }
            let mut globs = here.globs.iter().filter(|glob| !glob.is_empty());
            return globs.find_map(|glob| self.resolve_glob(&at, glob, &path[index..], depth + 1));
        }
        Some(Target::Module(at))
    }

    fn resolve_glob(&self, module: &[String], glob: &[String], path: &[String], depth: usize) -> Option<Target> {
        match self.resolve(module, glob, depth)? {
            Target::Module(target) => self.resolve(&target, &[&["self".to_owned()], path].concat(), depth),
            // `use Kind::*`
            Target::Item(_) => None,
        }
    }

    /// The groups of files that import each other, directly or through others, each sorted by name.
    pub(crate) fn cycles(&self) -> Vec<Vec<&str>> {
        let reached: Vec<BTreeSet<usize>> = (0..self.names.len()).map(|from| self.reached_from(from)).collect();
        let mut cycles: Vec<Vec<&str>> = Vec::new();
        for from in 0..self.names.len() {
            let group = reached[from].iter().filter(|to| reached[**to].contains(&from));
            let mut names: Vec<&str> = group.map(|file| self.names[*file].as_str()).collect();
            names.sort_unstable();
            if !names.is_empty() && !cycles.contains(&names) {
                cycles.push(names);
            }
        }
        cycles.sort();
        cycles
    }

    fn reached_from(&self, from: usize) -> BTreeSet<usize> {
        let mut reached = BTreeSet::new();
        let mut next = vec![from];
        while let Some(file) = next.pop() {
            let targets = self.edges.get(&file).into_iter().flat_map(BTreeMap::keys);
            next.extend(targets.filter(|target| reached.insert(**target)));
        }
        reached
    }

    /// The imports between the files of a cycle, one line each.
    pub(crate) fn imports_within(&self, cycle: &[&str]) -> Vec<String> {
        let is_in = |file: usize| cycle.contains(&self.names[file].as_str());
        let mut lines = Vec::new();
        for (from, targets) in self.edges.iter().filter(|(from, _)| is_in(**from)) {
            for (to, line) in targets.iter().filter(|(to, _)| is_in(**to)) {
                lines.push(format!("src/{}.rs:{line}: imports from src/{}.rs", self.names[*from], self.names[*to]));
            }
        }
        lines
    }
}

fn item_names(item: &syn::Item) -> Vec<String> {
    let ident = match item {
        syn::Item::Const(item) => &item.ident,
        syn::Item::Enum(item) => &item.ident,
        syn::Item::Fn(item) => &item.sig.ident,
        syn::Item::Macro(syn::ItemMacro { ident: Some(ident), .. }) => ident,
        // An item made by a macro has one of the names in its arguments.
        syn::Item::Macro(item) => return identifiers(&item.mac.tokens),
        syn::Item::Static(item) => &item.ident,
        syn::Item::Struct(item) => &item.ident,
        syn::Item::Trait(item) => &item.ident,
        syn::Item::Type(item) => &item.ident,
        syn::Item::Union(item) => &item.ident,
        _ => return Vec::new(),
    };
    vec![ident.to_string()]
}

fn identifiers(tokens: &TokenStream) -> Vec<String> {
    let is_identifier = |tree: TokenTree| match tree {
        TokenTree::Ident(ident) => Some(ident.to_string()),
        _ => None,
    };
    tokens.clone().into_iter().filter_map(is_identifier).collect()
}
