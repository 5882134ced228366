//! What the images of OpenAI's routes are to each kind of model.

use fluxserve::domain::conditioning::{Conditioning, StyleCard};
use fluxserve::domain::model::ModelCard;
use serde_json::json;

use super::{CLEAR, EDITS, TEAL, VARIATIONS, admitted, assert_refused, edit, halves, mask_of, png, send, strength_of};
use crate::app::{MODEL, Options, TestApp, request};

/// A worker whose model has another card, and that has memory for references.
async fn with_card(change_card: fn(&mut ModelCard)) -> TestApp {
    TestApp::with(Options { change_card, input_images_bytes_max: 64 * 1024 * 1024, ..Options::default() }).await
}

#[tokio::test]
async fn a_model_that_edits_takes_its_images_as_references() {
    let app = with_card(|card| {
        (card.conditioning, card.input_images_max) = (Conditioning::References, 2);
        card.limits.pixels_max = 2_000_000;
    })
    .await;
    let image = halves(CLEAR, TEAL);
    let answer = edit(&app, 1, &[("size", "64x64")], &[("image[]", &image), ("image[]", &image)]).await;
    let spec = admitted(&app, 1, &answer);
    assert_eq!((spec.references().len(), spec.input_image(), spec.mask().is_some()), (2, None, false));
    let answer = edit(&app, 2, &[], &[("image", &image), ("mask", &image)]).await;
    let spec = admitted(&app, 2, &answer);
    assert_eq!((spec.references().len(), mask_of(&spec), strength_of(&spec)), (0, Some([255, 0]), 1.0));
    let files: [(&str, &[u8]); 3] = [("image[]", &image), ("image[]", &image), ("mask", &image)];
    let error = assert_refused(&edit(&app, 3, &[], &files).await, 400, "invalid_request");
    assert_eq!(error["param"], "mask");
    let error = assert_refused(&edit(&app, 3, &[("strength", "0.5")], &files[..1]).await, 400, "invalid_request");
    assert_eq!(error["param"], "strength", "it starts from no image");
}

#[tokio::test]
async fn a_model_that_fills_needs_a_mask() {
    let app = with_card(|card| {
        (card.conditioning, card.input_images_min, card.input_images_max) = (Conditioning::Fill, 1, 1);
    })
    .await;
    let error = assert_refused(&edit(&app, 1, &[], &[("image", &png(TEAL))]).await, 400, "invalid_request");
    assert_eq!(error["param"], "mask");
    let answer = edit(&app, 2, &[], &[("image", &halves(CLEAR, TEAL))]).await;
    let spec = admitted(&app, 2, &answer);
    assert_eq!((mask_of(&spec), strength_of(&spec)), (Some([255, 0]), 1.0));
    let body = json!({ "model": MODEL, "prompt": "a fox" });
    let generated = app.send(request("POST", "/v1/images/generations", Some(&app.keys.all), Some(&body))).await;
    let error = assert_refused(&generated, 400, "invalid_request");
    assert_eq!(error["param"], "model");
    assert!(error["message"].as_str().is_some_and(|message| message.contains(EDITS)), "{error}");
}

#[tokio::test]
async fn a_model_that_follows_a_map_takes_the_image_as_one() {
    let app = with_card(|card| {
        (card.conditioning, card.input_images_min, card.input_images_max) = (Conditioning::Control, 1, 1);
    })
    .await;
    let answer = edit(&app, 1, &[], &[("image", &halves(CLEAR, TEAL))]).await;
    let spec = admitted(&app, 1, &answer);
    assert_eq!((spec.controls().len(), spec.input_image(), spec.mask().is_some()), (1, None, false));
    let files: [(&str, &[u8]); 2] = [("image", &png(TEAL)), ("mask", &png(CLEAR))];
    let error = assert_refused(&edit(&app, 2, &[], &files).await, 400, "invalid_request");
    assert_eq!(error["param"], "mask");
}

#[tokio::test]
async fn a_variation_has_its_image_as_style() {
    let app = with_card(|card| card.attached.style = Some(StyleCard { side: 32, tokens: 9 })).await;
    let texts = [("model", MODEL), ("n", "2"), ("size", "64x64"), ("seed", "4"), ("steps", "2")];
    let answer = send(&app, VARIATIONS, &texts, &[("image", &png(TEAL))]).await;
    let spec = admitted(&app, 4, &answer);
    assert_eq!((spec.prompt(), spec.styles().len(), spec.style_tokens()), ("", 1, 9));
    assert_eq!(app.control.spec_of(5).styles(), spec.styles());
    assert_eq!(answer.json()["data"].as_array().map(Vec::len), Some(2));
    let broken = send(&app, VARIATIONS, &texts, &[("image", b"GIF89a")]).await;
    assert_eq!(assert_refused(&broken, 400, "invalid_request")["param"], "image");
}
