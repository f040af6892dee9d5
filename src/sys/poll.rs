//! ppoll(2): sleeps until one of a few files has input, or a time is over, to the nanosecond.

use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

/// Which of `fds` have input or an error, in `ready` (cleared before); waits for `timeout` at most, for ever
/// when there is none.
///
/// # Errors
/// What ppoll(2) says. A signal is no error: nothing is ready then.
pub fn readable(
    fds: &[RawFd],
    timeout: Option<Duration>,
    ready: &mut Vec<RawFd>,
    scratch: &mut Vec<libc::pollfd>,
) -> io::Result<()> {
    ready.clear();
    scratch.clear();
    scratch.extend(fds.iter().map(|&fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 }));
    let time = timeout.map(|timeout| libc::timespec {
        tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: libc::c_long::from(timeout.subsec_nanos().cast_signed()),
    });
    let time = time.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    let count = libc::nfds_t::try_from(scratch.len()).unwrap_or_default();
    // SAFETY: `scratch` holds `count` valid entries that nobody else uses during the call; `time` is null
    // or points to a timespec that outlives it; no signal mask is passed.
    let result = unsafe { libc::ppoll(scratch.as_mut_ptr(), count, time, std::ptr::null()) };
    if result < 0 {
        let error = io::Error::last_os_error();
        return if error.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(error) };
    }
    ready.extend(scratch.iter().filter(|entry| entry.revents != 0).map(|entry| entry.fd));
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;
    use std::time::Instant;

    use super::*;
    use crate::sys::notify::EventFd;

    #[test]
    fn it_waits_for_input_or_for_the_time() {
        let (quiet, loud) = (EventFd::new().expect("an eventfd"), EventFd::new().expect("another"));
        let fds = [quiet.as_raw_fd(), loud.as_raw_fd()];
        let (mut ready, mut scratch) = (Vec::new(), Vec::new());
        let began = Instant::now();
        let pause = Duration::from_millis(5);
        readable(&fds, Some(pause), &mut ready, &mut scratch).expect("two valid files");
        assert!(ready.is_empty() && began.elapsed() >= pause);
        loud.notify();
        readable(&fds, None, &mut ready, &mut scratch).expect("two valid files");
        assert_eq!(ready, [loud.as_raw_fd()]);
    }
}
