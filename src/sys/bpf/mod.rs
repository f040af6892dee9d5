//! bpf(2): maps, programs and links, each command thinly wrapped.
//!
//! The structures are those of linux/bpf.h up to the fields used here; the kernel takes what is missing at
//! the end of a structure as zero.

mod link;
mod map;
mod mapping;
mod program;

pub use link::{Link, Mode};
pub use map::{Kind, Map, Spec};
pub use mapping::Mapping;
pub use program::{Instruction, LoadError, Program, Run, Trial};

use std::fs;
use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::sync::OnceLock;
use std::time::Duration;

// enum bpf_cmd
const MAP_CREATE: libc::c_int = 0;
const MAP_LOOKUP: libc::c_int = 1;
const MAP_UPDATE: libc::c_int = 2;
const PROG_LOAD: libc::c_int = 5;
const PROG_TEST_RUN: libc::c_int = 10;
const OBJ_GET_INFO: libc::c_int = 15;
const MAP_UPDATE_BATCH: libc::c_int = 26;
const LINK_CREATE: libc::c_int = 28;
const LINK_UPDATE: libc::c_int = 29;

/// The call itself. Only for the structures of this module, whose pointers their makers vouch for.
fn call<T>(command: libc::c_int, attributes: &mut T) -> io::Result<libc::c_int> {
    let result = {
        // SAFETY: `attributes` is a live structure of the size given, without uninitialised padding, and every
        // pointer in it is null or points to memory of the length that the structure or the map says, which
        // the caller keeps alive and to itself during the call.
        unsafe {
            libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>())
        }
    };
    match libc::c_int::try_from(result) {
        Ok(result) if result >= 0 => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The call of a command that gives a new descriptor.
fn open<T>(command: libc::c_int, attributes: &mut T) -> io::Result<OwnedFd> {
    let fd = call(command, attributes)?;
    // SAFETY: the command returned a new descriptor, which nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// An address as the structures carry it.
fn address<T>(of: &[T]) -> u64 {
    of.as_ptr().expose_provenance() as u64
}

/// An address that the kernel writes to.
fn address_mut<T>(of: &mut [T]) -> u64 {
    of.as_mut_ptr().expose_provenance() as u64
}

/// A name of at most 15 letters as the kernel keeps it.
fn name(text: &str) -> [u8; 16] {
    let mut name = [0; 16];
    name.iter_mut().take(15).zip(text.bytes()).for_each(|(to, from)| *to = from);
    name
}

/// How many CPUs there may ever be, which is the number of values of a per-CPU map's entry.
///
/// # Errors
/// What reading /sys/devices/system/cpu/possible says.
pub fn possible_cpus() -> io::Result<usize> {
    static COUNT: OnceLock<usize> = OnceLock::new();
    if let Some(count) = COUNT.get() {
        return Ok(*count);
    }
    let text = fs::read_to_string("/sys/devices/system/cpu/possible")?;
    let count = last_cpu(&text).map(|last| last + 1);
    let count = count.ok_or_else(|| io::Error::other(format!("cannot read CPU list {text:?}")))?;
    Ok(*COUNT.get_or_init(|| count))
}

/// How long one of the ticks is that programs count with `bpf_jiffies64`, in nanoseconds: the resolution of the coarse
/// clocks.
#[must_use]
pub fn tick() -> u32 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid timespec for the call to fill.
    unsafe { libc::clock_getres(libc::CLOCK_MONOTONIC_COARSE, &raw mut time) };
    u32::try_from(time.tv_nsec).unwrap_or_default()
}

/// What `bpf_jiffies64` counts, as a time: at most 10 ms less than the ticks by their length, since times(2) has no
/// smaller unit.
#[must_use]
pub fn tick_clock() -> Duration {
    // SAFETY: times(2) fills nothing when it is given no place.
    let units = unsafe { libc::times(std::ptr::null_mut()) };
    Duration::from_millis(u64::try_from(units).unwrap_or_default() * 10)
}

/// The last CPU of a list such as `0-3,8-11`.
fn last_cpu(list: &str) -> Option<usize> {
    list.trim().rsplit([',', '-']).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cpus_end_in_the_last() {
        for (list, last) in
            [("0\n", Some(0)), ("0-1\n", Some(1)), ("0-3,8-11", Some(11)), ("", None)]
        {
            assert_eq!(last_cpu(list), last, "{list:?}");
        }
        assert!(possible_cpus().is_ok_and(|count| count >= 1));
    }

    #[test]
    fn names_are_cut() {
        assert_eq!(&name("short")[..6], b"short\0");
        assert_eq!(&name("a name that is too long"), b"a name that is \0");
    }
}
