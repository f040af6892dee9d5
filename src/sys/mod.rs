//! System calls, one thin function each: arguments and results in Rust's types, errors with errno.
//!
//! The `unsafe` of everything that is not the ring or a packet socket lives here.

pub mod bpf;
pub mod cpu;
pub mod datagram;
pub mod epoll;
pub mod ethtool;
pub mod file;
pub mod kernel;
pub mod landlock;
pub mod limits;
pub mod memory;
pub mod notify;
pub mod passing;
pub mod poll;
pub mod privileges;
pub mod process;
pub mod realtime;
pub mod seccomp;
pub mod signal;
pub mod socket;
pub mod timer;

use std::io;

/// Turns a C return value into a result that carries errno.
fn check(value: libc::c_int) -> io::Result<libc::c_int> {
    if value < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
}
