//! Configuration files beside weights.

use std::path::Path;

use serde::de::DeserializeOwned;

use crate::engine::checkpoint::Problem;

/// Longest configuration file that is read, in bytes.
const BYTES_MAX: u64 = 1 << 20;

/// Reads a configuration.
///
/// # Errors
/// When it is missing, too long, or not of this form.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> Result<T, Problem> {
    let shown = path.display().to_string();
    let Ok(metadata) = std::fs::metadata(path) else { return Err(Problem::missing(shown)) };
    if metadata.len() > BYTES_MAX {
        return Err(Problem::unreadable(shown, format!("longer than {BYTES_MAX} bytes")));
    }
    let text = std::fs::read_to_string(path).map_err(|error| Problem::unreadable(&*shown, error))?;
    serde_json::from_str(&text).map_err(|error| Problem::unreadable(shown, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_configuration_is_refused_by_its_name() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("config.json");
        let problem = |path: &Path| read::<Vec<u32>>(path).expect_err("refused").to_string();
        assert!(problem(&path).contains("config.json: missing"), "{}", problem(&path));
        for text in ["", "{}", "[1, -1]"] {
            std::fs::write(&path, text).expect("written");
            assert!(problem(&path).contains("config.json: "), "{text}");
        }
        std::fs::write(&path, " ".repeat(2 << 20)).expect("written");
        assert!(problem(&path).contains("longer than"), "{}", problem(&path));
        std::fs::write(&path, "[1, 2]").expect("written");
        assert_eq!(read::<Vec<u32>>(&path).ok(), Some(vec![1, 2]));
    }
}
