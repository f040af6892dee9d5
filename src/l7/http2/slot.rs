//! A stream's queues between its task and the connection's.

use std::collections::VecDeque;
use std::rc::Rc;
use std::task::{Context, Waker};

use crate::protocol::http2::Code;
use crate::ring::timer::keep_waker;
use crate::ring::{Chunk, Ring, WriteBuf};

/// Received pieces up to this size are copied together, so that tiny DATA frames do not hold a
/// receive buffer each.
const JOIN_MAX: usize = 2048;

/// How a stream's output ends.
#[derive(Debug)]
pub(super) enum Ending {
    /// With the last byte.
    Plain,
    /// With these field lines.
    Trailers(Vec<u8>),
}

/// One stream.
#[derive(Debug, Default)]
pub(super) struct Slot {
    /// Heads on their way out; the flag says that nothing follows.
    pub(super) heads: VecDeque<(WriteBuf, bool)>,
    pub(super) outgoing: VecDeque<Chunk>,
    /// Bytes in `outgoing`.
    pub(super) queued: usize,
    /// Bytes of body handed to the connection.
    pub(super) sent: u64,
    pub(super) ending: Option<Ending>,
    /// The end of our half is framed.
    pub(super) ended: bool,
    /// Stands in the connection's queue of streams with output.
    pub(super) is_ready: bool,
    /// The task waits until no more than this is queued.
    pub(super) low: Option<usize>,
    pub(super) incoming: VecDeque<Chunk>,
    pub(super) incoming_end: bool,
    /// Trailers, as field lines.
    pub(super) trailers: Vec<u8>,
    /// Client role: response heads that came, as HTTP/1.1 text.
    pub(super) answers: VecDeque<Vec<u8>>,
    pub(super) reset: Option<Code>,
    /// Client role: the server has certainly not looked at the request.
    pub(super) unprocessed: bool,
    pub(super) waker: Option<Waker>,
}

impl Slot {
    pub(super) fn watch(&mut self, cx: &Context<'_>) {
        keep_waker(&mut self.waker, cx);
    }

    pub(super) fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Queues a piece of the body that came.
    pub(super) fn receive(&mut self, piece: Chunk, ring: &Rc<Ring>) {
        if piece.is_empty() {
            return;
        }
        if piece.len() > JOIN_MAX {
            return self.incoming.push_back(piece);
        }
        join(&mut self.incoming, &piece, ring);
    }

    /// Wakes the task if what it waits for to get out has got out.
    pub(super) fn wake_if_drained(&mut self) {
        if self.low.is_some_and(|low| self.is_drained(low)) {
            self.low = None;
            self.wake();
        }
    }

    /// At most `low` bytes wait, and for 0 no head and no end either.
    pub(super) fn is_drained(&self, low: usize) -> bool {
        self.queued <= low
            && (low > 0 || (self.heads.is_empty() && (self.ending.is_none() || self.ended)))
    }

    /// Something waits to be framed.
    pub(super) fn has_output(&self) -> bool {
        !self.is_drained(0)
    }

    /// Queues a piece of the body to go out. Small pieces are joined: each would hold a receive buffer
    /// of its own while the peer takes nothing.
    pub(super) fn send(&mut self, piece: Chunk, ring: &Rc<Ring>) {
        self.queued += piece.len();
        if piece.len() > JOIN_MAX || self.outgoing.is_empty() {
            return self.outgoing.push_back(piece);
        }
        join(&mut self.outgoing, &piece, ring);
    }

    /// Gives up: nothing more comes or goes.
    pub(super) fn give_up(&mut self, code: Code) {
        self.reset.get_or_insert(code);
        self.heads.clear();
        self.outgoing.clear();
        self.queued = 0;
        self.wake();
    }
}

/// Copies a piece behind what was joined before, or into a new buffer.
fn join(queue: &mut VecDeque<Chunk>, piece: &Chunk, ring: &Rc<Ring>) {
    if let Some(Chunk::Written(last)) = queue.back_mut()
        && last.bytes.capacity() - last.bytes.len() >= piece.len()
    {
        return last.bytes.extend_from_slice(piece.as_slice());
    }
    let mut copy = WriteBuf::new(ring);
    copy.bytes.extend_from_slice(piece.as_slice());
    queue.push_back(copy.into());
}
