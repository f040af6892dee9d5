//! Giving up what is not needed: user, capabilities, the way back (credentials(7), capabilities(7), prctl(2)).
//!
//! Capabilities belong to threads. These calls are for a process that has one thread yet.

use std::io;

use super::check;

/// A capability, by its number in `linux/capability.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Capability {
    /// Bind ports below 1024.
    NetBindService = 10,
    /// Addresses, links, packet rings.
    NetAdmin = 12,
    /// Raw and packet sockets.
    NetRaw = 13,
    /// Lock memory beyond the limit.
    IpcLock = 14,
    /// Real-time scheduling.
    SysNice = 23,
    /// Trace; XDP programs' verifier.
    Perfmon = 38,
    /// Load XDP programs.
    Bpf = 39,
}

impl Capability {
    /// As in capabilities(7), without its prefix.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NetBindService => "net_bind_service",
            Self::NetAdmin => "net_admin",
            Self::NetRaw => "net_raw",
            Self::IpcLock => "ipc_lock",
            Self::SysNice => "sys_nice",
            Self::Perfmon => "perfmon",
            Self::Bpf => "bpf",
        }
    }

    const fn bit(self) -> u64 {
        1 << (self as u32)
    }
}

/// `_LINUX_CAPABILITY_VERSION_3`
const VERSION: u32 = 0x2008_0522;
/// More than any kernel has.
const CAPABILITIES_MAX: u32 = 63;

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Default, Clone, Copy)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// The effective user.
#[must_use]
pub fn effective_user() -> u32 {
    // SAFETY: no pointers are passed.
    unsafe { libc::geteuid() }
}

/// Becomes another user and group, in no other groups, keeping permitted capabilities for
/// [`keep_only`].
///
/// # Errors
/// EPERM for who is not root.
pub fn become_user(uid: u32, gid: u32) -> io::Result<()> {
    prctl(libc::PR_SET_KEEPCAPS, 1, 0)?;
    // SAFETY: the call reads one group number, which lives across it.
    check(unsafe { libc::setgroups(1, &raw const gid) })?;
    // SAFETY: no pointers are passed.
    check(unsafe { libc::setresgid(gid, gid, gid) })?;
    // SAFETY: no pointers are passed.
    check(unsafe { libc::setresuid(uid, uid, uid) })?;
    Ok(())
}

/// Whether the calling thread may make use of it.
#[must_use]
pub fn has(capability: Capability) -> bool {
    permitted().is_ok_and(|mask| mask & capability.bit() != 0)
}

/// Gives up every capability but those of `wanted` that this process has, for good; a successor started by
/// execve(2) has them too. Returns what was kept.
///
/// # Errors
/// What capget(2) and capset(2) say.
pub fn keep_only(wanted: &[Capability]) -> io::Result<Vec<Capability>> {
    let permitted = permitted()?;
    // Another user has none in effect, and dropping from the bounding set takes one.
    set(permitted)?;
    let kept: Vec<Capability> =
        wanted.iter().copied().filter(|one| permitted & one.bit() != 0).collect();
    for number in 0..=CAPABILITIES_MAX {
        if !kept.iter().any(|one| *one as u32 == number) {
            // Fails without CAP_SETPCAP, and beyond the last one there is; no_new_privs stands behind it.
            let _ = prctl(libc::PR_CAPBSET_DROP, number.into(), 0);
        }
    }
    set(kept.iter().fold(0, |mask, one| mask | one.bit()))?;
    let clear = libc::PR_CAP_AMBIENT_CLEAR_ALL;
    let _ = prctl(libc::PR_CAP_AMBIENT, clear.try_into().unwrap_or_default(), 0);
    for one in &kept {
        let raise = libc::PR_CAP_AMBIENT_RAISE.try_into().unwrap_or_default();
        prctl(libc::PR_CAP_AMBIENT, raise, u64::from(*one as u32))?;
    }
    Ok(kept)
}

/// Has exactly these.
fn set(mask: u64) -> io::Result<()> {
    #[allow(clippy::cast_possible_truncation)] // both halves, one after the other
    let half = |shift: u32| {
        let bits = (mask >> shift) as u32;
        Data { effective: bits, permitted: bits, inheritable: bits }
    };
    let data = [half(0), half(32)];
    let header = Header { version: VERSION, pid: 0 };
    // SAFETY: header and the two data structures that version 3 has are as the kernel defines them, and
    // live across the call.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) };
    check(libc::c_int::try_from(result).unwrap_or(-1)).map(drop)
}

fn permitted() -> io::Result<u64> {
    let header = Header { version: VERSION, pid: 0 };
    let mut data = [Data::default(); 2];
    // SAFETY: header and the two data structures that version 3 has are as the kernel defines them, and
    // live across the call.
    let result = unsafe { libc::syscall(libc::SYS_capget, &raw const header, data.as_mut_ptr()) };
    check(libc::c_int::try_from(result).unwrap_or(-1))?;
    Ok(u64::from(data[0].permitted) | u64::from(data[1].permitted) << 32)
}

/// Children start without capabilities. Async-signal-safe, for between fork(2) and execve(2).
pub fn clear_ambient() {
    let clear = libc::PR_CAP_AMBIENT_CLEAR_ALL;
    let _ = prctl(libc::PR_CAP_AMBIENT, clear.try_into().unwrap_or_default(), 0);
}

/// Neither this process nor its children get privileges by execve(2).
///
/// # Errors
/// What prctl(2) says.
pub fn no_new_privileges() -> io::Result<()> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0)
}

/// Processes of the same user cannot trace this one or read its memory, and it leaves no core.
///
/// # Errors
/// What prctl(2) says.
pub fn not_dumpable() -> io::Result<()> {
    prctl(libc::PR_SET_DUMPABLE, 0, 0)
}

fn prctl(option: libc::c_int, two: u64, three: u64) -> io::Result<()> {
    // SAFETY: none of the options used here takes a pointer.
    check(unsafe { libc::prctl(option, two, three, 0u64, 0u64) })?;
    Ok(())
}
