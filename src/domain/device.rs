//! Choice of devices and engine settings, as the command line writes them.

use std::fmt;
use std::str::FromStr;

use crate::domain::byte_size::ByteSize;
use crate::domain::precision::Precision;
use crate::domain::weight_storage::WeightStorage;

/// `auto`, `cpu`, `cuda` or `cuda:N`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// The first CUDA device if one works, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The CUDA device of this ordinal; an error if there is none.
    Cuda(usize),
}

/// A word that is not a device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a device: use `auto`, `cpu`, `cuda` or `cuda:N`")]
pub struct UnknownDevice;

impl FromStr for DeviceChoice {
    type Err = UnknownDevice;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => {
                let ordinal = text.strip_prefix("cuda:").ok_or(UnknownDevice)?;
                ordinal.parse().map(Self::Cuda).map_err(|_| UnknownDevice)
            }
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

/// Which part of a model does not stay on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Offload {
    /// None where that fits, else T5, else T5 and as many blocks as do not fit.
    #[default]
    Auto,
    /// None: fastest.
    Nothing,
    /// T5 is copied to the device for each new prompt, block by block: a quarter less memory, and slower.
    Text,
    /// T5 too, and those of the transformer's blocks that do not fit are read for each step.
    Blocks,
}

/// A word that is not an offload choice.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot be offloaded: use `auto`, `none`, `text` or `blocks`")]
pub struct UnknownOffload;

impl FromStr for Offload {
    type Err = UnknownOffload;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "none" => Ok(Self::Nothing),
            "text" => Ok(Self::Text),
            "blocks" => Ok(Self::Blocks),
            _ => Err(UnknownOffload),
        }
    }
}

/// Which kernels compute attention and convolutions on a CUDA device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Kernels {
    /// The device's fastest, once they were found to agree with the portable ones.
    #[default]
    Auto,
    /// Those that every device runs, based on `mma.sync` of the tensor cores.
    Portable,
}

/// A word that is not a choice of kernels.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a choice of kernels: use `auto` or `portable`")]
pub struct UnknownKernels;

impl FromStr for Kernels {
    type Err = UnknownKernels;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "portable" => Ok(Self::Portable),
            _ => Err(UnknownKernels),
        }
    }
}

/// An operation that some devices compute by a faster kernel than the portable one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FasterKernel {
    /// Attention.
    Attention,
    /// Convolutions of the autoencoder.
    Convolution,
}

impl FasterKernel {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Attention, Self::Convolution];
}

impl fmt::Display for FasterKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Attention => "attention",
            Self::Convolution => "convolution",
        })
    }
}

/// A word that is not a faster kernel.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a faster kernel: use `attention` or `convolution`")]
pub struct UnknownFasterKernel;

impl FromStr for FasterKernel {
    type Err = UnknownFasterKernel;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|kernel| kernel.to_string() == text).ok_or(UnknownFasterKernel)
    }
}

/// Why a faster kernel is not used, as a trial in another process found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KernelFault {
    /// Its outputs differ from the portable kernel's.
    #[error("the faster kernel does not agree with it")]
    Disagrees,
    /// It broke the process that tried it.
    #[error("the faster kernel does not run")]
    Fails,
    /// It did not end in time.
    #[error("the faster kernel does not end")]
    Hangs,
}

/// What trials of the faster kernels found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KernelFaults {
    /// Of attention.
    pub attention: Option<KernelFault>,
    /// Of convolutions.
    pub convolution: Option<KernelFault>,
}

/// How to build an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EngineSettings {
    /// Its device.
    pub device: DeviceChoice,
    /// What does not stay on it.
    pub offload: Offload,
    /// Whether results are bitwise batch invariant even where that costs time. On the CPU they always are.
    pub is_deterministic: bool,
    /// Kernels for attention and convolutions on CUDA. All engines of a device share the latest choice.
    pub kernels: Kernels,
    /// Faster kernels that a trial found unfit: the portable ones stand in for them.
    pub kernel_faults: KernelFaults,
    /// Precision of its blocks.
    pub precision: Precision,
    /// How its weights are kept in memory.
    pub weights: WeightStorage,
    /// Maximum memory for weights and activations: of the device, or on the CPU of the host. `None`: what is free.
    pub memory_budget: Option<ByteSize>,
    /// Whether steps that are alike are recorded as CUDA graphs. Experimental: it takes the memory of a step twice.
    pub uses_graphs: bool,
}

impl From<DeviceChoice> for EngineSettings {
    fn from(device: DeviceChoice) -> Self {
        Self { device, ..Self::default() }
    }
}

/// Maximum devices of one worker.
const DEVICES_MAX: usize = 16;

/// One or more devices, separated by commas, with an engine each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Devices(Vec<DeviceChoice>);

/// A list that is not one of devices.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnknownDevices {
    /// An entry is not a device.
    #[error(transparent)]
    Unknown(#[from] UnknownDevice),
    /// One device twice. Only the CPU may be repeated: then it is shared.
    #[error("the device `{0}` is named twice")]
    Twice(DeviceChoice),
    /// `auto` beside others.
    #[error("`auto` stands for one device: name each of several")]
    AutoAmongOthers,
    /// More than a machine has.
    #[error("more than {DEVICES_MAX} devices")]
    TooMany,
}

impl Devices {
    /// The first one, for uses of a single device.
    #[must_use]
    pub fn first(&self) -> DeviceChoice {
        self.0.first().copied().unwrap_or_default()
    }

    /// All of them; at least one.
    pub fn iter(&self) -> impl Iterator<Item = DeviceChoice> + '_ {
        self.0.iter().copied()
    }
}

impl From<DeviceChoice> for Devices {
    fn from(device: DeviceChoice) -> Self {
        Self(vec![device])
    }
}

impl Default for Devices {
    fn default() -> Self {
        DeviceChoice::default().into()
    }
}

impl FromStr for Devices {
    type Err = UnknownDevices;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let devices = text.split(',').map(|word| word.trim().parse()).collect::<Result<Vec<DeviceChoice>, _>>()?;
        if devices.len() > DEVICES_MAX {
            return Err(UnknownDevices::TooMany);
        }
        if devices.len() > 1 && devices.contains(&DeviceChoice::Auto) {
            return Err(UnknownDevices::AutoAmongOthers);
        }
        for (place, device) in devices.iter().enumerate() {
            if *device != DeviceChoice::Cpu && devices[..place].contains(device) {
                return Err(UnknownDevices::Twice(*device));
            }
        }
        Ok(Self(devices))
    }
}

impl fmt::Display for Devices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<String> = self.iter().map(|device| device.to_string()).collect();
        f.write_str(&words.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_parsed() {
        assert_eq!("auto".parse(), Ok(DeviceChoice::Auto));
        assert_eq!("cuda".parse(), Ok(DeviceChoice::Cuda(0)));
        assert_eq!("cuda:3".parse(), Ok(DeviceChoice::Cuda(3)));
        for text in ["", "gpu", "cuda:", "cuda:x", "CPU"] {
            assert_eq!(text.parse::<DeviceChoice>(), Err(UnknownDevice), "{text:?}");
        }
    }

    #[test]
    fn kernels_are_parsed() {
        assert_eq!(("auto".parse(), "portable".parse()), (Ok(Kernels::Auto), Ok(Kernels::Portable)));
        for text in ["", "wgmma", "PORTABLE"] {
            assert_eq!(text.parse::<Kernels>(), Err(UnknownKernels), "{text:?}");
        }
    }

    #[test]
    fn faster_kernels_are_parsed_as_they_are_written() {
        for kernel in FasterKernel::ALL {
            assert_eq!(kernel.to_string().parse(), Ok(kernel));
        }
        assert_eq!("softmax".parse::<FasterKernel>(), Err(UnknownFasterKernel));
    }

    #[test]
    fn lists_of_devices_are_parsed() {
        let devices: Devices = "cuda:0, cuda:1".parse().expect("two devices");
        assert_eq!((devices.to_string().as_str(), devices.first()), ("cuda:0,cuda:1", DeviceChoice::Cuda(0)));
        assert_eq!("cpu,cpu".parse::<Devices>().map(|devices| devices.iter().count()), Ok(2));
        let twice = UnknownDevices::Twice(DeviceChoice::Cuda(0));
        assert_eq!("cuda,cpu,cuda:0".parse::<Devices>(), Err(twice));
        assert_eq!("auto,cpu".parse::<Devices>(), Err(UnknownDevices::AutoAmongOthers));
        assert_eq!("cpu,".parse::<Devices>(), Err(UnknownDevices::Unknown(UnknownDevice)));
        assert_eq!(["cpu"; 17].join(",").parse::<Devices>(), Err(UnknownDevices::TooMany));
    }
}
