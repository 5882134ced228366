//! Schedules that this engine does not follow: fields of a scheduler's configuration that change the image.

use serde_json::{Map, Value};

/// The only scheduler of FLUX.1's pipelines.
const CLASS: &str = "FlowMatchEulerDiscreteScheduler";

/// Fields that must be absent or false.
const SWITCHES: [&str; 5] =
    ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "invert_sigmas", "stochastic_sampling"];

/// What a configuration asks for that is not supported, each in words.
pub(super) fn unsupported(text: &str) -> Vec<String> {
    // Another text than JSON is a problem of its own.
    let fields: Map<String, Value> = serde_json::from_str(text).unwrap_or_default();
    let mut reasons = Vec::new();
    let mut refuse = |field: &str, value: &Value, rule: &str| {
        reasons.push(format!("{field} is {value}, which is not supported: it must be {rule}"));
    };
    for (field, value) in &fields {
        match (field.as_str(), value) {
            (_, Value::Null) => {}
            ("_class_name", value) if value != CLASS => refuse(field, value, CLASS),
            (switch, value) if SWITCHES.contains(&switch) && *value != Value::Bool(false) => {
                refuse(field, value, "false");
            }
            ("shift_terminal", value) => refuse(field, value, "null"),
            ("time_shift_type", value) if value != "exponential" => refuse(field, value, "\"exponential\""),
            _ => {}
        }
    }
    reasons
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_that_change_the_image_are_refused_by_name() {
        for (field, value) in [
            ("use_karras_sigmas", "true"),
            ("use_exponential_sigmas", "true"),
            ("use_beta_sigmas", "true"),
            ("invert_sigmas", "true"),
            ("stochastic_sampling", "true"),
            ("shift_terminal", "0.02"),
            ("time_shift_type", "\"linear\""),
            ("_class_name", "\"DDIMScheduler\""),
        ] {
            let reasons = unsupported(&format!("{{\"shift\": 3.0, \"{field}\": {value}}}"));
            assert!(
                matches!(&reasons[..], [reason] if reason.starts_with(&format!("{field} is {value}"))),
                "{reasons:?}"
            );
        }
    }

    #[test]
    fn what_diffusers_writes_for_flux_is_supported() {
        let text = r#"{"_class_name": "FlowMatchEulerDiscreteScheduler", "_diffusers_version": "0.35.0", "shift": 3.0,
            "use_karras_sigmas": false, "use_exponential_sigmas": false, "use_beta_sigmas": false, "invert_sigmas": false,
            "stochastic_sampling": false, "shift_terminal": null, "time_shift_type": "exponential",
            "use_dynamic_shifting": true}"#;
        assert_eq!(unsupported(text), [""; 0]);
    }
}
