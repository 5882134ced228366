//! What the operator charges for work.

use std::fmt::Display;
use std::str::FromStr;

use crate::config::ConfigError;
use crate::config::env::{self, Variable};
use crate::config::settings::{Layer, Origin, PriceSettings};
use crate::domain::money::{Currency, Price, Prices};

/// The prices of `layers` (later ones win); `None` without any.
pub(super) fn prices(layers: &[Layer]) -> Result<Option<Prices>, ConfigError> {
    let per_megapixel_step =
        parsed::<Price>(layers, &env::PRICES_PER_MEGAPIXEL_STEP, |prices| prices.per_megapixel_step.as_ref())?;
    let per_engine_second =
        parsed::<Price>(layers, &env::PRICES_PER_ENGINE_SECOND, |prices| prices.per_engine_second.as_ref())?;
    let currency = parsed::<Currency>(layers, &env::PRICES_CURRENCY, |prices| prices.currency.as_ref())?;
    let needs = |variable: &Variable| format!("needs `{}` or {}", variable.field, variable.name);
    let of = |price: Option<&(Price, &Origin)>| price.map_or_else(Price::default, |(price, _)| *price);
    match (per_megapixel_step.as_ref().or(per_engine_second.as_ref()), currency) {
        (None, None) => Ok(None),
        (Some(_), Some((currency, _))) => Ok(Some(Prices {
            per_megapixel_step: of(per_megapixel_step.as_ref()),
            per_engine_second: of(per_engine_second.as_ref()),
            currency,
        })),
        (Some((_, origin)), None) => {
            let variable = if per_megapixel_step.is_some() {
                &env::PRICES_PER_MEGAPIXEL_STEP
            } else {
                &env::PRICES_PER_ENGINE_SECOND
            };
            Err(origin.error(variable, needs(&env::PRICES_CURRENCY)))
        }
        (None, Some((_, origin))) => {
            let reason = format!("{}, or the price per engine second", needs(&env::PRICES_PER_MEGAPIXEL_STEP));
            Err(origin.error(&env::PRICES_CURRENCY, reason))
        }
    }
}

/// The value of the last layer that has one, and the layer's origin.
fn parsed<'a, T: FromStr<Err: Display>>(
    layers: &'a [Layer],
    variable: &Variable,
    get: impl Fn(&'a PriceSettings) -> Option<&'a String>,
) -> Result<Option<(T, &'a Origin)>, ConfigError> {
    let text = layers.iter().rev().find_map(|layer| Some((get(&layer.settings.prices)?, &layer.origin)));
    let Some((text, origin)) = text else { return Ok(None) };
    let value = text.parse::<T>().map_err(|error| origin.error(variable, format!("`{text}` {error}")))?;
    Ok(Some((value, origin)))
}
