//! Money and prices: whole numbers of a small unit, never floating point, so that sums are exact.

use std::fmt;
use std::str::FromStr;

use crate::domain::usage::Work;

/// Decimals of an amount.
const MONEY_PLACES: u32 = 6;
/// Decimals of a price: a megapixel-step may cost very little.
const PRICE_PLACES: u32 = 12;
/// Largest amount, in whole units of the currency.
pub(crate) const MONEY_MAX: u64 = 1_000_000_000_000;
/// Largest price, in whole units of the currency.
const PRICE_MAX: u64 = 1_000_000;
/// How many of a cost's smallest units make a millionth: pixel-steps and microseconds are millionths, a price has twelve
/// decimals, and an amount has six.
const COST_UNITS_PER_MICRO: u128 = 1_000_000_000_000;

/// An amount of money, in millionths of the currency's unit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Money(u64);

impl Money {
    /// An amount of so many millionths.
    #[must_use]
    pub fn of_micros(micros: u64) -> Self {
        Self(micros)
    }

    /// Its millionths.
    #[must_use]
    pub fn micros(self) -> u64 {
        self.0
    }
}

/// As in `12.340000`: always six decimals, so that columns line up.
impl fmt::Display for Money {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&text_of(self.0, MONEY_PLACES))
    }
}

/// A text that is no amount of money.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be an amount like 25 or 25.50, at most {MONEY_MAX}, with at most {MONEY_PLACES} decimals")]
pub struct InvalidMoney;

impl FromStr for Money {
    type Err = InvalidMoney;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        scaled(text, MONEY_PLACES, MONEY_MAX).map(Self).ok_or(InvalidMoney)
    }
}

/// A price for one of something, exact to twelve decimals.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Price(u64);

/// Without trailing zeros.
impl fmt::Display for Price {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(text_of(self.0, PRICE_PLACES).trim_end_matches('0').trim_end_matches('.'))
    }
}

/// A text that is no price.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be a number like 0.0004, at most {PRICE_MAX}, with at most {PRICE_PLACES} decimals")]
pub struct InvalidPrice;

impl FromStr for Price {
    type Err = InvalidPrice;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        scaled(text, PRICE_PLACES, PRICE_MAX).map(Self).ok_or(InvalidPrice)
    }
}

/// A currency, by its three letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Currency([u8; 3]);

impl fmt::Display for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(std::str::from_utf8(&self.0).unwrap_or_default())
    }
}

/// A text that is no currency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be three capital letters, like EUR")]
pub struct InvalidCurrency;

impl FromStr for Currency {
    type Err = InvalidCurrency;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let letters = <[u8; 3]>::try_from(text.as_bytes()).map_err(|_| InvalidCurrency)?;
        if letters.iter().all(u8::is_ascii_uppercase) { Ok(Self(letters)) } else { Err(InvalidCurrency) }
    }
}

/// What the operator charges for work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prices {
    /// For each megapixel-step.
    pub per_megapixel_step: Price,
    /// For each second of engine time.
    pub per_engine_second: Price,
    /// The currency of both.
    pub currency: Currency,
}

impl Prices {
    /// The cost of some work, exact, and rounded once: to the nearest millionth, a half of one up.
    #[must_use]
    pub fn cost(&self, work: &Work) -> Money {
        let steps = u128::from(work.pixel_steps) * u128::from(self.per_megapixel_step.0);
        let time = work.engine_time.as_micros().saturating_mul(u128::from(self.per_engine_second.0));
        let rounded = steps.saturating_add(time).saturating_add(COST_UNITS_PER_MICRO / 2) / COST_UNITS_PER_MICRO;
        Money(u64::try_from(rounded).unwrap_or(u64::MAX))
    }
}

/// A decimal number as a whole number of its last place.
fn scaled(text: &str, places: u32, max: u64) -> Option<u64> {
    let (whole, fraction) = match text.split_once('.') {
        Some((_, "")) => return None,
        Some(parts) => parts,
        None => (text, ""),
    };
    let are_digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !are_digits(whole) || !are_digits(fraction) || fraction.len() > places as usize {
        return None;
    }
    let unit = 10_u64.pow(places);
    let places_after = places - fraction.len() as u32;
    let fraction: u64 = if fraction.is_empty() { 0 } else { fraction.parse().ok()? };
    let value = whole.parse::<u64>().ok()?.checked_mul(unit)?.checked_add(fraction * 10_u64.pow(places_after))?;
    (value <= max * unit).then_some(value)
}

/// The inverse of [`scaled`], with all places.
fn text_of(value: u64, places: u32) -> String {
    let unit = 10_u64.pow(places);
    format!("{}.{:0width$}", value / unit, value % unit, width = places as usize)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn amounts_are_read_and_written_without_loss() {
        for (text, micros, written) in [
            ("0", 0, "0.000000"),
            ("25", 25_000_000, "25.000000"),
            ("0.000001", 1, "0.000001"),
            ("7.5", 7_500_000, "7.500000"),
        ] {
            assert_eq!(text.parse(), Ok(Money(micros)), "{text}");
            assert_eq!(Money(micros).to_string(), written);
        }
        assert_eq!("1000000000000".parse(), Ok(Money(1_000_000_000_000_000_000)));
        for text in ["", ".", ".5", "5.", "-1", "+1", "1e3", "1,5", " 1", "0.0000001", "1000000000000.000001", "١"] {
            assert_eq!(text.parse::<Money>(), Err(InvalidMoney), "{text:?}");
        }
        let price: Price = "0.000000000001".parse().expect("a price");
        assert_eq!((price.0, price.to_string()), (1, "0.000000000001".to_owned()));
        assert_eq!("20.50".parse::<Price>().expect("a price").to_string(), "20.5");
        assert_eq!("100".parse::<Price>().expect("a price").to_string(), "100");
        assert_eq!("1000001".parse::<Price>(), Err(InvalidPrice));
        assert_eq!("EUR".parse::<Currency>().expect("a currency").to_string(), "EUR");
        for text in ["eur", "EURO", "E1R", ""] {
            assert_eq!(text.parse::<Currency>(), Err(InvalidCurrency), "{text}");
        }
    }

    #[test]
    fn a_cost_is_exact_and_rounded_once() {
        let prices = |step: &str, second: &str| Prices {
            per_megapixel_step: step.parse().expect("a price"),
            per_engine_second: second.parse().expect("a price"),
            currency: "EUR".parse().expect("a currency"),
        };
        let work = |pixel_steps, micros| Work { images: 1, pixel_steps, engine_time: Duration::from_micros(micros) };
        // 36 megapixel-steps and two seconds.
        assert_eq!(prices("0.01", "0.1").cost(&work(36_000_000, 2_000_000)).to_string(), "0.560000");
        assert_eq!(prices("0.01", "0").cost(&work(1, 999)).to_string(), "0.000000");
        // Half a millionth is rounded up, less is rounded down; two halves of different kinds are one whole.
        assert_eq!(prices("0.5", "0").cost(&work(1, 0)), Money(1));
        assert_eq!(prices("0.499999999999", "0").cost(&work(1, 0)), Money(0));
        assert_eq!(prices("0.5", "0.5").cost(&work(1, 1)), Money(1));
        let most = work(i64::MAX as u64, i64::MAX as u64);
        assert_eq!(prices("1000000", "1000000").cost(&most), Money(u64::MAX), "no overflow");
    }
}
