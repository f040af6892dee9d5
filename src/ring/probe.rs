//! Can this kernel run the ring? Asked once at start, so that the answer is a sentence and not an
//! errno in the middle of things.

use std::fmt;
use std::fs;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use super::{Ring, Settings};
use crate::sys;

/// The oldest kernel that has multishot receive, buffer rings and deferred task work together.
const KERNEL_MIN: (u32, u32) = (6, 1);

/// Why the ring cannot be used, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unusable {
    /// The kernel is older than 6.1.
    Kernel(u32, u32),
    /// `kernel.io_uring_disabled` forbids it: 1 (to unprivileged processes) or 2 (to all).
    Sysctl(u32),
    /// io_uring_setup(2) is not permitted: a seccomp filter, most likely a container's.
    Forbidden,
    /// RLIMIT_MEMLOCK is too low for the rings.
    LockedMemory,
    /// Anything else.
    Other(String),
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = KERNEL_MIN;
        match self {
            Self::Kernel(a, b) => write!(
                f,
                "this kernel is {a}.{b}; ringgate needs {major}.{minor} or later: boot a newer one \
                 (Debian 12 and Ubuntu 24.04 have it)"
            ),
            Self::Sysctl(1) => f.write_str(
                "io_uring is disabled for unprivileged processes (kernel.io_uring_disabled = 1): \
                 run `sysctl kernel.io_uring_disabled=0`, or put this user's group into \
                 kernel.io_uring_group",
            ),
            Self::Sysctl(value) => write!(
                f,
                "io_uring is disabled (kernel.io_uring_disabled = {value}): run \
                 `sysctl kernel.io_uring_disabled=0`"
            ),
            Self::Forbidden => f.write_str(
                "io_uring is forbidden to this process, most likely by a container's seccomp \
                 profile: allow io_uring_setup, io_uring_enter and io_uring_register in it",
            ),
            Self::LockedMemory => f.write_str(
                "the limit on locked memory is too low for io_uring's rings: set \
                 `LimitMEMLOCK=infinity` in the systemd unit, or `ulimit -l unlimited`",
            ),
            Self::Other(error) => write!(f, "io_uring cannot be used: {error}"),
        }
    }
}

impl std::error::Error for Unusable {}

/// Makes a small ring and throws it away.
///
/// # Errors
/// Why it cannot be used, with the fix.
pub fn check() -> Result<(), Unusable> {
    if let Some((major, minor)) = sys::kernel::version()
        && (major, minor) < KERNEL_MIN
    {
        return Err(Unusable::Kernel(major, minor));
    }
    let settings = Settings { buffers: 16, buffers_limit: 16, epoch: Instant::now() };
    match Ring::new(settings, Arc::default()) {
        Ok(_) => Ok(()),
        Err(error) => Err(explain(&error, disabled_sysctl())),
    }
}

/// What an error of making a ring means.
#[must_use]
pub fn explain(error: &io::Error, disabled: u32) -> Unusable {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) if disabled > 0 => Unusable::Sysctl(disabled),
        Some(libc::EPERM | libc::EACCES) => Unusable::Forbidden,
        // Kernels before 6.6 have no such sysctl, and a kernel may be built without io_uring.
        Some(libc::ENOSYS) => Unusable::Other("this kernel was built without it".into()),
        Some(libc::ENOMEM) => Unusable::LockedMemory,
        Some(libc::EMFILE) => {
            Unusable::Other("out of file descriptors: raise LimitNOFILE (ulimit -n)".into())
        }
        _ => Unusable::Other(error.to_string()),
    }
}

fn disabled_sysctl() -> u32 {
    let text = fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cause_names_its_fix() {
        let error = |errno| io::Error::from_raw_os_error(errno);
        let table = [
            (explain(&error(libc::EPERM), 2), "sysctl kernel.io_uring_disabled=0"),
            (explain(&error(libc::EPERM), 1), "kernel.io_uring_group"),
            (explain(&error(libc::EPERM), 0), "seccomp"),
            (explain(&error(libc::ENOMEM), 0), "LimitMEMLOCK"),
            (explain(&error(libc::ENOSYS), 0), "built without"),
            (Unusable::Kernel(5, 15), "6.1 or later"),
        ];
        for (cause, fix) in table {
            assert!(cause.to_string().contains(fix), "{cause}");
        }
    }

    #[test]
    fn this_machine_can_run_it() {
        assert_eq!(check(), Ok(()));
    }
}
