//! What `--version` says of this build. `build.rs` finds it out.

use std::sync::LazyLock;

use time::OffsetDateTime;

use super::table::to_the_second;

/// Version, commit, features and date.
pub(super) fn long() -> &'static str {
    static TEXT: LazyLock<String> = LazyLock::new(|| {
        let (version, commit) = (env!("CARGO_PKG_VERSION"), env!("FLUXSERVE_BUILD_COMMIT"));
        format!("{version}\ncommit:   {commit}\nfeatures: {}\ndate:     {}", features(), date())
    });
    &TEXT
}

fn features() -> String {
    let cuda = cfg!(feature = "cuda").then(|| format!("cuda ({})", env!("FLUXSERVE_BUILD_CUDA")));
    let otlp = cfg!(feature = "otlp").then(|| "otlp".to_owned());
    let features: Vec<String> = [cuda, otlp].into_iter().flatten().collect();
    if features.is_empty() { "none".to_owned() } else { features.join(", ") }
}

/// `SOURCE_DATE_EPOCH`, or when the commit was made: the same source gives the same program.
fn date() -> String {
    let seconds = env!("FLUXSERVE_BUILD_EPOCH").parse().ok();
    let date = seconds.and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
    date.map_or_else(|| "unknown".to_owned(), to_the_second)
}
