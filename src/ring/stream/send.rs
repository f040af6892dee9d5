//! The sending side: a queue, of which one operation at a time carries the front.

use std::io;
use std::mem;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use io_uring::opcode;

use super::queue::Queue;
use super::{Inner, Stream};
use crate::ring::share::{self, Reader};
use crate::ring::timer::{Millis, keep_waker};
use crate::ring::{Chunk, Ring, Tag, WriteBuf, user_data};
use crate::sys::socket;

/// Chunks up to this many bytes are copied when there is something before them in the queue.
const JOIN_MAX: usize = 2048;
/// Chunks one send operation carries.
const SEND_CHUNKS_MAX: usize = 8;

#[derive(Default)]
pub(super) struct Send {
    pub(super) queue: Queue,
    /// Bytes in `queue`.
    queued: usize,
    /// Bytes the kernel has taken over the stream's life.
    sent: u64,
    active: bool,
    /// Chunks at the front of the queue that the active operation reads.
    carried: usize,
    dirty: bool,
    shutdown: bool,
    /// With the end of the output, receiving ends too.
    both_ways: bool,
    pub(super) error: Option<i32>,
    /// Wake the owner once `queued` is at most this.
    low: usize,
    pub(super) waker: Option<Waker>,
    message: Option<Box<Message>>,
    /// Bytes that the active operation offers to the kernel.
    offered: usize,
    /// When it was queued.
    began: Millis,
    /// The kernel took less than it was offered by the operation before: it is full, and the active one waits.
    refused: bool,
    reader: Reader,
    /// Unsent bytes that the kernel takes, as it was told; `None` when it was told nothing.
    unsent: Option<u32>,
    /// How often it was let take more for want of receive buffers.
    reliefs: u8,
}

/// Where the kernel finds the chunks of one sendmsg(2).
struct Message {
    header: libc::msghdr,
    vectors: [libc::iovec; SEND_CHUNKS_MAX],
}

impl Message {
    fn new() -> Box<Self> {
        // SAFETY: msghdr and iovec are pointers and integers, for which all zeroes is valid.
        Box::new(unsafe { mem::zeroed() })
    }

    /// Points at the front of the queue. The box does not move while the operation is in flight.
    fn fill(&mut self, queue: &Queue) -> (*const libc::msghdr, usize) {
        let (mut count, mut len) = (0, 0);
        for (vector, chunk) in self.vectors.iter_mut().zip(queue.iter()) {
            let bytes = chunk.as_slice();
            vector.iov_base = bytes.as_ptr().cast_mut().cast();
            vector.iov_len = bytes.len();
            len += bytes.len();
            count += 1;
        }
        self.header.msg_iov = self.vectors.as_mut_ptr();
        self.header.msg_iovlen = count;
        (&raw const self.header, len)
    }
}

impl Inner {
    pub(in crate::ring) fn start_send(&self, ring: &Ring) {
        let send = &mut *self.send.borrow_mut();
        send.dirty = false;
        if !send.active && !self.closed.get() && send.error.is_none() {
            self.send_next(ring, send);
        }
    }

    fn send_next(&self, ring: &Ring, send: &mut Send) {
        // What the end follows waits for it in the kernel, so that both leave in one segment: the
        // completion shuts down at once.
        let is_last = send.shutdown && send.queue.len() <= SEND_CHUNKS_MAX;
        let flags = libc::MSG_NOSIGNAL | if is_last { libc::MSG_MORE } else { 0 };
        let Some(first) = send.queue.front() else {
            if mem::take(&mut send.shutdown) {
                self.shut_down(send.both_ways);
            }
            return;
        };
        let entry = match send.queue.len() {
            1 => {
                ring.gather.note_send();
                let bytes = first.as_slice();
                send.offered = bytes.len();
                let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
                opcode::Send::new(self.raw(), bytes.as_ptr(), len).flags(flags).build()
            }
            _ => {
                let message = send.message.get_or_insert_with(Message::new);
                let (header, len) = message.fill(&send.queue);
                send.offered = len;
                #[allow(clippy::cast_sign_loss)] // positive constants
                opcode::SendMsg::new(self.raw(), header).flags(flags as u32).build()
            }
        };
        self.recv.borrow_mut().note_sent();
        send.active = true;
        send.began = ring.now();
        send.carried = send.queue.len().min(SEND_CHUNKS_MAX);
        self.submit(ring, Tag::Send, entry);
    }

    /// Notes how much the kernel took: what it leaves is the reader's doing.
    fn note_reader(&self, ring: &Ring, send: &mut Send, sent: usize) {
        let time = ring.now().saturating_sub(send.began);
        if send.refused {
            send.reader = send.reader.after(time);
            if ring.starved.borrow().is_empty() {
                send.reliefs = 0;
            }
            self.limit_unsent(send);
        } else {
            send.reader = send.reader.after_send(time);
        }
        send.refused = sent < send.offered;
    }

    /// Has the kernel take as much as this reader is worth (`TCP_NOTSENT_LOWAT`). A socket that was told nothing so far is
    /// told only that its reader is slow.
    fn limit_unsent(&self, send: &mut Send) {
        let wanted = send.reader.unsent(send.reliefs);
        let is_told = send.unsent.is_some() || send.reader == Reader::Slow;
        if let Some(fd) = self.fd.as_ref().filter(|_| is_told && send.unsent != Some(wanted)) {
            send.unsent = Some(wanted);
            // Fails only for a connection that is gone.
            let _ = socket::limit_unsent(fd.as_fd(), wanted);
        }
    }

    /// Lets the kernel take more of what this reader does not, so that buffers come back; false if nothing waits.
    pub(in crate::ring) fn relieve(&self) -> bool {
        let send = &mut *self.send.borrow_mut();
        let waits = send.full_for(self.ring.now()).is_some();
        let Some(reliefs) = share::relieved(send.reliefs).filter(|_| waits) else { return false };
        send.reliefs = reliefs;
        self.limit_unsent(send);
        true
    }

    /// Not through the ring: the kernel gives that operation to a worker thread, which looks the
    /// descriptor up when it runs. By then a close may have freed the number and another socket
    /// have got it.
    fn shut_down(&self, both_ways: bool) {
        let Some(fd) = &self.fd else { return };
        // Fails only for a connection that is gone, of which the receive tells.
        if both_ways {
            self.recv.borrow_mut().ending = socket::shutdown_both(fd.as_fd()).is_ok();
        } else {
            let _ = socket::shutdown_write(fd.as_fd());
        }
    }

    pub(in crate::ring) fn on_send(&self, ring: &Ring, result: i32) {
        let mut wake_recv = None;
        let send = &mut *self.send.borrow_mut();
        send.active = false;
        send.carried = 0;
        match result {
            _ if self.closed.get() => send.queue.clear(),
            sent if sent >= 0 => {
                let sent = usize::try_from(sent).unwrap_or(0);
                self.note_reader(ring, send, sent);
                send.consume(sent);
                self.send_next(ring, send);
            }
            retry if matches!(-retry, libc::EINTR | libc::EAGAIN) => self.send_next(ring, send),
            failed => {
                send.error = Some(-failed);
                send.queue.clear();
                send.queued = 0;
                // Whoever waits for an answer has to learn that the question did not get out.
                wake_recv = self.recv.borrow_mut().waker.take();
            }
        }
        if (send.error.is_some() || send.queued <= send.low)
            && let Some(waker) = send.waker.take()
        {
            waker.wake();
        }
        if let Some(waker) = wake_recv {
            waker.wake();
        }
        self.finished(ring);
    }

    /// The handle is gone.
    pub(super) fn stop_sending(&self) {
        let mut send = self.send.borrow_mut();
        if send.active {
            // The queue stays: the kernel may be reading it.
            self.ring.cancel(user_data(Tag::Send, self.key.get()));
        } else {
            send.queue.clear();
        }
    }
}

impl Send {
    /// How long the kernel has had no room for the active operation, if it has none.
    fn full_for(&self, now: Millis) -> Option<Millis> {
        let time = now.saturating_sub(self.began);
        (self.active && (self.refused || time > 0)).then_some(time)
    }

    fn seen(&self, now: Millis) -> Reader {
        self.reader.seen(self.full_for(now))
    }

    /// Copies a small chunk behind what waits already, so that a slow reader does not hold a buffer
    /// for every few bytes; gives back the chunk to be queued, if one is.
    fn joined(&mut self, chunk: Chunk, ring: &Rc<Ring>) -> Option<Chunk> {
        if chunk.len() > JOIN_MAX || self.queue.is_empty() {
            return Some(chunk);
        }
        let waits = self.queue.len() > self.carried;
        if let Some(Chunk::Written(buffer)) = self.queue.back_mut().filter(|_| waits)
            && buffer.bytes.capacity() - buffer.bytes.len() >= chunk.len()
        {
            buffer.bytes.extend_from_slice(chunk.as_slice());
            return None;
        }
        if let Chunk::Received(_) = chunk {
            let mut buffer = WriteBuf::new(ring);
            buffer.bytes.extend_from_slice(chunk.as_slice());
            return Some(buffer.into());
        }
        Some(chunk)
    }

    fn consume(&mut self, mut sent: usize) {
        self.sent += sent as u64;
        self.queued = self.queued.saturating_sub(sent);
        while sent > 0 {
            let Some(front) = self.queue.front_mut() else { return };
            let len = front.len();
            if sent < len {
                front.advance(sent);
                return;
            }
            sent -= len;
            self.queue.pop_front();
        }
    }
}

impl Stream {
    /// Appends to the output. What cannot be sent because the connection is broken is dropped; the
    /// error shows in [`Stream::poll_flushed`] and [`Stream::poll_recv`].
    pub fn write(&self, chunk: impl Into<Chunk>) {
        let chunk = chunk.into();
        let mut send = self.0.send.borrow_mut();
        if chunk.is_empty() || send.error.is_some() {
            return;
        }
        send.queued += chunk.len();
        let chunk = send.joined(chunk, &self.0.ring);
        if let Some(chunk) = chunk {
            send.queue.push_back(chunk);
        }
        self.mark_dirty(&mut send);
    }

    /// Sends the end of the stream after what is queued.
    pub fn shutdown_write(&self) {
        let mut send = self.0.send.borrow_mut();
        send.shutdown = true;
        self.mark_dirty(&mut send);
    }

    /// The same for a peer that has nothing more to say: receiving ends with the output, and the stream may be dropped
    /// once that is flushed. What the peer sends all the same resets the connection.
    pub fn shutdown_both(&self) {
        self.0.send.borrow_mut().both_ways = true;
        self.shutdown_write();
    }

    fn mark_dirty(&self, send: &mut Send) {
        if !send.dirty && !send.active {
            send.dirty = true;
            self.0.ring.dirty.borrow_mut().push(self.0.key.get());
        }
    }

    /// The kernel was told to take [`share::UNSENT`] unsent bytes, by the socket this one was accepted on.
    pub(in crate::ring) fn note_limited(&self) {
        self.0.send.borrow_mut().unsent = Some(share::UNSENT);
    }

    /// True while the kernel has no room for what is queued.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.0.send.borrow().full_for(self.0.ring.now()).is_some()
    }

    /// True when the reader made room late when there was none, or has not done so yet.
    #[inline]
    #[must_use]
    pub fn is_slow(&self) -> bool {
        self.0.send.borrow().seen(self.0.ring.now()) == Reader::Slow
    }

    /// Bytes that may be queued before the source should not be read: fewer for a slow reader, and when buffers are scarce.
    #[inline]
    #[must_use]
    pub fn hold(&self) -> usize {
        self.0.send.borrow().seen(self.0.ring.now()).hold(self.0.ring.pressure())
    }

    /// Bytes written that the kernel has not taken yet.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.0.send.borrow().queued
    }

    /// Pieces they are in; each may hold a whole buffer, however few bytes it has.
    #[must_use]
    pub fn queued_pieces(&self) -> usize {
        self.0.send.borrow().queue.len()
    }

    /// Bytes the kernel has taken so far; moves when there is progress.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.0.send.borrow().sent
    }

    /// Ready once at most `low` bytes are queued.
    pub fn poll_flushed(&self, cx: &mut Context<'_>, low: usize) -> Poll<io::Result<()>> {
        let mut send = self.0.send.borrow_mut();
        if let Some(errno) = send.error {
            return Poll::Ready(Err(io::Error::from_raw_os_error(errno)));
        }
        if send.queued <= low {
            return Poll::Ready(Ok(()));
        }
        send.low = low;
        keep_waker(&mut send.waker, cx);
        Poll::Pending
    }
}
