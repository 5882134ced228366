//! Compiles the kernels as the build does, without the rest of the program, for `scripts/kernels-test.sh`:
//!
//!     rustc --edition 2024 build/alone.rs && ./alone OUT_FOLDER CUDA_COMPUTE_CAP [nvcc's further arguments]
//!
//! Prints what nvcc reports, and for which GPUs the program would say that it is built.

mod architectures;
mod kernels;

use std::env;
use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    match run() {
        Ok(report) => {
            println!("{report}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<String, String> {
    let arguments: Vec<OsString> = env::args_os().skip(1).collect();
    let [out, capability, further @ ..] = arguments.as_slice() else {
        return Err("usage: alone OUT_FOLDER CUDA_COMPUTE_CAP [nvcc's further arguments]".to_owned());
    };
    let capability = capability.to_string_lossy();
    let (number, suffix) = match capability.strip_suffix('a') {
        Some(number) => (number, "a"),
        None => (&*capability, ""),
    };
    let number = number.parse().map_err(|error| format!("{capability}: {error}"))?;
    let architectures = architectures::Architectures::of_build(architectures::Architecture::new(number, suffix))?;
    let compiler = kernels::Compiler {
        nvcc: "nvcc".into(),
        arguments: further.to_vec(),
        threads: std::thread::available_parallelism().map_or(1, usize::from),
    };
    let messages = compiler.compile(Path::new("src/engine/kernels"), Path::new(out), &architectures)?;
    Ok(format!("{messages}built for {}", architectures.in_words()))
}
