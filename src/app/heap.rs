//! How much freed memory the allocator keeps to itself.
//!
//! glibc raises two bounds by itself once large blocks were freed: those up to 32 MiB come from its arenas from then on,
//! and each arena, of which there are up to eight for each core, keeps up to 64 MiB at its end. Decoding images of
//! clients leaves arenas like that: a worker would end up hundreds of MiB above what it uses. See `mallopt(3)`.

/// A block of this size or more is mapped by itself: where glibc ends up after the first large ones.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const OWN_MAPPING_BYTES: i32 = 32 * 1024 * 1024;
/// What an arena may keep at its end. With less, an engine on the CPU would get its blocks anew from the system.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const KEPT_BYTES: i32 = 16 * 1024 * 1024;

/// Sets bounds that do not grow. Where another allocator is used, there is nothing to set.
pub(super) fn bound_what_is_kept() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[expect(unsafe_code, reason = "the C library's interface")]
    // SAFETY: takes two numbers, and locks what it changes. It refuses what it does not know, which costs nothing.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, OWN_MAPPING_BYTES);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT_BYTES);
    }
}
