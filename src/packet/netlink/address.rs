//! Addresses on interfaces, with a lifetime after which the kernel removes them by itself.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use super::Requests;
use super::link::flag_bits;
use super::message::{Request, attributes, ip, u32_at};

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_LABEL: u16 = 3;
const IFA_CACHEINFO: u16 = 6;
const IFA_FLAGS: u16 = 8;
/// Who added it, since Linux 5.18.
const IFA_PROTO: u16 = 11;
/// No duplicate address detection: the address is usable at once.
const IFA_F_NODAD: u32 = 0x02;
/// A lifetime without end.
const FOREVER: u32 = u32::MAX;
/// Bytes of `struct ifaddrmsg`.
const BODY: usize = 8;

/// An address to put on an interface.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Wanted {
    /// The interface, by number.
    pub interface: u32,
    /// The address.
    pub address: IpAddr,
    /// Length of its prefix.
    pub prefix: u8,
    /// For IPv4: the name that ifconfig(8) shows.
    pub label: Option<String>,
    /// Who added it, as the kernel keeps it (`IFA_PROTO`); Linux before 5.18 ignores it.
    pub owner: u8,
    /// Not to be chosen as source of connections of our own (IPv6 only: deprecated from the start).
    pub deprecated: bool,
}

/// An address that an interface has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assigned {
    /// The interface, by number.
    pub interface: u32,
    /// The address.
    pub address: IpAddr,
    /// Length of its prefix.
    pub prefix: u8,
    /// Who added it; 0 when that is not known.
    pub owner: u8,
    /// Time until the kernel removes it; `None`: it stays.
    pub valid: Option<Duration>,
    /// `IFA_F_SECONDARY` and so on.
    pub flags: u32,
}

/// Reads the body of `RTM_NEWADDR` or `RTM_DELADDR`.
#[must_use]
pub fn parse(body: &[u8]) -> Option<Assigned> {
    let [_, prefix, flags, _, ..] = *body else { return None };
    let interface = u32_at(body, 4)?;
    let (mut local, mut address, mut owner, mut valid) = (None, None, 0, None);
    let mut flags = u32::from(flags);
    for (kind, value) in attributes(body.get(BODY..)?) {
        match kind {
            IFA_LOCAL => local = ip(value),
            IFA_ADDRESS => address = ip(value),
            IFA_FLAGS => flags = u32_at(value, 0).unwrap_or(flags),
            IFA_PROTO => owner = value.first().copied().unwrap_or_default(),
            IFA_CACHEINFO => valid = u32_at(value, 4).filter(|seconds| *seconds != FOREVER),
            _ => {}
        }
    }
    // For a point-to-point link IFA_ADDRESS is the other end.
    let address = local.or(address)?;
    let valid = valid.map(|seconds| Duration::from_secs(seconds.into()));
    Some(Assigned { interface, address, prefix, owner, valid, flags })
}

impl Requests {
    /// Every address, or those of one family or interface as the caller picks.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn addresses(&mut self) -> io::Result<Vec<Assigned>> {
        let flags = libc::NLM_F_REQUEST | libc::NLM_F_DUMP;
        let request = Request::new(libc::RTM_GETADDR, flag_bits(flags), &[0; BODY]);
        let mut addresses = Vec::new();
        self.dump(request, |message| addresses.extend(parse(message.body)))?;
        Ok(addresses)
    }

    /// Adds an address that the kernel removes after `lifetime` (whole seconds; `None`: never), or
    /// gives the one that is there this lifetime from now on.
    ///
    /// # Errors
    /// EPERM without CAP_NET_ADMIN, ENODEV when the interface has gone, EADDRNOTAVAIL where IPv6 is
    /// off.
    pub fn lease(&mut self, wanted: &Wanted, lifetime: Option<Duration>) -> io::Result<()> {
        let flags =
            libc::NLM_F_REQUEST | libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
        let mut request = self.request(libc::RTM_NEWADDR, flags, wanted);
        if let (Some(label), true) = (&wanted.label, wanted.address.is_ipv4()) {
            let mut terminated = label.as_bytes().to_vec();
            terminated.push(0);
            request.attribute(IFA_LABEL, &terminated);
        }
        if wanted.address.is_ipv6() {
            request.attribute(IFA_FLAGS, &IFA_F_NODAD.to_ne_bytes());
        }
        request.attribute(IFA_PROTO, &[wanted.owner]);
        request.attribute(IFA_CACHEINFO, &cache_info(wanted, lifetime));
        self.change(request)
    }

    /// Removes an address.
    ///
    /// # Errors
    /// EADDRNOTAVAIL when it is not there.
    pub fn remove(&mut self, wanted: &Wanted) -> io::Result<()> {
        let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK;
        let request = self.request(libc::RTM_DELADDR, flags, wanted);
        self.change(request)
    }

    #[allow(clippy::unused_self)] // beside the requests that it serves
    fn request(&self, kind: u16, flags: i32, wanted: &Wanted) -> Request {
        let family = if wanted.address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        let [a, b, c, d] = wanted.interface.to_ne_bytes();
        let family = u8::try_from(family).unwrap_or_default();
        let mut request =
            Request::new(kind, flag_bits(flags), &[family, wanted.prefix, 0, 0, a, b, c, d]);
        match wanted.address {
            IpAddr::V4(address) => {
                request.attribute(IFA_LOCAL, &address.octets());
                request.attribute(IFA_ADDRESS, &address.octets());
            }
            IpAddr::V6(address) => request.attribute(IFA_LOCAL, &address.octets()),
        }
        request
    }
}

/// `struct ifa_cacheinfo`: preferred and valid lifetime in seconds, then two times the kernel fills in.
fn cache_info(wanted: &Wanted, lifetime: Option<Duration>) -> [u8; 16] {
    let valid =
        lifetime.map_or(FOREVER, |time| u32::try_from(time.as_secs()).unwrap_or(FOREVER).max(1));
    let preferred = if wanted.deprecated && wanted.address.is_ipv6() { 0 } else { valid };
    let mut info = [0; 16];
    for (to, from) in
        info.iter_mut().zip(preferred.to_ne_bytes().iter().chain(&valid.to_ne_bytes()))
    {
        *to = *from;
    }
    info
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_has_its_address_for_ever() {
        let all = Requests::open().expect("netlink").addresses().expect("a dump");
        let Some(own) = all.iter().find(|a| a.address == IpAddr::from([127, 0, 0, 1])) else {
            return; // a namespace whose loopback is down
        };
        assert_eq!((own.interface, own.prefix, own.valid), (1, 8, None));
    }

    #[test]
    fn lifetimes_are_whole_seconds_and_never_zero() {
        let wanted = Wanted {
            interface: 1,
            address: IpAddr::from([192, 0, 2, 1]),
            prefix: 32,
            label: None,
            owner: 112,
            deprecated: true,
        };
        let words = |info: [u8; 16]| (u32_at(&info, 0), u32_at(&info, 4));
        assert_eq!(words(cache_info(&wanted, None)), (Some(FOREVER), Some(FOREVER)));
        let half = Some(Duration::from_millis(500));
        assert_eq!(words(cache_info(&wanted, half)), (Some(1), Some(1)));
        let six = Wanted { address: "2001:db8::1".parse().expect("a literal"), ..wanted };
        assert_eq!(words(cache_info(&six, Some(Duration::from_secs(3)))), (Some(0), Some(3)));
    }

    #[test]
    fn torn_bodies_are_no_addresses() {
        for len in 0..BODY {
            assert_eq!(parse(&[0; 16][..len]), None);
        }
        assert_eq!(parse(&[2, 24, 0, 0, 1, 0, 0, 0]), None);
    }
}
