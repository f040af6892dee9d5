//! Links: what interfaces there are, and whether they carry.

use std::io;

use super::Requests;
use super::message::{Request, attributes, text, u16_at, u32_at};

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_MACVLAN_MODE: u16 = 1;
const MACVLAN_MODE_BRIDGE: u32 = 4;
/// Bytes of `struct ifinfomsg`.
const BODY: usize = 16;

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its hardware address, when it is Ethernet's six bytes.
    pub mac: Option<[u8; 6]>,
    /// The interface below it, by number: a macvlan's or VLAN's parent.
    pub parent: Option<u32>,
    /// It is one VLAN of its parent (IEEE 802.1Q), which shows the same frames, tagged.
    pub vlan: bool,
    /// `IFF_UP` and so on (netdevice(7)).
    pub flags: u32,
    /// The largest packet it takes, in bytes.
    pub mtu: u32,
    /// The note on it (`ip link set NAME alias TEXT`); empty without one.
    pub alias: String,
}

impl Link {
    /// Switched on, with a carrier.
    #[must_use]
    pub fn is_running(&self) -> bool {
        let wanted = (libc::IFF_UP | libc::IFF_RUNNING).cast_unsigned();
        self.flags & wanted == wanted
    }
}

/// Reads the body of `RTM_NEWLINK` or `RTM_DELLINK`.
#[must_use]
pub fn parse(body: &[u8]) -> Option<Link> {
    // A bridge's news of its ports come in the same messages, of family AF_BRIDGE.
    if body.first().copied() != Some(0) {
        return None;
    }
    let (index, flags) = (u32_at(body, 4)?, u32_at(body, 8)?);
    let (name, mac, parent) = (String::new(), None, None);
    let alias = String::new();
    let mut link = Link { index, name, mac, parent, vlan: false, flags, mtu: 0, alias };
    for (kind, value) in attributes(body.get(BODY..)?) {
        match kind {
            IFLA_IFNAME => link.name = text(value),
            IFLA_ADDRESS => link.mac = value.try_into().ok(),
            IFLA_IFALIAS => link.alias = text(value),
            IFLA_MTU => link.mtu = u32_at(value, 0).unwrap_or_default(),
            IFLA_LINKINFO => {
                let mut info = attributes(value);
                link.vlan = info.any(|(kind, name)| kind == IFLA_INFO_KIND && text(name) == "vlan");
            }
            IFLA_LINK => link.parent = u32_at(value, 0).filter(|parent| *parent != 0),
            _ => {}
        }
    }
    u16_at(body, 2)?;
    Some(link)
}

impl Requests {
    /// Every interface.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn links(&mut self) -> io::Result<Vec<Link>> {
        let flags = libc::NLM_F_REQUEST | libc::NLM_F_DUMP;
        let request = Request::new(libc::RTM_GETLINK, flag_bits(flags), &[0; BODY]);
        let mut links = Vec::new();
        self.dump(request, |message| links.extend(parse(message.body)))?;
        Ok(links)
    }

    /// Creates a macvlan interface `name` with this hardware address above the one with index
    /// `parent`. It is down until [`Requests::switch_on`].
    ///
    /// # Errors
    /// EEXIST when there is one of this name, EOPNOTSUPP without macvlan in the kernel.
    pub fn add_macvlan(&mut self, name: &str, parent: u32, mac: [u8; 6]) -> io::Result<()> {
        let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        let mut request = Request::new(libc::RTM_NEWLINK, flag_bits(flags), &[0; BODY]);
        let mut terminated = name.as_bytes().to_vec();
        terminated.push(0);
        request.attribute(IFLA_IFNAME, &terminated);
        request.attribute(IFLA_LINK, &parent.to_ne_bytes());
        request.attribute(IFLA_ADDRESS, &mac);
        request.nested(IFLA_LINKINFO, |info| {
            info.attribute(IFLA_INFO_KIND, b"macvlan\0");
            info.nested(IFLA_INFO_DATA, |data| {
                data.attribute(IFLA_MACVLAN_MODE, &MACVLAN_MODE_BRIDGE.to_ne_bytes());
            });
        });
        self.change(request)
    }

    /// Switches the interface with this index on (`IFF_UP`).
    ///
    /// # Errors
    /// ENODEV when it has gone.
    pub fn switch_on(&mut self, index: u32) -> io::Result<()> {
        let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK;
        let up = libc::IFF_UP.cast_unsigned();
        let body = body(index, up, up);
        self.change(Request::new(libc::RTM_NEWLINK, flag_bits(flags), &body))
    }

    /// Writes a note on the interface with this index (255 bytes at most).
    ///
    /// # Errors
    /// ENODEV when it has gone, EINVAL when the text is too long.
    pub fn set_alias(&mut self, index: u32, alias: &str) -> io::Result<()> {
        let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK;
        let mut request = Request::new(libc::RTM_NEWLINK, flag_bits(flags), &body(index, 0, 0));
        request.attribute(IFLA_IFALIAS, alias.as_bytes());
        self.change(request)
    }

    /// Removes the interface with this index.
    ///
    /// # Errors
    /// ENODEV when it has gone already.
    pub fn remove_link(&mut self, index: u32) -> io::Result<()> {
        let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK;
        self.change(Request::new(libc::RTM_DELLINK, flag_bits(flags), &body(index, 0, 0)))
    }
}

/// `struct ifinfomsg`: family, type, index, flags, and which of those are meant.
fn body(index: u32, flags: u32, change: u32) -> [u8; BODY] {
    let mut body = [0; BODY];
    let values = [index, flags, change].into_iter().flat_map(u32::to_ne_bytes);
    for (to, from) in body.iter_mut().skip(4).zip(values) {
        *to = from;
    }
    body
}

/// The flags of a request, which libc has as `int`.
pub(super) fn flag_bits(flags: i32) -> u16 {
    u16::try_from(flags).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_has_a_loopback_that_runs() {
        let links = Requests::open().expect("netlink").links().expect("a dump");
        let lo = links.iter().find(|link| link.name == "lo").expect("lo");
        assert_eq!(lo.index, 1);
        assert_eq!(lo.mac, Some([0; 6]));
    }

    /// As `ip link add link eth0 name eth0.5 type vlan id 5` shows in a dump.
    #[test]
    fn a_vlan_of_another_interface() {
        let attribute = |kind: u16, value: &[u8]| {
            let len = u16::try_from(4 + value.len()).expect("short");
            let mut bytes = [len.to_ne_bytes(), kind.to_ne_bytes()].concat();
            bytes.extend_from_slice(value);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            bytes
        };
        let link = |kind: &[u8]| {
            let info = attribute(IFLA_LINKINFO, &attribute(IFLA_INFO_KIND, kind));
            let parent = attribute(IFLA_LINK, &2_u32.to_ne_bytes());
            parse(&[&[0; BODY][..], &attribute(IFLA_IFNAME, b"eth0.5\0"), &parent, &info].concat())
                .expect("a link")
        };
        let vlan = link(b"vlan\0");
        assert_eq!((vlan.name.as_str(), vlan.parent, vlan.vlan), ("eth0.5", Some(2), true));
        assert!(!link(b"macvlan\0").vlan);
    }

    #[test]
    fn bridge_messages_and_torn_ones_are_no_links() {
        let mut body = [0u8; 32];
        assert!(parse(&body).is_some());
        body[0] = 7;
        assert_eq!(parse(&body), None);
        for len in 0..BODY {
            assert_eq!(parse(&[0; 32][..len]), None);
        }
    }
}
