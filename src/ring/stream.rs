//! A connected TCP socket on the ring.
//!
//! Receiving is one multishot operation that stays armed while the connection is idle. A stream
//! whose reader falls behind is paused after `RECV_QUEUE_MAX` chunks and from then on receives a
//! buffer at a time, so that a slow reader holds little of the shared pool.
//!
//! Sending is a queue: [`Stream::write`] appends, the ring turns everything queued in a round into
//! one operation, and its completion starts the next. A task waits only when it wants the queue to
//! be short ([`Stream::poll_flushed`]).

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::mem;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use io_uring::types::Fd;
use io_uring::{cqueue, opcode, squeue};

use super::buffers::GROUP;
use super::timer::keep_waker;
use super::{Chunk, Ring, Tag, WriteBuf, user_data};
use crate::sys::socket::{self, RawAddr};

/// Received chunks a stream may hold before it is paused.
const RECV_QUEUE_MAX: usize = 8;
/// Chunks up to this many bytes are copied when there is something before them in the queue.
const JOIN_MAX: usize = 2048;
/// Chunks one send operation carries.
const SEND_CHUNKS_MAX: usize = 8;

/// The table entry of a stream: what the kernel may touch, and what the owner waits for.
pub(super) struct Inner {
    fd: Option<OwnedFd>,
    key: Cell<u32>,
    ring: Rc<Ring>,
    /// Operations of this stream that the kernel has not finished.
    in_flight: Cell<u8>,
    /// The handle is gone; the entry waits for its last completion.
    closed: Cell<bool>,
    recv: RefCell<Recv>,
    send: RefCell<Send>,
    connect: RefCell<Connect>,
}

#[derive(Default)]
struct Recv {
    queue: VecDeque<Chunk>,
    armed: bool,
    pausing: bool,
    starved: bool,
    /// Receive a buffer at a time instead of multishot.
    single: bool,
    eof: bool,
    error: Option<i32>,
    waker: Option<Waker>,
}

#[derive(Default)]
struct Send {
    queue: VecDeque<Chunk>,
    /// Bytes in `queue`.
    queued: usize,
    /// Bytes the kernel has taken over the stream's life.
    sent: u64,
    active: bool,
    /// Chunks at the front of the queue that the active operation reads.
    carried: usize,
    dirty: bool,
    shutdown: bool,
    error: Option<i32>,
    /// Wake the owner once `queued` is at most this.
    low: usize,
    waker: Option<Waker>,
    message: Option<Box<Message>>,
}

#[derive(Default)]
struct Connect {
    address: Option<Box<RawAddr>>,
    result: Option<i32>,
    waker: Option<Waker>,
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
    fn fill(&mut self, queue: &VecDeque<Chunk>) -> *const libc::msghdr {
        let mut count = 0;
        for (vector, chunk) in self.vectors.iter_mut().zip(queue) {
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
    fn raw(&self) -> Fd {
        Fd(self.fd.as_ref().map_or(-1, AsRawFd::as_raw_fd))
    }

    /// Queues an operation of this stream. What it points to belongs to `self`, which the ring's
    /// table keeps until `in_flight` is back at zero.
    fn submit(&self, ring: &Ring, tag: Tag, entry: squeue::Entry) {
        self.in_flight.set(self.in_flight.get() + 1);
        ring.push(&entry.user_data(user_data(tag, self.key.get())));
    }

    /// One operation has had its last completion.
    fn finished(&self, ring: &Ring) {
        self.in_flight.set(self.in_flight.get() - 1);
        self.remove_if_over(ring);
    }

    fn remove_if_over(&self, ring: &Ring) {
        if self.closed.get() && self.in_flight.get() == 0 {
            let entry = ring.streams.borrow_mut().try_remove(self.key.get() as usize);
            drop(entry); // outside the borrow: dropping it closes the descriptor through the ring
        }
    }

    fn arm_recv(&self, ring: &Ring, recv: &mut Recv) {
        if recv.armed || recv.starved || recv.eof || recv.error.is_some() || self.closed.get() {
            return;
        }
        recv.armed = true;
        let entry = if recv.single {
            opcode::Recv::new(self.raw(), std::ptr::null_mut(), 0)
                .buf_group(GROUP)
                .build()
                .flags(squeue::Flags::BUFFER_SELECT)
        } else {
            opcode::RecvMulti::new(self.raw(), GROUP).build()
        };
        self.submit(ring, Tag::Recv, entry);
    }

    pub(super) fn on_recv(&self, ring: &Ring, result: i32, flags: u32) {
        let more = cqueue::more(flags);
        let mut recv = self.recv.borrow_mut();
        if let Some(id) = cqueue::buffer_select(flags) {
            // Taken even when the result says that there is nothing in it, so that it goes back.
            let chunk = ring.pool.take(id, u32::try_from(result).unwrap_or(0));
            if let Some(chunk) = chunk.filter(|_| result > 0 && !self.closed.get()) {
                recv.queue.push_back(Chunk::Received(chunk));
            }
        }
        match -result {
            0 => recv.eof = true,
            libc::ENOBUFS if self.closed.get() => {}
            libc::ENOBUFS => {
                ring.stats.buffers_exhausted.increment();
                recv.starved = true;
                ring.starved.borrow_mut().push_back(self.key.get());
            }
            libc::ECANCELED | libc::EINTR | libc::EAGAIN => {}
            errno if errno > 0 => recv.error = Some(errno),
            _ => {}
        }
        if more {
            self.pause_if_full(ring, &mut recv);
        } else {
            recv.armed = false;
            recv.pausing = false;
            // An idle connection is to notice its end although nobody is receiving.
            if recv.queue.is_empty() || (!recv.single && recv.queue.len() < RECV_QUEUE_MAX / 2) {
                self.arm_recv(ring, &mut recv);
            }
        }
        let waker = recv.waker.take();
        drop(recv);
        if let Some(waker) = waker {
            waker.wake();
        }
        if !more {
            self.finished(ring);
        }
    }

    fn pause_if_full(&self, ring: &Ring, recv: &mut Recv) {
        if recv.queue.len() >= RECV_QUEUE_MAX && !recv.pausing {
            recv.pausing = true;
            recv.single = true;
            ring.cancel(user_data(Tag::Recv, self.key.get()));
        }
    }

    /// There are receive buffers again.
    pub(super) fn on_fed(&self, ring: &Ring) {
        let mut recv = self.recv.borrow_mut();
        recv.starved = false;
        if recv.queue.is_empty() {
            self.arm_recv(ring, &mut recv);
        }
    }

    pub(super) fn start_send(&self, ring: &Ring) {
        let send = &mut *self.send.borrow_mut();
        send.dirty = false;
        if !send.active && !self.closed.get() && send.error.is_none() {
            self.send_next(ring, send);
        }
    }

    fn send_next(&self, ring: &Ring, send: &mut Send) {
        let entry = match send.queue.len() {
            0 => {
                if mem::take(&mut send.shutdown) {
                    self.shutdown_write();
                }
                return;
            }
            1 => {
                let bytes = send.queue[0].as_slice();
                let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
                opcode::Send::new(self.raw(), bytes.as_ptr(), len).flags(libc::MSG_NOSIGNAL).build()
            }
            _ => {
                let message = send.message.get_or_insert_with(Message::new);
                let header = message.fill(&send.queue);
                #[allow(clippy::cast_sign_loss)] // a positive constant
                opcode::SendMsg::new(self.raw(), header).flags(libc::MSG_NOSIGNAL as u32).build()
            }
        };
        send.active = true;
        send.carried = send.queue.len().min(SEND_CHUNKS_MAX);
        self.submit(ring, Tag::Send, entry);
    }

    /// Not through the ring: the kernel gives that operation to a worker thread, which looks the
    /// descriptor up when it runs. By then a close may have freed the number and another socket
    /// have got it.
    fn shutdown_write(&self) {
        if let Some(fd) = &self.fd {
            // Fails only for a connection that is gone, of which the receive tells.
            let _ = socket::shutdown_write(fd.as_fd());
        }
    }

    pub(super) fn on_send(&self, ring: &Ring, result: i32) {
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

    pub(super) fn on_connect(&self, ring: &Ring, result: i32) {
        let waker = {
            let mut connect = self.connect.borrow_mut();
            connect.result = Some(result);
            connect.address = None;
            connect.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        self.finished(ring);
    }

    /// Lets go of wakers, which are tied to the executor that is about to end.
    pub(super) fn abandon(&self) {
        self.recv.borrow_mut().waker = None;
        self.send.borrow_mut().waker = None;
        self.connect.borrow_mut().waker = None;
    }

    fn close(&self) {
        self.closed.set(true);
        self.abandon();
        {
            let mut recv = self.recv.borrow_mut();
            recv.queue.clear();
            if recv.starved {
                // While no buffer comes back nobody else takes it off the list.
                self.ring.starved.borrow_mut().retain(|&key| key != self.key.get());
            }
            if recv.armed && !recv.pausing {
                self.ring.cancel(user_data(Tag::Recv, self.key.get()));
            }
        }
        {
            let mut send = self.send.borrow_mut();
            if send.active {
                // The queue stays: the kernel may be reading it.
                self.ring.cancel(user_data(Tag::Send, self.key.get()));
            } else {
                send.queue.clear();
            }
        }
        if self.connect.borrow().address.is_some() {
            self.ring.cancel(user_data(Tag::Connect, self.key.get()));
        }
        self.remove_if_over(&self.ring);
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

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(fd) = self.fd.take() {
            self.ring.close(fd);
        }
    }
}

/// A connected TCP socket; dropping it cancels what is in flight and closes.
pub struct Stream(Rc<Inner>);

impl Stream {
    /// Takes over a connected socket.
    #[must_use]
    pub fn new(ring: &Rc<Ring>, fd: OwnedFd) -> Self {
        let inner = Rc::new(Inner {
            fd: Some(fd),
            key: Cell::new(0),
            ring: Rc::clone(ring),
            in_flight: Cell::new(0),
            closed: Cell::new(false),
            recv: RefCell::default(),
            send: RefCell::default(),
            connect: RefCell::default(),
        });
        let key = ring.streams.borrow_mut().insert(Rc::clone(&inner));
        inner.key.set(u32::try_from(key).unwrap_or(u32::MAX));
        Self(inner)
    }

    /// Connects to `address`. Dropping the future gives up.
    ///
    /// # Errors
    /// What socket(2) or connect(2) says.
    pub async fn connect(ring: &Rc<Ring>, address: SocketAddr) -> io::Result<Self> {
        let stream = Self::new(ring, socket::stream(address)?);
        {
            let mut connect = stream.0.connect.borrow_mut();
            let address = connect.address.insert(Box::new(RawAddr::from(address)));
            let entry = opcode::Connect::new(stream.0.raw(), address.as_ptr(), address.len());
            stream.0.submit(ring, Tag::Connect, entry.build());
        }
        let result = poll_fn(|cx| {
            let mut connect = stream.0.connect.borrow_mut();
            match connect.result {
                Some(result) => Poll::Ready(result),
                None => {
                    keep_waker(&mut connect.waker, cx);
                    Poll::Pending
                }
            }
        })
        .await;
        if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(stream) }
    }

    /// The next received chunk; `None` at the end of the stream.
    pub fn poll_recv(&self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Chunk>>> {
        let mut recv = self.0.recv.borrow_mut();
        if let Some(chunk) = recv.queue.pop_front() {
            return Poll::Ready(Ok(Some(chunk)));
        }
        let send_error = self.0.send.borrow().error;
        // The kernel tells of a reset once. When it told the send, the receive seems to have ended
        // in order, and what was received would pass for complete.
        if recv.eof && send_error != Some(libc::ECONNRESET) {
            return Poll::Ready(Ok(None));
        }
        if let Some(errno) = recv.error.or(send_error) {
            return Poll::Ready(Err(io::Error::from_raw_os_error(errno)));
        }
        self.0.arm_recv(&self.0.ring, &mut recv);
        keep_waker(&mut recv.waker, cx);
        Poll::Pending
    }

    /// See [`Stream::poll_recv`].
    ///
    /// # Errors
    /// What recv(2) said, or send(2) when sending failed first.
    pub async fn recv(&self) -> io::Result<Option<Chunk>> {
        poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// Arms the receive before anybody waits, so that data and the peer's end are noticed.
    pub fn watch(&self) {
        self.0.arm_recv(&self.0.ring, &mut self.0.recv.borrow_mut());
    }

    /// Back to multishot receiving after a long body.
    pub fn end_bulk(&self) {
        self.0.recv.borrow_mut().single = false;
    }

    /// True while nothing has been received that nobody took: no data, no end, no error.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        let recv = self.0.recv.borrow();
        recv.queue.is_empty()
            && !recv.eof
            && recv.error.is_none()
            && self.0.send.borrow().error.is_none()
    }

    /// Ready once the peer has reset the connection; data and an orderly end are left alone.
    pub fn poll_reset(&self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let mut recv = self.0.recv.borrow_mut();
        if let Some(errno) = recv.error.or_else(|| self.0.send.borrow().error) {
            return Poll::Ready(io::Error::from_raw_os_error(errno));
        }
        if recv.queue.len() < RECV_QUEUE_MAX / 2 {
            self.0.arm_recv(&self.0.ring, &mut recv);
        }
        keep_waker(&mut recv.waker, cx);
        Poll::Pending
    }

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
        send.queue.extend(chunk);
        self.mark_dirty(&mut send);
    }

    /// Sends the end of the stream after what is queued.
    pub fn shutdown_write(&self) {
        let mut send = self.0.send.borrow_mut();
        send.shutdown = true;
        self.mark_dirty(&mut send);
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

    /// Makes the close send a reset: the peer must not take what it got for complete.
    pub fn reset_on_close(&self) {
        if let Some(fd) = &self.0.fd {
            let _ = socket::reset_on_close(fd.as_fd());
        }
    }

    /// The ring it lives on.
    #[must_use]
    pub fn ring(&self) -> &Rc<Ring> {
        &self.0.ring
    }
}

#[cfg(test)]
impl Stream {
    /// Whether the receive waits for a buffer; chunks received and not taken; chunks not sent yet.
    pub(super) fn state(&self) -> (bool, usize, usize) {
        let recv = self.0.recv.borrow();
        (recv.starved, recv.queue.len(), self.0.send.borrow().queue.len())
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.fd.as_ref().map(AsFd::as_fd).expect("the descriptor is taken only by drop")
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").field("fd", &self.0.raw().0).finish_non_exhaustive()
    }
}
