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

/// A limit of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource {
    /// Number of open files.
    OpenFiles,
    /// Bytes of locked memory.
    LockedMemory,
}

/// No limit.
pub const UNLIMITED: u64 = libc::RLIM_INFINITY;

impl Resource {
    fn number(self) -> libc::__rlimit_resource_t {
        match self {
            Self::OpenFiles => libc::RLIMIT_NOFILE,
            Self::LockedMemory => libc::RLIMIT_MEMLOCK,
        }
    }
}

/// What is in force.
///
/// # Errors
/// What getrlimit(2) says.
pub fn read(resource: Resource) -> io::Result<Limit> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid rlimit for the call to fill.
    check(unsafe { libc::getrlimit(resource.number(), &raw mut limit) })?;
    Ok(Limit { soft: limit.rlim_cur, hard: limit.rlim_max })
}

/// Raises the soft limit to `soft`, and the hard one where it is lower (which takes CAP_SYS_RESOURCE).
///
/// # Errors
/// EPERM without the privilege or above `fs.nr_open`.
pub fn raise_to(resource: Resource, soft: u64) -> io::Result<()> {
    let now = read(resource)?;
    let limit = libc::rlimit { rlim_cur: soft, rlim_max: now.hard.max(soft) };
    // SAFETY: `limit` is a valid rlimit that the call only reads.
    check(unsafe { libc::setrlimit(resource.number(), &raw const limit) })?;
    Ok(())
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
