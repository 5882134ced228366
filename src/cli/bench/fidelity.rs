//! `fluxserve bench fidelity`: how far images in a lossy precision are from those in full precision, or images with a cache from
//! those without.

use std::io::Write;

use super::{FidelityArgs, write_json};
use crate::app::{self, CachedImage, CachingReport, Distance, FidelityReport, FidelityRequest};
use crate::cli::table::write_table;
use crate::config::Config;

/// Runs the command.
pub(super) fn run(
    arguments: FidelityArgs,
    config: &Config,
    out: &mut dyn Write,
    notes: &mut dyn Write,
) -> anyhow::Result<()> {
    let FidelityArgs { model, parts, prompts, seeds, image, cache_thresholds: thresholds, json, .. } = arguments;
    let request = FidelityRequest {
        model: parts.of(model),
        engine: config.engine_settings(config.device.first()),
        prompts,
        seeds,
        size: image.size,
        steps: image.steps,
        guidance: image.guidance,
    };
    if !thresholds.is_empty() {
        let report = app::caching(config, &request, &thresholds, &mut |done, all, threshold| {
            let kind = threshold.map_or_else(|| "no cache".to_owned(), |threshold| format!("threshold {threshold}"));
            Ok(writeln!(notes, "{kind}: image {done} of {all}")?)
        })?;
        if let Some(file) = &json {
            write_json(file, &report)?;
        }
        return write_caching(&report, out);
    }
    let report = app::fidelity(config, &request, &mut |done, all, precision| {
        Ok(writeln!(notes, "{precision}: image {done} of {all}")?)
    })?;
    if let Some(file) = &json {
        write_json(file, &report)?;
    }
    let FidelityReport { model, device, precision, width, height, steps, .. } = &report;
    writeln!(out, "{model} on {device}: {precision} (lossy) against full, {width}x{height}, {steps} steps")?;
    let rows: Vec<[String; 5]> = report.images.iter().map(distances).collect();
    Ok(write_table(out, ["PROMPT", "SEED", "VELOCITY", "LATENTS", "PSNR DB"], &rows)?)
}

fn distances(distance: &Distance) -> [String; 5] {
    [
        distance.prompt.clone(),
        distance.seed.to_string(),
        percent(distance.velocity_first),
        percent(distance.latents_final),
        decibels(distance.psnr_db),
    ]
}

fn write_caching(report: &CachingReport, out: &mut dyn Write) -> anyhow::Result<()> {
    let CachingReport { model, device, precision, width, height, steps, .. } = report;
    let images = format!("{precision}, {width}x{height}, {steps} steps");
    writeln!(out, "{model} on {device}: cached (lossy) against uncached, {images}")?;
    let rows: Vec<[String; 8]> = report.images.iter().map(saved).collect();
    let headings = ["PROMPT", "SEED", "THRESHOLD", "SKIPPED", "SECONDS", "RATIO", "LATENTS", "PSNR DB"];
    Ok(write_table(out, headings, &rows)?)
}

fn saved(image: &CachedImage) -> [String; 8] {
    [
        image.prompt.clone(),
        image.seed.to_string(),
        image.threshold.to_string(),
        format!("{} of {}", image.steps_skipped, image.steps),
        format!("{:.3}", image.seconds),
        format!("{:.2}", image.seconds / image.seconds_uncached),
        percent(image.latents_final),
        decibels(image.psnr_db),
    ]
}

fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| "-".to_owned(), |share| format!("{:.2} %", 100.0 * share))
}

fn decibels(ratio: Option<f64>) -> String {
    ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"))
}
