//! Options of every command that builds engines.

use clap::Args;

use crate::config::{Flags, THREADS};
use crate::domain::byte_size::ByteSize;
use crate::domain::device::{Kernels, Offload};
use crate::domain::precision::Precision;
use crate::domain::weight_storage::WeightStorage;

/// Options of engines.
#[derive(Debug, Clone, Default, PartialEq, Args)]
pub struct EngineArgs {
    /// Part of the model to keep out of memory: `none`, `text` to load the text encoder only for new prompts, `blocks` to read
    /// also those of the transformer's blocks that do not fit for each step, or `auto` for the first of them that fits
    /// [default: auto]
    #[arg(long, value_name = "WHAT")]
    pub offload: Option<Offload>,
    /// Make images batch-invariant on CUDA (slower). On the CPU they always are
    #[arg(long)]
    pub deterministic: bool,
    /// Kernels of attention and convolutions on CUDA: `auto` for the fastest that pass a self-test, `portable` for those that
    /// run on every device [default: auto]
    #[arg(long, value_name = "KERNELS")]
    pub kernels: Option<Kernels>,
    /// Precision: full; bf16, for the CPU, which is faster on processors with AVX-512 BF16; or fp8. Both are lossy, and linear layers take
    /// half the memory [default: full]
    #[arg(long, value_name = "PRECISION")]
    pub precision: Option<Precision>,
    /// How weights are kept in memory: `as-stored` takes their file's size, `expanded` is faster, `auto` expands them where
    /// they fit [default: auto]
    #[arg(long, value_name = "HOW")]
    pub weights: Option<WeightStorage>,
    /// Most memory for weights and activations, on the CPU the host's: 12GiB [default: what is free]
    #[arg(long, value_name = "SIZE")]
    pub memory_budget: Option<ByteSize>,

    /// Record steps that are alike as CUDA graphs (experimental: no GPU has run it)
    #[arg(long, hide = true)]
    pub graphs: bool,

    /// Threads that compute on the CPU [default: the cores that the program may use]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(THREADS))]
    pub threads: Option<u64>,
}

impl EngineArgs {
    pub(super) fn apply(self, flags: &mut Flags) {
        flags.offload = self.offload;
        flags.is_deterministic = self.deterministic;
        flags.kernels = self.kernels;
        flags.precision = self.precision;
        flags.weights = self.weights;
        flags.memory_budget = self.memory_budget;
        flags.uses_graphs = self.graphs;
        flags.threads = self.threads;
    }
}
