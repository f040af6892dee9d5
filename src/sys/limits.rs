//! Process limits (getrlimit(2)).

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::check;
use super::notify::EventFd;

/// Descriptors that room is made for at most: 2 MiB of kernel memory, eight bytes each.
const DESCRIPTORS_RESERVED: u64 = 256 * 1024;

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

/// Has the kernel make room for as many descriptors as the soft limit allows, 262,144 at most, and returns how many.
///
/// Otherwise it doubles the process's table whenever it is full, and where the process has several threads each time waits
/// for an RCU grace period (`expand_fdtable` in fs/file.c): the thread that accepts or connects stands still for 5 to 21 ms (measured).
///
/// # Errors
/// What eventfd(2) or fcntl(2) says: ENOMEM for one.
pub fn reserve_descriptors(limit: u64) -> io::Result<u64> {
    let count = limit.min(DESCRIPTORS_RESERVED);
    let last = libc::c_int::try_from(count.saturating_sub(1)).unwrap_or(libc::c_int::MAX);
    let any = EventFd::new()?;
    // SAFETY: no pointers are passed, and the descriptor is open.
    let fd = check(unsafe { libc::fcntl(any.as_raw_fd(), libc::F_DUPFD_CLOEXEC, last) })?;
    // SAFETY: the call above returned this descriptor, and nobody else owns it.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
    Ok(count)
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Places in the process's table of descriptors (proc_pid_status(5)).
    fn table() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").expect("procfs");
        let line = status.lines().find_map(|line| line.strip_prefix("FDSize:"));
        line.and_then(|size| size.trim().parse().ok()).expect("a number")
    }

    #[test]
    fn there_is_room_for_all_descriptors_of_the_limit_up_to_a_bound() {
        let soft = raise_open_files().expect("getrlimit").soft;
        let reserved = reserve_descriptors(soft).expect("memory for the table");
        assert_eq!(reserved, soft.min(262_144));
        assert!(table() >= reserved, "{} of {reserved}", table());
    }
}
