//! The card of a model as it is served: what its checkpoint takes, and what is loaded beside it.

use std::path::Path;

use anyhow::{anyhow, bail};

use crate::catalog::{card_like, known_model};
use crate::domain::conditioning::{AttachedCards, Conditioning};
use crate::domain::ids::ModelId;
use crate::domain::model::{Attachments, ModelCard, ModelFiles};
use crate::engine;

/// A model's card as its files make it. Reads configurations and the heads of files alone.
///
/// # Errors
/// When the checkpoint is of another kind than a known model, or what is to be loaded beside it is missing, damaged, or nothing
/// that it takes.
pub(super) fn as_served(card: ModelCard, files: &ModelFiles) -> anyhow::Result<ModelCard> {
    let card = match engine::conditioning_of(files) {
        Ok(found) => by_checkpoint(card, found)?,
        // What is wrong with the files is said where all of them are looked at.
        Err(_) => card,
    };
    match files.attachments() {
        Some(attachments) if !attachments.is_empty() => {
            let attached = attached(&card, attachments)?;
            Ok(ModelCard { attached, ..card })
        }
        _ => Ok(card),
    }
}

/// The card of a model whose checkpoint takes what was found. A known model must take what its card says; any other gets the values
/// of a model that takes the same.
fn by_checkpoint(card: ModelCard, found: Conditioning) -> anyhow::Result<ModelCard> {
    // Whether it takes references cannot be seen.
    let seen = |conditioning: Conditioning| match conditioning {
        Conditioning::References => Conditioning::Prompt,
        other => other,
    };
    if seen(card.conditioning) == seen(found) {
        return Ok(card);
    }
    if known_model(&card.id).is_some() {
        bail!(
            "the checkpoint of `{id}` takes {}, and `{id}` takes {}: serve it under another name, `NAME=PATH`",
            words(found),
            words(card.conditioning),
            id = card.id
        );
    }
    Ok(card_like(&card.id, found))
}

fn words(conditioning: Conditioning) -> &'static str {
    match conditioning {
        Conditioning::Prompt | Conditioning::References => "noisy latents alone, like FLUX.1-dev",
        Conditioning::Fill => "an image and a mask beside them, like FLUX.1-Fill-dev",
        Conditioning::Control => "a control image beside them, like FLUX.1-Canny-dev",
    }
}

/// What requests need to know of what is loaded beside a model.
fn attached(card: &ModelCard, attachments: &Attachments) -> anyhow::Result<AttachedCards> {
    let id = &card.id;
    let Attachments { controlnets, redux, depth } = attachments;
    let is_prompted = matches!(card.conditioning, Conditioning::Prompt | Conditioning::References);
    if !is_prompted && !controlnets.is_empty() {
        bail!("`{id}` takes no ControlNets: they are for models like FLUX.1-dev");
    }
    if !is_prompted && redux.is_some() {
        bail!("`{id}` does not go with FLUX.1-Redux: that is for models like FLUX.1-dev");
    }
    let unusable = |what: &str, path: &Path, error: &dyn std::fmt::Display| {
        anyhow!("{what} of `{id}`, `{}`, cannot be used: {error}", path.display())
    };
    let mut cards = AttachedCards { estimates_depth: depth.is_some(), ..AttachedCards::default() };
    for (name, path) in controlnets {
        let what = format!("the ControlNet `{name}`");
        refuse_missing(id, &what, path)?;
        let net = engine::controlnet_card(name, path).map_err(|error| unusable(&what, path, &error))?;
        cards.controlnets.push(net);
    }
    if let Some(path) = redux {
        refuse_missing(id, "the FLUX.1-Redux", path)?;
        let style = engine::style_card(path).map_err(|error| unusable("the FLUX.1-Redux", path, &error))?;
        cards.style = Some(style);
    }
    if let Some(path) = depth {
        refuse_missing(id, "the depth model", path)?;
    }
    Ok(cards)
}

fn refuse_missing(id: &ModelId, what: &str, path: &Path) -> anyhow::Result<()> {
    if !path.exists() {
        bail!("{what} of `{id}` is not here: `{}` does not exist", path.display());
    }
    Ok(())
}

/// What is loaded beside a model, a line each.
pub(super) fn attachment_lines(attachments: &Attachments) -> Vec<String> {
    let Attachments { controlnets, redux, depth } = attachments;
    let line = |what: String, path: &Path| format!("{what}: {}", path.display());
    let nets = controlnets.iter().map(|(name, path)| line(format!("ControlNet `{name}`"), path));
    let redux = redux.iter().map(|path| line("FLUX.1-Redux".to_owned(), path));
    let depth = depth.iter().map(|path| line("depth model".to_owned(), path));
    nets.chain(redux).chain(depth).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::card_or_flux_dev;

    fn card(id: &str) -> ModelCard {
        card_or_flux_dev(&ModelId::new(id))
    }

    #[test]
    fn a_checkpoint_of_another_kind_gets_the_values_of_its_like() {
        let fill = by_checkpoint(card("my/fill"), Conditioning::Fill).expect("no card of its own");
        assert_eq!((fill.id.as_str(), fill.conditioning), ("my/fill", Conditioning::Fill));
        assert_eq!((fill.defaults.steps, fill.defaults.guidance, fill.input_images_min), (50, 30.0, 1));
        let control = by_checkpoint(card("my/canny"), Conditioning::Control).expect("no card of its own");
        assert_eq!((control.conditioning, control.input_images_min), (Conditioning::Control, 1));
        let plain = card("my/tune");
        assert_eq!(by_checkpoint(plain.clone(), Conditioning::Prompt).expect("the same"), plain);
    }

    #[test]
    fn a_known_model_must_be_what_its_name_says() {
        let dev = card("black-forest-labs/FLUX.1-dev");
        let error = by_checkpoint(dev.clone(), Conditioning::Fill).expect_err("another model").to_string();
        assert!(error.contains("`black-forest-labs/FLUX.1-dev` takes an image and a mask"), "{error}");
        assert!(error.contains("`NAME=PATH`"), "{error}");
        assert!(by_checkpoint(dev, Conditioning::Prompt).is_ok());
        let kontext = ModelCard { conditioning: Conditioning::References, ..card("black-forest-labs/FLUX.1-schnell") };
        let as_seen = by_checkpoint(kontext, Conditioning::Prompt).expect("it looks like FLUX.1-dev");
        assert_eq!(as_seen.conditioning, Conditioning::References);
    }

    #[test]
    fn what_is_missing_or_does_not_fit_is_named() {
        let controlnets = vec![("canny".into(), "/no/net".into())];
        let nets = Attachments { controlnets, ..Attachments::default() };
        let redux = Attachments { redux: Some("/no/redux".into()), ..Attachments::default() };
        let depth = Attachments { depth: Some("/no/depth".into()), ..Attachments::default() };
        let refused =
            |card: &ModelCard, attachments: &Attachments| attached(card, attachments).expect_err("refused").to_string();
        let dev = card("black-forest-labs/FLUX.1-dev");
        assert_eq!(
            refused(&dev, &nets),
            "the ControlNet `canny` of `black-forest-labs/FLUX.1-dev` is not here: `/no/net` does not exist"
        );
        assert!(refused(&dev, &redux).contains("`/no/redux` does not exist"));
        assert!(refused(&dev, &depth).contains("the depth model of"));
        for conditioning in [Conditioning::Fill, Conditioning::Control] {
            let other = ModelCard { conditioning, ..dev.clone() };
            assert!(refused(&other, &nets).contains("takes no ControlNets"));
            assert!(refused(&other, &redux).contains("does not go with FLUX.1-Redux"));
            assert!(refused(&other, &depth).contains("/no/depth"), "which a control image may need");
        }
        let all = Attachments { depth: depth.depth, ..nets };
        assert_eq!(attachment_lines(&all), ["ControlNet `canny`: /no/net", "depth model: /no/depth"]);
    }
}
