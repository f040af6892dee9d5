//! Process limits (getrlimit(2)).

use std::io;

use super::check;

/// Soft and hard value of one limit.
#[derive(Debug, Clone, Copy)]
pub struct Limit {
    /// What is enforced now.
    pub soft: u64,
    /// How far an unprivileged process may raise it.
    pub hard: u64,
}

/// Raises the soft limit on open files to the hard one and returns what is in force.
///
/// # Errors
/// What getrlimit(2) or setrlimit(2) says.
pub fn raise_open_files() -> io::Result<Limit> {
    raise(libc::RLIMIT_NOFILE)
}

/// Raises the soft limit on locked memory (which io_uring's rings count against for unprivileged
/// users) to the hard one and returns what is in force, in bytes.
///
/// # Errors
/// What getrlimit(2) or setrlimit(2) says.
pub fn raise_locked_memory() -> io::Result<Limit> {
    raise(libc::RLIMIT_MEMLOCK)
}

fn raise(resource: libc::__rlimit_resource_t) -> io::Result<Limit> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid rlimit for the call to fill.
    check(unsafe { libc::getrlimit(resource, &raw mut limit) })?;
    if limit.rlim_cur < limit.rlim_max {
        limit.rlim_cur = limit.rlim_max;
        // SAFETY: `limit` is a valid rlimit that the call only reads.
        check(unsafe { libc::setrlimit(resource, &raw const limit) })?;
    }
    Ok(Limit { soft: limit.rlim_cur, hard: limit.rlim_max })
}
