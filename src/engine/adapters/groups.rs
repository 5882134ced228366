//! The tensors of a file by the modules that they are about, and those that are about none.

use std::collections::BTreeMap;
use std::fmt;

use super::fault::Fault;
use super::keys::{self, NotUsed, Role};
use crate::engine::checkpoint::{AdaptedModules, NamedPlace, TensorFile, shown};

/// Maximum names that are listed for a reason.
const LISTED_MAX: usize = 8;

/// The tensors of one name of a module.
#[derive(Debug)]
pub(super) struct Group<'a> {
    /// The module's name in the file.
    pub(super) path: &'a str,
    pub(super) found: NamedPlace<'a>,
    /// Names of tensors, by what each is.
    pub(super) tensors: BTreeMap<Role, &'a str>,
}

/// Tensors that are not used for one reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnusedTensors {
    /// The reason.
    pub reason: NotUsed,
    /// How many.
    pub count: usize,
    /// The names of the first of them, fit for a terminal.
    pub first: Vec<String>,
}

impl fmt::Display for UnusedTensors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { reason, count, first } = self;
        let rest = count - first.len();
        let more = if rest > 0 { format!(", and {rest} more") } else { String::new() };
        write!(f, "{reason}: `{}`{more}", first.join("`, `"))
    }
}

/// Collects tensors that are not used.
#[derive(Debug, Default)]
pub(super) struct Unused(BTreeMap<NotUsed, UnusedTensors>);

impl Unused {
    pub(super) fn add(&mut self, reason: NotUsed, name: &str) {
        let of = self.0.entry(reason).or_insert_with(|| UnusedTensors { reason, count: 0, first: Vec::new() });
        of.count += 1;
        if of.first.len() < LISTED_MAX {
            of.first.push(shown(name));
        }
    }

    pub(super) fn into_list(self) -> Vec<UnusedTensors> {
        self.0.into_values().collect()
    }
}

/// Groups the tensors of a file.
pub(super) fn groups<'a>(
    file: &'a TensorFile,
    modules: &'a AdaptedModules,
    unused: &mut Unused,
    faults: &mut Vec<Fault>,
) -> Vec<Group<'a>> {
    let mut groups: BTreeMap<&str, Group> = BTreeMap::new();
    for name in file.names() {
        let key = match keys::read(modules, name) {
            Ok(key) => key,
            Err(reason) => {
                unused.add(reason, name);
                continue;
            }
        };
        let group = groups.entry(key.path).or_insert_with(|| Group {
            path: key.path,
            found: key.found,
            tensors: BTreeMap::new(),
        });
        if let Some(other) = group.tensors.insert(key.role, name) {
            let module = group.found.module.name.clone();
            faults.push(Fault::Twice { module, first: other.to_owned(), second: name.to_owned() });
        }
    }
    groups.into_values().collect()
}
