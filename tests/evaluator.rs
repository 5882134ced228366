//! The evaluator of coloured shapes, on images that were painted and not drawn by a model: it sees what is there, and
//! that it is not something else.

#[path = "../examples/evaluate-shapes/analysis.rs"]
mod analysis;
#[path = "../examples/evaluate-shapes/judge.rs"]
mod judge;
#[path = "../examples/evaluate-shapes/outlines.rs"]
mod outlines;
#[path = "../examples/evaluate-shapes/scene.rs"]
mod scene;

use std::path::{Path, PathBuf};

use fluxserve::domain::engine::RgbImage;

use analysis::{Seen, look};
use judge::Score;
use outlines::Outlines;
use scene::Scene;

/// Made by `models/flux-shapes/train/train.py --paint-evaluation tests/evaluator`.
fn painted() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/evaluator")
}

fn scenes() -> Vec<Scene> {
    let text = std::fs::read_to_string(painted().join("prompts.jsonl")).expect("readable");
    text.lines().map(|line| serde_json::from_str(line).expect("a scene")).collect()
}

fn image(index: usize) -> RgbImage {
    let image = image::open(painted().join(format!("{index}.png"))).expect("an image").to_rgb8();
    RgbImage::new(image.width(), image.height(), image.into_raw()).expect("three bytes for each pixel")
}

fn seen(count: usize) -> Vec<Seen> {
    let outlines = Outlines::new();
    (0..count).map(|index| look(&image(index), &outlines)).collect()
}

#[test]
fn the_prompts_fit_their_images() {
    for (index, scene) in scenes().iter().enumerate() {
        let image = image(index);
        assert_eq!((image.width(), image.height()), (scene.width, scene.height), "{}", scene.prompt);
        assert_eq!(scene.seed, index as u64, "each prompt has a seed of its own");
    }
}

#[test]
fn what_was_painted_is_seen() {
    let scenes = scenes();
    for (scene, seen) in scenes.iter().zip(seen(scenes.len())) {
        let mut score = Score::default();
        assert!(score.add(scene, &seen), "{}: {seen:?}", scene.prompt);
        assert_eq!((score.shape.right, score.colour.right), (scene.objects.len(), scene.objects.len()));
    }
}

#[test]
fn every_kind_of_fault_is_counted_where_it_belongs() {
    let scenes = scenes();
    let all_seen = seen(scenes.len());
    let score = |index: usize, change: &dyn Fn(&mut Scene)| {
        let mut scene = scenes[index].clone();
        change(&mut scene);
        let mut score = Score::default();
        assert!(!score.add(&scene, &all_seen[index]), "{}: the fault went unseen", scene.prompt);
        [score.background, score.colour, score.shape, score.arrangement, score.count]
            .map(|tally| tally.of - tally.right)
    };
    let one = 0;
    assert_eq!(score(one, &|scene| scene.background = "cyan".into()), [1, 0, 0, 0, 0]);
    assert_eq!(score(one, &|scene| scene.objects[0].colour = "pink".into()), [0, 1, 0, 0, 0]);
    assert_eq!(score(one, &|scene| scene.objects[0].shape = "circle".into()), [0, 0, 1, 0, 0]);
    let placed = scenes.iter().position(|scene| scene.kind == "placed").expect("one is placed");
    assert_eq!(score(placed, &|scene| scene.place[0] = -scene.place[0] + 1 - scene.place[0].abs()), [0, 0, 0, 1, 0]);
    let related = scenes.iter().position(|scene| scene.relation == "right").expect("two are related");
    assert_eq!(score(related, &|scene| scene.relation = "left".into()), [0, 0, 0, 1, 0]);
    assert_eq!(score(related, &|scene| scene.relation = "above".into()), [0, 0, 0, 1, 0]);
    let several = scenes.iter().position(|scene| scene.kind == "count").expect("several are counted");
    // One more was asked for than is there: it has no colour and no shape either.
    assert_eq!(score(several, &|scene| scene.objects.push(scene.objects[0].clone())), [0, 1, 1, 0, 1]);
    assert_eq!(score(several, &|scene| drop(scene.objects.pop())), [0, 0, 0, 0, 1]);
}

#[test]
fn a_flat_or_empty_image_shows_nothing() {
    let outlines = Outlines::new();
    let flat = RgbImage::new(64, 64, [45, 90, 205].repeat(64 * 64)).expect("three bytes for each pixel");
    let seen = look(&flat, &outlines);
    assert_eq!((seen.background, seen.patches.len()), (Some("blue"), 0));
}
