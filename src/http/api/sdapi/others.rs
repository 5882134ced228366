//! Fields of AUTOMATIC1111's API without a counterpart here. Clients send many of them with every request: those that change
//! nothing are ignored, those that would change the image are accepted only if they are off.

use serde_json::Value;
use utoipa::openapi::schema::{ObjectBuilder, SchemaType};

use crate::http::extract::json::{Fields, integer};
use crate::http::openapi::schema::ObjectSchema;

/// Fields of any value that change nothing here, and that clients send by themselves.
const WITHOUT_EFFECT: [&str; 47] = [
    "sampler_name",
    "sampler_index",
    "scheduler",
    "eta",
    "s_min_uncond",
    "s_churn",
    "s_tmax",
    "s_tmin",
    "s_noise",
    "subseed",
    "seed_resize_from_h",
    "seed_resize_from_w",
    "clip_skip",
    "image_cfg_scale",
    "do_not_save_samples",
    "do_not_save_grid",
    "save_images",
    "override_settings_restore_afterwards",
    "disable_extra_networks",
    "do_not_reload_embeddings",
    "comments",
    "force_task_id",
    "firstphase_width",
    "firstphase_height",
    "hr_scale",
    "hr_upscaler",
    "hr_second_pass_steps",
    "hr_resize_x",
    "hr_resize_y",
    "hr_checkpoint_name",
    "hr_additional_modules",
    "hr_sampler_name",
    "hr_scheduler",
    "hr_prompt",
    "hr_negative_prompt",
    "hr_cfg",
    "hr_distilled_cfg",
    "refiner_switch_at",
    "mask_blur",
    "mask_blur_x",
    "mask_blur_y",
    "mask_round",
    "inpainting_fill",
    "initial_noise_multiplier",
    "include_init_images",
    // SillyTavern's own fields: its server forwards them. The second contains the key.
    "url",
    "auth",
];

/// Fields that are accepted only if they ask for nothing: they would change the image, and do not here.
const OFF: [&str; 13] = [
    "enable_hr",
    "restore_faces",
    "tiling",
    "styles",
    "script_name",
    "script_args",
    "alwayson_scripts",
    "subseed_strength",
    "refiner_checkpoint",
    "resize_mode",
    "latent_mask",
    "firstpass_image",
    "infotext",
];

/// Settings that change nothing here, and that clients send by themselves.
pub(super) const SETTINGS_WITHOUT_EFFECT: [&str; 8] = [
    // In the options that clients get, change and send back.
    "sd_checkpoint_hash",
    "CLIP_stop_at_last_layers",
    "sd_vae",
    "forge_additional_modules",
    "forge_preset",
    "samples_format",
    "samples_save",
    "eta_noise_seed_delta",
];

const IGNORED: &str = "Accepted, and without effect.";
const REFUSED: &str = "Accepted only if it asks for nothing: false, 0, or empty.";

/// Reads the fields of both tables.
pub(super) fn read_others(fields: &mut Fields) {
    ignore(fields, &WITHOUT_EFFECT);
    for name in OFF {
        if fields.given(name).is_some_and(|value| !asks_for_nothing(&value)) {
            fields.refuse(name, "is not supported by this worker: leave it out");
        }
    }
}

fn asks_for_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(is_on) => !is_on,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty() || text == "None",
        Value::Array(items) => items.is_empty(),
        Value::Object(members) => members.is_empty(),
    }
}

/// Reads fields that have no effect.
pub(super) fn ignore(fields: &mut Fields, names: &[&str]) {
    for name in names {
        fields.given(name);
    }
}

/// Adds both tables to a schema.
pub(super) fn with_others(object: ObjectSchema) -> ObjectSchema {
    let object = WITHOUT_EFFECT.into_iter().fold(object, |object, name| object.optional(name, anything(IGNORED)));
    OFF.into_iter().fold(object, |object, name| object.optional(name, anything(REFUSED)))
}

/// A field of any type.
pub(super) fn anything(about: &str) -> ObjectBuilder {
    ObjectBuilder::new().schema_type(SchemaType::AnyValue).description(Some(about))
}

/// A switch, as a boolean or as 0 or 1.
pub(super) fn flag(fields: &mut Fields, field: &str) -> Option<bool> {
    match fields.given(field)? {
        Value::Null => None,
        Value::Bool(is_on) => Some(is_on),
        value => match integer(&value) {
            Some(0) => Some(false),
            Some(1) => Some(true),
            _ => {
                fields.refuse(field, "must be true or false");
                None
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_is_off_asks_for_nothing() {
        for value in [json!(null), json!(false), json!(0), json!(0.0), json!(""), json!("None"), json!([]), json!({})] {
            assert!(asks_for_nothing(&value), "{value}");
        }
        for value in [json!(true), json!(1), json!(-1), json!("x"), json!([0]), json!({ "a": {} })] {
            assert!(!asks_for_nothing(&value), "{value}");
        }
    }
}
