//! Prices, and what they need.

use super::*;
use crate::domain::usage::Work;

#[test]
fn prices_come_from_the_file_or_the_environment() {
    let file = "[prices]\nper_megapixel_step = \"0.000000000001\"\nper_engine_second = \"1\"\ncurrency = \"EUR\"";
    let prices = Sources::new().file(file).load().expect("valid").prices.expect("prices");
    assert_eq!(
        (prices.per_megapixel_step.to_string().as_str(), prices.currency.to_string().as_str()),
        ("0.000000000001", "EUR")
    );
    let sources = Sources::new().file(file).variable("FLUXSERVE_PRICES_PER_ENGINE_SECOND", "2.5");
    let prices = sources.load().expect("valid").prices.expect("prices");
    let second = Work { images: 1, pixel_steps: 0, engine_time: std::time::Duration::from_secs(1) };
    assert_eq!(prices.cost(&second).to_string(), "2.500000");
    let only = "[prices]\nper_megapixel_step = \"0.5\"\ncurrency = \"USD\"";
    let prices = Sources::new().file(only).load().expect("valid").prices.expect("prices");
    assert_eq!(prices.cost(&second).to_string(), "0.000000", "time is free");
    assert_eq!(Sources::new().load().expect("valid").prices, None);
}

#[test]
fn prices_that_are_wrong_or_incomplete_are_refused_by_name() {
    for (file, words) in [
        ("[prices]\nper_megapixel_step = \"0.5\"", ["prices.per_megapixel_step", "prices.currency"]),
        ("[prices]\nper_engine_second = \"0.5\"", ["prices.per_engine_second", "prices.currency"]),
        ("[prices]\ncurrency = \"EUR\"", ["prices.currency", "prices.per_megapixel_step"]),
        ("[prices]\nper_megapixel_step = \"-1\"\ncurrency = \"EUR\"", ["prices.per_megapixel_step", "`-1` must be"]),
        ("[prices]\nper_megapixel_step = \"1\"\ncurrency = \"euro\"", ["prices.currency", "`euro` must be"]),
        // A number that is not quoted would be read as a binary fraction.
        ("[prices]\nper_megapixel_step = 0.1\ncurrency = \"EUR\"", ["per_megapixel_step", "string"]),
    ] {
        let error = Sources::new().file(file).load().expect_err("refused").to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{file}: {error}");
    }
}
