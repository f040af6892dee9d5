//! What interfaces can do with XDP: the kernel's own word (generic netlink's family `netdev`, since Linux 6.3), and
//! whether a program runs there.

use std::io;

use super::Requests;
use super::link::flag_bits;
use super::message::{Request, attributes, u16_at, u32_at};

/// The driver runs programs, which may drop, pass and send back (`NETDEV_XDP_ACT_BASIC`).
pub const BASIC: u64 = 1;
/// Its programs may redirect frames (`NETDEV_XDP_ACT_REDIRECT`).
pub const REDIRECT: u64 = 2;
/// Frames can be redirected to it (`NETDEV_XDP_ACT_NDO_XMIT`).
pub const TARGET: u64 = 4;

// linux/genetlink.h
const CONTROL: u16 = 0x10;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
// linux/netdev.h
const GET_DEVICE: u8 = 1;
const DEVICE_INDEX: u16 = 1;
const DEVICE_FEATURES: u16 = 3;
/// Bytes of `struct genlmsghdr`.
const GENERIC: usize = 4;
// linux/if_link.h
const IFLA_XDP: u16 = 43;
const IFLA_XDP_ATTACHED: u16 = 2;
/// Bytes of `struct ifinfomsg`.
const LINK: usize = 16;

/// What the driver of the interface with this index does with XDP: [`BASIC`] and so on. Zero: nothing.
///
/// # Errors
/// ENOENT from kernels before 6.3, which do not tell; ENODEV without such an interface.
pub fn xdp_features(index: u32) -> io::Result<u64> {
    let mut requests = Requests::generic()?;
    let family = family(&mut requests)?;
    let mut request = generic(family, GET_DEVICE);
    request.attribute(DEVICE_INDEX, &index.to_ne_bytes());
    let mut found = None;
    requests.dump(request, |message| {
        let mut all = attributes(message.body.get(GENERIC..).unwrap_or_default());
        let features = all.find(|(kind, _)| *kind == DEVICE_FEATURES);
        found = features.and_then(|(_, value)| value.first_chunk().copied());
    })?;
    found.map(u64::from_ne_bytes).ok_or_else(|| io::Error::from_raw_os_error(libc::EBADMSG))
}

/// The number that the kernel has given the family.
fn family(requests: &mut Requests) -> io::Result<u16> {
    let mut request = generic(CONTROL, GET_FAMILY);
    request.attribute(FAMILY_NAME, b"netdev\0");
    let mut found = None;
    requests.dump(request, |message| {
        let mut all = attributes(message.body.get(GENERIC..).unwrap_or_default());
        found = all.find(|(kind, _)| *kind == FAMILY_ID).and_then(|(_, value)| u16_at(value, 0));
    })?;
    found.ok_or_else(|| io::Error::from_raw_os_error(libc::ENOENT))
}

fn generic(kind: u16, command: u8) -> Request {
    let flags = flag_bits(libc::NLM_F_REQUEST | libc::NLM_F_ACK);
    Request::new(kind, flags, &[command, 1, 0, 0])
}

impl Requests {
    /// The interfaces, by number, on which an XDP program runs.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn with_programs(&mut self) -> io::Result<Vec<u32>> {
        let flags = flag_bits(libc::NLM_F_REQUEST | libc::NLM_F_DUMP);
        let request = Request::new(libc::RTM_GETLINK, flags, &[0; LINK]);
        let mut found = Vec::new();
        self.dump(request, |message| found.extend(program(message.body)))?;
        Ok(found)
    }
}

/// The number of an interface that has a program, out of the body of `RTM_NEWLINK`.
fn program(body: &[u8]) -> Option<u32> {
    let mut all = attributes(body.get(LINK..)?);
    let (_, xdp) = all.find(|(kind, _)| *kind == IFLA_XDP)?;
    let (_, how) = attributes(xdp).find(|(kind, _)| *kind == IFLA_XDP_ATTACHED)?;
    (*how.first()? != 0).then(|| u32_at(body, 4)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_runs_no_programs() {
        match xdp_features(1) {
            Ok(features) => assert_eq!(features, 0),
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ENOENT), "{error}"),
        }
        if xdp_features(1).is_ok() {
            let error = xdp_features(u32::MAX >> 1).expect_err("no such interface");
            assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
        }
    }

    #[test]
    fn programs_are_found_in_messages() {
        let link = |attached: u8| {
            let mut request = Request::new(0, 0, &[&[0; 4][..], &[7, 0, 0, 0], &[0; 8]].concat());
            request.nested(IFLA_XDP, |xdp| xdp.attribute(IFLA_XDP_ATTACHED, &[attached]));
            request.finish(1).split_off(16)
        };
        assert_eq!((program(&link(0)), program(&link(2))), (None, Some(7)));
        assert_eq!((program(&[0; 15]), program(&[0; 16])), (None, None));
        assert!(Requests::open().and_then(|mut all| all.with_programs()).is_ok());
    }
}
