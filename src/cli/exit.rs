//! Exit codes. clap ends the program with 2 for a usage error, and 0 for `--help`.

use super::FaultyOperations;
use crate::app::{DISAGREES, DeviceLost};
use crate::domain::device::KernelFault;

/// Any failure that has no code of its own.
const FAILURE: u8 = 1;

/// The device is lost to this process: started again, it may work.
const DEVICE_LOST: u8 = 3;

/// The exit code of a command that ended with this error: of a test of operations, how many are faulty.
#[must_use]
pub fn exit_code(error: &anyhow::Error) -> u8 {
    if error.is::<DeviceLost>() {
        DEVICE_LOST
    } else if error.is::<KernelFault>() {
        DISAGREES
    } else {
        error.downcast_ref().map_or(FAILURE, FaultyOperations::exit_code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_that_call_for_an_action_have_a_code() {
        assert_eq!(exit_code(&anyhow::anyhow!("no")), 1);
        assert_eq!(exit_code(&KernelFault::Disagrees.into()), 4);
    }
}
