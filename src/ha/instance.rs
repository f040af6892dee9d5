//! One virtual router: the state machine with its codec, its addresses, and its ways to its peers.

use std::net::IpAddr;
use std::time::Duration;

use super::claims::{Claim, Watched};
use super::clock::Clock;
use super::config;
use super::keeper::Renewed;
use super::lease::{Lease, Problem};
use super::network::Network;
use super::sockets::{Needed, Sockets};
use super::status::{Counts, InstanceStatus, LastTransition, PeerStatus};
use super::tracking::{Standing, effective};
use super::vmac::Vmac;
use crate::packet::frames::FrameSender;
use crate::protocol::ethernet::Mac;
use crate::protocol::vrrp::{
    Accepts, Action, Announce, Config, Datagram, Error, Family, Heard, HopLimit, Kind, Moment,
    Observer, Own, Packet, Path, Reason, Receiver, Sender, State, Transition, Version,
    VirtualRouter,
};
use crate::protocol::{arp, ndp};

/// Between announcements of a round.
const ANNOUNCE_SPACING: Duration = Duration::from_millis(20);
/// After a claim for silence, announcements go on at this pace until the lease of whoever fell silent has
/// ended for certain: while it hangs, its kernel still uses the addresses, and its ARP requests make hosts
/// send to it again.
const CONTEST_EVERY: Duration = Duration::from_millis(100);
/// So long if addresses have no lease.
const CONTEST_DEFAULT: Duration = Duration::from_secs(4);
/// Least time between announcements that others provoke.
const PROVOKED_GAP: Duration = Duration::from_millis(100);

/// Before a claim is answered: a peer that takes over advertises first, but its frames may overtake each other on
/// the way through several CPUs.
const CLAIM_GRACE: Duration = Duration::from_millis(20);
/// An owner's first advertisements that go out in each form of checksum, as long as nobody was heard: more than one, as one may be lost.
const INTRODUCTIONS: u8 = 3;
/// The last claims of the one before are on their way, and ours are repeated anyway, this long after a take-over.
const SETTLING: Duration = Duration::from_millis(100);
/// A rival is shown for this long after its last claim.
const RIVAL_FORGOTTEN: Duration = Duration::from_secs(60);

/// An interface over which the router speaks.
#[derive(Debug)]
struct Way {
    interface: String,
    index: Option<u32>,
    source: Option<IpAddr>,
    running: bool,
}

/// What carrying out actions needs.
#[derive(Debug)]
pub(super) struct World<'a> {
    pub(super) network: &'a mut Network,
    pub(super) sockets: &'a Sockets,
    pub(super) frames: &'a FrameSender,
    pub(super) now: Moment,
}

/// One virtual router.
#[derive(Debug)]
pub(super) struct Instance {
    pub(super) config: config::Instance,
    pub(super) router: VirtualRouter,
    pub(super) receiver: Receiver,
    pub(super) sender: Sender,
    observer: Observer,
    lease: Lease,
    vmac: Option<Vmac>,
    ways: Vec<Way>,
    advertised: Vec<IpAddr>,
    pub(super) counts: Counts,
    standing: Standing,
    grouped: bool,
    started: bool,
    last: Option<LastTransition>,
    /// Trouble with addresses as of the last attempt, and with the way out.
    lease_problems: Vec<String>,
    way_problem: Option<String>,
    pub(super) payload: Vec<u8>,
    /// When to announce the addresses next against one that hangs, and until when.
    contest: Option<(Moment, Moment)>,
    active_since: Moment,
    /// Advertisements that are still sent in each form to whom nothing was heard from.
    introductions: u8,
    /// Somebody's claim of an address, and when to answer it.
    contested: Option<(Claim, Moment)>,
    /// Who else claimed which of its addresses last, and when.
    rival: Option<(Mac, IpAddr, Moment)>,
}

impl Instance {
    /// Not started. `grouped`: a member of a sync group. `None` when the configuration cannot be
    /// advertised, which validation rules out.
    pub(super) fn new(config: config::Instance, grouped: bool) -> Option<Self> {
        let advertised: Vec<IpAddr> = config.addresses.iter().map(|vip| vip.address).collect();
        let sender = Sender::new(
            config.version,
            config.vrid,
            config.interval,
            advertised.clone(),
            config.auth.clone(),
        )?;
        let accepts = Accepts {
            version: config.version,
            vrid: config.vrid,
            interval: config.interval,
            hop_limit: HopLimit::Range(config.min_ttl..=255),
            peers: config.unicast_peers.clone(),
            both_methods: !config.heartbeat_interfaces.is_empty(),
            auth: config.auth.clone(),
            checksum: config.checksum,
        };
        let way = |interface: &String| Way {
            interface: interface.clone(),
            index: None,
            source: None,
            running: false,
        };
        let ways = std::iter::once(&config.interface).chain(&config.heartbeat_interfaces).map(way);
        let vmac = Vmac::of(&config);
        let home = vmac.as_ref().map_or(config.interface.as_str(), Vmac::name);
        Some(Self {
            lease: Lease::new(&config, home),
            vmac,
            router: VirtualRouter::new(machine(&config, grouped)),
            receiver: Receiver::new(accepts),
            sender,
            observer: Observer::new(),
            ways: ways.take(Path::MAX).collect(),
            advertised,
            counts: Counts::default(),
            standing: Standing { healthy: true, ..Standing::default() },
            grouped,
            started: false,
            last: None,
            lease_problems: Vec::new(),
            way_problem: None,
            payload: Vec::new(),
            contest: None,
            active_since: Moment::default(),
            introductions: 0,
            contested: None,
            rival: None,
            config,
        })
    }

    /// The interface made for its virtual MAC.
    pub(super) fn vmac_name(&self) -> Option<&str> {
        self.vmac.as_ref().map(Vmac::name)
    }

    /// Whether it has a way that is this interface, and which.
    fn path(&self, index: u32, family: Family) -> Option<Path> {
        if self.config.family() != family {
            return None;
        }
        let place = self.ways.iter().position(|way| way.index == Some(index))?;
        u8::try_from(place).ok().map(Path)
    }

    /// Its interface's index and its own address on a path.
    pub(super) fn way_out(&self, path: Path) -> Option<(u32, IpAddr)> {
        let way = self.ways.get(usize::from(path.0))?;
        Some((way.index?, way.source?))
    }

    /// Sockets it needs now.
    pub(super) fn needs(&self) -> impl Iterator<Item = Needed> {
        let family = self.config.family();
        self.ways.iter().enumerate().filter_map(move |(place, way)| {
            Some(Needed {
                interface: way.interface.clone(),
                index: way.index?,
                family,
                multicast: place > 0 || self.config.unicast_peers.is_empty(),
            })
        })
    }

    /// Its virtual addresses.
    pub(super) fn virtual_addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.lease.vips().map(|(vip, _)| vip.address)
    }

    /// Where others could claim its addresses.
    pub(super) fn watched(&self, network: &Network) -> Vec<Watched> {
        let watched = self.lease.vips().filter_map(|(vip, device)| {
            let interface = network.link(device)?.index;
            Some(Watched { interface, addresses: vec![vip.address] })
        });
        watched.collect()
    }

    /// Somebody claimed an address. If it is one of its own, and this router is active and offers it to
    /// nobody, that is answered before long.
    pub(super) fn claimed(&mut self, claim: &Claim, network: &Network, now: Moment) {
        let mine = |(vip, device): (&config::Vip, &str)| {
            let link = network.link(device).filter(|link| link.index == claim.interface);
            vip.address == claim.address && link.is_some_and(|link| link.mac != Some(claim.mac.0))
        };
        if self.is_settled(now) && self.contested.is_none() && self.lease.vips().any(mine) {
            self.contested = Some((*claim, now.after(CLAIM_GRACE)));
        }
    }

    /// Announces the addresses against a claim, when that is due.
    pub(super) fn answer_claim(&mut self, now: Moment, out: &mut Vec<Action>) {
        let Some((claim, _)) = self.contested.filter(|(_, due)| now >= *due) else { return };
        self.contested = None;
        if self.is_settled(now) {
            self.counts.claims += 1;
            self.rival = Some((claim.mac, claim.address, now));
            self.router.on_foreign_claim(now, out);
        }
    }

    /// Active for a while, and not about to hand over.
    fn is_settled(&self, now: Moment) -> bool {
        let is_new = now.since(self.active_since) < SETTLING;
        self.router.state() == State::Active && !is_new && !self.router.is_listening()
    }

    /// Looks at its interfaces anew.
    ///
    /// `except`: the virtual addresses of all instances, which are no source of advertisements.
    pub(super) fn look(&mut self, network: &mut Network, except: &[IpAddr]) {
        let made = self.vmac.as_mut().map(|vmac| vmac.ensure(network));
        let family = self.config.family();
        for (place, way) in self.ways.iter_mut().enumerate() {
            let link = network.link(&way.interface);
            let index = link.map(|link| link.index);
            let configured = self.config.source.filter(|_| place == 0);
            let found = index.and_then(|index| match configured {
                Some(source) => network.assigned(index, source).map(|_| source),
                None => network.source(index, family, except, way.source),
            });
            way.index = index;
            way.source = found;
            way.running = link.is_some_and(crate::packet::netlink::link::Link::is_running);
            if let Ok(place) = u8::try_from(place) {
                self.router.set_source(Path(place), way.source);
            }
        }
        self.way_problem = self.ways.first().and_then(|way| {
            let name = &way.interface;
            match (way.index, way.running, way.source) {
                (None, _, _) => Some(format!("interface {name} does not exist")),
                (_, false, _) => Some(format!("interface {name} is down")),
                (_, _, None) if self.config.source.is_some() => {
                    Some(format!("interface {name} does not have the source address"))
                }
                (_, _, None) => Some(format!("interface {name} has no address to send from")),
                _ => None,
            }
        });
        if let Some(Err(error)) = made {
            self.way_problem
                .get_or_insert_with(|| format!("no interface for the virtual MAC: {error}"));
        }
    }

    /// At the end: what was created for it goes.
    pub(super) fn clean_up(&mut self, network: &mut Network, now: Moment) {
        if self.lease.retry_due().is_some() {
            let problems = self.lease.release(network, now);
            self.note(problems);
        }
        if let Some(vmac) = &mut self.vmac {
            vmac.remove(network);
        }
    }

    /// Its interface allows it to take part.
    pub(super) fn can_take_part(&self) -> bool {
        self.way_problem.is_none()
    }

    /// It takes part from now on, as its router was told.
    pub(super) fn mark_started(&mut self) {
        self.started = true;
    }

    /// Takes part, or stops to, as its interface allows.
    pub(super) fn start_or_stop(&mut self, now: Moment, stopping: bool, out: &mut Vec<Action>) {
        let can = self.way_problem.is_none() && !stopping;
        if can != self.started {
            self.started = can;
            if can {
                self.router.startup(now, out);
            } else {
                self.router.shutdown(now, out);
            }
        }
    }

    /// Addresses with our mark that an earlier process left are ours again.
    pub(super) fn adopt(&mut self, network: &mut Network, now: Moment) {
        self.lease.adopt(network);
        if self.lease.held().next().is_some() && self.router.state() != State::Active {
            let problems = self.lease.release(network, now);
            self.note(problems);
        }
    }

    /// Whether it can go on under this configuration.
    pub(super) fn continues(&self, config: &config::Instance, grouped: bool) -> bool {
        self.grouped == grouped && config.continues(&self.config)
    }

    /// Goes on under this configuration, see [`config::Instance::continues`].
    pub(super) fn renew_config(
        &mut self,
        config: config::Instance,
        now: Moment,
        out: &mut Vec<Action>,
    ) {
        if config.priority != self.config.priority {
            let priority = effective(config.priority, self.standing.delta);
            self.router.set_priority(now, priority, out);
        }
        self.config = config;
    }

    /// Applies what tracking says.
    pub(super) fn stand(&mut self, standing: Standing, now: Moment, out: &mut Vec<Action>) {
        if standing == self.standing {
            return;
        }
        self.router.set_priority(now, effective(self.config.priority, standing.delta), out);
        self.router.set_healthy(now, standing.healthy, out);
        self.standing = standing;
    }

    /// A datagram with its VRID came in; `at` is when the kernel received it, `own`: it is this host's.
    pub(super) fn hear(
        &mut self,
        heard: &Arrival<'_>,
        now: Moment,
        own: bool,
        out: &mut Vec<Action>,
    ) {
        let Some(path) = self.path(heard.interface, heard.family) else { return };
        if heard.packet.kind != Kind::Advertisement {
            return self.hear_signal(heard, path, now, own, out);
        }
        let advert = match self.receiver.judge(heard.datagram, heard.packet, own, heard.unix) {
            Ok(advert) => advert,
            Err(error) => {
                self.refuse(heard.datagram.source, error, now);
                return;
            }
        };
        self.counts.received += 1;
        let Self { router, observer, config, advertised, .. } = self;
        let heard = Heard {
            path,
            source: advert.source,
            at: heard.at,
            priority: advert.priority,
            interval: advert.interval,
        };
        router.on_advert(now, &heard, out);
        let own = Own { state: router.state(), interval: config.interval, addresses: advertised };
        observer.accepted(now, path, &advert, &own);
    }

    pub(super) fn refuse(&mut self, source: IpAddr, error: Error, now: Moment) {
        if let Some(count) = self.counts.dropped.get_mut(error.index()) {
            *count += 1;
        }
        self.observer.refused(now, source, error);
    }

    /// Whether datagrams from this interface with this VRID are for it.
    pub(super) fn is_for(&self, interface: u32, family: Family, vrid: u8) -> bool {
        self.config.vrid == vrid && self.path(interface, family).is_some()
    }

    /// Carries out one action; a transition comes back to be told.
    pub(super) fn carry_out(
        &mut self,
        action: Action,
        world: &mut World<'_>,
    ) -> Option<Transition> {
        match action {
            Action::Advertise { priority } => self.advertise(priority, world.sockets),
            Action::Ask => self.ask(world.sockets),
            Action::Answer { path, peer, accepted } => {
                self.answer(path, peer, accepted, world.sockets);
            }
            // The engine's.
            Action::Finish { .. } | Action::Tell { .. } => {}
            Action::Claim => {
                let problems = self.lease.take(world.network, world.now);
                self.note(problems);
            }
            Action::Release => {
                let problems = self.lease.release(world.network, world.now);
                self.note(problems);
            }
            Action::Announce => {
                self.mend(world);
                self.announce(world);
            }
            Action::Transition(transition) => {
                let index = transition.to as usize;
                if let Some(count) = self.counts.transitions.get_mut(index) {
                    *count += 1;
                }
                let Transition { from, to, reason, .. } = transition;
                let now = world.now;
                if to == State::Active {
                    self.active_since = now;
                    self.introductions = if reason == Reason::Owner { INTRODUCTIONS } else { 0 };
                }
                let span = self.config.lease.map_or(CONTEST_DEFAULT, |lease| lease * 2);
                self.contest = (to == State::Active && reason == Reason::Silence)
                    .then(|| (now.after(CONTEST_EVERY), now.after(span)));
                // The superior router may not know that somebody else was active, having been cut off. Our
                // last word, inferior to its own, has it announce the addresses anew (RFC 9568 section
                // 6.4.3 (715); keepalived does so too), or hosts would go on sending to us.
                let superior =
                    matches!(reason, Reason::Superior { .. } | Reason::HigherAddress { .. });
                if from == State::Active && superior {
                    self.advertise(self.router.priority(), world.sockets);
                }
                self.last = Some(LastTransition { from, to, reason, unix: Clock::unix() });
                return Some(transition);
            }
        }
        None
    }

    fn advertise(&mut self, priority: u8, sockets: &Sockets) {
        self.counts.sent += 1;
        let unix = Clock::unix();
        let introduces = self.introductions > 0;
        self.introductions = self.introductions.saturating_sub(1);
        for (place, way) in self.ways.iter().enumerate() {
            let (Some(index), Some(source)) = (way.index, way.source) else { continue };
            let group = [self.config.family().multicast()];
            let destinations = if place == 0 && !self.config.unicast_peers.is_empty() {
                self.config.unicast_peers.as_slice()
            } else {
                &group
            };
            for &destination in destinations {
                let forms = if introduces {
                    self.receiver.forms_for_strangers(destination)
                } else {
                    self.receiver.forms_for(destination)
                };
                for form in forms.iter() {
                    let payload = &mut self.payload;
                    self.sender.build(payload, priority, source, destination, form, unix);
                    if sockets.send(index, source, destination, payload).is_err() {
                        self.counts.send_errors += 1;
                    }
                }
            }
        }
    }

    /// Puts back addresses whose lease ran out while this process was held up.
    fn mend(&mut self, world: &mut World<'_>) {
        if self.holds() && self.lease.is_missing(world.network, world.now) {
            let outcome = self.lease.refresh(world.network, world.now);
            outcome.into_iter().for_each(|problems| self.note(problems));
        }
    }

    fn announce(&mut self, world: &mut World<'_>) {
        let mut sent = 0;
        for (vip, device) in self.lease.vips() {
            let Some(link) = world.network.link(device) else { continue };
            let Some(mac) = link.mac.map(Mac) else { continue };
            let results = match vip.address {
                IpAddr::V4(address) => {
                    [arp::Operation::Request, arp::Operation::Reply].map(|operation| {
                        let frame = arp::gratuitous(operation, mac, address);
                        world.frames.send(link.index, &frame)
                    })
                }
                IpAddr::V6(address) => {
                    let frame = ndp::unsolicited(mac, address, false);
                    [world.frames.send(link.index, &frame), Ok(())]
                }
            };
            sent += u64::from(results.iter().all(Result::is_ok));
        }
        self.counts.announcements += sent;
    }

    /// Announces the addresses against one that may hang, when that is due.
    pub(super) fn assert_claim(&mut self, world: &mut World<'_>) {
        let Some((next, until)) = self.contest else { return };
        if world.now < next {
            return;
        }
        let following = world.now.after(CONTEST_EVERY);
        self.contest = (following < until).then_some((following, until));
        if self.holds() {
            self.announce(world);
        }
    }

    /// Whether it is certain that the addresses are ours: active, and not wondering whether another took
    /// over while this process was held up.
    fn holds(&self) -> bool {
        let offered =
            self.router.is_released() || !self.router.is_healthy() || self.router.is_offering();
        self.router.state() == State::Active && (!self.router.is_listening() || offered)
    }

    /// Renews the lease when that is due, puts back an address that has gone, and tries again to remove
    /// one that could not be removed.
    pub(super) fn renew(&mut self, network: &mut Network, now: Moment) {
        let is_over = |due: Moment| now >= due;
        let due = self.lease.due().is_some_and(is_over);
        if self.holds() && (due || self.lease.is_missing(network, now)) {
            let outcome = self.lease.refresh(network, now);
            outcome.into_iter().for_each(|problems| self.note(problems));
        } else if self.lease.retry_due().is_some_and(is_over) {
            let problems = self.lease.release(network, now);
            self.note(problems);
        }
    }

    /// How renewals went that were under way.
    pub(super) fn renewed(&mut self, all: &mut Vec<Renewed>, now: Moment) {
        let outcome = self.lease.renewed(all, now);
        outcome.into_iter().for_each(|problems| self.note(problems));
    }

    /// When it has to be looked at again.
    pub(super) fn deadline(&self) -> Option<Moment> {
        let lease = self.lease.due().filter(|_| self.holds());
        let contest = self.contest.map(|(next, _)| next);
        let retry = self.lease.retry_due();
        let claim = self.contested.map(|(_, due)| due);
        [self.router.deadline(), lease, contest, claim, retry].into_iter().flatten().min()
    }

    /// Holds addresses until another takes them, or silence says that nobody will.
    pub(super) fn is_handing_over(&self) -> bool {
        self.router.state() == State::Active && self.router.is_listening()
    }

    fn note(&mut self, problems: Vec<Problem>) {
        self.counts.leases += u64::from(problems.is_empty());
        self.counts.lease_errors += problems.len() as u64;
        self.lease_problems = problems.into_iter().map(|problem| say(&problem)).collect();
    }

    /// Trouble as of now.
    pub(super) fn problems(&self) -> impl Iterator<Item = &String> {
        self.way_problem.iter().chain(&self.lease_problems)
    }

    /// Misconfigurations seen.
    pub(super) fn findings(&self, now: Moment) -> Vec<String> {
        let rival = self.rival.filter(|(.., at)| {
            self.router.state() == State::Active && now.since(*at) < RIVAL_FORGOTTEN
        });
        let rival = rival.map(|(mac, address, _)| format!("{mac} claims {address} as well"));
        let seen = self.observer.findings(now);
        seen.iter().map(ToString::to_string).chain(rival).collect()
    }

    /// What is shown of it.
    pub(super) fn status(&self, now: Moment) -> InstanceStatus {
        let held: Vec<IpAddr> = self.lease.held().collect();
        let shown = |vip: &config::Vip| {
            (format!("{}/{}", vip.address, vip.prefix), held.contains(&vip.address))
        };
        let mut why = self.standing.why.clone();
        if self.router.is_released() {
            why.push("released by the operator".into());
        }
        if self.router.is_preferred() {
            why.push("preferred by the operator".into());
        }
        why.extend(self.way_problem.clone());
        InstanceStatus {
            name: self.config.name.clone(),
            interface: self.config.interface.clone(),
            vrid: self.config.vrid,
            version: match self.config.version {
                Version::V2 => 2,
                Version::V3 => 3,
            },
            state: self.router.state(),
            handing_over: self.is_handing_over(),
            configured_priority: self.config.priority,
            priority: self.router.priority(),
            why,
            healthy: self.standing.healthy && self.way_problem.is_none(),
            released: self.router.is_released(),
            preferred: self.router.is_preferred(),
            addresses: self.lease.vips().map(|(vip, _)| shown(vip)).collect(),
            active: self.router.active_peer(),
            peers: self.peers(now),
            findings: self.findings(now),
            problems: self.problems().cloned().collect(),
            hand_over: self.hand_over_text(),
            last: self.last,
            counts: Counts { late: self.router.late_wakeups(), ..self.counts },
        }
    }

    fn peers(&self, now: Moment) -> Vec<PeerStatus> {
        let interface = |path: Path| {
            let way = self.ways.get(usize::from(path.0));
            way.map_or_else(String::new, |way| way.interface.clone())
        };
        let heard = self.observer.peers(now).map(|peer| PeerStatus {
            address: peer.source,
            interface: interface(peer.path),
            ago: now.since(peer.at),
            priority: Some(peer.priority),
            interval: Some(peer.interval.duration()),
            accepted: peer.accepted,
            dropped: 0,
            authenticated: peer.authenticated,
        });
        let refused = self.observer.strangers(now).map(|stranger| PeerStatus {
            address: stranger.source,
            interface: String::new(),
            ago: now.since(stranger.at),
            priority: None,
            interval: None,
            accepted: 0,
            dropped: stranger.dropped,
            authenticated: false,
        });
        heard.chain(refused).collect()
    }
}

/// A datagram on its way to the instances.
#[derive(Debug)]
pub(super) struct Arrival<'a> {
    pub(super) interface: u32,
    pub(super) family: Family,
    pub(super) datagram: &'a Datagram<'a>,
    pub(super) packet: &'a Packet<'a>,
    pub(super) at: Moment,
    pub(super) unix: Duration,
}

/// The state machine's view of the configuration.
fn machine(config: &config::Instance, grouped: bool) -> Config {
    let some = |duration: Duration| (!duration.is_zero()).then_some(duration);
    Config {
        version: config.version,
        priority: config.priority,
        interval: config.interval,
        down_adverts: 3,
        preempt: config.preempt,
        preempt_delay: config.preempt_delay,
        start_active: config.start_active,
        last_man: config.nofail,
        sync_group: grouped,
        announce: Announce {
            rounds: config.announce.repeat,
            spacing: ANNOUNCE_SPACING,
            repeat_after: some(config.announce.delay),
            refresh: some(config.announce.refresh),
            provoked_gap: PROVOKED_GAP,
        },
    }
}

fn say(problem: &Problem) -> String {
    match problem {
        Problem::Failed(what, address, error) => format!("cannot {what} {address}: {error}"),
        Problem::Foreign(address) => {
            format!("{address} is on the interface already and not ours: it is left alone")
        }
        Problem::NoDevice(address, device) => {
            format!("{address} has no interface: {device} does not exist")
        }
        Problem::Lost(address) => format!("{address} had gone from its interface and is put back"),
    }
}
