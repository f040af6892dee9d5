//! Where a packet to an address would go (`ip route get`).

use std::io;
use std::net::IpAddr;

use super::Requests;
use super::link::flag_bits;
use super::message::{Request, attributes, ip, u32_at};

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PREFSRC: u16 = 7;
const RTA_VIA: u16 = 18;
/// Bytes of `struct rtmsg`.
const BODY: usize = 12;

/// A route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// The address is this host's own.
    pub local: bool,
    /// The interface it leaves by, by number.
    pub interface: u32,
    /// The router in between; `None`: the address is on the link.
    pub gateway: Option<IpAddr>,
    /// Our address on the way there.
    pub source: Option<IpAddr>,
}

fn parse(body: &[u8]) -> Option<Route> {
    let kind = *body.get(7)?;
    let mut route =
        Route { local: kind == libc::RTN_LOCAL, interface: 0, gateway: None, source: None };
    for (kind, value) in attributes(body.get(BODY..)?) {
        match kind {
            RTA_OIF => route.interface = u32_at(value, 0)?,
            RTA_GATEWAY => route.gateway = ip(value),
            // A router of the other family: its address stands behind the family.
            RTA_VIA => route.gateway = ip(value.get(2..)?),
            RTA_PREFSRC => route.source = ip(value),
            _ => {}
        }
    }
    (route.interface != 0).then_some(route)
}

impl Requests {
    /// The route that a packet of this host's to `address` takes.
    ///
    /// # Errors
    /// ENETUNREACH or EHOSTUNREACH when there is none.
    pub fn route(&mut self, address: IpAddr) -> io::Result<Route> {
        let (family, bits, octets) = match address {
            IpAddr::V4(address) => (libc::AF_INET, 32, address.octets().to_vec()),
            IpAddr::V6(address) => (libc::AF_INET6, 128, address.octets().to_vec()),
        };
        let mut body = [0; BODY];
        body[0] = u8::try_from(family).unwrap_or_default();
        body[1] = bits;
        let flags = flag_bits(libc::NLM_F_REQUEST | libc::NLM_F_ACK);
        let mut request = Request::new(libc::RTM_GETROUTE, flags, &body);
        request.attribute(RTA_DST, &octets);
        let mut found = None;
        self.dump(request, |message| found = found.or_else(|| parse(message.body)))?;
        found.ok_or_else(|| io::Error::from_raw_os_error(libc::ENETUNREACH))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_addresses_are_local() {
        let route = Requests::open().expect("netlink").route(IpAddr::from([127, 0, 0, 1]));
        let route = route.expect("a route");
        assert!(route.local && route.interface == 1 && route.gateway.is_none(), "{route:?}");
    }

    #[test]
    fn torn_routes_are_none() {
        for len in 0..BODY + 4 {
            assert_eq!(parse(&[0; BODY + 4][..len]), None);
        }
    }
}
