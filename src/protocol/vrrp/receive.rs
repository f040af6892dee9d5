//! Whether to believe an advertisement: everything that depends on configuration and on who sent it.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::auth::{self, HmacKey, HmacMode, Password, Replay, TrailerOf};
use super::packet::{Advert, Datagram, Form, Packet};
use super::{Error, Family, HOP_LIMIT, Interval, Kind, Signal, Version};

/// Peers whose checksum form is remembered.
const PEERS: usize = 16;
/// A sender's clock may always be off by this much (HMAC).
const WINDOW_MIN: Duration = Duration::from_secs(5);

/// Authentication of a virtual router.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum Auth {
    /// None.
    #[default]
    None,
    /// Version 2's password.
    Pass(Password),
    /// Version 3's HMAC trailer. The first key signs, all of them verify.
    Hmac {
        /// Step of the roll-out.
        mode: HmacMode,
        /// Keys with distinct ids.
        keys: Vec<HmacKey>,
    },
}

/// Which checksums of version 3 over IPv4 are right. (All others have one form only.)
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ChecksumPolicy {
    /// Accepts every form, and sends each peer the one it uses; RFC 9568's until it is known.
    #[default]
    Auto,
    /// The message only.
    Rfc9568,
    /// With pseudo header, as keepalived unless `v3_checksum_as_v2` is set.
    Pseudo,
}

/// TTL or hop limit that is accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HopLimit {
    /// 255: from this link.
    Link,
    /// A range, for unicast through routers.
    Range(RangeInclusive<u8>),
}

/// What a virtual router accepts.
#[derive(Debug, Clone)]
pub struct Accepts {
    /// Version.
    pub version: Version,
    /// Virtual router ID.
    pub vrid: u8,
    /// The configured interval: version 2 requires it of peers, and it sets the HMAC's window.
    pub interval: Interval,
    /// Accepted TTLs.
    pub hop_limit: HopLimit,
    /// From whom unicast is accepted; then multicast is not. Empty: multicast from anyone.
    pub peers: Vec<IpAddr>,
    /// With `peers` set, whether multicast from anyone is accepted as well (one heartbeat path by
    /// unicast, another by multicast).
    pub both_methods: bool,
    /// Authentication.
    pub auth: Auth,
    /// Checksums.
    pub checksum: ChecksumPolicy,
}

/// Whether a datagram that came in by `interface` is this router's own. `own` are its addresses with their
/// interfaces, by number. A link-local address is one of its link only (RFC 4007 section 5): another router
/// may have it on another link.
#[must_use]
pub fn is_own(own: &[(u32, IpAddr)], interface: u32, source: IpAddr) -> bool {
    let link_local = match source {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    own.iter().any(|&(on, address)| address == source && (on == interface || !link_local))
}

/// Judges advertisements for one virtual router.
#[derive(Debug)]
pub struct Receiver {
    accepts: Accepts,
    replay: Replay,
    /// The form each peer was last heard with, most recent last.
    forms: Vec<(IpAddr, Form)>,
}

impl Receiver {
    /// A receiver that knows no peer yet.
    #[must_use]
    pub const fn new(accepts: Accepts) -> Self {
        Self { accepts, replay: Replay::new(), forms: Vec::new() }
    }

    /// What it accepts.
    #[must_use]
    pub const fn accepts(&self) -> &Accepts {
        &self.accepts
    }

    /// New rules after a reload; sequences and forms learned so far stay.
    pub fn set_accepts(&mut self, accepts: Accepts) {
        self.accepts = accepts;
    }

    /// Judges `packet`, parsed from `datagram`. `is_own` says that it comes from this router itself
    /// ([`is_own`]), `unix` is the time since 1970.
    ///
    /// # Errors
    ///
    /// The first check that fails. Nothing is learned from a datagram that fails one.
    pub fn judge<'a>(
        &mut self,
        datagram: &Datagram<'a>,
        packet: &Packet<'a>,
        is_own: bool,
        unix: Duration,
    ) -> Result<Advert<'a>, Error> {
        if packet.kind != Kind::Advertisement {
            return Err(Error::Type);
        }
        if packet.vrid != self.accepts.vrid {
            return Err(Error::Vrid);
        }
        judge_source(datagram.source, is_own)?;
        self.judge_path(datagram)?;
        let (form, authenticated) = self.judge_contents(datagram, packet, unix)?;
        Ok(Advert {
            source: datagram.source,
            priority: packet.priority,
            interval: packet.interval,
            addresses: packet.addresses,
            form,
            authenticated,
        })
    }

    /// Judges a message of ours as [`Receiver::judge`] does an advertisement, but for the way: it comes by unicast
    /// even where advertisements are multicast.
    ///
    /// # Errors
    ///
    /// The first check that fails. Nothing is learned from a datagram that fails one.
    pub fn judge_signal(
        &mut self,
        datagram: &Datagram<'_>,
        packet: &Packet<'_>,
        is_own: bool,
        unix: Duration,
    ) -> Result<Signal, Error> {
        let Kind::Signal(signal) = packet.kind else { return Err(Error::Type) };
        if packet.vrid != self.accepts.vrid {
            return Err(Error::Vrid);
        }
        judge_source(datagram.source, is_own)?;
        if datagram.destination.is_multicast() {
            return Err(Error::Destination);
        }
        let known = self.accepts.peers.contains(&datagram.source);
        if !known && !self.accepts.peers.is_empty() && !self.accepts.both_methods {
            return Err(Error::Source);
        }
        let in_range = match &self.accepts.hop_limit {
            HopLimit::Range(range) if known => range.contains(&datagram.hop_limit),
            _ => datagram.hop_limit == HOP_LIMIT,
        };
        if !in_range {
            return Err(Error::HopLimit);
        }
        self.judge_contents(datagram, packet, unix)?;
        Ok(signal)
    }

    /// Everything but the way; learns the form.
    fn judge_contents(
        &mut self,
        datagram: &Datagram<'_>,
        packet: &Packet<'_>,
        unix: Duration,
    ) -> Result<(Form, bool), Error> {
        if packet.version != self.accepts.version {
            return Err(Error::OtherVersion);
        }
        let form = self.judge_checksum(datagram, packet)?;
        let authenticated = self.judge_auth(datagram, packet, unix)?;
        if packet.version == Version::V2 && packet.interval != self.accepts.interval {
            return Err(Error::IntervalMismatch);
        }
        self.learn(datagram.source, form);
        Ok((form, authenticated))
    }

    /// How it came.
    fn judge_path(&self, datagram: &Datagram<'_>) -> Result<(), Error> {
        let source = datagram.source;
        let multicast = datagram.destination.is_multicast();
        if multicast && datagram.destination != Family::of(source).multicast() {
            return Err(Error::Destination);
        }
        let unicast_configured = !self.accepts.peers.is_empty();
        if multicast == unicast_configured && !(multicast && self.accepts.both_methods) {
            return Err(Error::Destination);
        }
        let in_range = match &self.accepts.hop_limit {
            HopLimit::Range(range) if !multicast => range.contains(&datagram.hop_limit),
            _ => datagram.hop_limit == HOP_LIMIT,
        };
        if !in_range {
            return Err(Error::HopLimit);
        }
        if !multicast && !self.accepts.peers.contains(&source) {
            return Err(Error::Source);
        }
        Ok(())
    }

    fn judge_checksum(&self, datagram: &Datagram<'_>, packet: &Packet<'_>) -> Result<Form, Error> {
        let choice = packet.version == Version::V3 && datagram.source.is_ipv4();
        let form = match self.accepts.checksum {
            ChecksumPolicy::Rfc9568 if choice => packet.form_among(datagram, &[Form::Message]),
            ChecksumPolicy::Pseudo if choice => {
                packet.form_among(datagram, &[Form::Pseudo, Form::PseudoMulticast])
            }
            _ => packet.form(datagram),
        };
        form.ok_or(Error::Checksum)
    }

    /// True if an HMAC vouches for it.
    fn judge_auth(
        &mut self,
        datagram: &Datagram<'_>,
        packet: &Packet<'_>,
        unix: Duration,
    ) -> Result<bool, Error> {
        if let Some((kind, data)) = packet.auth {
            return match (&self.accepts.auth, kind) {
                (Auth::None, 0) => Ok(false),
                (Auth::Pass(password), 1) if password.matches(data) => Ok(false),
                (Auth::Pass(_), 1) => Err(Error::Password),
                _ => Err(Error::AuthType),
            };
        }
        let Auth::Hmac { mode, keys } = &self.accepts.auth else {
            // A trailer that nobody here can verify says nothing; keepalived ignores it too.
            return Ok(false);
        };
        let Some(trailer) = packet.trailer else {
            return match mode {
                HmacMode::Enforce => Err(Error::HmacMissing),
                HmacMode::ReceiveOnly | HmacMode::Permissive => Ok(false),
            };
        };
        let of = TrailerOf {
            version: packet.version,
            vrid: packet.vrid,
            source: datagram.source,
            pdu: packet.pdu,
            trailer,
            unix,
            window: WINDOW_MIN.max(self.accepts.interval.duration() * 3),
        };
        auth::verify(keys, &mut self.replay, &of)?;
        Ok(true)
    }

    /// Remembers the form; a seventeenth peer replaces the one not heard for longest.
    fn learn(&mut self, source: IpAddr, form: Form) {
        if self.forms.last() == Some(&(source, form)) {
            return;
        }
        self.forms.retain(|(who, _)| *who != source);
        if self.forms.len() >= PEERS {
            self.forms.remove(0);
        }
        self.forms.push((source, form));
    }

    /// The forms of all peers.
    pub(super) fn learned_forms(&self) -> impl Iterator<Item = Form> {
        self.forms.iter().map(|(_, form)| *form)
    }

    /// Each peer's form, for a successor of this process.
    #[must_use]
    pub fn peers_forms(&self) -> &[(IpAddr, Form)] {
        &self.forms
    }

    /// Knows what an earlier process had learned: a peer that only listens does not show its form.
    pub fn inherit_forms(&mut self, forms: impl Iterator<Item = (IpAddr, Form)>) {
        forms.for_each(|(source, form)| self.learn(source, form));
    }

    /// The form in which `peer` was last heard.
    #[must_use]
    pub fn learned(&self, peer: IpAddr) -> Option<Form> {
        self.forms.iter().find(|(who, _)| *who == peer).map(|(_, form)| *form)
    }
}

/// Whom it may not be from.
fn judge_source(source: IpAddr, is_own: bool) -> Result<(), Error> {
    if is_own {
        return Err(Error::Own);
    }
    if source.is_unspecified() || source.is_multicast() || source.is_loopback() {
        return Err(Error::Source);
    }
    Ok(())
}
