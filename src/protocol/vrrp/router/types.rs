//! What goes into a virtual router and what comes out of it.

use std::net::IpAddr;
use std::time::Duration;

use super::super::{Interval, Moment, Version};

/// State of a virtual router (RFC 9568 section 6.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum State {
    /// Takes no part: not started, stopped, or unhealthy.
    Initialize,
    /// Watches the active router.
    Backup,
    /// Holds the addresses.
    Active,
}

impl State {
    /// Lower-case name, for metrics and status.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Initialize => "initialize",
            Self::Backup => "backup",
            Self::Active => "active",
        }
    }
}

/// Over which of its interfaces or methods a router hears a peer; the first is the one that
/// carries the addresses, others are second heartbeat paths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Path(pub u8);

impl Path {
    /// The interface that carries the addresses.
    pub const PRIMARY: Self = Self(0);
    /// The most paths a router can have.
    pub const MAX: usize = 4;

    pub(super) fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// Configuration of the state machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Version: how skew is computed, and whether an active router answers inferior ones at once.
    pub version: Version,
    /// Configured priority, 1 to 255; 255 owns the addresses. Tracking changes it through
    /// [`super::VirtualRouter::set_priority`].
    pub priority: u8,
    /// Interval between own advertisements.
    pub interval: Interval,
    /// Intervals of silence until the active router counts as down: 3 in the RFCs.
    pub down_adverts: u8,
    /// Whether to take over from an active router of lower priority.
    pub preempt: bool,
    /// How long to have heard an inferior active router before taking over from it.
    pub preempt_delay: Duration,
    /// Listen for one interval instead of `down_adverts` before claiming at the start
    /// (keepalived's `state MASTER`).
    pub start_active: bool,
    /// Last-man rule: an unhealthy router serves on if no other takes over.
    pub last_man: bool,
    /// Member of a sync group: claims only through [`super::super::group::settle`].
    pub sync_group: bool,
    /// Gratuitous ARP and unsolicited NA.
    pub announce: Announce,
}

impl Config {
    /// The defaults: version 3, 100 ms, preempting.
    #[must_use]
    pub fn new(priority: u8) -> Self {
        Self {
            version: Version::V3,
            priority,
            interval: Interval::TENTH,
            down_adverts: 3,
            preempt: true,
            preempt_delay: Duration::ZERO,
            start_active: false,
            last_man: false,
            sync_group: false,
            announce: Announce::default(),
        }
    }
}

/// How often the addresses are announced by gratuitous ARP or unsolicited NA.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announce {
    /// Rounds in a burst; the first comes with the claim.
    pub rounds: u8,
    /// Between the rounds of a burst.
    pub spacing: Duration,
    /// From the claim to a second burst; `None` for a single one.
    pub repeat_after: Option<Duration>,
    /// Between single rounds for as long as the router is active; `None` for none.
    pub refresh: Option<Duration>,
    /// The least time between rounds that others provoke by claiming the same addresses.
    pub provoked_gap: Duration,
}

impl Default for Announce {
    fn default() -> Self {
        Self {
            rounds: 5,
            spacing: Duration::from_millis(20),
            repeat_after: Some(Duration::from_secs(5)),
            refresh: Some(Duration::from_mins(1)),
            provoked_gap: Duration::from_millis(100),
        }
    }
}

/// An accepted advertisement, as the state machine needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heard {
    /// Where it came in.
    pub path: Path,
    /// Who sent it.
    pub source: IpAddr,
    /// When the kernel received it, which is not after now.
    pub at: Moment,
    /// Its priority.
    pub priority: u8,
    /// The sender's interval.
    pub interval: Interval,
}

/// What the caller has to do, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Send an advertisement with this priority over every path.
    Advertise {
        /// Priority to put into it.
        priority: u8,
    },
    /// Put the addresses on the interface.
    Claim,
    /// Take the addresses off the interface.
    Release,
    /// Announce every address once, by gratuitous ARP or unsolicited NA.
    Announce,
    /// The state has changed: log, count, notify.
    Transition(Transition),
    /// Ask the active router to hand over, on each way on which it is heard
    /// ([`super::VirtualRouter::active_ways`]).
    Ask,
    /// Answer such a request.
    Answer {
        /// Where it came in.
        path: Path,
        /// Who sent it.
        peer: IpAddr,
        /// Whether it is heeded.
        accepted: bool,
    },
    /// Finish what is under way, take on nothing new, then call [`super::VirtualRouter::hand_over`], or
    /// [`super::VirtualRouter::cannot_finish`].
    Finish {
        /// Who asked for it.
        peer: IpAddr,
    },
    /// What became of a request: log, count.
    Tell {
        /// What.
        news: HandOver,
        /// The other router.
        peer: IpAddr,
    },
}

/// What became of a request to hand over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HandOver {
    /// This router asks the active one.
    Asked,
    /// The active one finishes what is under way.
    Accepted,
    /// It refuses and is preempted.
    Refused,
    /// It does not answer and is preempted.
    Unanswered,
    /// It accepted, but does not come to an end, and is preempted.
    Overdue,
    /// It does not hand over and cannot be preempted: it has the highest priority too, and the higher address.
    Unbeaten,
    /// This router was asked and finishes what is under way.
    Heeded,
    /// This router was asked and refuses: it owns the addresses, or nobody took up its last offer.
    Declined,
}

impl HandOver {
    /// All of them, in the order of [`HandOver::index`].
    pub const ALL: [Self; 8] = [
        Self::Asked,
        Self::Accepted,
        Self::Refused,
        Self::Unanswered,
        Self::Overdue,
        Self::Unbeaten,
        Self::Heeded,
        Self::Declined,
    ];

    /// A dense number, to index an array of counters.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The value of the metric's `result` label.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Asked => "asked",
            Self::Accepted => "accepted",
            Self::Refused => "refused",
            Self::Unanswered => "unanswered",
            Self::Overdue => "overdue",
            Self::Unbeaten => "unbeaten",
            Self::Heeded => "heeded",
            Self::Declined => "declined",
        }
    }
}

impl std::fmt::Display for HandOver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Asked => "asked to hand over",
            Self::Accepted => "finishes what is under way and hands over",
            Self::Refused => "refuses to hand over: preempted, what is under way there is cut",
            Self::Unanswered => {
                "does not answer requests to hand over: preempted, what is under way there is cut"
            }
            Self::Overdue => {
                "does not come to an end: preempted, what is under way there is cut"
            }
            Self::Unbeaten => "does not hand over and outranks this router: left active",
            Self::Heeded => "asks for the addresses: finishing what is under way",
            Self::Declined => {
                "asks for the addresses: refused, as they are owned or were offered in vain just now"
            }
        })
    }
}

/// A change of state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transition {
    /// State before.
    pub from: State,
    /// State after.
    pub to: State,
    /// Why.
    pub reason: Reason,
    /// When.
    pub at: Moment,
}

/// Why a state changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The router was started.
    Startup,
    /// The router was stopped.
    Shutdown,
    /// The router owns the addresses.
    Owner,
    /// Nothing was heard of an active router for Active_Down_Interval.
    Silence,
    /// The active router resigned.
    Resigned {
        /// Who it was.
        peer: IpAddr,
    },
    /// The active router has a lower priority.
    Inferior {
        /// Who it is.
        peer: IpAddr,
        /// Its priority.
        priority: u8,
    },
    /// A router of higher priority is active.
    Superior {
        /// Who it is.
        peer: IpAddr,
        /// Its priority.
        priority: u8,
    },
    /// A router of the same priority and a higher address is active.
    HigherAddress {
        /// Who it is.
        peer: IpAddr,
    },
    /// Another router became active after this one offered to step down: handed over by its
    /// operator, or unhealthy under the last-man rule.
    HandedOver {
        /// To whom.
        peer: IpAddr,
    },
    /// Another router became active while this one, which does not preempt, was stalled.
    WasAway {
        /// Who it is.
        peer: IpAddr,
    },
    /// The health check failed.
    Unhealthy,
    /// The health check succeeds again.
    Recovered,
    /// The operator prefers this router.
    Preferred,
    /// Another member of the sync group changed.
    Group,
}

impl Reason {
    /// Name without particulars, for metrics and notifications.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Startup => "startup",
            Self::Shutdown => "shutdown",
            Self::Owner => "owner",
            Self::Silence => "silence",
            Self::Resigned { .. } => "resigned",
            Self::Inferior { .. } => "inferior",
            Self::Superior { .. } => "superior",
            Self::HigherAddress { .. } => "higher_address",
            Self::HandedOver { .. } => "handed_over",
            Self::WasAway { .. } => "was_away",
            Self::Unhealthy => "unhealthy",
            Self::Recovered => "recovered",
            Self::Preferred => "preferred",
            Self::Group => "group",
        }
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Startup => f.write_str("started"),
            Self::Shutdown => f.write_str("stopped"),
            Self::Owner => f.write_str("owns the addresses"),
            Self::Silence => f.write_str("no advertisement from an active router"),
            Self::Resigned { peer } => write!(f, "{peer} resigned"),
            Self::Inferior { peer, priority } => {
                write!(f, "{peer} was active with lower priority {priority}")
            }
            Self::Superior { peer, priority } => {
                write!(f, "{peer} is active with higher priority {priority}")
            }
            Self::HigherAddress { peer } => {
                write!(f, "{peer} is active with the same priority and a higher address")
            }
            Self::HandedOver { peer } => write!(f, "handed over to {peer}"),
            Self::WasAway { peer } => write!(f, "{peer} became active while this router stalled"),
            Self::Unhealthy => f.write_str("unhealthy"),
            Self::Recovered => f.write_str("healthy again"),
            Self::Preferred => f.write_str("preferred by the operator"),
            Self::Group => f.write_str("another member of the sync group changed"),
        }
    }
}

/// Why [`super::VirtualRouter::prefer`] is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NotPreferred {
    /// Not started or not healthy.
    Unfit,
    /// The active router owns the addresses.
    Outranked,
}

impl std::fmt::Display for NotPreferred {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Unfit => "this router is not started or not healthy",
            Self::Outranked => "the active router owns the addresses",
        })
    }
}

impl std::error::Error for NotPreferred {}
