//! A repository's files at one commit: those that were named, or those that a pipeline needs, in one layout.

use serde::Deserialize;

use super::checksum::Checksum;
use super::repository::{RepositoryId, Revision};
use super::selection::{is_safe, selected};
use super::{HubError, ListedFile, client::Client};

/// Longest listing that is read.
const LISTING_BYTES_MAX: usize = 16 << 20;
/// Maximum files that a listing may have.
const FILES_MAX: usize = 20_000;

/// A repository at one commit.
#[derive(Debug)]
pub(super) struct Listing {
    /// The commit.
    pub(super) commit: String,
    /// The files to download, ordered by path.
    pub(super) files: Vec<RemoteFile>,
    /// Whether they were named, or are a single file: not all that a pipeline needs.
    pub(super) is_chosen: bool,
}

/// A file of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RemoteFile {
    /// Path inside the repository, with `/`.
    pub(super) path: String,
    pub(super) bytes: u64,
    pub(super) checksum: Checksum,
}

#[derive(Deserialize)]
struct Answer {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<LargeFile>,
}

#[derive(Deserialize)]
struct LargeFile {
    sha256: String,
    size: u64,
}

impl Sibling {
    fn bytes(&self) -> u64 {
        self.lfs.as_ref().map(|large| large.size).or(self.size).unwrap_or_default()
    }
}

impl Listing {
    /// Requests the listing from the hub. Without `names` it has what a pipeline needs, or the only weight file.
    pub(super) async fn ask(
        client: &Client<'_>,
        id: &RepositoryId,
        revision: &Revision,
        names: &[String],
    ) -> Result<Self, HubError> {
        let body = client.revision(id, revision, LISTING_BYTES_MAX).await?;
        let malformed = |reason: String| HubError::Malformed { host: client.host(), reason };
        let answer: Answer =
            serde_json::from_slice(&body).map_err(|error| malformed(format!("its listing: {error}")))?;
        let commit: Revision = answer.sha.parse()?;
        if !commit.is_commit() || answer.siblings.len() > FILES_MAX {
            return Err(malformed("its listing names no commit or too many files".to_owned()));
        }
        let safe = answer.siblings.iter().filter(|sibling| is_safe(&sibling.rfilename));
        let listed = safe.map(|sibling| ListedFile { path: sibling.rfilename.clone(), bytes: sibling.bytes() });
        let chosen = selected(&listed.collect::<Vec<_>>(), names, id)?;
        let is_wanted = |path: &String| chosen.as_ref().map_or_else(|| is_needed(path), |chosen| chosen.contains(path));
        let mut files = Vec::new();
        for sibling in answer.siblings.into_iter().filter(|sibling| is_wanted(&sibling.rfilename)) {
            let path = sibling.rfilename.clone();
            files.push(
                remote_file(sibling)
                    .ok_or_else(|| malformed(format!("its listing has no size and checksum of `{path}`")))?,
            );
        }
        files.sort_by(|left, right| left.path.cmp(&right.path));
        if chosen.is_some() {
            return Ok(Self { commit: answer.sha, files, is_chosen: true });
        }
        drop_redundant_shards(&mut files);
        match missing_part(&files) {
            Some(missing) => Err(HubError::NotAPipeline { repository: id.to_string(), missing: missing.to_owned() }),
            None => Ok(Self { commit: answer.sha, files, is_chosen: false }),
        }
    }
}

fn remote_file(sibling: Sibling) -> Option<RemoteFile> {
    let (bytes, name) = match sibling.lfs {
        Some(large) => (large.size, large.sha256),
        None => (sibling.size?, sibling.blob_id?),
    };
    Some(RemoteFile { path: sibling.rfilename, bytes, checksum: Checksum::of_name(&name)? })
}

const TOKENIZERS: [&str; 2] = ["tokenizer", "tokenizer_2"];
const NETWORKS: [(&str, &str); 4] = [
    ("text_encoder", "model"),
    ("text_encoder_2", "model"),
    ("transformer", "diffusion_pytorch_model"),
    ("vae", "diffusion_pytorch_model"),
];

/// Whether a pipeline needs a file. Such a path has at most one folder, so it cannot lead out of the target folder.
fn is_needed(path: &str) -> bool {
    let Some((folder, name)) = path.split_once('/') else {
        return path == "model_index.json" || is_license(path);
    };
    let is_plain = name.chars().all(|letter| letter.is_ascii_alphanumeric() || "._-".contains(letter));
    if !is_plain || name.starts_with('.') {
        return false;
    }
    let ends_in = |endings: &[&str]| endings.iter().any(|ending| name.ends_with(ending));
    if folder == "scheduler" {
        return name == "scheduler_config.json";
    }
    if TOKENIZERS.contains(&folder) {
        return ends_in(&[".json", ".txt", ".model"]);
    }
    let network = NETWORKS.iter().find(|(network, _)| *network == folder);
    network.is_some_and(|(_, stem)| name == "config.json" || is_weights(name, stem))
}

/// Whether a file at the top level is the model's license.
fn is_license(name: &str) -> bool {
    let upper = name.to_ascii_uppercase();
    let is_plain = name.chars().all(|letter| letter.is_ascii_alphanumeric() || "._-".contains(letter));
    is_plain && ["LICENSE", "LICENCE", "NOTICE", "USE_POLICY"].iter().any(|beginning| upper.starts_with(beginning))
}

/// `STEM.safetensors`, its shards and their index. Files of another precision have an infix such as `.fp16` and do not count.
fn is_weights(name: &str, stem: &str) -> bool {
    let Some(rest) = name.strip_prefix(stem) else { return false };
    let shard = || {
        let (number, count) = rest.strip_suffix(".safetensors")?.strip_prefix('-')?.split_once("-of-")?;
        Some([number, count].iter().all(|part| part.len() == 5 && part.bytes().all(|digit| digit.is_ascii_digit())))
    };
    matches!(rest, ".safetensors" | ".safetensors.index.json") || shard().unwrap_or(false)
}

/// Removes the shards of a network that the repository also has as one file: the loader reads that file.
fn drop_redundant_shards(files: &mut Vec<RemoteFile>) {
    let single: Vec<String> = NETWORKS
        .iter()
        .map(|(folder, stem)| format!("{folder}/{stem}"))
        .filter(|stem| files.iter().any(|file| file.path == format!("{stem}.safetensors")))
        .collect();
    files.retain(|file| {
        let second = |stem: &String| {
            file.path
                .strip_prefix(stem.as_str())
                .is_some_and(|rest| rest.starts_with('-') || rest.ends_with(".index.json"))
        };
        !single.iter().any(second)
    });
}

/// The first required part of a pipeline that is missing.
fn missing_part(files: &[RemoteFile]) -> Option<&'static str> {
    let has = |beginning: &str, endings: &[&str]| {
        files
            .iter()
            .any(|file| file.path.starts_with(beginning) && endings.iter().any(|ending| file.path.ends_with(ending)))
    };
    let parts: [(&str, &[&str], &str); 7] = [
        ("model_index.json", &[""], "model_index.json"),
        ("transformer/", &[".safetensors"], "transformer/ with weights in safetensors"),
        ("vae/", &[".safetensors"], "vae/ with weights in safetensors"),
        ("text_encoder/", &[".safetensors"], "text_encoder/ with weights in safetensors"),
        ("text_encoder_2/", &[".safetensors"], "text_encoder_2/ with weights in safetensors"),
        ("tokenizer/", &["vocab.json", "tokenizer.json"], "tokenizer/vocab.json or tokenizer.json"),
        ("tokenizer_2/", &["tokenizer.json", "spiece.model"], "tokenizer_2/tokenizer.json or spiece.model"),
    ];
    parts.into_iter().find(|(beginning, endings, _)| !has(beginning, endings)).map(|(_, _, what)| what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_layout_and_the_license_are_needed() {
        for path in [
            "model_index.json",
            "LICENSE.md",
            "scheduler/scheduler_config.json",
            "tokenizer/merges.txt",
            "tokenizer_2/spiece.model",
            "text_encoder/model.safetensors",
            "text_encoder_2/model-00001-of-00002.safetensors",
            "transformer/diffusion_pytorch_model.safetensors.index.json",
            "vae/config.json",
        ] {
            assert!(is_needed(path), "{path}");
        }
        for path in [
            "flux1-dev.safetensors",
            "ae.safetensors",
            "README.md",
            "dev_grid.jpg",
            ".gitattributes",
            "text_encoder/model.fp16.safetensors",
            "text_encoder/model.fp16-00001-of-00002.safetensors",
            "text_encoder/pytorch_model.bin",
            "text_encoder/openvino_model.xml",
            "transformer/../../passwd.json",
            "tokenizer/../x.json",
            "tokenizer/.json",
            "LICENSE/../../x",
            "/etc/passwd",
        ] {
            assert!(!is_needed(path), "{path}");
        }
    }

    #[test]
    fn tokenizers_may_be_in_either_of_their_files() {
        let checksum = Checksum::of_name(&"0".repeat(64)).expect("a checksum");
        let missing = |tokenizers: &[&str]| {
            let networks = NETWORKS.iter().map(|(folder, stem)| format!("{folder}/{stem}.safetensors"));
            let paths = networks.chain(["model_index.json"].iter().chain(tokenizers).map(|path| (*path).to_owned()));
            let files: Vec<_> = paths.map(|path| RemoteFile { path, bytes: 1, checksum: checksum.clone() }).collect();
            missing_part(&files)
        };
        for clip in ["tokenizer/vocab.json", "tokenizer/tokenizer.json"] {
            for t5 in ["tokenizer_2/tokenizer.json", "tokenizer_2/spiece.model"] {
                assert_eq!(missing(&[clip, t5]), None);
            }
            assert_eq!(missing(&[clip]), Some("tokenizer_2/tokenizer.json or spiece.model"));
        }
        let others = ["tokenizer/tokenizer_config.json", "tokenizer_2/tokenizer.json"];
        assert_eq!(missing(&others), Some("tokenizer/vocab.json or tokenizer.json"));
    }

    #[test]
    fn shards_are_not_downloaded_beside_the_same_network_in_one_file() {
        let checksum = Checksum::of_name(&"0".repeat(64)).expect("a checksum");
        let file = |path: &str| RemoteFile { path: path.into(), bytes: 1, checksum: checksum.clone() };
        let mut files: Vec<_> = [
            "vae/diffusion_pytorch_model.safetensors",
            "vae/diffusion_pytorch_model-00001-of-00002.safetensors",
            "vae/diffusion_pytorch_model.safetensors.index.json",
            "transformer/diffusion_pytorch_model-00001-of-00002.safetensors",
        ]
        .map(file)
        .to_vec();
        drop_redundant_shards(&mut files);
        let paths: Vec<&str> = files.iter().map(|file| file.path.as_str()).collect();
        let expected = [
            "vae/diffusion_pytorch_model.safetensors",
            "transformer/diffusion_pytorch_model-00001-of-00002.safetensors",
        ];
        assert_eq!(paths, expected);
    }
}
