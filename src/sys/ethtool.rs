//! Parameters of network interfaces (ethtool(8), `SIOCETHTOOL` of netdevice(7)).

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd as _;

use super::{check, socket};

/// A parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parameter {
    /// Large receive offload, 0 or 1.
    Lro,
    /// Generic receive offload, 0 or 1.
    Gro,
    /// Microseconds between receive interrupts.
    RxUsecs,
    /// Descriptors of a receive ring.
    RxRing,
    /// Descriptors of a transmit ring.
    TxRing,
    /// Queue pairs.
    Channels,
}

/// A parameter's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Value {
    /// Now.
    pub now: u32,
    /// The most it can be, where the device says so.
    pub max: Option<u32>,
}

// linux/ethtool.h
const GET_COALESCE: u32 = 0x0e;
const SET_COALESCE: u32 = 0x0f;
const GET_RING: u32 = 0x10;
const SET_RING: u32 = 0x11;
const GET_FLAGS: u32 = 0x25;
const SET_FLAGS: u32 = 0x26;
const GET_GRO: u32 = 0x2b;
const SET_GRO: u32 = 0x2c;
const GET_CHANNELS: u32 = 0x3c;
const SET_CHANNELS: u32 = 0x3d;
const FLAG_LRO: u32 = 1 << 15;

/// Words of the structures, the command first: `ethtool_coalesce` is the longest, 23.
const WORDS: usize = 32;
type Words = [u32; WORDS];

// Positions in `ethtool_ringparam`, `ethtool_channels` and `ethtool_coalesce`.
const RING_RX_MAX: usize = 1;
const RING_TX_MAX: usize = 4;
const RING_RX: usize = 5;
const RING_TX: usize = 8;
const CHANNELS_RX_MAX: usize = 1;
const CHANNELS_COMBINED_MAX: usize = 4;
const CHANNELS_RX: usize = 5;
const CHANNELS_COMBINED: usize = 8;
const COALESCE_RX_USECS: usize = 1;
/// `ethtool_value`, and the positions in it.
const VALUE: usize = 1;

/// Reads a parameter.
///
/// # Errors
/// EOPNOTSUPP when the driver does not have it, ENODEV without such an interface.
pub fn read(interface: &str, parameter: Parameter) -> io::Result<Value> {
    let (words, at) = fetch(interface, parameter)?;
    let max = match parameter {
        Parameter::RxRing => Some(words[RING_RX_MAX]),
        Parameter::TxRing => Some(words[RING_TX_MAX]),
        Parameter::Channels if at == CHANNELS_COMBINED => Some(words[CHANNELS_COMBINED_MAX]),
        Parameter::Channels => Some(words[CHANNELS_RX_MAX]),
        _ => None,
    };
    let now = match parameter {
        Parameter::Lro => u32::from(words[VALUE] & FLAG_LRO != 0),
        _ => words[at],
    };
    Ok(Value { now, max })
}

/// Sets a parameter; what else the device keeps with it stays.
///
/// # Errors
/// EPERM without CAP_NET_ADMIN, EINVAL for a value the device cannot have, and as [`read`].
pub fn set(interface: &str, parameter: Parameter, value: u32) -> io::Result<()> {
    let (mut words, at) = fetch(interface, parameter)?;
    words[0] = match parameter {
        Parameter::Lro => SET_FLAGS,
        Parameter::Gro => SET_GRO,
        Parameter::RxUsecs => SET_COALESCE,
        Parameter::RxRing | Parameter::TxRing => SET_RING,
        Parameter::Channels => SET_CHANNELS,
    };
    match parameter {
        Parameter::Lro if value == 0 => words[VALUE] &= !FLAG_LRO,
        Parameter::Lro => words[VALUE] |= FLAG_LRO,
        _ => words[at] = value,
    }
    call(interface, &mut words)
}

/// The structure that holds a parameter, and the parameter's position.
fn fetch(interface: &str, parameter: Parameter) -> io::Result<(Words, usize)> {
    let (command, at) = match parameter {
        Parameter::Lro => (GET_FLAGS, VALUE),
        Parameter::Gro => (GET_GRO, VALUE),
        Parameter::RxUsecs => (GET_COALESCE, COALESCE_RX_USECS),
        Parameter::RxRing => (GET_RING, RING_RX),
        Parameter::TxRing => (GET_RING, RING_TX),
        Parameter::Channels => (GET_CHANNELS, CHANNELS_COMBINED),
    };
    let mut words = [0; WORDS];
    words[0] = command;
    call(interface, &mut words)?;
    // Some devices, veth for one, count receive and transmit queues apart. Of those the receive queues
    // are the parameter: the others have a number of their own that must not be lost.
    let apart = parameter == Parameter::Channels && words[CHANNELS_COMBINED_MAX] == 0;
    Ok((words, if apart { CHANNELS_RX } else { at }))
}

/// The name of an interface's driver, `veth` for example.
///
/// # Errors
/// As [`read`].
pub fn driver(interface: &str) -> io::Result<String> {
    /// `ethtool_drvinfo`: the command, then names of 32 bytes, the driver's first; 196 bytes.
    const GET_DRIVER: u32 = 0x03;
    let mut words = [0; 64];
    words[0] = GET_DRIVER;
    call(interface, &mut words)?;
    let letters = words[1..9].iter().flat_map(|word| word.to_ne_bytes());
    let name: Vec<u8> = letters.take_while(|letter| *letter != 0).collect();
    Ok(String::from_utf8_lossy(&name).into_owned())
}

fn call<const N: usize>(interface: &str, words: &mut [u32; N]) -> io::Result<()> {
    // What the kernel writes is never longer than the command's structure.
    const { assert!(N >= WORDS) };
    // SAFETY: ifreq is plain arrays, integers and pointers, for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let name = interface.as_bytes();
    if name.is_empty() || name.len() >= request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name) {
        *to = libc::c_char::from_ne_bytes([*from]);
    }
    request.ifr_ifru.ifru_data = words.as_mut_ptr().cast();
    let fd = socket::datagram(SocketAddr::from(([0, 0, 0, 0], 0)))?;
    // SAFETY: `request` is a valid ifreq whose NUL-terminated name ends within it and whose data
    // points to more bytes than the structure of the command has; both live across the call.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_has_offloads_and_no_rings() {
        assert!(read("lo", Parameter::Gro).is_ok_and(|value| value.now <= 1));
        let error = read("lo", Parameter::RxRing).expect_err("no rings");
        assert_eq!(error.raw_os_error(), Some(libc::EOPNOTSUPP));
        for name in ["", "none-such", "a-name-that-is-too-long"] {
            let error = read(name, Parameter::Gro).expect_err("no such interface");
            assert_eq!(error.raw_os_error(), Some(libc::ENODEV), "{name}");
        }
    }
}
