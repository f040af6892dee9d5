//! What the advertisements of others show: who is there, and what is configured wrongly.

use std::net::IpAddr;
use std::time::Duration;

use super::{Advert, Error, Form, Interval, Moment, Path, RESIGN, State};

/// Peers remembered, and as many strangers; another replaces the one not heard for longest.
const PEERS: usize = 16;
/// A peer not heard for longer is forgotten.
const FORGET: Duration = Duration::from_mins(10);
/// A finding counts as present for this many intervals (and at least a second) after it was seen.
const PRESENT_INTERVALS: u32 = 6;
const PRESENT_MIN: Duration = Duration::from_secs(1);
/// Inferior advertisements in a row until the sender is taken to be deaf.
const DEAF_AFTER: u8 = 3;

/// A router whose advertisements are accepted.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Its address.
    pub source: IpAddr,
    /// Where it was last heard.
    pub path: Path,
    /// When.
    pub at: Moment,
    /// Priority it last sent, 0 for resigned.
    pub priority: u8,
    /// Its interval.
    pub interval: Interval,
    /// The form of its checksum.
    pub form: Form,
    /// Whether an HMAC vouched for its last advertisement.
    pub authenticated: bool,
    /// Advertisements accepted.
    pub accepted: u64,
    same_addresses: bool,
    same_interval: bool,
    /// Advertisements in a row that it would not have sent, had it heard this active router.
    deaf: u8,
    /// When it was last heard to be active while this router was.
    both: Option<Moment>,
}

/// Somebody whose advertisements with the same VRID are not accepted.
#[derive(Debug, Clone, Copy)]
pub struct Stranger {
    /// Its address.
    pub source: IpAddr,
    /// Why the last one was dropped.
    pub error: Error,
    /// When.
    pub at: Moment,
    /// How many were dropped.
    pub dropped: u64,
}

/// A misconfiguration or fault that advertisements show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finding {
    /// Somebody uses the same VRID but is not accepted: another cluster, or another configuration.
    Stranger {
        /// Who.
        peer: IpAddr,
        /// Why it is not accepted.
        error: Error,
    },
    /// The peer advertises other addresses.
    AddressesDiffer {
        /// Who.
        peer: IpAddr,
    },
    /// The peer has another advertisement interval.
    IntervalsDiffer {
        /// Who.
        peer: IpAddr,
        /// Its interval; unknown if version 2 refused it.
        interval: Option<Interval>,
    },
    /// We hear the peer, but it goes on advertising a lower standing: it does not hear us.
    OneWay {
        /// Who.
        peer: IpAddr,
    },
    /// The peer and this router are active at the same time.
    BothActive {
        /// Who.
        peer: IpAddr,
    },
    /// The peer is heard over a second path only: the primary interface is cut.
    PrimaryCut {
        /// Who.
        peer: IpAddr,
    },
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Stranger { peer, error } => {
                write!(f, "{peer} uses the same virtual_router_id and is not accepted: {error}")
            }
            Self::AddressesDiffer { peer } => write!(f, "{peer} advertises other addresses"),
            Self::IntervalsDiffer { peer, interval: Some(interval) } => {
                write!(f, "{peer} advertises every {:?}, unlike this router", interval.duration())
            }
            Self::IntervalsDiffer { peer, interval: None } => {
                write!(f, "{peer} has another advertisement interval and is not accepted")
            }
            Self::OneWay { peer } => {
                write!(f, "{peer} is heard but does not hear this router")
            }
            Self::BothActive { peer } => {
                write!(f, "{peer} and this router are active at the same time")
            }
            Self::PrimaryCut { peer } => {
                write!(f, "{peer} is heard over a second path only")
            }
        }
    }
}

/// What this router is, for comparison.
#[derive(Debug, Clone, Copy)]
pub struct Own<'a> {
    /// Its state after the advertisement was handled.
    pub state: State,
    /// Its interval.
    pub interval: Interval,
    /// Its addresses, in any order.
    pub addresses: &'a [IpAddr],
}

/// Remembers what was heard for one virtual router.
#[derive(Debug, Default)]
pub struct Observer {
    peers: Vec<Peer>,
    strangers: Vec<Stranger>,
}

impl Observer {
    /// Nothing heard yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { peers: Vec::new(), strangers: Vec::new() }
    }

    /// An advertisement was accepted and the router has handled it.
    pub fn accepted(&mut self, now: Moment, path: Path, advert: &Advert<'_>, own: &Own<'_>) {
        self.strangers.retain(|stranger| stranger.source != advert.source);
        let (before, place) = self.take(advert.source, path);
        let both_active = own.state == State::Active && advert.priority != RESIGN;
        let deaf = if both_active { before.as_ref().map_or(0, |peer| peer.deaf) + 1 } else { 0 };
        let peer = Peer {
            source: advert.source,
            path,
            at: now,
            priority: advert.priority,
            interval: advert.interval,
            form: advert.form,
            authenticated: advert.authenticated,
            accepted: before.as_ref().map_or(0, |peer| peer.accepted) + 1,
            same_addresses: advert.addresses.same_as(own.addresses),
            same_interval: advert.interval == own.interval,
            deaf: deaf.min(DEAF_AFTER),
            both: if both_active { Some(now) } else { before.and_then(|peer| peer.both) },
        };
        self.peers.insert(place.min(self.peers.len()), peer);
    }

    /// Takes the peer out of the list, or makes room for a new one. Also gives its place.
    fn take(&mut self, source: IpAddr, path: Path) -> (Option<Peer>, usize) {
        let known = |peer: &Peer| peer.source == source && peer.path == path;
        if let Some(place) = self.peers.iter().position(known) {
            return (Some(self.peers.remove(place)), place);
        }
        if self.peers.len() >= PEERS
            && let Some((oldest, _)) = self.peers.iter().enumerate().min_by_key(|(_, p)| p.at)
        {
            self.peers.remove(oldest);
        }
        (None, self.peers.len())
    }

    /// A datagram with this VRID was dropped.
    pub fn refused(&mut self, now: Moment, source: IpAddr, error: Error) {
        if matches!(error, Error::Own | Error::Vrid) {
            return;
        }
        if let Some(known) = self.strangers.iter_mut().find(|known| known.source == source) {
            *known = Stranger { source, error, at: now, dropped: known.dropped + 1 };
            return;
        }
        if self.strangers.len() >= PEERS
            && let Some((oldest, _)) = self.strangers.iter().enumerate().min_by_key(|(_, s)| s.at)
        {
            self.strangers.remove(oldest);
        }
        self.strangers.push(Stranger { source, error, at: now, dropped: 1 });
    }

    /// Routers heard within ten minutes.
    pub fn peers(&self, now: Moment) -> impl Iterator<Item = &Peer> {
        self.peers.iter().filter(move |peer| now.since(peer.at) < FORGET)
    }

    /// Who was refused within ten minutes.
    pub fn strangers(&self, now: Moment) -> impl Iterator<Item = &Stranger> {
        self.strangers.iter().filter(move |stranger| now.since(stranger.at) < FORGET)
    }

    /// What is wrong now.
    #[must_use]
    pub fn findings(&self, now: Moment) -> Vec<Finding> {
        let mut findings = Vec::new();
        for peer in &self.peers {
            self.findings_of(now, peer, &mut findings);
        }
        for Stranger { source, error, .. } in self.strangers(now) {
            let (peer, error) = (*source, *error);
            findings.push(if error == Error::IntervalMismatch {
                Finding::IntervalsDiffer { peer, interval: None }
            } else {
                Finding::Stranger { peer, error }
            });
        }
        findings
    }

    fn findings_of(&self, now: Moment, peer: &Peer, findings: &mut Vec<Finding>) {
        let present = (peer.interval.duration() * PRESENT_INTERVALS).max(PRESENT_MIN);
        let recent = |at: Moment| now.since(at) < present;
        let source = peer.source;
        if peer.both.is_some_and(recent) {
            findings.push(if peer.deaf >= DEAF_AFTER {
                Finding::OneWay { peer: source }
            } else {
                Finding::BothActive { peer: source }
            });
        }
        if now.since(peer.at) >= FORGET {
            return;
        }
        if !peer.same_addresses {
            findings.push(Finding::AddressesDiffer { peer: source });
        }
        if !peer.same_interval {
            let interval = Some(peer.interval);
            findings.push(Finding::IntervalsDiffer { peer: source, interval });
        }
        let primary_is_heard =
            || self.peers.iter().any(|other| other.path == Path::PRIMARY && recent(other.at));
        if peer.path != Path::PRIMARY && recent(peer.at) && !primary_is_heard() {
            findings.push(Finding::PrimaryCut { peer: source });
        }
    }
}
