//! timerfd_create(2): a timer that a ring waits for as for any file, finer than the ring's wheel.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use super::check;

/// Reading it through a ring completes once the time it was set to has come.
#[derive(Debug)]
pub struct TimerFd(OwnedFd);

impl TimerFd {
    /// One on `CLOCK_MONOTONIC` that is not set.
    ///
    /// # Errors
    /// What timerfd_create(2) says, EMFILE for one.
    pub fn new() -> io::Result<Self> {
        // SAFETY: no pointers are passed.
        let fd = check(unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_CLOEXEC) })?;
        // SAFETY: the call above returned this descriptor, and nobody else owns it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Expires once, `after` from now; replaces what was set before, also under a pending read.
    ///
    /// # Errors
    /// What timerfd_settime(2) says; nothing for any duration that fits a `time_t`.
    pub fn set(&self, after: Duration) -> io::Result<()> {
        // Zero would disarm it.
        let after = after.max(Duration::from_nanos(1));
        let value = libc::timespec {
            tv_sec: libc::time_t::try_from(after.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: libc::c_long::from(after.subsec_nanos().cast_signed()),
        };
        let never = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let setting = libc::itimerspec { it_interval: never, it_value: value };
        // SAFETY: `setting` is a valid itimerspec that the call only reads; the old one is not
        // asked for.
        let result = unsafe {
            libc::timerfd_settime(self.0.as_raw_fd(), 0, &raw const setting, std::ptr::null_mut())
        };
        check(result).map(drop)
    }
}

impl AsRawFd for TimerFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::time::Instant;

    use super::*;

    #[test]
    fn it_expires_once_at_its_time() {
        let timer = TimerFd::new().expect("a descriptor");
        timer.set(Duration::from_secs(3600)).expect("an hour");
        let began = Instant::now();
        timer.set(Duration::from_millis(20)).expect("20 ms");
        let mut expired = [0; 8];
        std::fs::File::from(timer.0).read_exact(&mut expired).expect("an expiry");
        assert_eq!(u64::from_ne_bytes(expired), 1);
        assert!(began.elapsed() >= Duration::from_millis(20));
    }
}
