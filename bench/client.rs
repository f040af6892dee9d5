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

use ringgate::l7::transport::Transport;
use ringgate::ring::event::Event as Signal;
use ringgate::ring::{Chunk, Ring, Stream, Timer, WriteBuf};

use crate::multiplex::{Multiplexed, Outcome};
use crate::pace::{Pace, Turns, read_on};
use crate::response::{Done, ResponseReader};
use crate::sleeper::{Clock, Sleeper};
use crate::tally::{Errors, Failure, Tally};
use crate::target::Wire;
use crate::tls::Handshakes;

/// Connections a thread begins to open in a millisecond, lest listen queues overflow.
const OPENED_PER_MS: u64 = 64;
/// For each connection of a thread, how long the others are waited for before the next look.
const OTHERS_NS: u64 = 20_000;
/// Rest after a connection could not be opened.
const REST_NS: u64 = 50_000_000;
/// How long the server may take to close after its last response; then we do.
const LINGER_MS: u64 = 100;
/// How long after the end what was due before it is still sent.
const GRACE_NS: u64 = 100_000_000;
/// HTTP/2 request bodies wait while this much is queued.
const UPLOAD_LOW: usize = 64 * 1024;

/// What the connections of a thread share.
pub(crate) struct Load {
    pub(crate) ring: Rc<Ring>,
    pub(crate) address: SocketAddr,
    pub(crate) tls: Option<Handshakes>,
    pub(crate) http2: bool,
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
    /// Requests on their way on one connection.
    pub(crate) window: usize,
    pub(crate) one_each: bool,
    /// Connections that are not over.
    pub(crate) active: Cell<usize>,
    /// Connections that have not had a response yet.
    pub(crate) unanswered: Cell<usize>,
    /// One more is over.
    pub(crate) ended: Signal,
}

impl Load {
    /// Closed loop, within the warm-up: a connection that has had its first response waits with the next until all have. A
    /// server that is busy with the first ones may take long to accept the others, and as they hardly count among the
    /// requests, its latency would be that of a part of the connections. Says when to look again.
    fn waits_for_others(&self, now: u64) -> Option<u64> {
        let waits = self.pace.is_none() && !self.one_each && self.unanswered.get() > 0;
        let step = OTHERS_NS * self.active.get() as u64;
        (waits && now < self.measure_from / 4 * 3).then_some(now + step)
    }
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
pub(crate) struct Pending {
    pub(crate) since: u64,
    pub(crate) wire: usize,
}

/// Points in time that a connection has asked to be woken at.
#[derive(Default)]
struct Asked {
    /// To send.
    send: Option<u64>,
    /// To read on.
    read: Option<u64>,
    /// There was nothing to read when reading on was allowed.
    dry: bool,
}

enum Event {
    Received(io::Result<Option<Chunk>>),
    /// The time to send has come.
    Due,
    TimedOut,
}

struct Client {
    load: Rc<Load>,
    /// With tickets of this connection's own.
    tls: Option<Handshakes>,
    reader: ResponseReader,
    /// Of the connection that is open, if that is HTTP/2: what it has under way.
    http2: Option<Box<Multiplexed>>,
    timer: Timer,
    /// HTTP/1.1: sent and not answered, oldest first.
    sent: VecDeque<Pending>,
    /// To be sent before anything new: not answered by a server that closed in good order.
    queued: VecDeque<Pending>,
    /// Closed loop: the end of the think time.
    ready_at: u64,
    /// With a read rate: when the next piece may be taken.
    read_at: u64,
    /// Open loop: when the request is due that this connection is to send next.
    slot: Option<u64>,
    /// It has had a response.
    known: bool,
}

/// Runs connection `number` of `count` until the run is over.
pub(crate) async fn run(load: Rc<Load>, number: u64, count: u64) {
    load.sleeper.sleep_until(number / OPENED_PER_MS * 1_000_000).await;
    let mut client = Client {
        tls: load.tls.as_ref().map(Handshakes::of_a_connection),
        reader: ResponseReader::new(),
        http2: None,
        timer: Timer::new(&load.ring),
        sent: VecDeque::new(),
        queued: VecDeque::new(),
        // Spread, so that they do not think in step.
        ready_at: load.think_ns / count.max(1) * number,
        read_at: 0,
        slot: None,
        known: false,
        load: Rc::clone(&load),
    };
    while client.is_wanted().await {
        match client.connect().await {
            Some(transport) => client.converse(&transport).await,
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

    async fn connect(&mut self) -> Option<Transport> {
        self.timer.set(self.load.timeout_ms);
        let connecting = Box::pin(Stream::connect(&self.load.ring, self.load.address));
        let Ok(Ok(stream)) = self.timer.guard(connecting).await else {
            return self.no_connection(|errors| &mut errors.connect);
        };
        let Some(tls) = &self.tls else {
            self.load.tally.borrow_mut().counts.opened += 1;
            return Some(stream.into());
        };
        // Boxed: it is large, and over before the first request.
        let Ok(Some(session)) = self.timer.guard(Box::pin(tls.make(&stream))).await else {
            return self.no_connection(|errors| &mut errors.tls);
        };
        let counts = &mut self.load.tally.borrow_mut().counts;
        counts.opened += 1;
        counts.handshakes += 1;
        counts.resumed += u64::from(session.info().resumed);
        let mut transport = Transport::from(stream);
        transport.secure(session);
        Some(transport)
    }

    /// Requests that had to wait for a connection fail with it; a mere attempt counts once.
    fn no_connection(&mut self, kind: impl Fn(&mut Errors) -> &mut u64) -> Option<Transport> {
        let errors = &mut self.load.tally.borrow_mut().counts.errors;
        *kind(errors) += self.queued.len().max(1) as u64;
        self.queued.clear();
        None
    }

    async fn rest(&self) {
        let until = self.load.clock.now().saturating_add(REST_NS);
        self.load.sleeper.sleep_until(until.min(self.load.end)).await;
    }

    /// Sends and receives until the connection or the run is over.
    async fn converse(&mut self, transport: &Transport) {
        self.reader.reset();
        let tls = self.tls.is_some();
        self.http2 = self.load.http2.then(|| Box::new(Multiplexed::new(tls)));
        let mut asked = Asked::default();
        loop {
            let next = self.fill(transport);
            if self.in_flight() == 0 {
                let over = self.load.one_each || matches!(next, Next::Over) || self.is_spent();
                match next {
                    _ if over => return self.timer.clear(),
                    // A server of HTTP/2 may take none for now.
                    Next::Send(_) => self.timer.set(self.load.timeout_ms),
                    _ => self.timer.clear(),
                }
            }
            let until = if let Next::Wait(until) = next { Some(until) } else { None };
            let event = poll_fn(|cx| self.poll_event(transport, until, &mut asked, cx)).await;
            match event {
                Event::Due => {}
                Event::Received(Ok(Some(chunk))) => {
                    if let Some(rate) = self.load.read_rate {
                        let (now, was_dry) =
                            (self.load.clock.now(), std::mem::take(&mut asked.dry));
                        self.read_at =
                            read_on(self.read_at, now, was_dry, chunk.as_slice().len(), rate);
                    }
                    match self.receive(chunk.as_slice()) {
                        Ok(true) => {}
                        Ok(false) => return self.linger(transport).await,
                        Err(kind) => return self.fail(kind),
                    }
                }
                Event::Received(Ok(None)) => return self.end(),
                Event::Received(Err(_)) => return self.fail(Failure::Closed),
                Event::TimedOut => return self.fail(Failure::Timeout),
            }
        }
    }

    /// Requests that are not answered.
    fn in_flight(&self) -> usize {
        self.http2.as_ref().map_or(self.sent.len(), |http2| http2.in_flight())
    }

    /// Whether the connection takes no more requests at all.
    fn is_spent(&self) -> bool {
        self.http2.as_ref().is_some_and(|http2| http2.is_spent())
    }

    /// Whether the connection takes another request now.
    fn has_room(&self) -> bool {
        self.in_flight() < self.load.window
            && self.http2.as_ref().is_none_or(|http2| http2.may_open())
    }

    fn poll_event(
        &self,
        transport: &Transport,
        until: Option<u64>,
        asked: &mut Asked,
        cx: &mut Context<'_>,
    ) -> Poll<Event> {
        if self.load.read_rate.is_some() && self.load.clock.now() < self.read_at {
            if asked.read.replace(self.read_at) != Some(self.read_at) {
                self.load.sleeper.wake_at(self.read_at, cx);
            }
        } else if let Poll::Ready(received) = transport.poll_recv(cx) {
            return Poll::Ready(Event::Received(received));
        } else if self.load.read_rate.is_some() {
            asked.dry = true;
        } else {
            // All is taken: this reader is not slow, however much came at once.
            transport.end_bulk();
        }
        let uploads = self.http2.as_ref().is_some_and(|http2| http2.has_uploads());
        if uploads
            && transport.queued() > UPLOAD_LOW
            && transport.poll_flushed(cx, UPLOAD_LOW).is_ready()
        {
            return Poll::Ready(Event::Due);
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
    fn fill(&mut self, transport: &Transport) -> Next {
        let now = self.load.clock.now();
        let mut sent = 0;
        let next = loop {
            if !self.has_room() {
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
            match (&mut self.http2, self.load.wires.get(pending.wire)) {
                (Some(http2), Some(wire)) => http2.open(pending, wire),
                _ => self.sent.push_back(pending),
            }
            sent += 1;
        };
        if sent > 0 {
            self.load.tally.borrow_mut().counts.sent += sent as u64;
            self.timer.set(self.load.timeout_ms);
        }
        match &mut self.http2 {
            Some(http2) => http2.flush(transport, &self.load.wires),
            None if sent > 0 => self.write(transport, sent),
            None => {}
        }
        next
    }

    /// Queues the bytes of the last `count` requests of `sent`.
    fn write(&self, transport: &Transport, count: usize) {
        let first = self.sent.len().saturating_sub(count);
        if count == 1 {
            // Shared, not copied.
            for wire in self.sent.range(first..).filter_map(|one| self.load.wires.get(one.wire)) {
                transport.write(wire.head.clone());
                transport.write(wire.body.clone());
            }
            return;
        }
        let mut buffer = WriteBuf::new(&self.load.ring);
        for wire in self.sent.range(first..).filter_map(|one| self.load.wires.get(one.wire)) {
            buffer.bytes.extend_from_slice(&wire.head);
            if !wire.body.is_empty() {
                transport.write(std::mem::replace(&mut buffer, WriteBuf::new(&self.load.ring)));
                transport.write(wire.body.clone());
            }
        }
        transport.write(buffer);
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
                _ => match self.load.waits_for_others(now).filter(|_| self.known) {
                    Some(until) => Next::Wait(until),
                    None => Next::Send(now),
                },
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
        if (self.load.measure_from..self.load.end).contains(&now) {
            self.load.tally.borrow_mut().counts.bytes += input.len() as u64;
        }
        if self.http2.is_some() {
            return self.receive_http2(input, now);
        }
        while let Some(&oldest) = self.sent.front() {
            let Some(wire) = self.load.wires.get(oldest.wire) else { break };
            let read = self.reader.read(&mut input, wire.method).map_err(|_| Failure::Malformed)?;
            let Some(done) = read else { return Ok(true) };
            self.sent.pop_front();
            self.answered(oldest, done.status, now);
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

    /// As [`Client::receive`], of a connection that requests share.
    fn receive_http2(&mut self, input: &[u8], now: u64) -> Result<bool, Failure> {
        let Some(http2) = &mut self.http2 else { return Ok(true) };
        let mut outcome = Outcome::default();
        let taken = http2.receive(input, self.load.ring.now(), &mut outcome);
        for (pending, status) in outcome.answered {
            self.answered(pending, status, now);
        }
        let mut tally = self.load.tally.borrow_mut();
        tally.note_failures(Failure::Closed, outcome.reset);
        tally.note_failures(Failure::Malformed, outcome.malformed);
        tally.counts.sent -= outcome.refused.len() as u64;
        drop(tally);
        self.queued.extend(outcome.refused);
        taken.map_err(|_| Failure::Malformed)?;
        Ok(!(self.load.one_each && self.in_flight() == 0))
    }

    /// A request has its response.
    fn answered(&mut self, Pending { since, .. }: Pending, status: u16, now: u64) {
        let load = &self.load;
        let mut tally = load.tally.borrow_mut();
        tally.counts.responses += 1;
        tally.note_status(status);
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
        if !std::mem::replace(&mut self.known, true) {
            load.unanswered.set(load.unanswered.get().saturating_sub(1));
        }
        self.ready_at = now.saturating_add(load.think_ns);
        self.timer.set(load.timeout_ms);
    }

    /// The server has closed.
    fn end(&mut self) {
        if let Some(Done { status, .. }) = self.reader.end()
            && let Some(oldest) = self.sent.pop_front()
        {
            self.answered(oldest, status, self.load.clock.now());
        }
        self.fail(Failure::Closed);
    }

    /// The connection is lost, and what was on its way with it.
    fn fail(&mut self, kind: Failure) {
        self.load.tally.borrow_mut().note_failures(kind, self.in_flight());
        self.sent.clear();
        self.http2 = None;
    }

    /// Lets the server close first, which spares our side's ports; what it has not answered is sent
    /// again on the next connection.
    async fn linger(&mut self, transport: &Transport) {
        let again = self.sent.drain(..);
        self.load.tally.borrow_mut().counts.sent -= again.len() as u64;
        self.queued.extend(again);
        self.timer.set(LINGER_MS);
        if let Some(http2) = &mut self.http2 {
            // Nothing tells a server of HTTP/2 to close at once: some take their time.
            http2.leave();
            http2.flush(transport, &self.load.wires);
            transport.shutdown_write();
            let flushed = pin!(poll_fn(|cx| transport.poll_flushed(cx, 0)));
            let _ = self.timer.guard(flushed).await;
            return;
        }
        // TLS or not, the end of TCP is what counts.
        let closed = pin!(async { while let Ok(Some(_)) = transport.stream().recv().await {} });
        let _ = self.timer.guard(closed).await;
    }
}
