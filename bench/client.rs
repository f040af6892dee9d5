//! One connection of the generator, opened again as often as it ends.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use ringgate::ring::event::Event as Signal;
use ringgate::ring::{Chunk, Ring, Stream, Timer, WriteBuf};

use crate::pace::{Pace, Turns};
use crate::response::{Done, ResponseReader};
use crate::sleeper::{Clock, Sleeper};
use crate::tally::{Failure, Tally};
use crate::target::Wire;

/// Connections a thread begins to open in a millisecond, lest listen queues overflow.
const OPENED_PER_MS: u64 = 64;
/// Rest after a connection could not be opened.
const REST_NS: u64 = 50_000_000;
/// How long the server may take to close after its last response; then we do.
const LINGER_MS: u64 = 100;
/// How long after the end what was due before it is still sent.
const GRACE_NS: u64 = 100_000_000;

/// What the connections of a thread share.
pub(crate) struct Load {
    pub(crate) ring: Rc<Ring>,
    pub(crate) address: SocketAddr,
    pub(crate) wires: Arc<[Wire]>,
    pub(crate) turns: RefCell<Turns>,
    /// Of the open loop.
    pub(crate) pace: Option<RefCell<Pace>>,
    pub(crate) sleeper: Sleeper,
    pub(crate) clock: Clock,
    pub(crate) tally: RefCell<Tally>,
    pub(crate) measure_from: u64,
    pub(crate) end: u64,
    pub(crate) timeout_ms: u64,
    pub(crate) think_ns: u64,
    /// Bytes a second that each connection reads at most.
    pub(crate) read_rate: Option<u64>,
    pub(crate) window: usize,
    pub(crate) one_each: bool,
    /// Connections that are not over.
    pub(crate) active: Cell<usize>,
    /// One more is over.
    pub(crate) ended: Signal,
}

/// When the next request goes out.
enum Next {
    /// Now; its latency counts from then.
    Send(u64),
    Wait(u64),
    /// There is none.
    Over,
}

/// A request that is on its way, or about to be.
#[derive(Debug, Clone, Copy)]
struct Pending {
    since: u64,
    wire: usize,
}

/// Points in time that a connection has asked to be woken at.
#[derive(Default)]
struct Asked {
    /// To send.
    send: Option<u64>,
    /// To read on.
    read: Option<u64>,
}

enum Event {
    Received(io::Result<Option<Chunk>>),
    /// The time to send has come.
    Due,
    TimedOut,
}

struct Client {
    load: Rc<Load>,
    reader: ResponseReader,
    timer: Timer,
    /// Sent and not answered, oldest first.
    sent: VecDeque<Pending>,
    /// To be sent before anything new: not answered by a server that closed in good order.
    queued: VecDeque<Pending>,
    /// Closed loop: the end of the think time.
    ready_at: u64,
    /// With a read rate: when the next piece may be taken.
    read_at: u64,
    /// Open loop: when the request is due that this connection is to send next.
    slot: Option<u64>,
}

/// Runs connection `number` of `count` until the run is over.
pub(crate) async fn run(load: Rc<Load>, number: u64, count: u64) {
    load.sleeper.sleep_until(number / OPENED_PER_MS * 1_000_000).await;
    let mut client = Client {
        reader: ResponseReader::new(),
        timer: Timer::new(&load.ring),
        sent: VecDeque::new(),
        queued: VecDeque::new(),
        // Spread, so that they do not think in step.
        ready_at: load.think_ns / count.max(1) * number,
        read_at: 0,
        slot: None,
        load: Rc::clone(&load),
    };
    while client.is_wanted().await {
        match client.connect().await {
            Some(stream) => client.converse(&stream).await,
            None => client.rest().await,
        }
    }
    load.active.set(load.active.get() - 1);
    load.ended.set();
}

impl Client {
    /// Whether a connection is to be opened; waits until it is if it is for one request.
    async fn is_wanted(&mut self) -> bool {
        loop {
            if !self.queued.is_empty() {
                return true;
            }
            let on_its_own = self.load.one_each;
            match self.next(self.load.clock.now()) {
                Next::Over => return false,
                // In the closed loop latency counts from sending, not from connecting.
                Next::Send(_) if !on_its_own && self.load.pace.is_none() => return true,
                Next::Send(since) => self.queue(since),
                Next::Wait(_) if !on_its_own => return true,
                Next::Wait(until) => self.load.sleeper.sleep_until(until).await,
            }
        }
    }

    async fn connect(&mut self) -> Option<Stream> {
        self.timer.set(self.load.timeout_ms);
        let connecting = pin!(Stream::connect(&self.load.ring, self.load.address));
        let connected = self.timer.guard(connecting).await;
        let counts = &mut self.load.tally.borrow_mut().counts;
        if let Ok(Ok(stream)) = connected {
            counts.opened += 1;
            return Some(stream);
        }
        // Requests that had to wait for it fail with it; a mere attempt counts once.
        counts.errors.connect += self.queued.len().max(1) as u64;
        self.queued.clear();
        None
    }

    async fn rest(&self) {
        let until = self.load.clock.now().saturating_add(REST_NS);
        self.load.sleeper.sleep_until(until.min(self.load.end)).await;
    }

    /// Sends and receives until the connection or the run is over.
    async fn converse(&mut self, stream: &Stream) {
        self.reader.reset();
        let mut asked = Asked::default();
        loop {
            let next = self.fill(stream);
            if self.sent.is_empty() {
                self.timer.clear();
                if self.load.one_each || matches!(next, Next::Over) {
                    return;
                }
            }
            let until = if let Next::Wait(until) = next { Some(until) } else { None };
            let event = poll_fn(|cx| self.poll_event(stream, until, &mut asked, cx)).await;
            match event {
                Event::Due => {}
                Event::Received(Ok(Some(chunk))) => match self.receive(chunk.as_slice()) {
                    Ok(true) => {}
                    Ok(false) => return self.linger(stream).await,
                    Err(kind) => return self.fail(kind),
                },
                Event::Received(Ok(None)) => return self.end(),
                Event::Received(Err(_)) => return self.fail(Failure::Closed),
                Event::TimedOut => return self.fail(Failure::Timeout),
            }
        }
    }

    fn poll_event(
        &self,
        stream: &Stream,
        until: Option<u64>,
        asked: &mut Asked,
        cx: &mut Context<'_>,
    ) -> Poll<Event> {
        if self.load.read_rate.is_some() && self.load.clock.now() < self.read_at {
            if asked.read.replace(self.read_at) != Some(self.read_at) {
                self.load.sleeper.wake_at(self.read_at, cx);
            }
        } else if let Poll::Ready(received) = stream.poll_recv(cx) {
            return Poll::Ready(Event::Received(received));
        }
        if let Some(at) = until {
            if self.load.clock.now() >= at {
                return Poll::Ready(Event::Due);
            }
            if asked.send != until {
                asked.send = until;
                self.load.sleeper.wake_at(at, cx);
            }
        }
        self.timer.poll_fired(cx).map(|()| Event::TimedOut)
    }

    /// Sends what is due and says what comes after it.
    fn fill(&mut self, stream: &Stream) -> Next {
        let now = self.load.clock.now();
        let mut sent = 0;
        let next = loop {
            if self.sent.len() >= self.load.window {
                // The time comes when there is room.
                break Next::Send(now);
            }
            let Some(pending) = self.queued.pop_front() else {
                if self.load.one_each {
                    break Next::Over;
                }
                match self.next(now) {
                    Next::Send(since) => self.queue(since),
                    other => break other,
                }
                continue;
            };
            self.sent.push_back(pending);
            sent += 1;
        };
        if sent > 0 {
            self.load.tally.borrow_mut().counts.sent += sent as u64;
            self.write(stream, sent);
            self.timer.set(self.load.timeout_ms);
        }
        next
    }

    /// Queues the bytes of the last `count` requests of `sent`.
    fn write(&self, stream: &Stream, count: usize) {
        let first = self.sent.len().saturating_sub(count);
        if count == 1 {
            // Shared, not copied.
            for wire in self.sent.range(first..).filter_map(|one| self.load.wires.get(one.wire)) {
                stream.write(wire.head.clone());
                stream.write(wire.body.clone());
            }
            return;
        }
        let mut buffer = WriteBuf::new(&self.load.ring);
        for wire in self.sent.range(first..).filter_map(|one| self.load.wires.get(one.wire)) {
            buffer.bytes.extend_from_slice(&wire.head);
            if !wire.body.is_empty() {
                stream.write(std::mem::replace(&mut buffer, WriteBuf::new(&self.load.ring)));
                stream.write(wire.body.clone());
            }
        }
        stream.write(buffer);
    }

    fn queue(&mut self, since: u64) {
        let wire = self.load.turns.borrow_mut().next();
        self.queued.push_back(Pending { since, wire });
    }

    fn next(&mut self, now: u64) -> Next {
        let Some(pace) = &self.load.pace else {
            return match self.ready_at {
                _ if now >= self.load.end => Next::Over,
                at if at > now => Next::Wait(at.min(self.load.end)),
                _ => Next::Send(now),
            };
        };
        let end = self.load.end;
        loop {
            let at = *self.slot.get_or_insert_with(|| pace.borrow_mut().take());
            if at >= end {
                return Next::Over;
            }
            if at > now {
                return Next::Wait(at);
            }
            let counts = &mut self.load.tally.borrow_mut().counts;
            if now >= end.saturating_add(GRACE_NS) {
                counts.unsent += 1;
                self.slot = Some(u64::MAX);
                return Next::Over;
            }
            self.slot = None;
            let behind = now - at;
            if behind / 1_000_000 <= self.load.timeout_ms {
                counts.behind_max_ns = counts.behind_max_ns.max(behind);
                counts.behind_sum_ns = counts.behind_sum_ns.saturating_add(behind);
                return Next::Send(at);
            }
            counts.errors.overdue += 1;
        }
    }

    /// Reads responses; `false` when the connection is to be closed after the last.
    fn receive(&mut self, mut input: &[u8]) -> Result<bool, Failure> {
        let now = self.load.clock.now();
        if let Some(rate) = self.load.read_rate {
            let rest = (input.len() as u64).saturating_mul(1_000_000_000) / rate;
            self.read_at = self.read_at.max(now).saturating_add(rest);
        }
        if (self.load.measure_from..self.load.end).contains(&now) {
            self.load.tally.borrow_mut().counts.bytes += input.len() as u64;
        }
        while let Some(&oldest) = self.sent.front() {
            let Some(wire) = self.load.wires.get(oldest.wire) else { break };
            let read = self.reader.read(&mut input, wire.method).map_err(|_| Failure::Malformed)?;
            let Some(done) = read else { return Ok(true) };
            self.answered(done, now);
            if !done.persistent || self.load.one_each {
                return Ok(false);
            }
        }
        if !input.is_empty() {
            // Bytes that nobody asked for.
            self.load.tally.borrow_mut().note_failures(Failure::Malformed, 1);
            return Err(Failure::Malformed);
        }
        Ok(true)
    }

    /// The oldest request has its response.
    fn answered(&mut self, done: Done, now: u64) {
        let Some(Pending { since, .. }) = self.sent.pop_front() else { return };
        let load = &self.load;
        let mut tally = load.tally.borrow_mut();
        tally.counts.responses += 1;
        tally.note_status(done.status);
        let measured = load.measure_from..load.end;
        if measured.contains(&now) {
            tally.counts.measured += 1;
            let second = (now - load.measure_from) / 1_000_000_000;
            tally.note_second(usize::try_from(second).unwrap_or(0));
        }
        // At a constant rate what was due in the measured time counts, however late it came.
        if measured.contains(if load.pace.is_some() { &since } else { &now }) {
            tally.latency.saturating_record(now.saturating_sub(since));
        }
        self.ready_at = now.saturating_add(load.think_ns);
        self.timer.set(load.timeout_ms);
    }

    /// The server has closed.
    fn end(&mut self) {
        if let Some(done) = self.reader.end() {
            self.answered(done, self.load.clock.now());
        }
        self.fail(Failure::Closed);
    }

    /// The connection is lost, and what was on its way with it.
    fn fail(&mut self, kind: Failure) {
        self.load.tally.borrow_mut().note_failures(kind, self.sent.len());
        self.sent.clear();
    }

    /// Lets the server close first, which spares our side's ports; what it has not answered is sent
    /// again on the next connection.
    async fn linger(&mut self, stream: &Stream) {
        let again = self.sent.drain(..);
        self.load.tally.borrow_mut().counts.sent -= again.len() as u64;
        self.queued.extend(again);
        self.timer.set(LINGER_MS);
        let closed = pin!(async { while let Ok(Some(_)) = stream.recv().await {} });
        let _ = self.timer.guard(closed).await;
    }
}
