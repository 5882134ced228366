//! Options of control images, which may be several, each with options of its own.

use std::path::PathBuf;
use std::sync::Arc;

use clap::error::ErrorKind;
use clap::{ArgMatches, Args, Command, FromArgMatches};

use crate::domain::conditioning::{ControlMode, ImageOptions, Preprocess};

/// The options as they are written, each a list of its own.
#[derive(Debug, Args)]
struct WrittenOptions {
    /// A control image, whose edges, depth or poses the result follows; repeatable. Its options are behind it, or given once for
    /// each control image in the same order
    #[arg(long = "control-image", value_name = "FILE")]
    control_images: Vec<PathBuf>,
    /// Make the control image a map first: canny for its edges, or depth
    #[arg(long = "preprocess", value_name = "KIND")]
    preprocesses: Vec<Preprocess>,
    /// The ControlNet that reads the control image: its folder or file
    #[arg(long = "controlnet", value_name = "PATH")]
    controlnets: Vec<PathBuf>,
    /// How strongly the ControlNet acts, from 0 to 2 [default: 1]
    #[arg(long = "control-scale", value_name = "X", allow_negative_numbers = true)]
    control_scales: Vec<f64>,
    /// The kind of the control image, for a union of ControlNets: canny, tile, depth, blur, pose, gray, low_quality, or a number
    #[arg(long = "control-mode", value_name = "MODE")]
    control_modes: Vec<ControlMode>,
    /// The share of the steps before the ControlNet acts [default: 0]
    #[arg(long = "control-start", value_name = "X", allow_negative_numbers = true)]
    control_starts: Vec<f64>,
    /// The share of the steps until which the ControlNet acts [default: 1]
    #[arg(long = "control-end", value_name = "X", allow_negative_numbers = true)]
    control_ends: Vec<f64>,
}

/// The control images with their options.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ControlArgs {
    /// In the order of the command line.
    pub controls: Vec<ControlArg>,
}

/// A control image.
#[derive(Debug, Clone, PartialEq)]
pub struct ControlArg {
    /// Its file.
    pub file: PathBuf,
    /// The ControlNet's folder or file.
    pub controlnet: Option<PathBuf>,
    /// The other options. Its ControlNet is named by its path.
    pub options: ImageOptions,
}

impl Args for ControlArgs {
    fn augment_args(command: Command) -> Command {
        WrittenOptions::augment_args(command)
    }

    fn augment_args_for_update(command: Command) -> Command {
        WrittenOptions::augment_args_for_update(command)
    }
}

impl FromArgMatches for ControlArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let written = WrittenOptions::from_arg_matches(matches)?;
        let controls = controls(written, &|id| places(matches, id));
        let usage_error = |reason: String| clap::Error::raw(ErrorKind::ArgumentConflict, format!("{reason}\n"));
        controls.map(|controls| Self { controls }).map_err(usage_error)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// Where the values of an option stand on the command line.
fn places(matches: &ArgMatches, id: &str) -> Vec<usize> {
    matches.indices_of(id).map(Iterator::collect).unwrap_or_default()
}

fn controls(written: WrittenOptions, places: &dyn Fn(&str) -> Vec<usize>) -> Result<Vec<ControlArg>, String> {
    let images = places("control_images");
    let share = Share { images: &images, places };
    let mut preprocesses = share.out("--preprocess", "preprocesses", written.preprocesses)?;
    let mut controlnets = share.out("--controlnet", "controlnets", written.controlnets)?;
    let mut scales = share.out("--control-scale", "control_scales", written.control_scales)?;
    let mut modes = share.out("--control-mode", "control_modes", written.control_modes)?;
    let mut starts = share.out("--control-start", "control_starts", written.control_starts)?;
    let mut ends = share.out("--control-end", "control_ends", written.control_ends)?;
    let control = |(index, file): (usize, PathBuf)| {
        let controlnet = controlnets[index].take();
        let options = ImageOptions {
            controlnet: controlnet.as_ref().map(|path| Arc::from(path.display().to_string())),
            mode: modes[index].take(),
            preprocess: preprocesses[index].take(),
            scale: scales[index].take(),
            start: starts[index].take(),
            end: ends[index].take(),
        };
        ControlArg { file, controlnet, options }
    };
    Ok(written.control_images.into_iter().enumerate().map(control).collect())
}

/// Gives the values of an option to the control images.
struct Share<'a> {
    /// Where the images stand.
    images: &'a [usize],
    places: &'a dyn Fn(&str) -> Vec<usize>,
}

impl Share<'_> {
    /// The value of each image: as many values as images are theirs in order, wherever they stand; fewer belong to the image
    /// that each one is behind, or else to the first.
    fn out<T>(&self, option: &str, id: &str, values: Vec<T>) -> Result<Vec<Option<T>>, String> {
        let count = self.images.len();
        if values.len() == count {
            return Ok(values.into_iter().map(Some).collect());
        }
        if count == 0 {
            return Err(format!("`{option}` needs a `--control-image`"));
        }
        if values.len() > count {
            let given = values.len();
            return Err(format!(
                "`{option}` is given {given} times for {count} `--control-image`: give it once for each"
            ));
        }
        let mut shared: Vec<Option<T>> = (0..count).map(|_| None).collect();
        for (value, place) in values.into_iter().zip((self.places)(id)) {
            let behind = self.images.iter().filter(|image| **image < place).count();
            let owned = &mut shared[behind.saturating_sub(1)];
            if owned.is_some() {
                return Err(format!(
                    "`{option}` is given twice for one `--control-image`: write it behind the one that it is for"
                ));
            }
            *owned = Some(value);
        }
        Ok(shared)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        control: ControlArgs,
    }

    fn parse(line: &str) -> Result<Vec<ControlArg>, clap::Error> {
        let words = std::iter::once("program").chain(line.split_whitespace());
        Line::try_parse_from(words).map(|line| line.control.controls)
    }

    /// The images with their ControlNets, modes and scales.
    fn summary(line: &str) -> String {
        let text = |control: ControlArg| {
            let ControlArg { file, controlnet, options } = control;
            let net = controlnet.map(|path| format!(" {}", path.display())).unwrap_or_default();
            let mode = options.mode.map(|mode| format!(" {mode}")).unwrap_or_default();
            let scale = options.scale.map(|scale| format!(" {scale}")).unwrap_or_default();
            format!("{}{net}{mode}{scale}", file.display())
        };
        let controls = parse(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        controls.into_iter().map(text).collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn each_control_image_gets_its_own_options_in_any_order() {
        for (line, expected) in [
            ("", ""),
            ("--control-image a", "a"),
            ("--controlnet N --control-scale 0.5 --control-image a --control-mode pose", "a N pose 0.5"),
            ("--control-image a --controlnet N --control-image b --controlnet M", "a N, b M"),
            ("--controlnet N --control-image a --controlnet M --control-image b", "a N, b M"),
            ("--controlnet N --controlnet M --control-image a --control-image b", "a N, b M"),
            ("--control-image a --control-image b --control-scale 1 --control-scale=2", "a 1, b 2"),
            ("--control-image a --control-image b --control-scale 0.5", "a, b 0.5"),
            ("--control-image a --control-scale 0.5 --control-image b", "a 0.5, b"),
            ("--control-scale 0.5 --control-image a --control-image b", "a 0.5, b"),
            (
                "--control-mode 3 --control-image a --control-image b --control-image c --control-mode tile",
                "a blur, b, c tile",
            ),
            ("--control-image=a --control-image=b --control-scale=0.5 --controlnet N --controlnet M", "a N, b M 0.5"),
        ] {
            assert_eq!(summary(line), expected, "{line}");
        }
        let net = parse("--control-image a --controlnet x/y").expect("valid").remove(0).options.controlnet;
        assert_eq!(net.as_deref(), Some("x/y"), "it is named by its path");
    }

    #[test]
    fn what_belongs_to_no_control_image_is_a_usage_error() {
        for (line, reason) in [
            ("--controlnet N", "`--controlnet` needs a `--control-image`"),
            ("--preprocess canny", "`--preprocess` needs a `--control-image`"),
            ("--control-image a --control-end 0.5 --control-end 1", "`--control-end` is given 2 times for 1 "),
            (
                "--control-image a --control-start 0 --control-start 0 --control-image b --control-image c",
                "`--control-start` is given twice",
            ),
            ("--control-image a --preprocess edges", "must be one of canny and depth"),
            ("--control-image a --control-mode edges", "or a mode's number"),
            ("--control-image a --control-scale much", "invalid value 'much'"),
        ] {
            let error = parse(line).expect_err(line);
            assert_eq!(error.exit_code(), 2, "{line}");
            assert!(error.to_string().contains(reason), "{line}: {error}");
        }
    }
}
