//! Rebuilds when a migration is added: the macro that embeds them only notices changes to the files it already knows. With
//! CUDA, has its compiler make PTX of the kernels.

fn main() {
    println!("cargo:rerun-if-changed=migrations");
    #[cfg(feature = "cuda")]
    compile_kernels();
}

/// `engine/kernels/*.cu` -> `OUT_DIR/*.ptx`, for the device of `CUDA_COMPUTE_CAP`, or the one that is here.
#[cfg(feature = "cuda")]
fn compile_kernels() {
    cudaforge::KernelBuilder::new()
        .source_dir("src/engine/kernels")
        .watch(["attention", "convolution", "device", "warpgroup"].map(|name| format!("src/engine/kernels/{name}.cuh")))
        .args(["-std=c++17", "-O3"])
        .build_ptx()
        .expect("nvcc compiles the kernels of src/engine/kernels");
}
