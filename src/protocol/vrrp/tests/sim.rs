//! A seeded simulation of two to five routers on one link.
//!
//! At every step: in each connected group no two routers hold the addresses for longer than the
//! protocol needs to settle it, none is without a holder for longer than Active_Down_Interval
//! allows, and once a fault is over and settled, nothing changes any more.
//!
//! `RINGGATE_SIM_SEEDS=N` runs more seeds, `RINGGATE_SIM_SEED=S` one of them with its history.

use std::collections::BinaryHeap;
use std::fmt::Write as _;

use super::*;

/// An active router that is asked to hand over has finished what is under way after this at most.
const FINISHED_WITHIN: Duration = Duration::from_millis(700);
/// Until a request is answered, taken up, or given up: three requests, or a second after an answer.
const ASKED_WITHIN: Duration = Duration::from_millis(1_800);

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }

    fn index(&mut self, bound: usize) -> usize {
        usize::try_from(self.below(bound as u64)).unwrap()
    }

    fn duration(&mut self, from: Duration, to: Duration) -> Duration {
        let span = u64::try_from((to - from).as_nanos()).unwrap();
        from + Duration::from_nanos(self.below(span + 1))
    }

    fn priority(&mut self) -> u8 {
        // Few values, so that ties are common.
        *[50, 100, 100, 101, 150, 200, 254].get(self.index(7)).unwrap()
    }
}

/// A router with the machine it runs on.
struct Node {
    router: VirtualRouter,
    /// Whether it holds the addresses.
    holds: bool,
    /// Not running until then; what arrives waits with its time of arrival.
    stalled: Option<Moment>,
    /// While stalled, packets are lost rather than queued: the whole machine was paused.
    paused: bool,
    crashed: bool,
    part: u8,
    queue: Vec<Heard>,
    /// The wake-up that counts; older ones in the event queue do not.
    wake: Moment,
    /// It does not know requests to hand over, as routers of other makers.
    deaf: bool,
    /// Whether the last advertisement to each other node was lost.
    lost: [bool; 5],
}

impl Node {
    fn runs(&self) -> bool {
        self.stalled.is_none() && !self.crashed
    }
}

#[derive(PartialEq, Eq)]
enum Fault {
    StalledBackup,
    Other,
}

enum Event {
    Deliver {
        to: usize,
        from: usize,
        priority: u8,
        interval: Interval,
    },
    Asked {
        to: usize,
        from: usize,
    },
    Answered {
        to: usize,
        from: usize,
        accepted: bool,
    },
    Finished(usize),
    Wake(usize),
    Fault,
    /// kill -9 in the middle of a hand-over.
    Death(usize),
    Repair,
}

struct Queued(std::cmp::Reverse<(Moment, u64)>, Event);

impl PartialEq for Queued {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}
impl Eq for Queued {}
impl PartialOrd for Queued {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Queued {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.cmp(&other.0)
    }
}

struct World {
    random: Random,
    now: Moment,
    nodes: Vec<Node>,
    events: BinaryHeap<Queued>,
    serial: u64,
    interval: Duration,
    version: Version,
    /// Percent of advertisements lost, never two in a row between the same two.
    loss: u64,
    duplication: u64,
    delay: Duration,
    /// How late a running node may wake up.
    lateness: Duration,
    /// The last fault or repair, and the time it gives everything to settle.
    disturbed: Moment,
    settle: Duration,
    /// Some node was stalled since everything last settled.
    stalls: bool,
    faults_left: u32,
    transitions: u64,
    /// Deaths of an active router while it finished what was under way, and while it offered the addresses; of one that asked for them.
    deaths: [u32; 3],
    /// Since when each connected group has had several holders, or none.
    several: [Option<Moment>; 5],
    none: [Option<Moment>; 5],
    history: String,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let version = if random.percent(15) { Version::V2 } else { Version::V3 };
        let centiseconds = match version {
            Version::V2 => 100,
            Version::V3 => *[1, 2, 10, 100].get(random.index(4)).unwrap(),
        };
        let interval = Interval::from_centiseconds(centiseconds).unwrap();
        let nodes = (0..2 + random.index(4))
            .map(|place| Node {
                router: Self::router(&mut random, version, interval, place),
                holds: false,
                stalled: None,
                paused: false,
                crashed: false,
                part: 0,
                queue: Vec::new(),
                wake: Moment::default(),
                deaf: place % 3 == 2,
                lost: [false; 5],
            })
            .collect();
        let step = interval.duration();
        let delay = random.duration(step / 1000, step / 4);
        Self {
            now: at(0),
            nodes,
            events: BinaryHeap::new(),
            serial: 0,
            interval: step,
            version,
            loss: if random.percent(50) { 0 } else { random.below(40) },
            duplication: if random.percent(50) { 0 } else { random.below(30) },
            delay,
            lateness: random.duration(Duration::ZERO, step / 8),
            disturbed: at(0),
            settle: Duration::ZERO,
            stalls: true,
            faults_left: 8,
            transitions: 0,
            deaths: [0; 3],
            several: [None; 5],
            none: [None; 5],
            history: String::new(),
            random,
        }
    }

    fn router(
        random: &mut Random,
        version: Version,
        interval: Interval,
        place: usize,
    ) -> VirtualRouter {
        let mut router = VirtualRouter::new(Config {
            version,
            interval,
            preempt: random.percent(70),
            preempt_delay: if random.percent(20) {
                interval.duration() * 5
            } else {
                Duration::ZERO
            },
            start_active: random.percent(10),
            last_man: random.percent(30),
            announce: silent(),
            ..Config::new(random.priority())
        });
        router.set_source(Path::PRIMARY, Some(Self::source(place)));
        router
    }

    fn source(place: usize) -> IpAddr {
        address(u8::try_from(place + 1).unwrap())
    }

    fn push(&mut self, when: Moment, event: Event) {
        self.serial += 1;
        self.events.push(Queued(std::cmp::Reverse((when, self.serial)), event));
    }

    fn note(&mut self, text: &str) {
        let since = self.now.since(at(0));
        writeln!(self.history, "{since:>14.6?} {text}").unwrap();
    }

    // What the nodes do --------------------------------------------------------------------------

    /// An input to a node's router, and what comes of it.
    fn input(
        &mut self,
        place: usize,
        input: impl FnOnce(&mut VirtualRouter, Moment, &mut Vec<Action>),
    ) {
        let (now, mut out) = (self.now, Vec::new());
        input(&mut self.nodes[place].router, now, &mut out);
        for action in out {
            self.act(place, action);
        }
        self.schedule(place);
    }

    fn act(&mut self, place: usize, action: Action) {
        match action {
            Action::Advertise { priority } => self.send(place, priority),
            Action::Claim => {
                assert!(!self.nodes[place].holds, "claims what it holds");
                self.nodes[place].holds = true;
            }
            Action::Release => {
                assert!(self.nodes[place].holds, "releases what it does not hold");
                self.nodes[place].holds = false;
            }
            Action::Announce => assert!(self.nodes[place].holds),
            Action::Ask => {
                let asked = self.nodes[place].router.active_peer().map(|(peer, _)| peer);
                let to = (0..self.nodes.len()).find(|to| Some(Self::source(*to)) == asked);
                self.signal(place, to, |to, from| Event::Asked { to, from });
            }
            Action::Answer { peer, accepted, .. } => {
                let to = (0..self.nodes.len()).find(|to| Self::source(*to) == peer);
                self.signal(place, to, |to, from| Event::Answered { to, from, accepted });
            }
            Action::Finish { .. } => {
                let within = self.random.duration(Duration::ZERO, FINISHED_WITHIN);
                self.push(self.now.after(within), Event::Finished(place));
            }
            Action::Tell { news, peer } => {
                self.note(&format!("{place}: {} {peer}", news.name()));
            }
            Action::Transition(transition) => {
                self.transitions += 1;
                let Transition { from, to, reason, .. } = transition;
                self.note(&format!("{place}: {} -> {}: {reason}", from.name(), to.name()));
            }
        }
    }

    /// Sees to it that the node wakes up by its deadline, or somewhat late. A wake-up before the
    /// deadline, set before that moved, does no harm.
    fn schedule(&mut self, place: usize) {
        let node = &self.nodes[place];
        let Some(deadline) = node.router.deadline().filter(|_| node.runs()) else { return };
        if node.wake > self.now && node.wake <= deadline {
            return;
        }
        let late = self.random.duration(Duration::ZERO, self.lateness);
        let when = deadline.after(late).max(self.now);
        self.nodes[place].wake = when;
        self.push(when, Event::Wake(place));
    }

    fn send(&mut self, from: usize, priority: u8) {
        for to in 0..self.nodes.len() {
            if to == from || self.nodes[to].part != self.nodes[from].part {
                continue;
            }
            let lost = !self.nodes[from].lost[to] && self.random.percent(self.loss);
            self.nodes[from].lost[to] = lost;
            if lost {
                continue;
            }
            let copies = if self.random.percent(self.duplication) { 2 } else { 1 };
            for _ in 0..copies {
                let delay = self.random.duration(Duration::ZERO, self.delay);
                let interval = self.nodes[from].router.config().interval;
                self.push(self.now.after(delay), Event::Deliver { to, from, priority, interval });
            }
        }
    }

    /// One of our own messages, lost now and then.
    fn signal(
        &mut self,
        from: usize,
        to: Option<usize>,
        event: impl FnOnce(usize, usize) -> Event,
    ) {
        let Some(to) = to else { return };
        let apart = self.nodes[to].part != self.nodes[from].part;
        if !apart && !self.random.percent(self.loss) {
            let delay = self.random.duration(Duration::ZERO, self.delay);
            self.push(self.now.after(delay), event(to, from));
        }
    }

    fn deliver(&mut self, to: usize, heard: Heard) {
        let node = &mut self.nodes[to];
        if node.crashed || (node.stalled.is_some() && node.paused) {
            return;
        }
        node.queue.push(heard);
        if node.runs() {
            self.drain(to);
        }
    }

    fn drain(&mut self, place: usize) {
        for heard in std::mem::take(&mut self.nodes[place].queue) {
            self.input(place, |router, now, out| router.on_advert(now, &heard, out));
        }
    }

    fn wake(&mut self, place: usize) {
        self.drain(place);
        self.input(place, VirtualRouter::on_timer);
    }

    // What befalls them --------------------------------------------------------------------------

    fn fault(&mut self) -> Fault {
        let place = self.random.index(self.nodes.len());
        let healthy = self.nodes[place].router.is_healthy();
        let crashed = self.nodes[place].crashed;
        match self.random.below(11) {
            0 | 1 => self.partition(),
            10 => self.hand_over_and_die(),
            2 => self.crash(place),
            3 | 4 => return self.stall(place),
            _ if crashed => {}
            5 => {
                let priority = self.random.priority();
                self.note(&format!("{place}: priority {priority}"));
                self.input(place, |router, now, out| router.set_priority(now, priority, out));
            }
            6 => {
                self.note(&format!("{place}: healthy {}", !healthy));
                self.input(place, |router, now, out| router.set_healthy(now, !healthy, out));
            }
            7 => {
                self.note(&format!("{place}: released"));
                self.input(place, VirtualRouter::release);
            }
            8 => {
                let mut outcome = Ok(());
                self.input(place, |router, now, out| outcome = router.prefer(now, out));
                self.note(&format!("{place}: preferred: {outcome:?}"));
            }
            _ => {
                self.note(&format!("{place}: stopped"));
                self.input(place, VirtualRouter::shutdown);
            }
        }
        Fault::Other
    }

    /// A planned hand-over of either kind, and the death of one of the two in it.
    fn hand_over_and_die(&mut self) {
        let places = 0..self.nodes.len();
        let Some(holder) = places.clone().find(|place| self.nodes[*place].holds) else { return };
        let mut takers = places.filter(|place| {
            self.nodes[*place].router.state() == State::Backup && self.nodes[*place].runs()
        });
        let Some(taker) = takers.next_back() else { return };
        let preferred = self.random.percent(50);
        if preferred {
            self.input(taker, |router, now, out| {
                let _ = router.prefer(now, out);
            });
        } else {
            self.input(holder, VirtualRouter::release);
        }
        let dies = if self.random.percent(70) { holder } else { taker };
        self.note(&format!("{holder}: to hand over to {taker}, asked by it: {preferred}"));
        let within = if preferred { FINISHED_WITHIN } else { self.interval };
        let when = self.now.after(self.random.duration(Duration::ZERO, within));
        self.push(when, Event::Death(dies));
    }

    fn die(&mut self, place: usize) {
        let router = &self.nodes[place].router;
        let moments =
            [router.finishing_for().is_some(), router.is_offering(), router.asking().is_some()];
        for (count, is_so) in self.deaths.iter_mut().zip(moments) {
            *count += u32::from(is_so);
        }
        self.disturb();
        self.crash(place);
    }

    fn partition(&mut self) {
        for place in 0..self.nodes.len() {
            self.nodes[place].part = u8::try_from(self.random.below(2)).unwrap();
        }
        let parts: Vec<u8> = self.nodes.iter().map(|node| node.part).collect();
        self.note(&format!("partition {parts:?}"));
    }

    /// kill -9: the addresses go with the lease, which is not simulated.
    fn crash(&mut self, place: usize) {
        self.note(&format!("{place}: crashed"));
        let node = &mut self.nodes[place];
        node.crashed = true;
        node.holds = false;
        node.queue.clear();
    }

    fn stall(&mut self, place: usize) -> Fault {
        let span = self.random.duration(self.interval / 4, self.interval * 9);
        let paused = self.random.percent(50);
        self.note(&format!("{place}: stalled {span:?}, packets lost: {paused}"));
        let node = &mut self.nodes[place];
        node.stalled = Some(self.now.after(span));
        node.paused = paused;
        self.stalls = true;
        if node.holds { Fault::Other } else { Fault::StalledBackup }
    }

    /// Everything is put right.
    fn repair(&mut self) {
        self.note("repair");
        for place in 0..self.nodes.len() {
            self.nodes[place].part = 0;
            self.nodes[place].lost = [false; 5];
            if self.nodes[place].crashed {
                self.restart(place);
            }
            self.input(place, |router, now, out| {
                router.set_healthy(now, true, out);
                router.resume(now, out);
                router.startup(now, out);
            });
        }
    }

    fn restart(&mut self, place: usize) {
        let config = self.nodes[place].router.config().clone();
        let node = &mut self.nodes[place];
        node.crashed = false;
        node.stalled = None;
        node.router = VirtualRouter::new(config);
        node.router.set_source(Path::PRIMARY, Some(Self::source(place)));
    }

    // What has to hold ---------------------------------------------------------------------------

    /// An advertisement, or the one after it should it be lost.
    fn heard_within(&self) -> Duration {
        self.interval * 2 + self.delay + self.lateness * 2
    }

    fn skew_max(&self) -> Duration {
        if self.version == Version::V2 { Duration::from_secs(1) } else { self.interval }
    }

    /// The longest until a backup claims: Active_Down_Interval at the lowest priority. One that
    /// was stalled listens a while more.
    fn claimed_within(&self) -> Duration {
        let relisten =
            if self.stalls { self.interval * 2 + self.skew_max() } else { Duration::ZERO };
        self.interval * 3 + self.skew_max() + relisten + self.delay + self.lateness * 2
    }

    /// How long a router that offers the addresses, or was stalled, holds them silently.
    fn offered_within(&self) -> Duration {
        let away = if self.stalls { self.interval * 9 } else { Duration::ZERO };
        (self.interval * 4 + self.skew_max()).max(Duration::from_millis(500)) + away + self.lateness
    }

    /// Nothing may change any more after that without a fault: a claim, an offer, and the
    /// preemption delay and preemption by the best router.
    fn settled_within(&self) -> Duration {
        self.claimed_within() * 2
            + self.offered_within()
            + self.heard_within() * 2
            + self.interval * 9
            + ASKED_WITHIN
    }

    fn disturb(&mut self) {
        self.disturbed = self.now;
        self.several = [None; 5];
        self.none = [None; 5];
    }

    fn check(&mut self) {
        for part in 0..2_u8 {
            let members = || self.nodes.iter().filter(move |n| n.part == part && n.runs());
            let holders = members().filter(|node| node.holds).count();
            let able = members().filter(|node| node.router.state() != State::Initialize).count();
            let offering = members().any(|node| node.router.is_listening());
            let slot = usize::from(part);
            let now = self.now;
            let since = |slot: &mut Option<Moment>, holds: bool| {
                *slot = holds.then(|| slot.unwrap_or(now));
                slot.map_or(Duration::ZERO, |since| now.since(since))
            };
            let several = since(&mut self.several[slot], holders > 1);
            let none = since(&mut self.none[slot], holders == 0 && able > 0);
            let silent = if offering { self.offered_within() } else { Duration::ZERO };
            let bound = self.heard_within() + silent;
            assert!(several <= bound, "{holders} hold the addresses for {several:?}");
            let bound = self.claimed_within();
            assert!(none <= bound, "nobody holds the addresses for {none:?}");
        }
    }

    /// Every running router agrees, the best one is active where all preempt.
    fn check_settled(&self) {
        for part in 0..2_u8 {
            let members = || self.nodes.iter().filter(move |n| n.part == part && n.runs());
            let able = || members().filter(|node| node.router.state() != State::Initialize);
            let Some(best) = able().map(|node| node.router.priority()).max() else { continue };
            let holders: Vec<_> = able().filter(|node| node.holds).collect();
            assert_eq!(holders.len(), 1, "holders in part {part}");
            let preempting = able().all(|node| node.router.config().preempt);
            if preempting || holders[0].router.priority() == LAST_RESORT {
                assert_eq!(holders[0].router.priority(), best, "not the best in part {part}");
            }
        }
    }

    /// Runs to the end: faults, each followed by its repair or another, with time to settle.
    fn run(&mut self) {
        for place in 0..self.nodes.len() {
            self.input(place, VirtualRouter::startup);
        }
        self.settle = self.settled_within();
        self.push(self.now.after(self.settle), Event::Fault);
        let (mut settled_at, mut steps) = (None, 0_u32);
        while let Some(Queued(std::cmp::Reverse((when, _)), event)) = self.events.pop() {
            steps += 1;
            assert!(steps < 200_000, "advertisements without end");
            self.now = when;
            self.resume_stalled();
            let quiet = self.now.since(self.disturbed) >= self.settle;
            if quiet && settled_at.is_none() {
                self.check_settled();
                self.stalls = false;
                settled_at = Some(self.transitions);
            }
            if let Some(transitions) = settled_at {
                assert_eq!(transitions, self.transitions, "flapping");
            }
            match event {
                Event::Deliver { to, from, priority, interval } => {
                    let (path, source) = (Path::PRIMARY, Self::source(from));
                    self.deliver(to, Heard { path, source, at: self.now, priority, interval });
                }
                Event::Asked { to, from } => {
                    let (path, by) = (Path::PRIMARY, Self::source(from));
                    if self.nodes[to].runs() && !self.nodes[to].deaf {
                        self.input(to, |router, now, out| router.on_asked(now, path, by, out));
                    }
                }
                Event::Answered { to, from, accepted } => {
                    let by = Self::source(from);
                    if self.nodes[to].runs() {
                        let answered = |router: &mut VirtualRouter, now, out: &mut Vec<Action>| {
                            router.on_answer(now, by, accepted, out);
                        };
                        self.input(to, answered);
                    }
                }
                Event::Finished(place) => {
                    if self.nodes[place].runs() {
                        self.input(place, |router, now, out| {
                            let _ = router.hand_over(now, out);
                        });
                    }
                }
                // While stalled, or replaced by an earlier one: what runs again wakes up anyway.
                Event::Wake(place)
                    if self.nodes[place].wake == self.now && self.nodes[place].runs() =>
                {
                    self.wake(place);
                }
                Event::Wake(_) => {}
                Event::Fault if self.faults_left == 0 => return,
                Event::Fault => {
                    self.faults_left -= 1;
                    self.disturb();
                    // A backup that stalled has no reason to claim.
                    if !(self.fault() == Fault::StalledBackup && self.loss == 0) {
                        settled_at = None;
                    }
                    self.plan_after_fault();
                }
                Event::Death(place) => {
                    settled_at = None;
                    self.die(place);
                }
                Event::Repair => {
                    settled_at = None;
                    self.disturb();
                    self.repair();
                    self.push(self.now.after(self.settle + self.interval * 8), Event::Fault);
                }
            }
            self.check();
        }
    }

    fn plan_after_fault(&mut self) {
        let soon = self.random.duration(Duration::ZERO, self.settle);
        let next = match self.random.below(4) {
            // Before it has settled.
            0 => (soon, Event::Fault),
            1 => (soon, Event::Repair),
            2 => (self.settle + self.interval * 8, Event::Fault),
            _ => (self.settle + self.interval * 8, Event::Repair),
        };
        self.push(self.now.after(next.0), next.1);
    }

    fn resume_stalled(&mut self) {
        for place in 0..self.nodes.len() {
            let node = &mut self.nodes[place];
            if node.stalled.is_some_and(|until| self.now >= until) && !node.crashed {
                node.stalled = None;
                self.note(&format!("{place}: runs again"));
                self.disturb();
                self.wake(place);
            }
        }
    }
}

/// What it counted of [`World::deaths`].
fn simulate(seed: u64) -> [u32; 3] {
    let mut world = World::new(seed);
    let run = std::panic::AssertUnwindSafe(|| world.run());
    if let Err(panic) = std::panic::catch_unwind(run) {
        for (place, node) in world.nodes.iter().enumerate() {
            eprintln!("{place}: {:?}", node.router.config());
        }
        eprintln!("{}", world.history);
        eprintln!("seed {seed} failed at {:?}", world.now.since(at(0)));
        std::panic::resume_unwind(panic);
    }
    if std::env::var("RINGGATE_SIM_SEED").is_ok() {
        eprintln!("{}", world.history);
    }
    world.deaths
}

#[test]
fn thousands_of_seeds() {
    if let Ok(seed) = std::env::var("RINGGATE_SIM_SEED") {
        simulate(seed.parse().unwrap());
        return;
    }
    let seeds = std::env::var("RINGGATE_SIM_SEEDS").map_or(600, |text| text.parse().unwrap());
    let mut deaths = [0; 3];
    for seed in 0..seeds {
        deaths.iter_mut().zip(simulate(seed)).for_each(|(all, one)| *all += one);
    }
    assert!(
        deaths.iter().all(|count| u64::from(*count) >= seeds / 100),
        "hand-overs cut short: {deaths:?}"
    );
}
