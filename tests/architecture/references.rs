//! Every path in a source file, and which items are test code.

use proc_macro2::{Span, TokenStream, TokenTree};
use syn::spanned::Spanned as _;
use syn::visit::{self, Visit};

/// A path as written, and its place.
#[derive(Debug, Clone)]
pub(crate) struct Reference {
    pub(crate) line: usize,
    /// Its module, from the crate's root.
    pub(crate) module: Vec<String>,
    /// At least one name. A glob ends in `*`.
    pub(crate) path: Vec<String>,
    pub(crate) kind: Kind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// In code, an attribute or a macro.
    Mention,
    /// In a `use`, with the local name (`*` for a glob).
    Use { name: String },
}

/// Collects all paths of imports, code, attributes and macros. Those of one name are kept apart: most are locals.
#[derive(Default)]
pub(crate) struct References {
    module: Vec<String>,
    /// Imports, and paths of two names or more.
    pub(crate) paths: Vec<Reference>,
    /// Paths of one name.
    pub(crate) names: Vec<Reference>,
}

impl References {
    pub(crate) fn of(module: Vec<String>, syntax: &syn::File) -> Self {
        let mut references = Self { module, ..Self::default() };
        references.visit_file(syntax);
        references
    }

    fn record(&mut self, path: Vec<String>, span: Span, kind: Kind) {
        let is_name = path.len() == 1 && kind == Kind::Mention;
        let reference = Reference { line: span.start().line, module: self.module.clone(), path, kind };
        if is_name { self.names.push(reference) } else { self.paths.push(reference) }
    }

    fn use_tree(&mut self, mut path: Vec<String>, tree: &syn::UseTree) {
        let name = match tree {
            syn::UseTree::Path(part) => {
                path.push(part.ident.to_string());
                return self.use_tree(path, &part.tree);
            }
            syn::UseTree::Group(group) => {
                return group.items.iter().for_each(|tree| self.use_tree(path.clone(), tree));
            }
            syn::UseTree::Name(syn::UseName { ident, .. }) => {
                // `use a::{self, b}` names `a`.
                if ident != "self" || path.is_empty() {
                    path.push(ident.to_string());
                }
                path[path.len() - 1].clone()
            }
            syn::UseTree::Rename(syn::UseRename { ident, rename, .. }) => {
                if ident != "self" || path.is_empty() {
                    path.push(ident.to_string());
                }
                rename.to_string()
            }
            syn::UseTree::Glob(_) => {
                path.push("*".to_owned());
                "*".to_owned()
            }
        };
        self.record(path, tree.span(), Kind::Use { name });
    }

    /// Macros and attributes are only tokens to the parser: looks for `name` and `name::name` in them.
    fn tokens(&mut self, tokens: TokenStream) {
        let trees: Vec<TokenTree> = tokens.into_iter().collect();
        let is =
            |at: usize, sign: char| matches!(trees.get(at), Some(TokenTree::Punct(mark)) if mark.as_char() == sign);
        let mut at = 0;
        while at < trees.len() {
            match &trees[at] {
                TokenTree::Ident(first) => {
                    let is_member = at > 0 && is(at - 1, '.');
                    let mut path = vec![first.to_string()];
                    while is(at + 1, ':') && is(at + 2, ':') {
                        let Some(TokenTree::Ident(next)) = trees.get(at + 3) else { break };
                        path.push(next.to_string());
                        at += 3;
                    }
                    if !is_member {
                        self.record(path, first.span(), Kind::Mention);
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
                        self.record(path, literal.span(), Kind::Mention);
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
        let name = item.ident.to_string();
        self.record(vec![name.clone()], item.ident.span(), Kind::Use { name });
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.use_tree(Vec::new(), &item.tree);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let names: Vec<String> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        self.record(names, path.span(), Kind::Mention);
        visit::visit_path(self, path);
    }

    fn visit_token_stream(&mut self, tokens: &'ast TokenStream) {
        self.tokens(tokens.clone());
    }
}

pub(crate) fn is_test_only(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| match &attribute.meta {
        syn::Meta::List(list) => {
            let condition = list.tokens.to_string();
            list.path.is_ident("cfg") && (condition == "test" || condition.starts_with("all (test"))
        }
        _ => false,
    })
}

pub(crate) fn item_attributes(item: &syn::Item) -> &[syn::Attribute] {
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
        // The rules apply, test or not.
        _ => &[],
    }
}

pub(crate) fn test_lines(items: &[syn::Item]) -> usize {
    let test_items = items.iter().filter(|item| is_test_only(item_attributes(item)));
    test_items.map(|item| item.span().end().line - item.span().start().line + 1).sum()
}
