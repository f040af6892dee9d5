//! VRRP, pure: version 2 (RFC 3768) for IPv4 and version 3 (RFC 9568) for IPv4 and IPv6.
//!
//! - [`Datagram`] is what a socket received, [`Receiver`] judges it for one virtual router and
//!   gives an [`Advert`]; [`Sender`] builds the payload of one.
//! - [`Signal`]s are messages of our own, for a planned hand-over.
//! - [`VirtualRouter`] is the state machine: inputs with the time passed in, [`Action`]s out.
//! - [`group`] keeps routers of a sync group in the same state.
//! - [`Observer`] remembers what peers say and names misconfigurations.
//!
//! Words are those of RFC 9568: Active and Backup, advertisement, skew.

mod auth;
mod error;
pub mod group;
mod interval;
mod observe;
mod packet;
mod receive;
mod router;
mod send;
mod signal;
mod time;

#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub use auth::{HMAC_TRAILER, HmacKey, HmacMode, Password, Stamp};
pub use error::Error;
pub use interval::{Interval, active_down, skew};
pub use observe::{Finding, Observer, Own, Peer, Stranger};
pub use packet::{Addresses, Advert, Datagram, Form, Packet};
pub use receive::{Accepts, Auth, ChecksumPolicy, HopLimit, Receiver, is_own};
pub use router::{
    Action, Announce, Config, HandOver, Heard, NotPreferred, Path, Reason, State, Transition,
    VirtualRouter,
};
pub use send::{Forms, Sender};
pub use signal::{Kind, Signal};
pub use time::Moment;

use super::ethernet::Mac;

/// IP protocol number (RFC 9568 section 5.1.1.4).
pub const IP_PROTOCOL: u8 = 112;
/// Where IPv4 advertisements go.
pub const MULTICAST_V4: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 18);
/// Where IPv6 advertisements go.
pub const MULTICAST_V6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x12);
/// TTL or hop limit an advertisement must have: it never crossed a router (RFC 5082).
pub const HOP_LIMIT: u8 = 255;
/// Priority of the router that owns the addresses.
pub const OWNER: u8 = 255;
/// Priority that says: I stop being Active.
pub const RESIGN: u8 = 0;
/// Priority of a router that is Active only for want of a better one: unhealthy under the last-man
/// rule, or released by its operator. Any healthy router takes over from it, whatever its own
/// `preempt` says, and without waiting for Active_Down_Interval.
pub const LAST_RESORT: u8 = 1;
/// The most addresses an advertisement carries.
pub const ADDRESSES_MAX: usize = 255;

/// Protocol version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Version {
    /// RFC 3768: IPv4, intervals in seconds that all routers must share.
    V2,
    /// RFC 9568: IPv4 and IPv6, intervals in centiseconds that backups learn.
    V3,
}

/// Address family; a VRID means a different virtual router in each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address.
    #[must_use]
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// The multicast address of VRRP in this family.
    #[must_use]
    pub const fn multicast(self) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(MULTICAST_V4),
            Self::V6 => IpAddr::V6(MULTICAST_V6),
        }
    }

    /// Bytes of an address.
    #[must_use]
    pub const fn address_len(self) -> usize {
        match self {
            Self::V4 => 4,
            Self::V6 => 16,
        }
    }

    /// The virtual router MAC address (RFC 9568 section 7.3).
    #[must_use]
    pub const fn virtual_mac(self, vrid: u8) -> Mac {
        match self {
            Self::V4 => Mac([0x00, 0x00, 0x5e, 0x00, 0x01, vrid]),
            Self::V6 => Mac([0x00, 0x00, 0x5e, 0x00, 0x02, vrid]),
        }
    }
}
