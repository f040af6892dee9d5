//! The sending side: a queue, of which one operation at a time carries the front.

use std::io;
use std::mem;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use io_uring::opcode;

use super::queue::Queue;
use super::{Inner, Stream};
use crate::ring::timer::keep_waker;
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
    /// The kernel takes as much as its send buffer holds, whatever the listener said.
    unlimited: bool,
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
    fn fill(&mut self, queue: &Queue) -> *const libc::msghdr {
        let mut count = 0;
        for (vector, chunk) in self.vectors.iter_mut().zip(queue.iter()) {
            let bytes = chunk.as_slice();
            vector.iov_base = bytes.as_ptr().cast_mut().cast();
            vector.iov_len = bytes.len();
            count += 1;
        }
        self.header.msg_iov = self.vectors.as_mut_ptr();
        self.header.msg_iovlen = count;
        &raw const self.header
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
                let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
                opcode::Send::new(self.raw(), bytes.as_ptr(), len).flags(flags).build()
            }
            _ => {
                let message = send.message.get_or_insert_with(Message::new);
                let header = message.fill(&send.queue);
                #[allow(clippy::cast_sign_loss)] // positive constants
                opcode::SendMsg::new(self.raw(), header).flags(flags as u32).build()
            }
        };
        send.active = true;
        send.carried = send.queue.len().min(SEND_CHUNKS_MAX);
        if !ring.starved.borrow().is_empty() {
            self.lift_limit(send);
        }
        self.submit(ring, Tag::Send, entry);
    }

    /// Lets the kernel take what it would not yet (`TCP_NOTSENT_LOWAT`), so that buffers come back.
    fn lift_limit(&self, send: &mut Send) {
        if let Some(fd) = self.fd.as_ref().filter(|_| send.active && !send.unlimited) {
            send.unlimited = true;
            // Fails only for a connection that is gone, whose buffers come back anyway.
            let _ = socket::limit_unsent(fd.as_fd(), u32::MAX);
        }
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
                send.consume(usize::try_from(sent).unwrap_or(0));
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

impl Ring {
    /// Receive buffers have run out: better that the kernel holds what slow readers do not take than that everybody
    /// waits for them. Whoever sends until there are some again follows by itself.
    pub(super) fn lift_limits(&self) {
        self.streams
            .borrow()
            .iter()
            .for_each(|(_, stream)| stream.lift_limit(&mut stream.send.borrow_mut()));
    }
}

impl Send {
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
