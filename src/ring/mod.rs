//! The reactor: one io_uring per thread, and the sockets, timers and operations on it.
//!
//! A [`Ring`] belongs to one thread. Its operations are awaited by tasks of the glommio executor
//! that hosts it (see [`executor`]); a loop there flushes, submits, waits and hands completions out.
//!
//! What keeps this sound: memory that the kernel may touch is owned by the ring's own tables, never
//! by a task. A stream's chunks, addresses and message headers belong to the stream's table entry,
//! a one-shot operation's buffer to its entry, and an entry goes away only with the last completion
//! of the operations that name it. A task that stops caring drops a handle; that cancels, and the
//! entry stays until the kernel has answered.
//!
//! Bounds, and what happens there:
//! - submission queue full: submitted at once, without waiting;
//! - completion queue full: the kernel keeps the rest (`IORING_FEAT_NODROP`), multishot operations
//!   end and are armed again; counted;
//! - no receive buffer: the pool grows to its bound, then receives wait for buffers; counted;
//! - no file descriptor: accepting stops and the caller decides when to go on; counted.

pub mod accept;
pub mod buffers;
mod busy;
pub mod chunk;
pub mod event;
pub mod executor;
mod gather;
pub mod op;
pub mod probe;
pub mod share;
pub mod slots;
pub mod stream;
pub mod timer;

#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::{IntoRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode, squeue};
use slab::Slab;

use crate::counter::Counter;
use crate::sys::limits::{self, Resource, UNLIMITED};
use crate::sys::privileges::{self, Capability};
use buffers::{BufferPool, WriteBuffers};
use busy::Busy;
use gather::Gather;
use share::Pressure;
use timer::{Millis, Wheel};

pub use chunk::{Chunk, WriteBuf};
pub use slots::Slots;
pub use stream::Stream;
pub use timer::Timer;

/// Entries in the submission queue.
const SQ_ENTRIES: u32 = 512;
/// Entries in the completion queue: room for every submission plus bursts of multishot completions.
const CQ_ENTRIES: u32 = 4096;
/// Where thousands of connections may be busy at once, and memory for it does not count against a limit.
const CQ_ENTRIES_MANY: u32 = 16_384;
/// Receive buffers there may be for so many connections, at least.
const BUFFERS_MANY: u16 = 1024;
/// Completions handed out before tasks run.
const BATCH: usize = 1024;
/// How long an orderly end waits for the kernel to answer cancelled operations.
const QUIESCE: Duration = Duration::from_secs(2);
/// A sleep without a timer, where the kernel has to be given a limit.
const LONG_SLEEP: Duration = Duration::from_secs(3600);

/// What a ring is made with.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Receive buffers at the start.
    pub buffers: u16,
    /// Receive buffers at most.
    pub buffers_limit: u16,
    /// When the clock of [`Ring::now`] began, so that rings of one process agree.
    pub epoch: Instant,
}

/// Figures of one ring, read by the metrics endpoint.
#[derive(Debug, Default)]
pub struct Stats {
    /// Receives that found no buffer.
    pub buffers_exhausted: Counter,
    /// Receive buffers allocated.
    pub buffers_allocated: Counter,
    /// Of those, how many hold data that nobody has taken yet.
    pub buffers_used: Counter,
    /// Receive buffers there may be.
    pub buffers_limit: Counter,
    /// Times that the kernel was let take more of a slow reader's data, for want of receive buffers.
    pub relieved: Counter,
    /// Rounds that found more completions than the queue holds.
    pub cq_overflows: Counter,
    /// Calls of io_uring_enter(2).
    pub enters: Counter,
    /// Completions handed out.
    pub completions: Counter,
}

/// One thread's reactor.
pub struct Ring {
    // Dropped first: the kernel must be done with the memory of the other fields.
    io: RefCell<IoUring>,
    pool: Rc<BufferPool>,
    write_buffers: WriteBuffers,
    wheel: RefCell<Wheel>,
    streams: RefCell<Slab<Rc<stream::Inner>>>,
    acceptors: RefCell<Slab<Rc<accept::Inner>>>,
    ops: RefCell<Slab<op::Entry>>,
    /// Streams with output that no operation carries yet.
    dirty: RefCell<Vec<u32>>,
    /// Streams whose receive ended for want of a buffer.
    starved: RefCell<VecDeque<u32>>,
    /// The stream after the one that was relieved last.
    relieved: Cell<usize>,
    /// Operations the kernel has not finished.
    in_flight: Cell<usize>,
    epoch: Instant,
    now: Cell<Millis>,
    /// How often tasks have been polled; the loop sleeps only when that stands still.
    polls: Cell<u64>,
    stats: Arc<Stats>,
    gather: Gather,
    busy: Busy,
    /// The loop is over: nothing is submitted any more.
    ended: Cell<bool>,
}

/// Which table an operation's completion goes to: the low byte of its user data.
#[derive(Clone, Copy)]
#[repr(u8)]
enum Tag {
    Ignore = 0,
    Recv = 1,
    Send = 2,
    Connect = 3,
    Accept = 4,
    Op = 5,
}

fn user_data(tag: Tag, key: u32) -> u64 {
    u64::from(key) << 8 | tag as u64
}

fn millis_since(epoch: Instant) -> Millis {
    u64::try_from(epoch.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// Rings count against RLIMIT_MEMLOCK since Linux 6.13, which is 8 MiB by default for all of a user's processes.
fn completion_entries(settings: &Settings) -> u32 {
    let is_free = limits::read(Resource::LockedMemory).is_ok_and(|limit| limit.soft == UNLIMITED)
        || privileges::has(Capability::IpcLock);
    if is_free && settings.buffers_limit >= BUFFERS_MANY { CQ_ENTRIES_MANY } else { CQ_ENTRIES }
}

impl Ring {
    /// Makes the ring of the calling thread.
    ///
    /// # Errors
    /// What io_uring_setup(2) or io_uring_register(2) says; see [`probe::explain`].
    pub fn new(settings: Settings, stats: Arc<Stats>) -> io::Result<Rc<Self>> {
        let io: IoUring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_coop_taskrun()
            .setup_taskrun_flag()
            .setup_cqsize(completion_entries(&settings))
            .setup_submit_all()
            .dontfork()
            .build(SQ_ENTRIES)?;
        let gather = Gather::new(io.params().is_feature_min_timeout());
        let pool = BufferPool::new(settings.buffers, settings.buffers_limit);
        pool.register(&io)?;
        stats.buffers_limit.set(u64::from(pool.limit()));
        Ok(Rc::new(Self {
            io: RefCell::new(io),
            pool,
            write_buffers: WriteBuffers::default(),
            wheel: RefCell::new(Wheel::new(millis_since(settings.epoch))),
            streams: RefCell::default(),
            acceptors: RefCell::default(),
            ops: RefCell::default(),
            dirty: RefCell::default(),
            starved: RefCell::default(),
            relieved: Cell::new(0),
            in_flight: Cell::new(0),
            now: Cell::new(millis_since(settings.epoch)),
            epoch: settings.epoch,
            polls: Cell::new(0),
            stats,
            gather,
            busy: Busy::default(),
            ended: Cell::new(false),
        }))
    }

    /// Milliseconds since the epoch the ring was made with, as of the last wake-up.
    #[must_use]
    pub fn now(&self) -> Millis {
        self.now.get()
    }

    /// From now on a sleep may last up to 50 µs longer while many streams receive, so that it ends with several
    /// completions (Linux 6.12): for loops that serve others, not for those that keep time.
    pub fn gather_completions(&self) {
        self.gather.start();
    }

    /// From now on a sleep begins with looking for completions, for so long at most, if the one before was shorter than that.
    pub fn busy_poll(&self, limit: Duration) {
        self.busy.start(limit);
    }

    /// How scarce receive buffers are.
    #[inline]
    #[must_use]
    pub fn pressure(&self) -> Pressure {
        self.pool.pressure()
    }

    /// Queues one operation; `counted` operations are answered by a completion of their own.
    ///
    /// The caller keeps everything the entry points to in one of the ring's tables until the final
    /// completion.
    fn push(&self, entry: &squeue::Entry) {
        if self.ended.get() {
            return;
        }
        let mut io = self.io.borrow_mut();
        loop {
            // SAFETY: the memory the entry names lives in the ring's tables until the operation's
            // last completion (each caller's duty, stated at the call), and the descriptor is open.
            if unsafe { io.submission().push(entry) }.is_ok() {
                self.in_flight.set(self.in_flight.get() + 1);
                return;
            }
            // Full: hand over what there is. This cannot fail for good, the kernel takes entries
            // even when completions overflow.
            self.stats.enters.increment();
            let _ = io.submit();
        }
    }

    /// Cancels an operation; its own completion tells how it ended.
    fn cancel(&self, target: u64) {
        let entry = opcode::AsyncCancel::new(target).build();
        self.push(&entry.user_data(user_data(Tag::Ignore, 0)));
    }

    /// Closes a descriptor through the ring, in order after what was queued before.
    fn close(&self, fd: OwnedFd) {
        if self.ended.get() {
            return drop(fd);
        }
        let entry = opcode::Close::new(Fd(fd.into_raw_fd())).build();
        self.push(&entry.user_data(user_data(Tag::Ignore, 0)));
    }

    /// Turns queued output into send operations. Called once a round, so that everything a task
    /// wrote in one go leaves in one operation.
    fn flush(&self) {
        let mut dirty = self.dirty.take();
        for key in dirty.drain(..) {
            let stream = self.streams.borrow().get(key as usize).map(Rc::clone);
            if let Some(stream) = stream {
                stream.start_send(self);
            }
        }
        self.dirty.replace(dirty);
    }

    /// Submits what is queued and, when `wait` is set, sleeps until a completion or the next timer.
    fn enter(&self, wait: bool) -> io::Result<()> {
        let mut io = self.io.borrow_mut();
        let timeout = self.wheel.borrow().next_wake().map(|at| at.saturating_sub(self.now.get()));
        let wanted = self.gather.wanted();
        let want = if wait && timeout != Some(0) { wanted } else { 0 };
        let want = if want == 1 && self.look_out(&mut io) { 0 } else { want };
        let began = (want == 1 && self.busy.is_on()).then(Instant::now);
        self.stats.enters.increment();
        let result = if want == 0 || (want == 1 && timeout.is_none()) {
            io.submit_and_wait(want)
        } else {
            // With a limit the kernel goes on waiting for one completion when it has waited for several in vain.
            let at = Timespec::from(timeout.map_or(LONG_SLEEP, Duration::from_millis));
            let args = SubmitArgs::new().timespec(&at);
            let args = if want > 1 { args.min_wait_usec(gather::WAIT_US) } else { args };
            io.submitter().submit_with_args(want, &args)
        };
        if let Some(began) = began {
            self.busy.note(began.elapsed());
        }
        self.now.set(millis_since(self.epoch));
        match result {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                // The timer; a signal; completions to be reaped first.
                Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
                _ => Err(error),
            },
        }
    }

    /// Submits what is queued and looks for completions for a while, without sleeping; true when there is something to be fetched.
    fn look_out(&self, io: &mut IoUring) -> bool {
        let Some(limit) = self.busy.limit() else { return false };
        if !io.submission().is_empty() {
            self.stats.enters.increment();
            let _ = io.submit(); // what is wrong with it, the caller's own will say
        }
        let began = Instant::now();
        loop {
            // Completions, or work of the kernel that will make some.
            if !io.completion().is_empty() || io.submission().taskrun() {
                return true;
            }
            if began.elapsed() >= limit {
                return false;
            }
            std::hint::spin_loop();
        }
    }

    /// Hands out completions and due timers.
    fn reap(&self, batch: &mut Vec<(u64, i32, u32)>) {
        {
            let mut io = self.io.borrow_mut();
            // The ring's own overflow count is of completions that are lost, which ends the loop
            // with EBADR; this flag says that the kernel keeps some for us.
            if io.submission().cq_overflow() {
                self.stats.cq_overflows.increment();
            }
            batch.extend(
                io.completion().take(BATCH).map(|cqe| (cqe.user_data(), cqe.result(), cqe.flags())),
            );
        }
        self.stats.completions.add(batch.len() as u64);
        let starved = self.starved.borrow().len();
        for (user_data, result, flags) in batch.drain(..) {
            if !io_uring::cqueue::more(flags) {
                self.in_flight.set(self.in_flight.get().saturating_sub(1));
            }
            self.dispatch(user_data, result, flags);
        }
        self.gather.end_round();
        self.wheel.borrow_mut().advance(self.now.get());
        // Buffers that are back by now will not do: as many receives at once would find none the next time as well, and
        // each that ends for nothing costs more than a buffer.
        self.pool.top_up(self.starved.borrow().len().saturating_sub(starved));
        self.stats.buffers_allocated.set(u64::from(self.pool.capacity()));
        self.stats.buffers_used.set(u64::from(self.pool.used()));
        self.feed_starved();
        if !self.starved.borrow().is_empty() {
            self.relieve();
        }
    }

    fn dispatch(&self, user_data: u64, result: i32, flags: u32) {
        #[allow(clippy::cast_possible_truncation)] // the low byte is the tag, the rest the key
        let (tag, key) = (user_data as u8, (user_data >> 8) as usize);
        const RECV: u8 = Tag::Recv as u8;
        const SEND: u8 = Tag::Send as u8;
        const CONNECT: u8 = Tag::Connect as u8;
        const ACCEPT: u8 = Tag::Accept as u8;
        const OP: u8 = Tag::Op as u8;
        match tag {
            RECV | SEND | CONNECT => {
                // Cloned, because handling a completion may remove the entry.
                let stream = self.streams.borrow().get(key).map(Rc::clone);
                let Some(stream) = stream else { return };
                match tag {
                    RECV => {
                        let len = usize::try_from(result).unwrap_or(0);
                        self.gather.note_receive(key, len, buffers::BUFFER_LEN);
                        stream.on_recv(self, result, flags);
                    }
                    SEND => stream.on_send(self, result),
                    _ => stream.on_connect(self, result),
                }
            }
            ACCEPT => {
                let acceptor = self.acceptors.borrow().get(key).map(Rc::clone);
                if let Some(acceptor) = acceptor {
                    acceptor.on_accept(self, result, flags);
                }
            }
            OP => op::complete(self, key, result),
            _ => {}
        }
    }

    /// Arms receives again that ended for want of buffers, as far as there are buffers.
    fn feed_starved(&self) {
        let mut budget = usize::from(self.pool.available());
        while budget > 0 {
            let Some(key) = self.starved.borrow_mut().pop_front() else { return };
            let stream = self.streams.borrow().get(key as usize).map(Rc::clone);
            if let Some(stream) = stream {
                stream.on_fed(self);
                budget -= 1;
            }
        }
    }

    /// Receive buffers have run out: better that the kernel holds more of what slow readers do not take than that
    /// everybody waits for them. A round relieves one for each that waits, in turn, so that no more is given than is needed.
    fn relieve(&self) {
        let (streams, mut wanted) = (self.streams.borrow(), self.starved.borrow().len());
        let first = self.relieved.get();
        for key in (first..streams.capacity()).chain(0..first) {
            if wanted == 0 {
                return;
            }
            if streams.get(key).is_some_and(|stream| stream.relieve()) {
                self.stats.relieved.increment();
                self.relieved.set(key + 1);
                wanted -= 1;
            }
        }
    }

    /// Ends everything: cancels all operations and waits for the kernel to let go of their memory.
    fn quiesce(&self) {
        self.ended.set(true);
        let began = Instant::now();
        let mut batch = Vec::new();
        self.streams.borrow().iter().for_each(|(_, stream)| stream.abandon());
        while self.in_flight.get() > 0 && began.elapsed() < QUIESCE {
            let everything = io_uring::types::CancelBuilder::any();
            let pause = Timespec::from(Duration::from_millis(10));
            {
                let io = self.io.borrow();
                // Bounded too: a write that hangs in a file system cannot be cancelled.
                let _ = io.submitter().register_sync_cancel(Some(pause), everything);
                let _ = io.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&pause));
            }
            self.reap(&mut batch);
        }
        if self.in_flight.get() > 0 {
            // The kernel may still write: leaking is sound, freeing is not.
            std::mem::forget(Rc::clone(&self.pool));
            std::mem::forget(self.streams.take());
            std::mem::forget(self.ops.take());
        } else {
            let streams = self.streams.take();
            drop(streams);
            self.acceptors.take();
            self.ops.take();
        }
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring")
            .field("in_flight", &self.in_flight.get())
            .field("now", &self.now.get())
            .field("pool", &self.pool)
            .finish_non_exhaustive()
    }
}
