//! Which device an engine shall use and how, as the command line writes it.

use std::fmt;
use std::str::FromStr;

use crate::domain::precision::Precision;

/// `auto`, `cpu`, `cuda` or `cuda:N`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// The first CUDA device where there is one that works, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The CUDA device of this ordinal; an error where there is none.
    Cuda(usize),
}

/// A word that names no device.
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

/// What of a model does not stay on its device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Offload {
    /// All of it stays: fastest.
    #[default]
    Nothing,
    /// T5 comes to the device for each new prompt, block by block: a quarter less memory, and slower.
    Text,
}

/// A word that names nothing that could stay away.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot be offloaded: use `none` or `text`")]
pub struct UnknownOffload;

impl FromStr for Offload {
    type Err = UnknownOffload;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "none" => Ok(Self::Nothing),
            "text" => Ok(Self::Text),
            _ => Err(UnknownOffload),
        }
    }
}

/// Which kernels compute attention and convolutions on a CUDA device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Kernels {
    /// The fastest that the device has, once they have been found to agree with those that every device has.
    #[default]
    Auto,
    /// Those that every device has, by the tensor cores' `mma.sync`.
    Portable,
}

/// A word that names no choice of kernels.
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

/// How an engine is to be built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EngineSettings {
    /// Where it draws.
    pub device: DeviceChoice,
    /// What does not stay there.
    pub offload: Offload,
    /// Whether an image has the same bits in any company also where that costs time. On the CPU it always has.
    pub is_deterministic: bool,
    /// Which kernels compute attention and convolutions on CUDA. All engines of a device share the choice of the latest.
    pub kernels: Kernels,
    /// In which numbers the linear layers of its blocks multiply.
    pub precision: Precision,
}

impl From<DeviceChoice> for EngineSettings {
    fn from(device: DeviceChoice) -> Self {
        Self { device, ..Self::default() }
    }
}

/// Most devices one worker draws on.
const DEVICES_MAX: usize = 16;

/// One or more devices, separated by commas. Each gets an engine of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Devices(Vec<DeviceChoice>);

/// Words that name no devices, or one of them twice.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnknownDevices {
    /// One of them names none.
    #[error(transparent)]
    Unknown(#[from] UnknownDevice),
    /// One device twice. The CPU may be named more than once: then it is shared.
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
    /// The first one: where only one is used.
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
    fn words_and_devices() {
        assert_eq!("auto".parse(), Ok(DeviceChoice::Auto));
        assert_eq!("cuda".parse(), Ok(DeviceChoice::Cuda(0)));
        assert_eq!("cuda:3".parse(), Ok(DeviceChoice::Cuda(3)));
        for text in ["", "gpu", "cuda:", "cuda:x", "CPU"] {
            assert_eq!(text.parse::<DeviceChoice>(), Err(UnknownDevice), "{text:?}");
        }
    }

    #[test]
    fn words_and_kernels() {
        assert_eq!(("auto".parse(), "portable".parse()), (Ok(Kernels::Auto), Ok(Kernels::Portable)));
        for text in ["", "wgmma", "PORTABLE"] {
            assert_eq!(text.parse::<Kernels>(), Err(UnknownKernels), "{text:?}");
        }
    }

    #[test]
    fn lists_of_devices() {
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
