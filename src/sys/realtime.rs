//! A thread that other work cannot delay: real-time scheduling (sched(7)) and memory that stays
//! (mlockall(2)).

use std::io;
use std::mem;

use super::check;

/// Gives the calling thread the scheduling policy `SCHED_FIFO` at `priority` (1 to 99); threads and
/// processes that it starts get the ordinary policy.
///
/// # Errors
/// EPERM without CAP_SYS_NICE (or a sufficient RLIMIT_RTPRIO), or in a cgroup without real-time share.
pub fn schedule_fifo(priority: i32) -> io::Result<()> {
    // SAFETY: sched_param is plain integers, for which all zeroes is a valid value.
    let mut param: libc::sched_param = unsafe { mem::zeroed() };
    param.sched_priority = priority;
    let policy = libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK;
    // SAFETY: `param` is a valid sched_param that the call only reads; 0 is the calling thread.
    check(unsafe { libc::sched_setscheduler(0, policy, &raw const param) })?;
    Ok(())
}

/// Keeps in memory what the process has in memory now, and each page that it touches later of what is
/// mapped now. Nothing is read in beforehand.
///
/// # Errors
/// EPERM or ENOMEM without CAP_IPC_LOCK when RLIMIT_MEMLOCK is too low.
pub fn lock_memory() -> io::Result<()> {
    // SAFETY: no pointers are passed.
    check(unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_ONFAULT) })?;
    Ok(())
}

/// Has the kernel wake the calling thread when it asked for it, and not up to 50 µs later to save wake-ups
/// (`PR_SET_TIMERSLACK`, prctl(2)).
pub fn wake_precisely() {
    // SAFETY: no pointers are passed. It cannot fail for a value above zero.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1) };
}
