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

/// Lets the calling thread, and threads it starts from now on, run on these CPUs only (as many as
/// `CPU_SETSIZE`, 1024, are looked at).
///
/// # Errors
/// EINVAL when none of them is there or allowed.
pub fn confine(cpus: &[usize]) -> std::io::Result<()> {
    // SAFETY: cpu_set_t is an array of integers, for which all zeroes is a valid value.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for &cpu in cpus.iter().filter(|cpu| **cpu < 1024) {
        // SAFETY: `set` has 1024 bits, more than `cpu`.
        unsafe { libc::CPU_SET(cpu, &mut set) };
    }
    // SAFETY: the call reads `size_of` bytes of `set`, which is that long.
    super::check(unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) })?;
    Ok(())
}

/// CPU time of the calling thread, what the kernel did for it included.
#[must_use]
pub fn thread_time() -> std::time::Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call fills in `time`, which lives for it; it does not fail for a thread's own clock.
    unsafe {
        libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time);
    }
    let nanos = u32::try_from(time.tv_nsec).unwrap_or_default();
    std::time::Duration::new(u64::try_from(time.tv_sec).unwrap_or_default(), nanos)
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

/// Makes the calling thread give way to others by so many steps (nice(2), which on Linux is about a thread).
///
/// # Errors
/// What setpriority(2) says.
pub fn be_nicer(steps: i32) -> std::io::Result<()> {
    // SAFETY: no pointers are passed; 0 is the calling thread.
    super::check(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, steps) })?;
    Ok(())
}
