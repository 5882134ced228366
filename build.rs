//! Rebuilds when a migration is added: the macro that embeds them only notices changes to the files it already knows. Tells
//! the program which build it is, for `--version`. With CUDA, compiles the kernels to PTX.

#[path = "build/source.rs"]
mod source;

use std::env;
use std::path::Path;

fn main() {
    println!("cargo:rerun-if-changed=migrations");
    name_the_build();
    #[cfg(feature = "cuda")]
    compile_kernels();
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
    println!("cargo:rustc-env=FLUXSERVE_BUILD_CUDA={}", cuda_architecture());
}

/// What the environment says, for builds without a repository: containers, source archives.
fn given(variable: &str) -> Option<String> {
    let is_plain = |text: &String| !text.is_empty() && text.chars().all(|letter| letter.is_ascii_alphanumeric());
    env::var(variable).ok().filter(is_plain)
}

#[cfg(not(feature = "cuda"))]
fn cuda_architecture() -> String {
    String::new()
}

/// The architecture that the kernels are compiled for: that of `CUDA_COMPUTE_CAP`, or of this machine's GPU.
#[cfg(feature = "cuda")]
fn cuda_architecture() -> String {
    cudaforge::detect_compute_cap().expect("CUDA_COMPUTE_CAP or a GPU").to_nvcc_arch()
}

/// `engine/kernels/*.cu` -> `OUT_DIR/*.ptx`.
#[cfg(feature = "cuda")]
fn compile_kernels() {
    cudaforge::KernelBuilder::new()
        .source_dir("src/engine/kernels")
        .watch(
            ["attention", "attention_warp", "convolution", "device", "warpgroup"]
                .map(|name| format!("src/engine/kernels/{name}.cuh")),
        )
        .args(["-std=c++17", "-O3"])
        .build_ptx()
        .expect("nvcc compiles the kernels of src/engine/kernels");
}
