//! Bounds the freed memory that the allocator keeps.
//!
//! Once large blocks were freed, glibc raises two bounds by itself: blocks up to 32 MiB then come from its arenas, and
//! each arena, of which there are up to eight per core, keeps up to 64 MiB at its end. Decoding clients' images leaves
//! such arenas: a worker would end up hundreds of MiB above what it uses. See `mallopt(3)`.

/// Blocks of this size or more are mapped by themselves: the value that glibc ends up with.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const OWN_MAPPING_BYTES: i32 = 32 * 1024 * 1024;
/// What an arena may keep at its end. With less, a CPU engine would request its blocks from the system again and again.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const KEPT_BYTES: i32 = 16 * 1024 * 1024;

/// Sets bounds that do not grow. Does nothing with another allocator.
pub(super) fn bound_what_is_kept() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[expect(unsafe_code, reason = "the C library's interface")]
    // SAFETY: takes two numbers, and locks what it changes. An unknown parameter is refused without effect.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, OWN_MAPPING_BYTES);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT_BYTES);
    }
}
