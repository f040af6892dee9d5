//! The access log's way to its file: a bounded buffer a shard, written through the ring.
//!
//! Lines collect while the previous batch is being written. When the buffer is full, lines are
//! dropped and counted: a slow disk or a stuck pipe never holds up a request.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use crate::l7::access_log::{self, Entry};
use crate::l7::config::AccessLogFormat;
use crate::l7::metrics::Metrics;
use crate::ring::event::Event;
use crate::ring::{Ring, Timer};

/// A batch is written when this much has collected (or half a smaller buffer), or after
/// [`FLUSH_MS`].
const FLUSH_BYTES: usize = 32 * 1024;
const FLUSH_MS: u64 = 100;
/// How long the end of the process waits for a file that takes nothing.
const CLOSE_MS: u64 = 1_000;

/// One shard's access log.
#[derive(Debug)]
pub struct AccessLog {
    format: AccessLogFormat,
    capacity: usize,
    pending: RefCell<Vec<u8>>,
    file: RefCell<Rc<OwnedFd>>,
    /// There is something to write, or enough of it.
    wake: Event,
    full_batch: Cell<bool>,
    closing: Cell<bool>,
    closed: Event,
    metrics: Arc<Metrics>,
}

impl AccessLog {
    /// Writes to `file`, which is best opened with `O_APPEND` since every shard writes to it.
    #[must_use]
    pub fn new(
        format: AccessLogFormat,
        capacity: usize,
        file: OwnedFd,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            format,
            capacity,
            pending: RefCell::default(),
            file: RefCell::new(Rc::new(file)),
            wake: Event::default(),
            full_batch: Cell::new(false),
            closing: Cell::new(false),
            closed: Event::default(),
            metrics,
        }
    }

    /// Adds a line.
    pub fn append(&self, entry: &Entry<'_>) {
        let mut pending = self.pending.borrow_mut();
        let before = pending.len();
        access_log::append(&mut pending, self.format, entry);
        if pending.len() > self.capacity {
            pending.truncate(before);
            self.metrics.log_lines_dropped.increment();
            return;
        }
        let enough = pending.len() >= FLUSH_BYTES.min(self.capacity / 2);
        let full = enough && !self.full_batch.replace(true);
        if before == 0 || full {
            self.wake.set();
        }
    }

    /// Continues in another file (the old one was rotated away).
    pub fn reopen(&self, file: OwnedFd) {
        self.file.replace(Rc::new(file));
    }

    /// Writes what has collected until [`AccessLog::close`].
    pub async fn run(&self, ring: &Rc<Ring>) {
        let timer = Timer::new(ring);
        let mut batch = Vec::new();
        loop {
            if self.pending.borrow().is_empty() {
                if self.closing.get() {
                    break;
                }
                self.wake.take().await;
            }
            self.wait_for_batch(&timer).await;
            self.full_batch.set(false);
            std::mem::swap(&mut batch, &mut *self.pending.borrow_mut());
            batch = self.write(ring, batch).await;
        }
        self.closed.set();
    }

    /// Waits for enough lines or long enough.
    async fn wait_for_batch(&self, timer: &Timer) {
        timer.set(FLUSH_MS);
        poll_fn(|cx| {
            if self.closing.get() || self.full_batch.get() || timer.has_fired() {
                return Poll::Ready(());
            }
            // Until it is pending: only then does the next set wake this task.
            while self.wake.poll_take(cx).is_ready() {}
            timer.poll_fired(cx)
        })
        .await;
        timer.clear();
    }

    async fn write(&self, ring: &Rc<Ring>, mut batch: Vec<u8>) -> Vec<u8> {
        let mut from = 0;
        // One file for the whole batch, so that a line does not continue in the next file.
        let file: Rc<dyn AsRawFd> = self.file.borrow().clone();
        while from < batch.len() {
            let (result, buffer) = ring.write(Rc::clone(&file), batch, from).await;
            batch = buffer;
            match result {
                Ok(n) if n > 0 => from += n,
                _ => {
                    let lost = memchr::memchr_iter(b'\n', &batch[from..]).count();
                    self.metrics.log_lines_dropped.add(lost as u64);
                    break;
                }
            }
        }
        batch.clear();
        batch
    }

    /// Writes what is left and ends [`AccessLog::run`]; gives up on a file that takes nothing.
    pub async fn close(&self, ring: &Rc<Ring>) {
        self.closing.set(true);
        self.wake.set();
        let timer = Timer::new(ring);
        timer.set(CLOSE_MS);
        let _ = timer.guard(poll_fn(|cx| self.closed.poll_take(cx))).await;
    }
}
