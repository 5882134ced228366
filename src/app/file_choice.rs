//! The choice between a repository's files: which of them fit this machine's memory.

use std::path::Path;

use anyhow::anyhow;

use super::fetching::size;
use super::free_memory::free_on;
use crate::config::Config;
use crate::engine;
use crate::hub::{Downloaded, HubError, ListedFile};

/// Memory that an engine takes beside the weights of a file.
const BESIDE_BYTES: u64 = 2 << 30;

/// Maximum files that are listed.
const FILES_LISTED_MAX: usize = 60;

/// The error of a download for a user: a choice between files says which of them fit this machine's memory.
pub(super) fn explained(config: &Config, error: HubError) -> anyhow::Error {
    let (reason, repository, files) = match &error {
        HubError::SeveralFiles { repository, files } => {
            ("has several files: name one, or a part of its name, with --file".to_owned(), repository, files)
        }
        HubError::NoSuchFile { repository, name, is_part: true, files } => {
            (format!("has several files with `{name}` in their names: name one with --file"), repository, files)
        }
        HubError::NoSuchFile { repository, name, is_part: false, files } if !files.is_empty() => {
            (format!("has no file `{name}`: name one of these with --file"), repository, files)
        }
        _ => return error.into(),
    };
    let free = free_on(config.device.first());
    let free = free.as_ref().map(|(bytes, place)| (*bytes, place.as_str()));
    anyhow!("`{repository}` {reason}\n{}", choices(repository, files, free))
}

/// Files with their sizes, the smallest first; those that fit into free memory; and a command that downloads one.
fn choices(repository: &str, files: &[ListedFile], free: Option<(u64, &str)>) -> String {
    let mut files: Vec<&ListedFile> = files.iter().collect();
    files.sort_by(|left, right| (left.bytes, &left.path).cmp(&(right.bytes, &right.path)));
    let fits = |file: &ListedFile| free.is_some_and(|(free, _)| file.bytes.saturating_add(BESIDE_BYTES) <= free);
    let mut lines = Vec::new();
    for file in files.iter().take(FILES_LISTED_MAX) {
        let mark = if fits(file) { "fits" } else { "" };
        lines.push(format!("  {:>10}  {mark:<4}  {}", size(file.bytes), file.path));
    }
    if files.len() > FILES_LISTED_MAX {
        lines.push(format!("  and {} more", files.len() - FILES_LISTED_MAX));
    }
    if let Some((free, place)) = free {
        let (free, beside) = (size(free), size(BESIDE_BYTES));
        lines.push(format!(
            "`fits`: the file as it is, and {beside} beside it, are less than the {free} that are free {place}; what the base \
             adds is not counted"
        ));
    }
    // The best of those that fit, or what comes nearest to it.
    let example = files.iter().rev().find(|file| fits(file)).or(files.first());
    lines.extend(
        example.map(|file| format!("for example: fluxserve models download {repository} --file {}", file.path)),
    );
    lines.join("\n")
}

/// Checks that the weight files among downloaded ones can be read. The error says which cannot, and why.
pub(super) fn unreadable(downloaded: &Downloaded) -> Option<String> {
    let weights = downloaded.chosen.iter().filter(|path| is_weights(path));
    weights.filter_map(|path| engine::file_contents(path).err()).map(|problem| problem.to_string()).next()
}

/// Whether a file's name is that of a weight file.
pub(super) fn is_weights(path: &Path) -> bool {
    let ending = path.extension().and_then(std::ffi::OsStr::to_str).unwrap_or_default();
    ["safetensors", "sft", "gguf"].iter().any(|known| ending.eq_ignore_ascii_case(known))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIBIBYTE: u64 = 1 << 30;

    fn files() -> Vec<ListedFile> {
        let file = |path: &str, gibibytes: u64| ListedFile { path: path.to_owned(), bytes: gibibytes * GIBIBYTE };
        vec![file("a-F16.gguf", 22), file("a-Q4_0.gguf", 6), file("a-Q8_0.gguf", 12)]
    }

    #[test]
    fn files_that_fit_are_marked_and_the_largest_of_them_is_the_example() {
        let text = choices("o/n", &files(), Some((14 * GIBIBYTE, "on cuda:0")));
        let lines: Vec<&str> = text.lines().collect();
        let expected =
            ["     6.0 GiB  fits  a-Q4_0.gguf", "    12.0 GiB  fits  a-Q8_0.gguf", "    22.0 GiB        a-F16.gguf"];
        assert_eq!(lines[..3], expected);
        assert!(lines[3].contains("less than the 14.0 GiB that are free on cuda:0"), "{text}");
        assert_eq!(lines[4], "for example: fluxserve models download o/n --file a-Q8_0.gguf");
        let exactly = choices("o/n", &files(), Some((14 * GIBIBYTE - 1, "on cuda:0")));
        assert_eq!(exactly.matches("  fits  ").count(), 1, "{exactly}");
    }

    #[test]
    fn where_nothing_fits_the_smallest_is_the_example() {
        for free in [Some((GIBIBYTE, "on cuda:0")), None] {
            let text = choices("o/n", &files(), free);
            assert!(!text.contains("  fits  ") && text.ends_with("--file a-Q4_0.gguf"), "{text}");
        }
    }
}
