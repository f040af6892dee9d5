//! Building advertisements.

use std::net::IpAddr;
use std::time::Duration;

use super::auth::{HmacMode, Stamp};
use super::packet::{Form, checksum};
use super::receive::{Auth, ChecksumPolicy, Receiver};
use super::{ADDRESSES_MAX, Family, Interval, Kind, LAST_RESORT, Signal, Version};

/// The forms of checksum that an advertisement has to be sent in: one, or two when multicast has
/// to reach peers that disagree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forms {
    first: Form,
    second: Option<Form>,
}

impl Forms {
    const fn one(form: Form) -> Self {
        Self { first: form, second: None }
    }

    /// Each in turn.
    pub fn iter(self) -> impl Iterator<Item = Form> {
        std::iter::once(self.first).chain(self.second)
    }
}

impl Receiver {
    /// The forms to send to `destination`, a peer or the multicast address.
    #[must_use]
    pub fn forms_for(&self, destination: IpAddr) -> Forms {
        let accepts = self.accepts();
        match (accepts.version, destination, accepts.checksum) {
            (Version::V2, _, _) => Forms::one(Form::Message),
            (Version::V3, IpAddr::V6(_), _) => Forms::one(Form::Pseudo),
            (_, _, ChecksumPolicy::Rfc9568) => Forms::one(Form::Message),
            (_, _, ChecksumPolicy::Pseudo) => Forms::one(Form::Pseudo),
            (_, _, ChecksumPolicy::Auto) if destination.is_multicast() => self.forms_for_all(),
            (_, _, ChecksumPolicy::Auto) => {
                Forms::one(self.learned(destination).unwrap_or(Form::Message))
            }
        }
    }

    /// The forms for a destination of which nothing has been heard yet: both, since the one that is heard last is what a
    /// peer that understands either takes us to speak.
    ///
    /// For an owner, which is active from its start: an active router that speaks the other form does not know of it, and, if it
    /// is keepalived 2.2, puts its own advertisement off with each one that it cannot read, so that it may not be heard for long.
    #[must_use]
    pub fn forms_for_strangers(&self, destination: IpAddr) -> Forms {
        let accepts = self.accepts();
        let is_known = self.learned_forms().next().is_some();
        let one = self.forms_for(destination);
        let other = if destination.is_multicast() { Form::Pseudo } else { Form::PseudoMulticast };
        match (accepts.version, destination, accepts.checksum) {
            (Version::V3, IpAddr::V4(_), ChecksumPolicy::Auto) if !is_known => {
                Forms { first: other, second: Some(one.first) }
            }
            _ => one,
        }
    }

    /// What multicast needs: every form that a peer uses.
    fn forms_for_all(&self) -> Forms {
        let uses = |wanted: fn(Form) -> bool| self.learned_forms().any(wanted);
        let message = uses(|form| form == Form::Message);
        let pseudo = uses(|form| form != Form::Message);
        match (message, pseudo) {
            (true, true) => Forms { first: Form::Message, second: Some(Form::Pseudo) },
            (false, true) => Forms::one(Form::Pseudo),
            (_, false) => Forms::one(Form::Message),
        }
    }
}

/// Builds the advertisements of one virtual router.
#[derive(Debug)]
pub struct Sender {
    version: Version,
    vrid: u8,
    interval: Interval,
    family: Family,
    addresses: Vec<IpAddr>,
    auth: Auth,
    last: Stamp,
}

impl Sender {
    /// `addresses` are one to [`ADDRESSES_MAX`] of one family (IPv6: the first link-local, RFC
    /// 9568 section 5.2.9); `None` otherwise, or if `version` cannot carry them or `auth`.
    #[must_use]
    pub fn new(
        version: Version,
        vrid: u8,
        interval: Interval,
        addresses: Vec<IpAddr>,
        auth: Auth,
    ) -> Option<Self> {
        let family = Family::of(*addresses.first()?);
        let one_family = addresses.iter().all(|address| Family::of(*address) == family);
        let carried = match (version, &auth) {
            (Version::V2, Auth::Hmac { .. }) | (Version::V3, Auth::Pass(_)) => false,
            (Version::V2, _) => family == Family::V4,
            (Version::V3, Auth::Hmac { keys, .. }) => !keys.is_empty(),
            (Version::V3, Auth::None) => true,
        };
        if !one_family || !carried || addresses.len() > ADDRESSES_MAX {
            return None;
        }
        Some(Self { version, vrid, interval, family, addresses, auth, last: Stamp::default() })
    }

    /// Its addresses, in the order sent.
    #[must_use]
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// The address family.
    #[must_use]
    pub const fn family(&self) -> Family {
        self.family
    }

    /// Puts the IP payload of an advertisement into `out`, replacing what is there. `unix` is the
    /// time since 1970. For each copy to another destination or in another form it is called
    /// anew; the HMAC's sequence moves on.
    pub fn build(
        &mut self,
        out: &mut Vec<u8>,
        priority: u8,
        source: IpAddr,
        destination: IpAddr,
        form: Form,
        unix: Duration,
    ) {
        let what = (Kind::Advertisement, priority);
        self.build_message(out, what, (source, destination), form, unix);
    }

    /// Puts the IP payload of a message of ours into `out`; as [`Sender::build`].
    pub fn build_signal(
        &mut self,
        out: &mut Vec<u8>,
        signal: Signal,
        source: IpAddr,
        destination: IpAddr,
        form: Form,
        unix: Duration,
    ) {
        let what = (Kind::Signal(signal), LAST_RESORT);
        self.build_message(out, what, (source, destination), form, unix);
    }

    fn build_message(
        &mut self,
        out: &mut Vec<u8>,
        (kind, priority): (Kind, u8),
        (source, destination): (IpAddr, IpAddr),
        form: Form,
        unix: Duration,
    ) {
        out.clear();
        self.push_message(out, kind, priority);
        self.last = self.last.next(unix);
        self.push_trailer(out, source);
        let form = match (self.version, self.family) {
            (Version::V2, _) => Form::Message,
            (Version::V3, Family::V6) => Form::Pseudo,
            (Version::V3, Family::V4) => form,
        };
        let covered = match self.family {
            Family::V4 => out.get(..self.message_len()).unwrap_or_default(),
            Family::V6 => out.as_slice(),
        };
        let sum = checksum(form, source, destination, covered).to_be_bytes();
        if let Some(field) = out.get_mut(6..8) {
            field.copy_from_slice(&sum);
        }
    }

    /// Length of the message without a trailer.
    fn message_len(&self) -> usize {
        let auth = if self.version == Version::V2 { 8 } else { 0 };
        8 + self.addresses.len() * self.family.address_len() + auth
    }

    fn push_message(&self, out: &mut Vec<u8>, kind: Kind, priority: u8) {
        // At most ADDRESSES_MAX, as `new` made sure.
        let count = u8::try_from(self.addresses.len()).unwrap_or(u8::MAX);
        let (version, [a, b]) = match self.version {
            Version::V2 => (0x20, [u8::from(self.is_pass()), self.interval.seconds()]),
            Version::V3 => (0x30, (self.interval.centiseconds() & 0x0fff).to_be_bytes()),
        };
        out.extend_from_slice(&[version | kind.to_wire(), self.vrid, priority, count, a, b, 0, 0]);
        for address in &self.addresses {
            match address {
                IpAddr::V4(address) => out.extend_from_slice(&address.octets()),
                IpAddr::V6(address) => out.extend_from_slice(&address.octets()),
            }
        }
        if self.version == Version::V2 {
            match &self.auth {
                Auth::Pass(password) => out.extend_from_slice(password.bytes()),
                Auth::None | Auth::Hmac { .. } => out.extend_from_slice(&[0; 8]),
            }
        }
    }

    const fn is_pass(&self) -> bool {
        matches!(self.auth, Auth::Pass(_))
    }

    fn push_trailer(&self, out: &mut Vec<u8>, source: IpAddr) {
        if let Auth::Hmac { mode: HmacMode::Permissive | HmacMode::Enforce, keys } = &self.auth
            && let Some(key) = keys.first()
        {
            key.append(out, self.vrid, source, self.last);
        }
    }
}
