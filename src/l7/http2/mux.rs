//! What a connection's task and its streams share.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use super::slot::{Ending, Slot};
use crate::l7::transport::Transport;
use crate::protocol::http2::message::fields_of;
use crate::protocol::http2::{Code, Connection, ConnectionError, Event, Limits, Role, Step};
use crate::ring::timer::{Millis, keep_waker};
use crate::ring::{Chunk, Ring, WriteBuf};

/// Pieces that may wait in the transport.
const OUT_PIECES: usize = 64;
/// Input is not read while this much of our output waits: a peer that takes nothing gets no answers.
const OUT_FULL: usize = 512 * 1024;
/// Payload up to this size is copied behind its frame header.
const COPY_MAX: usize = 2048;
/// Response heads of a stream that may wait for its task.
const ANSWERS_MAX: usize = 32;
/// A buffer of frames is handed on at this size.
const FRAMES_MAX: usize = 16 * 1024;

/// A connection: its protocol state, its streams' queues and the way out.
#[derive(Debug)]
pub struct Mux {
    transport: OnceCell<Transport>,
    ring: Rc<Ring>,
    state: RefCell<State>,
    /// Wakes the connection's task.
    waker: RefCell<Option<Waker>>,
    /// The task is awake or woken: waking it again would be for nothing.
    awake: Cell<bool>,
    closed: Cell<bool>,
    /// When the last stream ended.
    stream_ended: Cell<Option<Millis>>,
    /// Client role: who waits for the server's SETTINGS.
    settling: RefCell<Option<Waker>>,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) connection: Connection,
    /// In the order of `slots`.
    ids: Vec<u32>,
    slots: Vec<Slot>,
    /// Streams with output.
    ready: VecDeque<u32>,
}

impl State {
    fn position(&self, id: u32) -> Option<usize> {
        self.ids.iter().position(|&known| known == id)
    }

    pub(super) fn slot(&mut self, id: u32) -> Option<&mut Slot> {
        let position = self.position(id)?;
        self.slots.get_mut(position)
    }

    pub(super) fn insert(&mut self, id: u32, slot: Slot) {
        self.ids.push(id);
        self.slots.push(slot);
    }

    pub(super) fn remove(&mut self, id: u32) -> Option<Slot> {
        let position = self.position(id)?;
        self.ids.swap_remove(position);
        Some(self.slots.swap_remove(position))
    }

    pub(super) fn make_ready(&mut self, id: u32) {
        let Some(position) = self.position(id) else { return };
        if let Some(slot) = self.slots.get_mut(position).filter(|slot| !slot.is_ready) {
            slot.is_ready = true;
            self.ready.push_back(id);
        }
    }

    /// All streams that have output, in one pass.
    fn make_all_ready(&mut self) {
        for (&id, slot) in self.ids.iter().zip(&mut self.slots) {
            if slot.has_output() && !std::mem::replace(&mut slot.is_ready, true) {
                self.ready.push_back(id);
            }
        }
    }
}

/// What the task that reads the connection has to do something about; the rest is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// A request; its head stands in the protocol state.
    Request(u32),
    /// A request with too large a head.
    TooLarge(u32),
    /// The peer did something wrong on a stream, which is reset.
    Fault,
    /// The peer reset a stream.
    Reset,
    /// The peer is going away.
    GoAway,
    /// The answer to a PING.
    Pong,
}

impl Mux {
    /// The shared part of a connection that has sent nothing yet; [`Mux::attach`] gives it its way out.
    #[must_use]
    pub fn new(ring: &Rc<Ring>, role: Role, limits: Limits) -> Rc<Self> {
        Rc::new(Self {
            transport: OnceCell::new(),
            ring: Rc::clone(ring),
            state: RefCell::new(State {
                connection: Connection::new(role, limits),
                ids: Vec::new(),
                slots: Vec::new(),
                ready: VecDeque::new(),
            }),
            waker: RefCell::default(),
            awake: Cell::new(true),
            closed: Cell::new(false),
            stream_ended: Cell::new(None),
            settling: RefCell::default(),
        })
    }

    /// Gives the connection its transport, once.
    pub fn attach(&self, transport: Transport) {
        let _ = self.transport.set(transport);
    }

    /// What it goes through.
    ///
    /// # Panics
    /// Before [`Mux::attach`], which whoever makes a connection calls at once.
    #[must_use]
    pub fn transport(&self) -> &Transport {
        self.transport.get().expect("attached when the connection was made")
    }

    /// The ring it lives on.
    #[must_use]
    pub fn ring(&self) -> &Rc<Ring> {
        &self.ring
    }

    pub(super) fn state(&self) -> std::cell::RefMut<'_, State> {
        self.state.borrow_mut()
    }

    /// Looks at the protocol state.
    pub fn with<T>(&self, look: impl FnOnce(&mut Connection) -> T) -> T {
        look(&mut self.state().connection)
    }

    /// Streams whose tasks are not over.
    #[must_use]
    pub fn streams(&self) -> usize {
        self.state.borrow().ids.len()
    }

    /// Whether the connection has ended.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.closed.get()
    }

    /// A stream's task is over.
    pub(super) fn note_ended(&self) {
        self.stream_ended.set(Some(self.ring.now()));
    }

    /// Whether the peer may still be busy with what it was sent: output waits, or a stream ended less
    /// than `grace` milliseconds ago.
    #[must_use]
    pub fn has_sent_lately(&self, grace: Millis) -> bool {
        let ended = self.stream_ended.get();
        self.transport().queued() > 0
            || ended.is_some_and(|at| self.ring.now().saturating_sub(at) < grace)
    }

    /// Has the connection's task look for output.
    pub fn wake(&self) {
        if !self.awake.replace(true)
            && let Some(waker) = &*self.waker.borrow()
        {
            waker.wake_by_ref();
        }
    }

    /// Registers the connection's task; to be called before it looks for work.
    pub fn watch(&self, cx: &Context<'_>) {
        keep_waker(&mut self.waker.borrow_mut(), cx);
        self.awake.set(false);
    }

    /// Whether so much output waits that no input should be read.
    #[must_use]
    pub fn is_congested(&self) -> bool {
        self.transport().queued() > OUT_FULL
    }

    /// Takes a received chunk up to the next piece of news; `None` once it is used up.
    ///
    /// # Errors
    /// See [`Connection::receive`].
    pub fn receive(&self, chunk: &mut Chunk, now: u64) -> Result<Option<News>, ConnectionError> {
        loop {
            let state = &mut *self.state();
            let Step { consumed, event } = state.connection.receive(chunk.as_slice(), now)?;
            let Some(event) = event else {
                chunk.advance(consumed);
                return Ok(None);
            };
            let news = self.take(state, event, chunk, consumed);
            if news.is_some() {
                return Ok(news);
            }
        }
    }

    fn take(
        &self,
        state: &mut State,
        event: Event,
        chunk: &mut Chunk,
        consumed: usize,
    ) -> Option<News> {
        if let Event::Data { id, from, to, end } = event {
            let Some(slot) = state.slot(id) else {
                chunk.advance(consumed);
                state.connection.release(id, to - from);
                return None;
            };
            chunk.advance(from);
            let piece = chunk.split_to(to - from);
            chunk.advance(consumed - to);
            slot.receive(piece, &self.ring);
            slot.incoming_end |= end;
            slot.wake();
            return None;
        }
        chunk.advance(consumed);
        match event {
            Event::Request { id, .. } => return Some(News::Request(id)),
            Event::TooLarge { id } => return Some(News::TooLarge(id)),
            Event::Response { id, end, interim } => {
                let State { connection, ids, slots, .. } = state;
                let position = ids.iter().position(|&known| known == id);
                if let Some(slot) = position.and_then(|position| slots.get_mut(position)) {
                    // Nobody takes that many interim ones; the exchange fails before.
                    if !interim || slot.answers.len() < ANSWERS_MAX {
                        slot.answers.push_back(connection.head.clone());
                    }
                    slot.incoming_end |= end;
                    slot.wake();
                }
            }
            Event::Trailers { id } => {
                let trailers = std::mem::take(&mut state.connection.head);
                if let Some(slot) = state.slot(id) {
                    slot.trailers = trailers;
                    slot.incoming_end = true;
                    slot.wake();
                }
            }
            Event::Reset { id, code, fault } => {
                if let Some(slot) = state.slot(id) {
                    slot.unprocessed = code == Code::REFUSED_STREAM && !fault;
                    slot.give_up(code);
                }
                return Some(if fault { News::Fault } else { News::Reset });
            }
            Event::Window { id: 0 } => {
                if let Some(waker) = self.settling.take() {
                    waker.wake();
                }
                state.make_all_ready();
            }
            Event::Window { id } => state.make_ready(id),
            Event::GoAway { last } => {
                for (&id, slot) in state.ids.iter().zip(&mut state.slots) {
                    if id > last {
                        slot.unprocessed = true;
                        slot.give_up(Code::REFUSED_STREAM);
                    }
                }
                return Some(News::GoAway);
            }
            Event::Pong => return Some(News::Pong),
            Event::Data { .. } => {}
        }
        None
    }

    /// Writes what the streams have queued as far as the windows and the transport take it.
    pub fn pump(&self) {
        let transport = self.transport();
        let state = &mut *self.state();
        if state.ready.is_empty() && state.connection.output.is_empty() {
            return;
        }
        let mut out = WriteBuf::new(&self.ring);
        loop {
            out.bytes.append(&mut state.connection.output);
            let waits = transport.queued() + out.bytes.len();
            if waits > self.out_high() || transport.queued_pieces() > OUT_PIECES {
                break;
            }
            let Some(id) = state.ready.pop_front() else { break };
            let Some(position) = state.position(id) else { continue };
            let slot = &mut state.slots[position];
            slot.is_ready = false;
            let again = self.frame(&mut state.connection, slot, id, &mut out);
            slot.wake_if_drained();
            if again {
                slot.is_ready = true;
                state.ready.push_back(id);
            }
            if out.bytes.len() > FRAMES_MAX {
                transport.write(std::mem::replace(&mut out, WriteBuf::new(&self.ring)));
            }
        }
        transport.write(out);
    }

    /// Frames a stream's heads and one piece of its body; true when there may be more to frame.
    fn frame(
        &self,
        connection: &mut Connection,
        slot: &mut Slot,
        id: u32,
        out: &mut WriteBuf,
    ) -> bool {
        while let Some((head, end)) = slot.heads.pop_front() {
            connection.respond(id, &head.bytes, end, &mut out.bytes);
            slot.ended |= end;
        }
        if let Some(front) = slot.outgoing.front_mut() {
            let (len, capacity) = (front.len(), connection.capacity(id));
            if capacity == 0 {
                return false;
            }
            let n = len.min(capacity);
            let last = n == slot.queued && matches!(slot.ending, Some(Ending::Plain));
            connection.push_data(id, n, last, &mut out.bytes);
            slot.ended |= last;
            slot.queued -= n;
            slot.sent += n as u64;
            if n <= COPY_MAX {
                out.bytes.extend_from_slice(&front.as_slice()[..n]);
                front.advance(n);
                if n == len {
                    slot.outgoing.pop_front();
                }
            } else {
                let piece =
                    if n == len { slot.outgoing.pop_front() } else { Some(front.split_to(n)) };
                let frames = std::mem::replace(out, WriteBuf::new(&self.ring));
                if let Some(piece) = piece {
                    self.transport().write_both(frames, piece);
                }
            }
            if !slot.outgoing.is_empty() {
                return true;
            }
        }
        if !slot.ended {
            match slot.ending.take() {
                Some(Ending::Plain) => connection.push_data(id, 0, true, &mut out.bytes),
                Some(Ending::Trailers(lines)) => {
                    let (_, fields) = fields_of(&lines);
                    connection.send_trailers(id, fields, &mut out.bytes);
                }
                None => return false,
            }
            slot.ended = true;
        }
        false
    }

    /// Output that may wait in the transport before streams are held back; they go on at a quarter of it.
    fn out_high(&self) -> usize {
        self.transport().hold() + FRAMES_MAX
    }

    /// Ready once the transport has room for more of what the streams have queued; pending when it
    /// is not what they wait for.
    pub fn poll_room(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.state.borrow().ready.is_empty() {
            return Poll::Pending;
        }
        self.transport().poll_flushed(cx, self.out_high() / 4).map(|_| ())
    }

    /// Ready once the peer's SETTINGS have come.
    ///
    /// # Errors
    /// When the connection ends before.
    pub fn poll_settled(&self, cx: &Context<'_>) -> Poll<io::Result<()>> {
        if self.closed.get() {
            return Poll::Ready(Err(io::Error::from(io::ErrorKind::InvalidData)));
        }
        if !self.state.borrow().connection.is_inside_head() {
            return Poll::Ready(Ok(()));
        }
        keep_waker(&mut self.settling.borrow_mut(), cx);
        Poll::Pending
    }

    /// Ready once a stream was reset or the connection is lost.
    pub fn poll_reset(&self, id: u32, cx: &Context<'_>) -> Poll<()> {
        match self.state().slot(id) {
            Some(slot) if slot.reset.is_none() => {
                slot.watch(cx);
                Poll::Pending
            }
            _ => Poll::Ready(()),
        }
    }

    /// Ends all streams: the connection is lost, or given up.
    pub fn close(&self, code: Code) {
        self.closed.set(true);
        if let Some(waker) = self.settling.take() {
            waker.wake();
        }
        let state = &mut *self.state();
        state.slots.iter_mut().for_each(|slot| slot.give_up(code));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_of_the_connection_wakes_streams_with_output_once() {
        let mut state = State {
            connection: Connection::new(Role::Server, Limits::default()),
            ids: Vec::new(),
            slots: Vec::new(),
            ready: VecDeque::new(),
        };
        for id in [1, 3, 5, 7] {
            state.insert(id, Slot::default());
        }
        for id in [3, 5] {
            let slot = state.slot(id).expect("inserted");
            slot.outgoing.push_back(Chunk::Shared("body".into()));
            slot.queued = 4;
        }
        state.slot(7).expect("inserted").ending = Some(Ending::Plain);
        state.make_ready(5);
        state.make_all_ready();
        state.make_all_ready();
        assert_eq!(state.ready, [5, 3, 7]);
    }
}
