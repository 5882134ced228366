//! Which GPUs this program is built for. `build/architectures.rs` writes the list: machine code as `9.0a`, and PTX, which the
//! driver compiles, as `8.0+PTX`. candle's kernels are PTX alone.

/// The list of this program; empty without CUDA.
pub(super) const BUILT_FOR: &str = env!("FLUXSERVE_BUILD_CUDA");

/// Devices that do not run the machine code of other devices of their generation: Jetson's.
const EMBEDDED: [(i32, i32); 1] = [(8, 7)];

/// What of the program's kernels runs on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Code {
    /// Machine code; candle's kernels are compiled by the driver.
    Machine,
    /// PTX: the driver compiles all kernels.
    Ptx,
}

/// What runs on a device of a compute capability; `None`: some kernels would not.
pub(super) fn code_for(built_for: &str, capability: (i32, i32)) -> Option<Code> {
    let (ptx, machine): (Vec<&str>, Vec<&str>) = built_for.split(' ').partition(|entry| entry.ends_with("+PTX"));
    let runs_ptx = |entry: &&str| match parse(entry.trim_end_matches("+PTX")) {
        Some((oldest, Reach::Later)) => capability >= oldest,
        Some((only, Reach::Alone)) => capability == only,
        Some((first, Reach::Family)) => capability.0 == first.0 && capability.1 >= first.1,
        None => false,
    };
    let runs_machine_code = |entry: &&str| match parse(entry) {
        Some((only, Reach::Alone)) => capability == only,
        Some((oldest, _)) => {
            capability == oldest
                || capability.0 == oldest.0 && capability.1 > oldest.1 && !EMBEDDED.contains(&capability)
        }
        None => false,
    };
    if !ptx.iter().any(runs_ptx) {
        return None;
    }
    Some(if machine.iter().any(runs_machine_code) { Code::Machine } else { Code::Ptx })
}

/// For whom the PTX of an architecture is.
#[derive(Debug, Clone, Copy)]
enum Reach {
    Later,
    /// `a`
    Alone,
    /// `f`
    Family,
}

/// Reads `9.0a`.
fn parse(architecture: &str) -> Option<((i32, i32), Reach)> {
    let (number, reach) = match architecture.strip_suffix(['a', 'f']) {
        Some(number) if architecture.ends_with('a') => (number, Reach::Alone),
        Some(number) => (number, Reach::Family),
        None => (architecture, Reach::Later),
    };
    let (major, minor) = number.split_once('.')?;
    Some(((major.parse().ok()?, minor.parse().ok()?), reach))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: &str = "8.0 8.6 8.9 9.0a 12.0 8.0+PTX";

    fn runs(built_for: &str, capabilities: &[(i32, i32)]) -> Vec<Option<Code>> {
        capabilities.iter().map(|&capability| code_for(built_for, capability)).collect()
    }

    #[test]
    fn one_program_runs_on_every_card_since_ampere() {
        assert_eq!(code_for(ALL, (7, 5)), None);
        let machine = [(8, 0), (8, 6), (8, 9), (9, 0), (12, 0), (12, 1)];
        assert_eq!(runs(ALL, &machine), [Some(Code::Machine); 6]);
        // Jetson, and generations of which the program has no machine code.
        let ptx = [(8, 7), (10, 0), (10, 3), (11, 0), (13, 0)];
        assert_eq!(runs(ALL, &ptx), [Some(Code::Ptx); 5]);
    }

    #[test]
    fn a_program_for_one_architecture_runs_where_that_does() {
        let devices = [(7, 5), (8, 0), (8, 6), (8, 7), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0), (12, 1)];
        let (machine, ptx) = (Some(Code::Machine), Some(Code::Ptx));
        let of_89 = [None, None, None, None, machine, ptx, ptx, ptx, ptx, ptx];
        assert_eq!(runs("8.9 8.9+PTX", &devices), of_89);
        let of_90a = [None, None, None, None, None, machine, None, None, None, None];
        assert_eq!(runs("9.0a 9.0a+PTX", &devices), of_90a);
        let of_121f = [None, None, None, None, None, None, None, None, None, machine];
        assert_eq!(runs("12.1f 12.1f+PTX", &devices), of_121f);
        assert_eq!(runs("", &devices), [None; 10]);
    }

    /// What the build script says of this program.
    #[test]
    fn a_program_with_cuda_says_what_it_is_built_for() {
        assert_eq!(BUILT_FOR.is_empty(), !cfg!(feature = "cuda"));
        assert_eq!(BUILT_FOR.contains("+PTX"), cfg!(feature = "cuda"));
    }
}
