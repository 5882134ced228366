//! The files of a repository that are meant: those that were named, whole or by a part of their names, or the only one.

use super::repository::RepositoryId;
use super::{HubError, ListedFile};

/// Folders and name of the longest path that is downloaded.
const PATH_PARTS_MAX: usize = 3;

/// Endings of weight files.
const ENDINGS: [&str; 3] = [".safetensors", ".sft", ".gguf"];

/// The file by which a repository is known to be a pipeline.
const PIPELINE: &str = "model_index.json";

/// Whether a path is safe inside a folder and in an address, so that its file can be downloaded.
pub(super) fn is_safe(path: &str) -> bool {
    let is_plain = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.chars().all(|letter| letter.is_ascii_alphanumeric() || "._-+ ()".contains(letter))
    };
    path.split('/').count() <= PATH_PARTS_MAX && path.split('/').all(is_plain)
}

/// The paths that are meant: of the files that were named, or of the only weight file. `None`: those that a pipeline needs.
pub(super) fn selected(
    listed: &[ListedFile],
    names: &[String],
    repository: &RepositoryId,
) -> Result<Option<Vec<String>>, HubError> {
    if names.is_empty() && listed.iter().any(|file| file.path == PIPELINE) {
        return Ok(None);
    }
    let weights: Vec<&ListedFile> = listed.iter().filter(|file| is_weights(&file.path)).collect();
    if names.is_empty() {
        return match weights.as_slice() {
            [] => Err(HubError::NotAPipeline { repository: repository.to_string(), missing: PIPELINE.to_owned() }),
            [only] => Ok(Some(vec![only.path.clone()])),
            several => Err(HubError::SeveralFiles { repository: repository.to_string(), files: owned(several) }),
        };
    }
    let mut paths = Vec::new();
    for name in names {
        let path = named(listed, &weights, name).map_err(|files| {
            let (repository, name) = (repository.to_string(), name.clone());
            // What there is, where the name tells nothing.
            let (is_part, files) = if files.is_empty() { (false, owned(&weights)) } else { (true, files) };
            HubError::NoSuchFile { repository, name, is_part, files }
        })?;
        if !paths.contains(&path) {
            paths.push(path);
        }
    }
    Ok(Some(paths))
}

/// Some files, and what tells whether a name means one of them by its path in lower case.
type Way<'a> = (&'a [&'a ListedFile], &'a dyn Fn(&str) -> bool);

/// The path of the file that a name means. The error has the files that it may mean.
fn named(listed: &[ListedFile], weights: &[&ListedFile], name: &str) -> Result<String, Vec<ListedFile>> {
    let all: Vec<&ListedFile> = listed.iter().collect();
    let name = name.to_ascii_lowercase();
    let is_path = |path: &str| path == name;
    let is_name = |path: &str| name_of(path) == name;
    let is_stem = |path: &str| stem_of(name_of(path)) == name;
    let has_part = |path: &str| path.contains(&name);
    // A complete name may also be a part of another one.
    let ways: [Way; 5] =
        [(&all, &is_path), (&all, &is_name), (weights, &is_stem), (weights, &has_part), (&all, &has_part)];
    for (files, is_meant) in ways {
        let found: Vec<&ListedFile> =
            files.iter().copied().filter(|file| is_meant(&file.path.to_ascii_lowercase())).collect();
        match found.as_slice() {
            [] => {}
            [only] => return Ok(only.path.clone()),
            several => return Err(owned(several)),
        }
    }
    Err(Vec::new())
}

fn name_of(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}

fn stem_of(name: &str) -> &str {
    ENDINGS.iter().find_map(|ending| name.strip_suffix(ending)).unwrap_or(name)
}

fn is_weights(path: &str) -> bool {
    let path = path.to_ascii_lowercase();
    ENDINGS.iter().any(|ending| path.ends_with(ending))
}

fn owned(files: &[&ListedFile]) -> Vec<ListedFile> {
    files.iter().copied().cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(paths: &[&str], names: &[&str]) -> Result<Option<Vec<String>>, HubError> {
        let listed: Vec<ListedFile> =
            paths.iter().map(|path| ListedFile { path: (*path).to_owned(), bytes: 1 << 30 }).collect();
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        selected(&listed, &names, &"owner/name".parse().expect("an id"))
    }

    fn one(paths: &[&str], name: &str) -> String {
        let paths = chosen(paths, &[name]).expect("one is meant").expect("it was named");
        assert_eq!(paths.len(), 1, "{paths:?}");
        paths.concat()
    }

    const GGUF: [&str; 6] = [
        "README.md",
        "flux1-dev-F16.gguf",
        "flux1-dev-Q4_0.gguf",
        "flux1-dev-Q4_K_S.gguf",
        "flux1-dev-Q5_K_S.gguf",
        "flux1-dev-Q8_0.gguf",
    ];

    #[test]
    fn a_file_is_named_by_its_path_its_name_or_a_part_that_no_other_has() {
        for name in ["flux1-dev-Q4_K_S.gguf", "flux1-dev-Q4_K_S", "Q4_K_S", "q4_k_s", "4_K"] {
            assert_eq!(one(&GGUF, name), "flux1-dev-Q4_K_S.gguf", "{name}");
        }
        assert_eq!(one(&GGUF, "README.md"), "README.md");
        assert_eq!(one(&GGUF, "readme"), "README.md", "no weight file has this part");
        let nested = ["vae/ae.safetensors", "split/vae/ae2.safetensors", "tokenizer_2/tokenizer.json"];
        assert_eq!(one(&nested, "ae.safetensors"), "vae/ae.safetensors");
        assert_eq!(one(&nested, "tokenizer_2/tokenizer.json"), "tokenizer_2/tokenizer.json");
        let several = chosen(&GGUF, &["Q8_0", "F16", "flux1-dev-Q8_0.gguf"]).expect("each is one").expect("named");
        assert_eq!(several, ["flux1-dev-Q8_0.gguf", "flux1-dev-F16.gguf"]);
    }

    #[test]
    fn a_complete_name_is_meant_although_it_is_a_part_of_others() {
        let fp8 = ["flux1-dev-fp8.safetensors", "flux1-dev-fp8-e4m3fn.safetensors", "flux1-dev-fp8-e5m2.safetensors"];
        assert_eq!(one(&fp8, "flux1-dev-fp8"), fp8[0]);
        assert_eq!(one(&fp8, "e5m2"), fp8[2]);
    }

    #[test]
    fn a_part_of_several_names_or_of_none_is_refused_with_the_files() {
        let refused = |name: &str| match chosen(&GGUF, &[name]).expect_err("refused") {
            HubError::NoSuchFile { files, is_part, .. } => {
                (is_part, files.into_iter().map(|file| file.path).collect::<Vec<_>>())
            }
            other => panic!("{other}"),
        };
        assert_eq!(refused("K_S"), (true, vec![GGUF[3].to_owned(), GGUF[4].to_owned()]));
        assert_eq!(refused("").1.len(), 5, "every weight file has the empty part");
        let (is_part, files) = refused("Q3_K");
        assert!(!is_part && files.len() == 5, "{files:?}");
    }

    #[test]
    fn without_a_name_the_only_weight_file_is_meant_and_of_several_none() {
        let only = chosen(&["README.md", "tune.safetensors"], &[]).expect("one").expect("no pipeline");
        assert_eq!(only, ["tune.safetensors"]);
        let Err(HubError::SeveralFiles { files, .. }) = chosen(&GGUF, &[]) else { panic!("several") };
        assert_eq!(files.len(), 5);
        let pipeline = ["model_index.json", "flux1-dev.safetensors", "ae.safetensors"];
        assert!(chosen(&pipeline, &[]).expect("a pipeline").is_none());
        assert_eq!(one(&pipeline, "ae"), "ae.safetensors");
        let error = chosen(&["README.md"], &[]).expect_err("nothing").to_string();
        assert!(error.contains("has no model_index.json"), "{error}");
    }

    #[test]
    fn only_paths_inside_the_folder_are_downloaded() {
        for path in ["a.gguf", "split_files/vae/ae.safetensors", "A file (1).sft"] {
            assert!(is_safe(path), "{path}");
        }
        for path in ["", "/a", "a/", "../a", "a/../b", ".gitattributes", "a/.b", "a/b/c/d", "a\\b", "a\nb", "a%2fb"] {
            assert!(!is_safe(path), "{path:?}");
        }
    }
}
