//! The engine passes to a successor: everything that takes time while the old one still forwards, the rest in a moment in
//! which frames wait in their rings.
//!
//! Old side: `PassOn` copies flows and clients while frames are forwarded. `Freeze` stops the threads; what has changed
//! since follows, with rings and XDP programs. `Thaw` or `Leave` ends that. New side: an engine that is started for a
//! succession knows its tables, the flows and its neighbours, and touches nothing; `GoOn` lets it forward.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, TryRecvError, channel, sync_channel};
use std::time::Duration;

use super::files::{self, Records};
use super::manager::Manager;
use super::neighbours::Target;
use super::real_server::{RealServer, Role};
use super::worker::Order;
use super::{Engine, Event};
use crate::l4::config::ServiceKey;
use crate::l4::flow::Passed;
use crate::l4::handoff::{Bundle, Client, Part, Standing};
use crate::packet::ring::{Place, filter};
use crate::packet::xdp::layout::FLOW_LAYOUT;
use crate::protocol::ethernet::Mac;
use crate::sys::bpf::Mode;

/// The thread goes on within this.
const GO_ON_PATIENCE: Duration = Duration::from_secs(4);
/// The thread of an engine that leaves ends within this.
const LEAVE_PATIENCE: Duration = Duration::from_secs(1);

/// What is passed goes here.
pub(super) type Passer = Sender<(Part, OwnedFd)>;
/// What is passed comes here; closed when that is all.
pub type Passing = Receiver<(Part, OwnedFd)>;

/// What the `l4` thread is told of a succession.
#[derive(Debug)]
pub(super) enum Step {
    PassOn(Passer),
    Freeze(Passer),
    Thaw,
    /// The successor has these addresses of the real server.
    Leave(Vec<IpAddr>),
    GoOn(Bundle, SyncSender<Result<Vec<IpAddr>, String>>),
}

/// What an engine that succeeds another is started with.
#[derive(Debug)]
pub struct Succession {
    /// What was passed first.
    pub passed: Bundle,
    /// Virtual servers with checks: of the others, all servers are up.
    pub checked: HashSet<ServiceKey>,
}

/// What a successor has and does not use yet.
#[derive(Debug, Default)]
pub(super) struct Standby {
    pub(super) role: Option<RealServer>,
    pub(super) outlive: Duration,
    pub(super) checked: HashSet<ServiceKey>,
}

/// What a director takes over.
#[derive(Debug)]
pub(super) struct Take {
    files: Vec<Arc<File>>,
    /// Only flows of clients that are its own among so many directors.
    share: Option<usize>,
}

impl Take {
    /// Hands each flow that is for the director with this index to `each`.
    pub(super) fn read(&self, index: usize, mut each: impl FnMut(&Passed)) -> Result<(), String> {
        let is_ours = |passed: &Passed| {
            let client = Ipv6Addr::from_bits(passed.key.client).to_canonical();
            self.share.is_none_or(|directors| director_of(client, directors) == index)
        };
        let mut read = |file| {
            files::read(file, |one: Passed| {
                if is_ours(&one) {
                    each(&one);
                }
            })
        };
        self.files.iter().try_for_each(|file| read(file))
    }
}

/// Parts in order.
#[derive(Debug, Default)]
pub(super) struct Parts {
    pub(super) standing: Option<Standing>,
    flows: BTreeMap<usize, Arc<File>>,
    clients: Option<File>,
    rings: BTreeMap<(u32, usize), (OwnedFd, Place)>,
    xdp_flows: [Option<OwnedFd>; 2],
    links: Vec<(u32, Mode, OwnedFd)>,
}

impl Parts {
    /// What cannot be read is left out, with a line for the operator.
    pub(super) fn sort(bundle: Bundle) -> (Self, Vec<String>) {
        let (mut parts, mut troubles) = (Self::default(), Vec::new());
        for (part, fd) in bundle {
            match part {
                Part::Standing => match files::read_standing(fd) {
                    Ok(standing) => parts.standing = Some(standing),
                    Err(error) => troubles.push(format!("what was passed cannot be read: {error}")),
                },
                Part::Flows { director } => {
                    parts.flows.insert(director, Arc::new(fd.into()));
                }
                Part::Clients => parts.clients = Some(fd.into()),
                Part::Ring { interface, director, place } => {
                    parts.rings.insert((interface, director), (fd, place));
                }
                Part::XdpFlows { six, layout: FLOW_LAYOUT } => {
                    if let Some(one) = parts.xdp_flows.get_mut(usize::from(six)) {
                        *one = Some(fd);
                    }
                }
                Part::XdpFlows { layout, .. } => {
                    let trouble = format!(
                        "the XDP program's flows have layout {layout}, not {FLOW_LAYOUT}: their \
                         servers are found by hash"
                    );
                    troubles.push(trouble);
                }
                Part::XdpLink { interface, native } => {
                    let mode = if native { Mode::Native } else { Mode::Generic };
                    parts.links.push((interface, mode, fd));
                }
            }
        }
        (parts, troubles)
    }

    /// The XDP program's flows, of IPv4 and of IPv6.
    pub(super) fn take_xdp_flows(&mut self) -> Option<[OwnedFd; 2]> {
        match std::mem::take(&mut self.xdp_flows) {
            [Some(four), Some(six)] => Some([four, six]),
            _ => None,
        }
    }

    /// The files of flows that each of so many directors takes over from: its own, or if there were more or fewer
    /// directors, all of them.
    fn for_directors(&self, before: usize, now: usize) -> Vec<Take> {
        let share = (before != now).then_some(now);
        let files = |own: usize| {
            let all = self.flows.iter().filter(move |(index, _)| share.is_some() || **index == own);
            Take { files: all.map(|(_, file)| Arc::clone(file)).collect(), share }
        };
        (0..now).map(files).collect()
    }
}

impl Engine {
    /// Has everything passed that can be while frames are forwarded.
    #[must_use]
    pub fn pass_on(&self) -> Passing {
        let (to, passing) = channel();
        self.step(Step::PassOn(to));
        passing
    }

    /// Stops forwarding, and has the rest passed. [`Engine::thaw`] or [`Engine::leave`] has to follow.
    #[must_use]
    pub fn freeze(&self) -> Passing {
        let (to, passing) = channel();
        self.step(Step::Freeze(to));
        passing
    }

    /// The successor failed: goes on.
    pub fn thaw(&self) {
        self.step(Step::Thaw);
    }

    /// The successor forwards: ends, and leaves what is the successor's, of the real server's addresses these.
    pub fn leave(&self, kept: Vec<IpAddr>) {
        self.step(Step::Leave(kept));
        self.await_end(LEAVE_PATIENCE);
    }

    /// Forwards in the place of another process, which has stopped. Returns the virtual addresses that are here.
    ///
    /// # Errors
    /// Text for the operator; nothing is forwarded.
    pub fn go_on(&self, passed: Bundle) -> Result<Vec<IpAddr>, String> {
        let (reply, answer) = sync_channel(1);
        self.step(Step::GoOn(passed, reply));
        let answer = answer.recv_timeout(GO_ON_PATIENCE);
        answer.map_err(|_| String::from("layer 4 does not answer"))?
    }

    fn step(&self, step: Step) {
        // The thread ends with the engine.
        let _ = self.steps.send(step);
        self.wake.notify();
    }
}

impl Manager {
    /// Takes a step; false at the end.
    pub(super) fn take(&mut self, step: Step, steps: &Receiver<Step>) -> bool {
        match step {
            Step::PassOn(to) => self.pass_on(&to),
            Step::Freeze(to) => return self.freeze(to, steps),
            Step::GoOn(passed, reply) => {
                let _ = reply.send(self.go_on(passed));
                self.settle_in();
            }
            // Not frozen: there is nothing to thaw.
            Step::Thaw => {}
            Step::Leave(kept) => return self.leave(&kept),
        }
        true
    }

    fn pass_on(&mut self, to: &Passer) {
        for desk in &self.desks {
            desk.give(Order::PassOn(to.clone()));
        }
        self.passed = None;
        self.pass_standing(to);
        self.passed = Some(self.now());
        if let Some(Ok(flows)) = self.offload.flows().map(|flows| flows.share()) {
            for (six, fd) in [false, true].into_iter().zip(flows) {
                let _ = to.send((Part::XdpFlows { six, layout: FLOW_LAYOUT }, fd));
            }
        }
    }

    /// Nothing is done any more until it is known what became of the successor.
    fn freeze(&mut self, to: Passer, steps: &Receiver<Step>) -> bool {
        for desk in &self.desks {
            desk.give(Order::Freeze(to.clone()));
        }
        self.pass_standing(&to);
        for (interface, mode, fd) in self.offload.links().unwrap_or_default() {
            let native = mode == Mode::Native;
            let _ = to.send((Part::XdpLink { interface, native }, fd));
        }
        drop(to);
        loop {
            match steps.recv() {
                Ok(Step::Leave(kept)) => return self.leave(&kept),
                Ok(Step::Thaw) => break,
                Ok(_) => {}
                Err(_) => return false,
            }
        }
        self.offload.renew();
        for desk in &self.desks {
            desk.give(Order::Thaw);
        }
        self.stale = true;
        true
    }

    /// What cannot be passed is missing, which the successor says.
    fn pass_standing(&self, to: &Passer) {
        if let Ok(fd) = files::write_standing(&self.standing()) {
            let _ = to.send((Part::Standing, fd));
        }
        if let Some(Ok(fd)) = self.clients().map(Records::finish) {
            let _ = to.send((Part::Clients, fd));
        }
    }

    fn standing(&self) -> Standing {
        let mut places = self.registry.places();
        let keys: BTreeMap<_, _> =
            places.services.iter().filter_map(|one| Some((one.slot, one.key()?))).collect();
        for server in &mut places.servers {
            let key = keys.get(&server.service).map(|key| (*key, server.address));
            if let Some(said) = key.and_then(|key| self.said.get(&key)) {
                (server.up, server.weight) = (said.checks.up, said.weight);
            }
        }
        let neighbours = self.neighbours.view(|_| None);
        let known = neighbours.iter().filter(|one| one.is_reachable());
        let known = known.filter_map(|one| Some((one.address, one.interface, one.mac?.0)));
        Standing {
            directors: self.desks.len(),
            places,
            inactive: self.registry.inactive().collect(),
            neighbours: known.collect(),
        }
    }

    /// Clients with persistence; once they were passed, those that began a flow since.
    fn clients(&self) -> Option<Records> {
        let mut records = Records::new::<Client>().ok()?;
        let (tables, now) = (self.board.tables(), self.now());
        for (slot, service) in (0..).zip(&tables.services) {
            let Some(service) = service else { continue };
            let Some((persistence, clients)) = service.persistence.zip(service.templates.as_ref())
            else {
                continue;
            };
            let timeout = u64::try_from(persistence.timeout.as_millis()).unwrap_or(u64::MAX);
            let from = self.passed.map_or(0, |passed| passed.saturating_add(timeout));
            clients.pass_on(now, from, |address, server, rest| {
                records.push(&Client { address, service: slot, server, rest });
            });
        }
        Some(records)
    }

    /// The successor has what it said it has.
    fn leave(&mut self, kept: &[IpAddr]) -> bool {
        if let Some(role) = self.role.take() {
            role.leave(&mut self.network, kept);
        }
        false
    }

    /// Before it goes on: everything is known that was passed first.
    pub(super) fn stand_by(&mut self, standby: Standby, parts: &Parts) -> Result<(), String> {
        if let Some(trouble) = standby.role.as_ref().and_then(|role| role.loud(&self.network)) {
            return Err(format!("real_server: {trouble}"));
        }
        if let Some(standing) = &parts.standing {
            self.believe(standing, Some(&standby.checked));
        }
        self.standby = Some(standby);
        self.round();
        self.take_in(parts);
        for (target, mac) in self.network.known() {
            self.hear(target, mac);
        }
        self.round();
        Ok(())
    }

    /// What was passed, as far as nobody forwards because of it.
    fn take_in(&mut self, parts: &Parts) {
        let before = parts.standing.as_ref().map_or(0, |standing| standing.directors);
        let now = self.desks.len();
        for (desk, take) in self.desks.iter().zip(parts.for_directors(before, now)) {
            let (done, taken) = sync_channel(1);
            desk.give(Order::Take(take, done));
            self.taking.push(taken);
        }
        self.take_clients(parts);
        for (address, interface, mac) in parts.standing.iter().flat_map(|one| &one.neighbours) {
            let target = Target { interface: *interface, address: *address };
            self.hear(target, Mac(*mac));
        }
    }

    fn take_clients(&mut self, parts: &Parts) {
        let Some(file) = &parts.clients else { return };
        let (tables, now) = (self.registry.tables(), self.now());
        let read = files::read(file, |client: Client| {
            let Client { address, service, server, rest } = client;
            let of = tables.server(server).map(|server| server.service);
            let known = tables.services.get(usize::from(service)).and_then(Option::as_ref);
            let clients =
                known.filter(|_| of == Some(service)).and_then(|one| one.templates.as_ref());
            if let Some(clients) = clients {
                clients.store(address, server, now, now.saturating_add(rest));
            }
        });
        if let Err(why) = read {
            (self.reporter.0)(Event::Refused(format!("persistent clients: {why}")));
        }
    }

    /// Weights, and the verdicts on virtual servers that are checked; later checks of our own say more.
    fn believe(&mut self, standing: &Standing, checked: Option<&HashSet<ServiceKey>>) {
        let keys: BTreeMap<_, _> = standing
            .places
            .services
            .iter()
            .filter_map(|one| Some((one.slot, one.key()?)))
            .collect();
        for server in &standing.places.servers {
            let Some(key) = keys.get(&server.service) else { continue };
            let said = self.said.entry((*key, server.address)).or_default();
            if let Some(checked) = checked {
                said.checks.up = server.up || !checked.contains(key);
            }
            said.weight = server.weight;
            self.tell_state(*key, server.address);
        }
    }

    /// Forwards in the place of another process.
    fn go_on(&mut self, passed: Bundle) -> Result<Vec<IpAddr>, String> {
        let Some(standby) = self.standby.take() else { return Err("it forwards already".into()) };
        let (mut parts, troubles) = Parts::sort(passed);
        for trouble in troubles {
            (self.reporter.0)(Event::Refused(trouble));
        }
        if let Some(standing) = &parts.standing {
            self.believe(standing, None);
            self.registry.take_turns(&standing.places.services);
        }
        let held = self.heed_roles(&parts);
        // The other process's silence may not be about all of our virtual servers.
        self.begin_silence()?;
        self.take_in(&parts);
        self.inherited = std::mem::take(&mut parts.rings);
        self.offload.take_links(std::mem::take(&mut parts.links));
        (self.stale, self.dirty) = (true, true);
        if let Some(role) = standby.role {
            let now = self.now();
            let (role, troubles) = Role::go_on(role, &mut self.network, now);
            (self.role, self.role_troubles) = (Some(role), troubles);
        }
        self.late = Some(standby.outlive);
        self.round();
        self.inherited.clear();
        Ok(held)
    }

    /// What nobody waits for: frames are forwarded by now, in the kernel by the other process's program.
    fn settle_in(&mut self) {
        let Some(outlive) = self.late.take() else { return };
        self.dirty = true;
        self.round();
        self.offload.let_go();
        if let Err(trouble) = self.begin_keeper(outlive) {
            (self.reporter.0)(Event::Trouble(trouble));
        }
    }

    /// Addresses that were here stay here, until VRRP says otherwise.
    fn heed_roles(&mut self, parts: &Parts) -> Vec<IpAddr> {
        let Some(standing) = &parts.standing else { return Vec::new() };
        let services = standing.places.services.iter().map(|one| one.address);
        let held: Vec<IpAddr> =
            services.filter(|address| !standing.inactive.contains(address)).collect();
        let ours: Vec<IpAddr> = self.registry.inactive().collect();
        let held: Vec<IpAddr> = ours.into_iter().filter(|address| held.contains(address)).collect();
        for address in &held {
            self.registry.set_active(*address, true);
        }
        held
    }

    /// Looks whether directors have taken all flows over: servers that have none need no slot then.
    pub(super) fn look_at_taken(&mut self) {
        let reporter = &self.reporter;
        self.taking.retain(|taken| match taken.try_recv() {
            Ok(result) => {
                if let Err(why) = result {
                    (reporter.0)(Event::Refused(format!("flows: {why}")));
                }
                false
            }
            Err(error) => error == TryRecvError::Empty,
        });
        if self.taking.is_empty() && self.standby.is_none() && self.registry.holds() {
            let tables = self.board.tables();
            self.offload.count_flows(&tables);
            self.registry.let_go();
            self.dirty = true;
            let flows = tables.overall.iter().map(|one| one.flows.value()).sum();
            (self.reporter.0)(Event::TookOver(flows));
        }
    }
}

/// Where the rings' filter has the frames of a client go.
fn director_of(client: IpAddr, directors: usize) -> usize {
    let hash = usize::try_from(filter::of_client(client)).unwrap_or_default();
    hash % directors.max(1)
}
