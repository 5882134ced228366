//! The GPU architectures that the CUDA kernels are compiled for. Part of the build script; `tests/process/build.rs` tests it.

/// What one program has machine code for: all cards since Ampere that CUDA 13 is common on. Others get the driver's
/// translation of PTX.
const ALL: [Architecture; 5] = [
    Architecture::new(80, ""),
    Architecture::new(86, ""),
    Architecture::new(89, ""),
    Architecture::new(90, "a"),
    Architecture::new(120, ""),
];

/// The first with matrix instructions for bf16, without which no kernel compiles.
const OLDEST: Architecture = Architecture::new(80, "");

/// An architecture as nvcc names it: `90a` of `sm_90a`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Architecture {
    /// Ten times the compute capability.
    number: usize,
    /// `a`: for this capability alone. `f`: for its family. Empty: for all later ones, too, if it is PTX.
    suffix: &'static str,
}

impl Architecture {
    pub(crate) const fn new(number: usize, suffix: &'static str) -> Self {
        Self { number, suffix }
    }

    /// `9.0a`
    fn in_words(self) -> String {
        format!("{}.{}{}", self.number / 10, self.number % 10, self.suffix)
    }
}

impl std::fmt::Display for Architecture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{}", self.number, self.suffix)
    }
}

/// The architectures of a build.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Architectures {
    machine_code: Vec<Architecture>,
    ptx: Architecture,
}

impl Architectures {
    /// Of a build with `CUDA_COMPUTE_CAP`, which is also what candle's kernels are compiled for, as PTX: all for the oldest,
    /// whose PTX runs on all, and otherwise the one.
    ///
    /// # Errors
    /// When the kernels cannot be compiled for it.
    pub(crate) fn of_build(asked: Architecture) -> Result<Self, String> {
        if asked.number < OLDEST.number {
            return Err(format!(
                "CUDA_COMPUTE_CAP={asked} is older than {OLDEST}, the first with matrix instructions for bf16: use {OLDEST}, \
                 for all cards from there on"
            ));
        }
        let machine_code = if asked == OLDEST { ALL.to_vec() } else { vec![asked] };
        Ok(Self { machine_code, ptx: asked })
    }

    /// For `--version`, and for the program itself: `8.0 9.0a 8.0+PTX`.
    pub(crate) fn in_words(&self) -> String {
        let machine_code = self.machine_code.iter().map(|architecture| architecture.in_words());
        machine_code.chain([format!("{}+PTX", self.ptx.in_words())]).collect::<Vec<_>>().join(" ")
    }

    /// nvcc's arguments for a source file. None where no architecture has the instructions that the file is made of.
    pub(crate) fn arguments(&self, file: &str) -> Vec<String> {
        let of_machine_code =
            |architecture: &Architecture| format!("-gencode=arch=compute_{architecture},code=sm_{architecture}");
        if file.ends_with("_hopper.cu") {
            let hopper = self.machine_code.iter().filter(|architecture| **architecture == Architecture::new(90, "a"));
            return hopper.map(of_machine_code).collect();
        }
        let ptx = format!("-gencode=arch=compute_{0},code=compute_{0}", self.ptx);
        self.machine_code.iter().map(of_machine_code).chain([ptx]).collect()
    }
}
