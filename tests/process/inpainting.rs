//! Part of an image repainted, from the command line.

use super::*;

/// Pixels of an image, by rows.
struct Picture {
    width: usize,
    pixels: Vec<[u8; 3]>,
}

impl Picture {
    fn read(path: &Path) -> Self {
        let image = image::open(path).expect("an image").to_rgb8();
        Self { width: image.width() as usize, pixels: image.pixels().map(|pixel| pixel.0).collect() }
    }

    /// How many pixels have this channel far above the two others.
    fn count(&self, channel: usize) -> usize {
        let stands_out = |pixel: &&[u8; 3]| {
            let others = (0..3).filter(|other| *other != channel).map(|other| pixel[other]).max();
            others.is_some_and(|other| pixel[channel] > other.saturating_add(60))
        };
        self.pixels.iter().filter(stands_out).count()
    }
}

const RED: usize = 0;
const GREEN: usize = 1;

/// A box around all that is red, with some pixels around it: left, top, right, bottom.
fn box_around_red(picture: &Picture) -> [usize; 4] {
    const MARGIN: usize = 8;
    let is_red = |pixel: &[u8; 3]| pixel[RED] > pixel[1].max(pixel[2]).saturating_add(60);
    let place = |at: usize| (at % picture.width, at / picture.width);
    let marked = picture.pixels.iter().enumerate().filter(|(_, pixel)| is_red(pixel));
    let red: Vec<(usize, usize)> = marked.map(|(at, _)| place(at)).collect();
    let (columns, rows) = (red.iter().map(|(x, _)| *x), red.iter().map(|(_, y)| *y));
    let height = picture.pixels.len() / picture.width;
    [
        columns.clone().min().expect("something red").saturating_sub(MARGIN),
        rows.clone().min().expect("something red").saturating_sub(MARGIN),
        (columns.max().expect("something red") + MARGIN + 1).min(picture.width),
        (rows.max().expect("something red") + MARGIN + 1).min(height),
    ]
}

#[test]
fn a_masked_part_of_an_image_is_repainted_and_the_rest_stays() {
    let (folder, data) = folder();
    let place = |name: &str| folder.path().join(name);
    let generate = |prompt: &str, more: &[&str]| {
        let mut command = program(&data);
        command.args(["generate", "--model", MODEL, "--device", "cpu", "--seed", "7", "--prompt", prompt]);
        let done = command.args(more).output().expect("it runs");
        assert!(done.status.success(), "{}", text(&done.stderr));
    };
    generate("a red circle on a blue background", &["--output", "red.png"]);
    let red = Picture::read(&place("red.png"));
    let [left, top, right, bottom] = box_around_red(&red);
    let is_inside = |at: usize| {
        let (x, y) = (at % red.width, at / red.width);
        (left..right).contains(&x) && (top..bottom).contains(&y)
    };
    let (width, height) = (red.width as u32, (red.pixels.len() / red.width) as u32);
    let mask = image::GrayImage::from_fn(width, height, |x, y| {
        image::Luma([if is_inside(y as usize * red.width + x as usize) { 255 } else { 0 }])
    });
    mask.save(place("mask.png")).expect("written");

    let repaint = ["--image", "red.png", "--mask", "mask.png", "--strength", "1"];
    let prompt = "a green circle on a blue background";
    generate(prompt, &[&repaint[..], &["--output", "green.png"]].concat());
    let green = Picture::read(&place("green.png"));
    assert!(green.count(GREEN) * 3 > red.count(RED), "{} of {} pixels", green.count(GREEN), red.count(RED));
    assert!(green.count(RED) * 10 < red.count(RED), "{} of {} pixels", green.count(RED), red.count(RED));
    let is_inside = &is_inside;
    let outside = || (0..red.pixels.len()).filter(move |at| !is_inside(*at));
    let away: u64 = outside()
        .flat_map(|at| (0..3).map(move |channel| (at, channel)))
        .map(|(at, channel)| u64::from(red.pixels[at][channel].abs_diff(green.pixels[at][channel])))
        .sum();
    // What is kept passes through the autoencoder.
    let bytes = 3 * outside().count() as u64;
    assert!(away < 6 * bytes, "the rest is {} levels away on average", away / bytes.max(1));

    let padded = [&repaint[..], &["--mask-padding", "8", "--width", "128", "--height", "128"]].concat();
    generate(prompt, &[&padded[..], &["--output", "region.png"]].concat());
    let region = Picture::read(&place("region.png"));
    assert!(outside().all(|at| region.pixels[at] == red.pixels[at]), "only the region is generated");
    assert!(region.pixels != red.pixels);
}

#[test]
fn images_that_a_model_does_not_take_are_refused_by_their_options() {
    let (folder, data) = folder();
    image::RgbImage::new(64, 64).save(folder.path().join("black.png")).expect("written");
    let refused = |more: &[&str]| {
        let mut command = program(&data);
        command.args(["generate", "--model", MODEL, "--prompt", "", "--output", "x.png"]);
        let done = command.args(more).output().expect("it runs");
        assert!(!done.status.success(), "{more:?}");
        text(&done.stderr)
    };
    for (more, reason) in [
        (&["--control-image", "black.png"][..], "--control-image: this model takes no control images, not 1"),
        (&["--reference", "black.png"], "--reference: this model takes no reference images, not 1"),
        (
            &["--image", "black.png", "--mask", "black.png", "--mask-padding", "8"],
            "--mask: has nothing white, so there is no region for `mask_padding` to cut out",
        ),
        (&["--image", "black.png", "--mask", "none.png"], "reading `none.png`"),
    ] {
        let said = refused(more);
        assert!(said.contains(reason), "{more:?}: {said}");
    }
}
