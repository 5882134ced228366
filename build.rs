//! Rebuilds when a migration is added: the macro that embeds them only notices changes to the files it already knows. Tells
//! the program which build it is, for `--version`. With CUDA, compiles the kernels.

#[cfg(feature = "cuda")]
#[path = "build/architectures.rs"]
mod architectures;
#[cfg(feature = "cuda")]
#[path = "build/kernels.rs"]
mod kernels;
#[path = "build/source.rs"]
mod source;

use std::env;
use std::path::Path;

fn main() {
    println!("cargo:rerun-if-changed=migrations");
    name_the_build();
    #[cfg(feature = "cuda")]
    let built_for = compile_kernels();
    #[cfg(not(feature = "cuda"))]
    let built_for = "";
    println!("cargo:rustc-env=FLUXSERVE_BUILD_CUDA={built_for}");
}

/// Sets what `src/cli/version.rs` reads.
fn name_the_build() {
    for variable in ["SOURCE_COMMIT", "SOURCE_DATE_EPOCH"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    // Each commit compiles the program again, which a debug build is spared.
    let is_release = env::var("PROFILE").is_ok_and(|profile| profile == "release");
    let folder = env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
    let source = if is_release { source::Source::of(Path::new(&folder)) } else { source::Source::default() };
    for path in &source.watched {
        println!("cargo:rerun-if-changed={}", path.display());
    }
    let unknown = || if is_release { "unknown".to_owned() } else { "unknown (debug build)".to_owned() };
    let commit = given("SOURCE_COMMIT").or(source.commit).unwrap_or_else(unknown);
    let date = given("SOURCE_DATE_EPOCH").or(source.committed_at.map(|seconds| seconds.to_string()));
    println!("cargo:rustc-env=FLUXSERVE_BUILD_COMMIT={commit}");
    println!("cargo:rustc-env=FLUXSERVE_BUILD_EPOCH={}", date.unwrap_or_default());
}

/// What the environment says, for builds without a repository: containers, source archives.
fn given(variable: &str) -> Option<String> {
    let is_plain = |text: &String| !text.is_empty() && text.chars().all(|letter| letter.is_ascii_alphanumeric());
    env::var(variable).ok().filter(is_plain)
}

/// `engine/kernels/*.cu` -> `OUT_DIR/*.fatbin`. Returns for which GPUs.
#[cfg(feature = "cuda")]
fn compile_kernels() -> String {
    const SOURCES: &str = "src/engine/kernels";
    println!("cargo:rerun-if-changed={SOURCES}");
    for variable in ["CUDA_COMPUTE_CAP", "CUDA_HOME", "NVCC", "NVCC_CCBIN"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    // As for candle's own kernels, which are compiled for the same.
    let asked = cudaforge::detect_compute_cap().expect("CUDA_COMPUTE_CAP, or a GPU");
    let suffix = match asked.suffix.as_deref() {
        Some("a") => "a",
        Some("f") => "f",
        _ => "",
    };
    let asked = architectures::Architecture::new(asked.base, suffix);
    let architectures = architectures::Architectures::of_build(asked).unwrap_or_else(|error| panic!("{error}"));
    let nvcc = cudaforge::CudaToolkit::detect().expect("nvcc of the CUDA 13 toolkit").nvcc_path;
    let host_compiler =
        env::var_os("NVCC_CCBIN").map(|path| ["-allow-unsupported-compiler".into(), "-ccbin".into(), path]);
    let compiler = kernels::Compiler {
        nvcc,
        arguments: host_compiler.into_iter().flatten().collect(),
        threads: env::var("CUDAFORGE_THREADS").ok().and_then(|count| count.parse().ok()).unwrap_or_else(cores),
    };
    let out = env::var_os("OUT_DIR").expect("cargo sets it");
    compiler.compile(Path::new(SOURCES), Path::new(&out), &architectures).unwrap_or_else(|error| panic!("{error}"));
    architectures.in_words()
}

#[cfg(feature = "cuda")]
fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
