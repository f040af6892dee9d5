//! CPU placement: which CPUs the process may use, and pinning the calling thread (sched_setaffinity(2)).

/// CPUs in the calling thread's affinity mask, ascending; cgroup cpusets are already taken off by the
/// kernel. Empty when the mask cannot be read.
#[must_use]
pub fn allowed() -> Vec<usize> {
    let mut cpus: Vec<usize> =
        core_affinity::get_core_ids().unwrap_or_default().into_iter().map(|core| core.id).collect();
    cpus.sort_unstable();
    cpus
}

/// Pins the calling thread; false when the kernel refuses.
#[must_use]
pub fn pin(cpu: usize) -> bool {
    core_affinity::set_for_current(core_affinity::CoreId { id: cpu })
}

/// Names the calling thread for `top -H` and `perf` (at most 15 bytes are kept, prctl(2)).
pub fn name_thread(name: &str) {
    let mut bytes = [0u8; 16];
    for (to, from) in bytes[..15].iter_mut().zip(name.bytes()) {
        *to = from;
    }
    // SAFETY: PR_SET_NAME reads a NUL-terminated string of at most 16 bytes; `bytes` is 16 long and
    // its last byte is never written.
    unsafe {
        libc::prctl(libc::PR_SET_NAME, bytes.as_ptr());
    }
}
