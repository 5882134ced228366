//! What a key may do. Always explicit: no omission means "everything".

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde_json::{Map, Value, json};

use crate::domain::ids::NamespaceId;

/// Maximum namespaces of one key; a key for more needs `all_namespaces`.
pub const NAMESPACE_IDS_MAX: usize = 100;

/// Something that a key can be allowed to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Product {
    /// The image routes.
    Inference,
    /// The Kubernetes credential route, in one namespace.
    KubernetesExec(NamespaceId),
}

/// What a key may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// Everything a key can be allowed.
    All,
    /// The image routes only.
    Inference,
    /// kubectl, in every namespace.
    KubernetesAll,
    /// kubectl, in these namespaces: at least one, without duplicates.
    KubernetesNamespaces(Vec<NamespaceId>),
}

/// A rule that a scope breaks. The text is for the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScopeError {
    /// Not a JSON object.
    #[error("a scope must be an object, for example {{\"inference\": true}}")]
    NotAnObject,
    /// `{}`.
    #[error("an empty scope allows nothing: give one of `all`, `inference` and `kubernetes_exec`")]
    Empty,
    /// `all` beside another field.
    #[error("`all` must stand alone, since it includes everything else")]
    AllNotAlone,
    /// `inference` beside `kubernetes_exec`.
    #[error("`inference` and `kubernetes_exec` cannot be in one scope: make a key for each")]
    TwoProducts,
    /// `false`, or any other value where only `true` has a meaning.
    #[error("`{0}` must be true where it is given: leave it out to withhold it")]
    NotTrue(&'static str),
    /// `kubernetes_exec` is not an object.
    #[error("`kubernetes_exec` must be an object with `all_namespaces` or `namespace_ids`")]
    KubernetesNotAnObject,
    /// `kubernetes_exec: {}`.
    #[error("an empty `kubernetes_exec` allows nothing: give `all_namespaces` or `namespace_ids`")]
    KubernetesEmpty,
    /// `all_namespaces` beside `namespace_ids`.
    #[error("`all_namespaces` and `namespace_ids` exclude each other")]
    AllNamespacesWithIds,
    /// `namespace_ids` is not a list.
    #[error("`namespace_ids` must be a list of namespace ids")]
    NamespacesNotAList,
    /// `namespace_ids: []`.
    #[error("an empty `namespace_ids` allows nothing: name at least one namespace, or give `all_namespaces`")]
    NamespacesEmpty,
    /// More than [`NAMESPACE_IDS_MAX`].
    #[error("`namespace_ids` must hold at most {NAMESPACE_IDS_MAX} ids, not {0}")]
    NamespacesTooMany(usize),
    /// An entry of `namespace_ids` that is not an id.
    #[error("`namespace_ids` holds something that is not a namespace id, at position {0}")]
    NamespaceMalformed(usize),
    /// One namespace twice.
    #[error("`namespace_ids` names {0} more than once")]
    NamespaceTwice(NamespaceId),
    /// A field that no scope has.
    #[error("a scope has no field `{0}`")]
    UnknownField(String),
    /// A word of the command line that is not a scope.
    #[error("not a scope: use `all`, `inference`, `kubernetes-exec:all` or `kubernetes-exec:ID,ID`")]
    UnknownWord,
}

impl Scope {
    /// Whether the scope allows `product`.
    #[must_use]
    pub fn permits(&self, product: Product) -> bool {
        match (self, product) {
            (Self::All, _)
            | (Self::Inference, Product::Inference)
            | (Self::KubernetesAll, Product::KubernetesExec(_)) => true,
            (Self::KubernetesNamespaces(ids), Product::KubernetesExec(id)) => ids.contains(&id),
            (Self::Inference, Product::KubernetesExec(_))
            | (Self::KubernetesAll | Self::KubernetesNamespaces(_), Product::Inference) => false,
        }
    }

    /// Reads the wire form: `{"all": true}`, `{"inference": true}`, `{"kubernetes_exec": {"all_namespaces": true}}` or
    /// `{"kubernetes_exec": {"namespace_ids": ["…"]}}`. Nothing else is a scope.
    ///
    /// Does not check that the namespaces exist.
    ///
    /// # Errors
    /// The first rule that `value` breaks.
    pub fn from_json(value: &Value) -> Result<Self, ScopeError> {
        let fields = value.as_object().ok_or(ScopeError::NotAnObject)?;
        refuse_unknown_fields(fields, &["all", "inference", "kubernetes_exec"])?;
        if fields.is_empty() {
            return Err(ScopeError::Empty);
        }
        let all = only_true(fields, "all")?;
        let inference = only_true(fields, "inference")?;
        if all {
            return if fields.len() == 1 { Ok(Self::All) } else { Err(ScopeError::AllNotAlone) };
        }
        match (inference, fields.get("kubernetes_exec")) {
            (true, Some(_)) => Err(ScopeError::TwoProducts),
            (_, Some(kubernetes)) => Self::kubernetes_from_json(kubernetes),
            (_, None) => Ok(Self::Inference),
        }
    }

    fn kubernetes_from_json(value: &Value) -> Result<Self, ScopeError> {
        let fields = value.as_object().ok_or(ScopeError::KubernetesNotAnObject)?;
        refuse_unknown_fields(fields, &["all_namespaces", "namespace_ids"])?;
        let all = only_true(fields, "all_namespaces")?;
        match (all, fields.get("namespace_ids")) {
            (true, Some(_)) => Err(ScopeError::AllNamespacesWithIds),
            (true, None) => Ok(Self::KubernetesAll),
            (false, None) => Err(ScopeError::KubernetesEmpty),
            (false, Some(ids)) => {
                let ids = ids.as_array().ok_or(ScopeError::NamespacesNotAList)?;
                Self::of_namespaces(ids.iter().map(|id| id.as_str().unwrap_or_default()))
            }
        }
    }

    fn of_namespaces<'a>(texts: impl ExactSizeIterator<Item = &'a str>) -> Result<Self, ScopeError> {
        match texts.len() {
            0 => return Err(ScopeError::NamespacesEmpty),
            count if count > NAMESPACE_IDS_MAX => return Err(ScopeError::NamespacesTooMany(count)),
            _ => {}
        }
        let mut seen = BTreeSet::new();
        let mut ids = Vec::with_capacity(texts.len());
        for (index, text) in texts.enumerate() {
            let id: NamespaceId = text.parse().map_err(|_| ScopeError::NamespaceMalformed(index))?;
            // Parsed ids are compared, so that two spellings of one id count as the same.
            if !seen.insert(id) {
                return Err(ScopeError::NamespaceTwice(id));
            }
            ids.push(id);
        }
        Ok(Self::KubernetesNamespaces(ids))
    }

    /// The wire form; [`Scope::from_json`] reads it back.
    #[must_use]
    pub fn to_json(&self) -> Value {
        match self {
            Self::All => json!({"all": true}),
            Self::Inference => json!({"inference": true}),
            Self::KubernetesAll => json!({"kubernetes_exec": {"all_namespaces": true}}),
            Self::KubernetesNamespaces(ids) => json!({"kubernetes_exec": {"namespace_ids": ids}}),
        }
    }
}

fn refuse_unknown_fields(fields: &Map<String, Value>, known: &[&str]) -> Result<(), ScopeError> {
    match fields.keys().find(|name| !known.contains(&name.as_str())) {
        Some(unknown) => Err(ScopeError::UnknownField(unknown.clone())),
        None => Ok(()),
    }
}

/// Whether `name` is given. `false` is refused: it would suggest that a scope allows more than it lists.
fn only_true(fields: &Map<String, Value>, name: &'static str) -> Result<bool, ScopeError> {
    match fields.get(name) {
        None => Ok(false),
        Some(Value::Bool(true)) => Ok(true),
        Some(_) => Err(ScopeError::NotTrue(name)),
    }
}

/// The command line's form; [`Scope::from_str`] reads it back.
impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Inference => f.write_str("inference"),
            Self::KubernetesAll => f.write_str("kubernetes-exec:all"),
            Self::KubernetesNamespaces(ids) => {
                let ids: Vec<String> = ids.iter().map(NamespaceId::to_string).collect();
                write!(f, "kubernetes-exec:{}", ids.join(","))
            }
        }
    }
}

impl FromStr for Scope {
    type Err = ScopeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "all" => Ok(Self::All),
            "inference" => Ok(Self::Inference),
            "kubernetes-exec:all" => Ok(Self::KubernetesAll),
            "kubernetes-exec:" => Err(ScopeError::NamespacesEmpty),
            _ => {
                let list = text.strip_prefix("kubernetes-exec:").ok_or(ScopeError::UnknownWord)?;
                let ids: Vec<&str> = list.split(',').collect();
                Self::of_namespaces(ids.into_iter())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: &str = "018f3c1e-9d5b-7a2c-8e4f-6a1b2c3d4e5f";
    const SECOND: &str = "018f3c1e-9d5b-7a2c-8e4f-6a1b2c3d4e60";

    fn id(text: &str) -> NamespaceId {
        text.parse().expect("a namespace id")
    }

    fn every_scope() -> [(Scope, Value, String); 4] {
        [
            (Scope::All, json!({"all": true}), "all".into()),
            (Scope::Inference, json!({"inference": true}), "inference".into()),
            (Scope::KubernetesAll, json!({"kubernetes_exec": {"all_namespaces": true}}), "kubernetes-exec:all".into()),
            (
                Scope::KubernetesNamespaces(vec![id(FIRST), id(SECOND)]),
                json!({"kubernetes_exec": {"namespace_ids": [FIRST, SECOND]}}),
                format!("kubernetes-exec:{FIRST},{SECOND}"),
            ),
        ]
    }

    #[test]
    fn each_scope_has_one_form_on_the_wire_and_one_on_the_command_line() {
        for (scope, wire, word) in every_scope() {
            assert_eq!(Scope::from_json(&wire), Ok(scope.clone()));
            assert_eq!(scope.to_json(), wire);
            assert_eq!(word.parse(), Ok(scope.clone()));
            assert_eq!(scope.to_string(), word);
        }
    }

    #[test]
    fn each_error_names_its_rule() {
        let too_many = vec![FIRST; NAMESPACE_IDS_MAX + 1];
        let exec = |value: Value| json!({"kubernetes_exec": value});
        let cases = [
            (json!({}), ScopeError::Empty),
            (json!(null), ScopeError::NotAnObject),
            (json!("all"), ScopeError::NotAnObject),
            (json!([]), ScopeError::NotAnObject),
            (json!({"inference": true, "kubernetes_exec": {"all_namespaces": true}}), ScopeError::TwoProducts),
            (json!({"all": true, "inference": true}), ScopeError::AllNotAlone),
            (json!({"all": true, "kubernetes_exec": {"all_namespaces": true}}), ScopeError::AllNotAlone),
            (json!({"all": false}), ScopeError::NotTrue("all")),
            (json!({"all": null}), ScopeError::NotTrue("all")),
            (json!({"inference": false}), ScopeError::NotTrue("inference")),
            (json!({"inference": "true"}), ScopeError::NotTrue("inference")),
            (json!({"all": true, "inference": false}), ScopeError::NotTrue("inference")),
            (exec(json!({})), ScopeError::KubernetesEmpty),
            (exec(json!(true)), ScopeError::KubernetesNotAnObject),
            (exec(json!({"namespace_ids": []})), ScopeError::NamespacesEmpty),
            (exec(json!({"namespace_ids": FIRST})), ScopeError::NamespacesNotAList),
            (exec(json!({"namespace_ids": null})), ScopeError::NamespacesNotAList),
            (exec(json!({"namespace_ids": ["default"]})), ScopeError::NamespaceMalformed(0)),
            (exec(json!({"namespace_ids": [FIRST, 7]})), ScopeError::NamespaceMalformed(1)),
            (exec(json!({"namespace_ids": [FIRST, FIRST]})), ScopeError::NamespaceTwice(id(FIRST))),
            (exec(json!({"namespace_ids": [FIRST, FIRST.to_uppercase()]})), ScopeError::NamespaceTwice(id(FIRST))),
            (exec(json!({"namespace_ids": too_many})), ScopeError::NamespacesTooMany(NAMESPACE_IDS_MAX + 1)),
            (exec(json!({"all_namespaces": true, "namespace_ids": [FIRST]})), ScopeError::AllNamespacesWithIds),
            (exec(json!({"all_namespaces": true, "namespace_ids": []})), ScopeError::AllNamespacesWithIds),
            (exec(json!({"all_namespaces": false})), ScopeError::NotTrue("all_namespaces")),
            (exec(json!({"all_namespaces": false, "namespace_ids": [FIRST]})), ScopeError::NotTrue("all_namespaces")),
            (exec(json!({"all_namespaces": true, "verbs": ["get"]})), ScopeError::UnknownField("verbs".into())),
            (json!({"admin": true}), ScopeError::UnknownField("admin".into())),
            (json!({"All": true}), ScopeError::UnknownField("All".into())),
        ];
        for (value, rule) in cases {
            assert_eq!(Scope::from_json(&value), Err(rule), "{value}");
        }
    }

    #[test]
    fn other_words_are_not_scopes() {
        let twice = format!("kubernetes-exec:{FIRST},{FIRST}");
        let cases = [
            ("", ScopeError::UnknownWord),
            ("everything", ScopeError::UnknownWord),
            ("All", ScopeError::UnknownWord),
            ("kubernetes-exec", ScopeError::UnknownWord),
            ("kubernetes-exec:", ScopeError::NamespacesEmpty),
            ("kubernetes-exec:default", ScopeError::NamespaceMalformed(0)),
            (&format!("kubernetes-exec:{FIRST},"), ScopeError::NamespaceMalformed(1)),
            (&twice, ScopeError::NamespaceTwice(id(FIRST))),
        ];
        for (word, rule) in cases {
            assert_eq!(word.parse::<Scope>(), Err(rule), "{word:?}");
        }
    }

    #[test]
    fn a_scope_permits_what_it_names_and_nothing_else() {
        let products = [Product::Inference, Product::KubernetesExec(id(FIRST)), Product::KubernetesExec(id(SECOND))];
        let cases = [
            (Scope::All, [true, true, true]),
            (Scope::Inference, [true, false, false]),
            (Scope::KubernetesAll, [false, true, true]),
            (Scope::KubernetesNamespaces(vec![id(FIRST)]), [false, true, false]),
        ];
        for (scope, expected) in cases {
            assert_eq!(products.map(|product| scope.permits(product)), expected, "{scope}");
        }
    }
}
