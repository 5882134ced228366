//! The factors of low-rank changes. In the order of trust: a tensor `alpha`, what PEFT's metadata says, and 1. Other metadata,
//! such as kohya's `ss_network_alpha`, is no source: tools leave it as it was when they change the tensors.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, Visitor};

use super::fault::Fault;
use super::patterns::Pattern;
use crate::engine::checkpoint::{Component, TensorFile};

/// The key of PEFT's metadata: a text in JSON.
const KEY: &str = "lora_adapter_metadata";

/// Maximum patterns for alphas; a file has at most one for each module.
const PATTERNS_MAX: usize = 2048;

/// What PEFT's metadata says of factors, by component; where no component is named, of the transformer.
#[derive(Debug, Default)]
pub(super) struct Settings(BTreeMap<String, OfComponent>);

#[derive(Debug, Default)]
struct OfComponent {
    alpha: Option<f64>,
    /// Alphas of some modules. The first that fits counts.
    alphas: Vec<(Pattern, f64)>,
    /// Whether ranks count by their roots (rsLoRA).
    is_by_root: bool,
}

impl Settings {
    /// Reads the metadata of a file, if it has any.
    ///
    /// # Errors
    /// When it cannot be understood: without it the strength of the adapter would be wrong.
    pub(super) fn read(file: &TensorFile) -> Result<Self, Fault> {
        let Some(text) = file.text(KEY) else { return Ok(Self::default()) };
        serde_json::from_str(text).map_err(|error| Fault::Settings(error.to_string()))
    }

    /// The factor of a module by its name in the file, without prefixes. `None` where the metadata does not say it.
    pub(super) fn factor(&self, component: Component, name: &str, rank: usize) -> Option<f64> {
        let unnamed = self.0.get("").filter(|_| component == Component::Transformer);
        let of = self.0.get(component.folder()).or(unnamed)?;
        let own = of.alphas.iter().find(|(pattern, _)| pattern.fits(name)).map(|(_, alpha)| *alpha);
        let rank = rank as f64;
        Some(own.or(of.alpha)? / if of.is_by_root { rank.sqrt() } else { rank })
    }
}

impl<'de> Deserialize<'de> for Settings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(SettingsVisitor)
    }
}

struct SettingsVisitor;

impl<'de> Visitor<'de> for SettingsVisitor {
    type Value = Settings;

    fn expecting(&self, out: &mut fmt::Formatter) -> fmt::Result {
        out.write_str("an object with settings by name")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Settings, A::Error> {
        let mut settings = Settings::default();
        while let Some(key) = map.next_key::<String>()? {
            let (component, setting) = key.rsplit_once('.').unwrap_or(("", &key));
            let of = settings.0.entry(component.to_owned()).or_default();
            match setting {
                "lora_alpha" => of.alpha = map.next_value::<Option<f64>>()?,
                "use_rslora" => of.is_by_root = map.next_value::<Option<bool>>()?.unwrap_or(false),
                "alpha_pattern" => {
                    of.alphas = map.next_value::<Option<Alphas>>()?.map_or_else(Vec::new, |alphas| alphas.0);
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(settings)
    }
}

/// Alphas by patterns, in the order of the text.
struct Alphas(Vec<(Pattern, f64)>);

impl<'de> Deserialize<'de> for Alphas {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(AlphasVisitor)
    }
}

struct AlphasVisitor;

impl<'de> Visitor<'de> for AlphasVisitor {
    type Value = Alphas;

    fn expecting(&self, out: &mut fmt::Formatter) -> fmt::Result {
        out.write_str("an object with numbers by pattern")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Alphas, A::Error> {
        let mut alphas = Vec::new();
        while let Some((text, alpha)) = map.next_entry::<String, f64>()? {
            if alphas.len() == PATTERNS_MAX {
                return Err(A::Error::custom(format!("more than {PATTERNS_MAX} patterns")));
            }
            let pattern = Pattern::new(&text);
            let pattern = pattern.ok_or_else(|| {
                let text: String = text.chars().take(80).flat_map(char::escape_debug).collect();
                A::Error::custom(format!("the pattern `{text}` is not supported"))
            })?;
            alphas.push((pattern, alpha));
        }
        Ok(Alphas(alphas))
    }
}

/// Reads the alpha of a module: one number of any type.
///
/// # Errors
/// When it is something else, or no finite number.
pub(super) fn alpha(file: &TensorFile, tensor: &str) -> Result<f64, Fault> {
    let numbers = file.few_numbers(tensor, 1).map_err(Fault::Unreadable)?;
    let Some([alpha]) = numbers.as_deref() else {
        return Err(Fault::Alpha { tensor: tensor.to_owned(), found: file.shape(tensor).to_vec() });
    };
    if alpha.is_finite() {
        Ok(*alpha)
    } else {
        Err(Fault::NotFinite { tensor: tensor.to_owned(), value: alpha.to_string() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Component::{Clip, T5, Transformer};

    fn settings(text: &str) -> Result<Settings, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn the_first_pattern_that_fits_comes_before_the_alpha_of_all() {
        let text = r#"{"transformer.r": 4, "transformer.target_modules": ["to_q"], "transformer.init": null,
            "transformer.lora_alpha": 6, "transformer.alpha_pattern": {"z.to_q": 1, "to_q": 3, "a.to_q": 9},
            "text_encoder.lora_alpha": 5, "text_encoder.use_rslora": true}"#;
        let settings = settings(text).expect("settings");
        assert_eq!(settings.factor(Transformer, "z.to_q", 2), Some(0.5));
        assert_eq!(settings.factor(Transformer, "a.to_q", 2), Some(1.5));
        assert_eq!(settings.factor(Transformer, "a.to_k", 2), Some(3.0));
        assert_eq!(settings.factor(Clip, "a.to_q", 4), Some(2.5));
        assert_eq!(settings.factor(T5, "a.to_q", 4), None);
    }

    #[test]
    fn settings_without_a_component_are_the_transformers() {
        let settings = settings(r#"{"lora_alpha": 8, "use_rslora": null}"#).expect("settings");
        assert_eq!(settings.factor(Transformer, "to_q", 4), Some(2.0));
        assert_eq!(settings.factor(Clip, "to_q", 4), None);
    }

    #[test]
    fn what_cannot_be_understood_is_refused() {
        for (text, reason) in [
            ("{", "EOF"),
            ("[]", "an object with settings"),
            (r#"{"transformer.lora_alpha": "8"}"#, "expected f64"),
            (r#"{"transformer.alpha_pattern": {"(a|b)": 1}}"#, "the pattern `(a|b)` is not supported"),
        ] {
            let error = settings(text).expect_err(text);
            assert!(error.contains(reason), "{error}");
        }
    }
}
