//! A director's thread: frames out of its rings, verdicts, frames out. One clock read a batch; sleeps only when no
//! ring has a frame.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender};
use std::time::{Duration, Instant};

use super::files::Records;
use super::succession::{Passer, Take};
use super::{Pulse, sleep};
use crate::counter::Counter;
use crate::l4::flow::Passed;
use crate::l4::handoff::Part;
use crate::l4::offload::Learner;
use crate::l4::tables::{ServerId, Tables};
use crate::l4::{Director, Frame, Verdict};
use crate::packet::ring::bpf::Program;
use crate::packet::ring::{Fate, Judge, Merged, Received, Refusal, Ring, Sender, Sent, Tag, Turn};
use crate::protocol::checksum::Sum;
use crate::protocol::segments;
use crate::sys::cpu;

/// Frames judged between two clock reads.
const BATCH: usize = 64;
/// Rounds between two looks at sleepless housekeeping.
const ROUNDS_BETWEEN_LOOKS: u32 = 64;
/// How often flows expire and figures are read; also the longest sleep.
const TICK: Duration = Duration::from_millis(100);
/// Fruitless wake-ups by one ring in a row, after which the thread pauses: nothing may spin.
const FRUITLESS_MAX: u32 = 16;
const PAUSE: Duration = Duration::from_millis(10);
/// The loopback interface, on which what is for this host itself is delivered.
const LOOPBACK: u32 = 1;
const VLAN: u16 = 0x8100;
/// Frames of our own that one batch may give rise to: so many as the largest merged frames of a turn are cut into.
const OWN_MAX: usize = 16 * BATCH;

/// What a worker is told.
#[derive(Debug)]
pub(super) enum Order {
    /// Decide by these from now on.
    Tables(Arc<Tables>),
    /// Take frames from this ring too.
    Open(Box<Ring>),
    /// No longer from the rings on this interface.
    Close(u32),
    /// These frames only.
    Filter(Arc<Program>),
    /// Tell this program of flows from now on, or none.
    Learn(Option<Box<Learner>>),
    /// Copy all flows for a successor, a part at a time.
    PassOn(Passer),
    /// Pass rings and what has changed in flows since, and do nothing any more.
    Freeze(Passer),
    /// The successor failed: go on.
    Thaw,
    /// Take over another process's flows, and say when that is done.
    Take(Take, SyncSender<Result<(), String>>),
    /// End.
    Stop,
}

/// Places of flows that are copied for a successor between two batches of frames.
const PLACES: u32 = 4096;

/// Names of what becomes of a frame, in the order of [`Counts::outcomes`].
pub const OUTCOMES: [&str; 8] =
    ["forwarded", "local", "passed", "replied", "encapsulated", "held", "dropped", "unsent"];
const FORWARDED: usize = 0;
const LOCAL: usize = 1;
const PASSED: usize = 2;
const REPLIED: usize = 3;
const ENCAPSULATED: usize = 4;
const HELD: usize = 5;
const DROPPED: usize = 6;
const UNSENT: usize = 7;

/// What a director's thread counts.
#[derive(Debug, Default)]
pub struct Counts {
    /// Frames taken out of rings.
    pub received: Counter,
    /// Of these, by [`OUTCOMES`]: what the verdict was. The last is a verdict to send in a tunnel what cannot be.
    pub outcomes: [Counter; OUTCOMES.len()],
    /// Frames cut short because the queue for large ones was full; they are not judged.
    pub cut: Counter,
    /// Frames given to an interface.
    pub sent: Counter,
    /// Frames that an interface refused, by [`Refusal::ALL`].
    pub refused: [Counter; Refusal::ALL.len()],
    /// Frames that found no free slot in a ring.
    pub ring_drops: Counter,
    /// Errors that rings reported: their interface went down or away.
    pub ring_errors: Counter,
    /// Batches, each with one clock read.
    pub batches: Counter,
    /// Held fragments that went after all, or were given up.
    pub released: Counter,
}

impl Counts {
    fn outcome(&self, which: usize) {
        if let Some(counter) = self.outcomes.get(which) {
            counter.increment();
        }
    }

    fn replied(&self) -> u64 {
        self.outcomes.get(REPLIED).map_or(0, Counter::value)
    }

    fn sent(&self, sent: &Sent) {
        self.sent.add(sent.frames.into());
        for (counter, count) in self.refused.iter().zip(sent.refused) {
            if count > 0 {
                counter.add(count.into());
            }
        }
    }

    fn turn(&self, turn: &Turn) {
        self.received.add(turn.taken.into());
        if turn.cut > 0 {
            self.cut.add(turn.cut.into());
        }
        self.sent(&turn.sent);
    }
}

/// A frame that is not in a ring.
#[derive(Debug)]
struct Own {
    bytes: Vec<u8>,
    interface: u32,
}

/// Everything a director's thread owns.
#[derive(Debug)]
pub(super) struct Worker {
    director: Director,
    sender: Sender,
    orders: Receiver<Order>,
    waiting: Arc<AtomicBool>,
    wake: Arc<crate::sys::notify::EventFd>,
    rings: Vec<Ring>,
    own: Vec<Own>,
    began: Instant,
    ticked: u64,
    fruitless: u32,
    stopping: bool,
    /// Tells the XDP program of flows.
    learner: Option<Learner>,
    /// Flows on their way to a successor.
    passing: Option<Passing>,
    /// When they began to be copied.
    passed: Option<u64>,
}

/// A copy of all flows while it is made.
#[derive(Debug)]
struct Passing {
    to: Passer,
    records: Records,
    next: u32,
}

impl Worker {
    pub(super) fn new(
        director: Director,
        sender: Sender,
        orders: Receiver<Order>,
        waiting: Arc<AtomicBool>,
        wake: Arc<crate::sys::notify::EventFd>,
        learner: Option<Learner>,
    ) -> Self {
        Self {
            director,
            sender,
            orders,
            waiting,
            wake,
            rings: Vec::new(),
            own: Vec::new(),
            began: Instant::now(),
            ticked: 0,
            fruitless: 0,
            stopping: false,
            learner,
            passing: None,
            passed: None,
        }
    }

    pub(super) fn run(mut self, cpu: Option<usize>, counts: &Counts, pulse: &Pulse) {
        if let Some(cpu) = cpu {
            // Refused, it runs anywhere: the placement was checked when the configuration was.
            let _ = cpu::pin(cpu);
        }
        let (mut ready, mut scratch, mut fds) = (Vec::new(), Vec::new(), Vec::new());
        let mut rounds = 0;
        while !self.stopping {
            let busy = self.round(counts);
            rounds += 1;
            if busy && rounds < ROUNDS_BETWEEN_LOOKS && !self.waiting.load(Ordering::Acquire) {
                continue;
            }
            rounds = 0;
            fds.clear();
            fds.push(self.wake.as_raw_fd());
            fds.extend(self.rings.iter().map(AsRawFd::as_raw_fd));
            self.pass_on();
            let timeout = if busy || self.passing.is_some() { Duration::ZERO } else { TICK };
            sleep(&fds, timeout, &mut ready, &mut scratch);
            if ready.contains(&self.wake.as_raw_fd()) {
                self.wake.clear();
                pulse.0();
            }
            self.obey();
            self.look_at_errors(&ready, counts);
            self.tick(counts);
        }
    }

    /// A batch from each ring; true when there was a frame.
    fn round(&mut self, counts: &Counts) -> bool {
        let now = self.now();
        let mut taken = 0;
        let Self { director, sender, rings, own, learner, .. } = self;
        for ring in rings {
            let interface = ring.interface();
            let learner = learner.as_mut();
            let mut judging = Judging { director, now, interface, own, counts, learner };
            let turn = ring.turn(BATCH, sender, &mut judging);
            counts.turn(&turn);
            taken += turn.taken;
        }
        if taken > 0 {
            counts.batches.increment();
            self.release(now, counts);
        }
        if !self.own.is_empty() {
            self.send_own(counts);
        }
        taken > 0
    }

    /// Held fragments whose first one has come.
    fn release(&mut self, now: u64, counts: &Counts) {
        for _ in 0..OWN_MAX {
            let Some((verdict, bytes)) = self.director.release(now) else { break };
            counts.released.increment();
            match verdict {
                Verdict::Forward { ifindex, vlan, .. } => {
                    self.own.push(Own { bytes: tagged(bytes, vlan), interface: ifindex });
                }
                Verdict::Local(_) => {
                    to_loopback(bytes);
                    self.own.push(Own { bytes: bytes.to_vec(), interface: LOOPBACK });
                }
                Verdict::Encapsulate { ifindex, vlan, skip, .. } => {
                    let inner = bytes.get(skip..).unwrap_or_default().to_vec();
                    let whole = [self.director.head(), &inner].concat();
                    self.own.push(Own { bytes: tagged(&whole, vlan), interface: ifindex });
                }
                _ => {}
            }
        }
    }

    fn send_own(&mut self, counts: &Counts) {
        for one in self.own.drain(..) {
            let mut sent = Sent::default();
            match self.sender.send(&one.bytes, one.interface) {
                Ok(()) => sent.frames = 1,
                Err(refusal) => {
                    let all = Refusal::ALL.iter().zip(&mut sent.refused);
                    all.filter(|(one, _)| **one == refusal).for_each(|(_, count)| *count = 1);
                }
            }
            counts.sent(&sent);
        }
    }

    fn obey(&mut self) {
        self.waiting.store(false, Ordering::Release);
        while let Ok(order) = self.orders.try_recv() {
            match order {
                Order::Tables(tables) => self.director.swap(tables),
                Order::Open(ring) => self.rings.push(*ring),
                Order::Close(interface) => self.rings.retain(|ring| ring.interface() != interface),
                Order::Filter(filter) => {
                    for ring in &self.rings {
                        // It keeps the old one then, and the verdict passes what is not for us.
                        let _ = ring.filter(&filter);
                    }
                }
                Order::Learn(Some(learner)) => self.learner = Some(*learner),
                Order::Learn(None) => self.learner = self.learner.take().map(Learner::retire),
                Order::PassOn(to) => self.begin_to_pass(to),
                Order::Freeze(to) => self.freeze(to),
                Order::Thaw => {}
                Order::Take(take, done) => self.take(&take, &done),
                Order::Stop => self.stopping = true,
            }
        }
    }

    fn begin_to_pass(&mut self, to: Passer) {
        self.passed = Some(self.now());
        // Without it the successor finds servers by hash.
        let records = Records::new::<Passed>().ok();
        self.passing = records.map(|records| Passing { to, records, next: 0 });
    }

    /// A part of the copy.
    fn pass_on(&mut self) {
        let now = self.now();
        let Some(passing) = &mut self.passing else { return };
        let (begin, end) = (passing.next, passing.next.saturating_add(PLACES));
        let last = end >= self.director.places();
        let end = end.min(self.director.places());
        self.director.pass_on(begin..end, None, now, |flow| passing.records.push(&flow));
        passing.next = end;
        if let Some(passing) = self.passing.take_if(|_| last) {
            self.give(&passing.to, passing.records);
        }
    }

    fn give(&self, to: &Passer, records: Records) {
        if let Ok(fd) = records.finish() {
            let _ = to.send((Part::Flows { director: self.director.index() }, fd));
        }
    }

    /// Frames wait in their rings until it is known what became of the successor.
    fn freeze(&mut self, to: Passer) {
        self.passing = None;
        let director = self.director.index();
        for ring in &self.rings {
            if let Ok((fd, place)) = ring.share() {
                let interface = ring.interface();
                let _ = to.send((Part::Ring { interface, director, place }, fd));
            }
        }
        if let Ok(mut records) = Records::new::<Passed>() {
            let (all, now) = (0..self.director.places(), self.now());
            self.director.pass_on(all, self.passed, now, |flow| records.push(&flow));
            self.give(&to, records);
        }
        drop(to);
        loop {
            match self.orders.recv() {
                Ok(Order::Thaw) => break,
                Ok(Order::Stop) | Err(_) => {
                    self.stopping = true;
                    return;
                }
                Ok(_) => {} // the thread that gives orders rests too
            }
        }
        self.passed = None;
        self.rings.iter_mut().for_each(Ring::resume);
    }

    fn take(&mut self, take: &Take, done: &SyncSender<Result<(), String>>) {
        let (index, now) = (self.director.index(), self.now());
        let director = &mut self.director;
        let read = take.read(index, |flow| {
            director.take_over(flow, now);
        });
        let _ = done.try_send(read);
    }

    /// A ring that is said to be ready and has no frame has an error, which is taken, or it would be ready for ever.
    fn look_at_errors(&mut self, ready: &[RawFd], counts: &Counts) {
        let mut fruitless = false;
        for ring in &self.rings {
            if ready.contains(&ring.as_raw_fd()) && !ring.is_ready() {
                fruitless = true;
                if ring.take_error().is_some() {
                    counts.ring_errors.increment();
                }
            }
        }
        self.fruitless = if fruitless { self.fruitless + 1 } else { 0 };
        if self.fruitless > FRUITLESS_MAX {
            std::thread::sleep(PAUSE);
        }
    }

    fn tick(&mut self, counts: &Counts) {
        let now = self.now();
        if now.saturating_sub(self.ticked) < u64::try_from(TICK.as_millis()).unwrap_or_default() {
            return;
        }
        self.ticked = now;
        self.director.expire(now);
        self.release(now, counts);
        self.send_own(counts);
        for ring in &self.rings {
            if let Ok(statistics) = ring.statistics() {
                counts.ring_drops.add(statistics.drops.into());
            }
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// The server that a frame leaves for by its MAC addresses.
pub(in crate::l4) fn forwarded_to(verdict: Verdict) -> Option<ServerId> {
    match verdict {
        Verdict::Forward { server, .. } => Some(server),
        _ => None,
    }
}

/// A director at one ring, for one turn.
struct Judging<'a> {
    director: &'a mut Director,
    now: u64,
    interface: u32,
    own: &'a mut Vec<Own>,
    counts: &'a Counts,
    learner: Option<&'a mut Learner>,
}

impl Judge for Judging<'_> {
    fn foresee<'f>(&mut self, frames: impl Iterator<Item = &'f [u8]>) {
        self.director.foresee(frames);
    }

    /// Asks for the verdict on a frame and does what takes no sending.
    fn judge(&mut self, place: usize, received: Received<'_>) -> Fate {
        let Received { frame: bytes, tag, merged, partial } = received;
        self.director.select(place);
        match merged {
            Some(merged) if self.director.tunnels(bytes) => self.cut(bytes, tag, merged),
            _ => self.one(bytes, tag, partial),
        }
    }
}

impl Judging<'_> {
    /// A tunnel has no place for "these are several packets": each has a verdict of its own.
    fn cut(&mut self, frame: &[u8], tag: Option<Tag>, merged: Merged) -> Fate {
        let mut count = 0;
        let mut answered = false;
        let size = if merged.separable { usize::from(merged.size) } else { 0 };
        let whole = segments::cut(frame, size, |segment| {
            count += 1;
            if answered {
                // One answer is enough for all.
                self.counts.outcome(DROPPED);
                return;
            }
            let replied = self.counts.replied();
            let fate = self.one(segment, tag, None);
            answered = self.counts.replied() != replied;
            if let Fate::Send(interface, tag) = fate {
                self.keep(tagged_as(segment, tag), interface);
            }
        });
        match whole {
            // The frame itself is counted by who took it out of the ring.
            Some(_) => self.counts.received.add(count - 1),
            None => self.counts.outcome(UNSENT),
        }
        Fate::Release
    }

    /// One packet.
    fn one(&mut self, bytes: &mut [u8], tag: Option<Tag>, partial: Option<(u16, u16)>) -> Fate {
        let (length, interface) = (bytes.len(), self.interface);
        let vlan = tag.map(|tag| tag.control);
        let learner = self.learner.as_mut();
        let note = learner.and_then(|one| one.prepare(self.director, bytes, self.now));
        let mut frame = Frame { bytes, vlan, ifindex: interface, length };
        let verdict = self.director.judge(self.now, &mut frame);
        let bytes = frame.bytes;
        if let Some((learner, note)) = self.learner.as_mut().zip(note) {
            learner.judged(self.director, note, forwarded_to(verdict), self.now);
        }
        match verdict {
            Verdict::Pass => self.counts.outcome(PASSED),
            Verdict::Hold => self.counts.outcome(HELD),
            Verdict::Drop(_) => self.counts.outcome(DROPPED),
            Verdict::Local(_) => {
                self.counts.outcome(LOCAL);
                to_loopback(bytes);
                return Fate::Send(LOOPBACK, None);
            }
            Verdict::Forward { ifindex, vlan, .. } => {
                self.counts.outcome(FORWARDED);
                let own_tag = vlan.map(|control| Tag { kind: VLAN, control });
                // On the way back out of a trunk it keeps the tag it came with.
                return Fate::Send(
                    ifindex,
                    own_tag.or_else(|| tag.filter(|_| ifindex == interface)),
                );
            }
            Verdict::Reply { ifindex, vlan } => {
                self.counts.outcome(REPLIED);
                self.keep(tagged(self.director.reply(), vlan), ifindex);
            }
            Verdict::Encapsulate { .. } if self.own.len() >= OWN_MAX => {
                self.counts.outcome(UNSENT);
            }
            Verdict::Encapsulate { ifindex, vlan, skip, .. } => {
                self.counts.outcome(ENCAPSULATED);
                complete(bytes, partial);
                let inner = bytes.get(skip..).unwrap_or_default();
                let whole = [self.director.head(), inner].concat();
                self.keep(tagged(&whole, vlan), ifindex);
            }
        }
        Fate::Release
    }

    /// A frame of our own, to be sent after the batch.
    fn keep(&mut self, bytes: Vec<u8>, interface: u32) {
        if self.own.len() < OWN_MAX {
            self.own.push(Own { bytes, interface });
        }
    }
}

/// Loopback's hardware address is zero: anything else would be for another host.
fn to_loopback(frame: &mut [u8]) {
    if let Some(destination) = frame.first_chunk_mut::<6>() {
        *destination = [0; 6];
    }
}

/// A copy with the tag it is to have.
fn tagged_as(frame: &[u8], tag: Option<Tag>) -> Vec<u8> {
    tagged(frame, tag.map(|tag| tag.control))
}

/// A copy, with a tag behind the addresses if there is to be one.
fn tagged(frame: &[u8], vlan: Option<u16>) -> Vec<u8> {
    let mut bytes = frame.to_vec();
    if let Some(control) = vlan
        && bytes.len() >= 12
    {
        let [a, b] = VLAN.to_be_bytes();
        let [c, d] = control.to_be_bytes();
        bytes.splice(12..12, [a, b, c, d]);
    }
    bytes
}

/// Completes a checksum that the sender left to the hardware: the field holds the pseudo header's sum, and `partial` says where
/// summing begins and where the field is from there.
fn complete(frame: &mut [u8], partial: Option<(u16, u16)>) {
    let Some((start, offset)) = partial else { return };
    let Some(part) = frame.get_mut(usize::from(start)..) else { return };
    let sum = Sum::new().bytes(part).finish();
    // Zero means "none" to UDP.
    let sum = if sum == 0 { u16::MAX } else { sum };
    if let Some(field) = part.get_mut(usize::from(offset)..).and_then(<[u8]>::first_chunk_mut) {
        *field = sum.to_be_bytes();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::l4::config::{
        Forward, L4, Protocol, RealServer, Scheduler, ServiceKey, Settings, VirtualServer,
    };
    use crate::l4::registry::Registry;
    use crate::l4::tables::Neighbour;
    use crate::protocol::ethernet::Mac;

    #[test]
    fn a_partial_checksum_is_completed() {
        // A UDP datagram whose field holds the folded sum of the pseudo header.
        let (from, to) = ([192, 0, 2, 1].into(), [192, 0, 2, 2].into());
        let mut frame = vec![0; 14 + 20];
        frame.extend([0, 53, 0, 99, 0, 12, 0, 0, 1, 2, 3, 4]);
        let pseudo = !Sum::new().pseudo_v4(from, to, 17, 12).finish();
        frame[40..42].copy_from_slice(&pseudo.to_be_bytes());
        complete(&mut frame, Some((34, 6)));
        let sum = Sum::new().pseudo_v4(from, to, 17, 12).bytes(&frame[34..]);
        assert_eq!(sum.finish(), 0);
        let before = frame.clone();
        complete(&mut frame, None);
        complete(&mut frame, Some((9000, 6)));
        complete(&mut frame, Some((44, 600)));
        assert_eq!(frame, before);
    }

    /// A director with one server at the end of an IPIP tunnel, which 1,480 bytes fit through.
    fn tunnelling() -> Director {
        let (vip, server) = ("192.0.2.1".parse().expect("an address"), "10.0.0.1");
        let server = server.parse().expect("an address");
        let key = ServiceKey { protocol: Protocol::Tcp, address: vip, port: 80 };
        let mut one = VirtualServer::new(key, Scheduler::Rr, vec![RealServer::new(server, 1)]);
        one.forward = Forward::Ipip;
        let config = L4 { director: Settings::default(), services: vec![one] };
        let mut registry = Registry::new(config, 1);
        let (mac, source) = (Mac([2, 0, 0, 0, 1, 1]), Mac([2, 0, 0, 0, 0, 1]));
        registry.set_interfaces(HashMap::from([(2, vec![source])]));
        let neighbour = Neighbour { mac, source, ifindex: 3, vlan: None };
        registry.set_neighbour(server, Some(neighbour));
        registry.set_local(["10.0.0.200".parse().expect("an address")]);
        Director::new(0, registry.tables(), 1024)
    }

    /// So many bytes of TCP payload to its virtual server, not to be fragmented.
    fn segment(payload: usize) -> Vec<u8> {
        let length = u16::try_from(40 + payload).expect("short").to_be_bytes();
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 9, 8, 0];
        frame.extend([0x45, 0, length[0], length[1], 0, 1, 0x40, 0, 64, 6, 0, 0]);
        frame.extend([198, 51, 100, 1, 192, 0, 2, 1]);
        frame.extend([4, 0, 0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 5 << 4, 0x10, 1, 0, 0, 0, 0, 0]);
        frame.resize(54 + payload, 7);
        let sum = Sum::new().bytes(&frame[14..34]).finish();
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        frame
    }

    #[test]
    fn a_merged_frame_that_does_not_fit_a_tunnel_has_one_answer() {
        let mut director = tunnelling();
        for (size, outcome, answers, rest) in
            [(1460, REPLIED, 1, 3), (1440, ENCAPSULATED, 4, 0), (0, UNSENT, 0, 0)]
        {
            let (counts, mut own) = (Counts::default(), Vec::new());
            let mut judging = Judging {
                director: &mut director,
                now: 1000,
                interface: 2,
                own: &mut own,
                counts: &counts,
                learner: None,
            };
            let mut frame = segment(4 * 1460);
            let merged = Some(Merged { size, separable: true });
            let frame = frame.get_mut(..54 + usize::from(size) * 4).unwrap_or_default();
            let length = u16::try_from(frame.len() - 14).expect("short").to_be_bytes();
            frame[16..18].copy_from_slice(&length);
            let received = Received { frame, tag: None, merged, partial: None };
            assert_eq!(judging.judge(0, received), Fate::Release);
            let sums = |which: usize| counts.outcomes[which].value();
            assert_eq!((sums(outcome), sums(DROPPED)), (answers.max(1), rest), "{size}");
            assert_eq!(own.len(), usize::try_from(answers).expect("few"), "{size}");
            // Who took it out of the ring has counted one.
            let all: u64 = counts.outcomes.iter().map(Counter::value).sum();
            assert_eq!(counts.received.value() + 1, all, "{size}");
        }
    }

    #[test]
    fn tags_stand_behind_the_addresses() {
        let frame: Vec<u8> = (0..20).collect();
        assert_eq!(tagged(&frame, None), frame);
        let with = tagged(&frame, Some(0x2005));
        assert_eq!(with[..18], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 0x81, 0, 0x20, 5, 12, 13]);
        assert_eq!(tagged(&[1, 2], Some(5)), [1, 2]);
    }
}
