//! Taking connections off the shard's listening sockets, within its limits.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::balance::InFlight;
use crate::l7::connection;
use crate::l7::worker::{Report, Worker, Yielding};
use crate::ring::accept::Acceptor;
use crate::ring::executor::spawn;
use crate::ring::timer::Millis;
use crate::ring::{Stream, Timer};

/// How long accepting rests after descriptors ran out, unless a connection closes before.
const REST_MS: u64 = 100;
/// How often a shard at `max_connections` looks whether connections of other shards have closed.
const RECOUNT_MS: u64 = 50;
/// Reports of running out of descriptors are this far apart at least.
const REPORT_MS: u64 = 10_000;

/// How many client connections there may be; counted over all shards, since the kernel does not
/// spread connections evenly. Close to it, shards accept one connection at a time, so that the count
/// is exceeded by one for each other shard and listener at most, or by what comes in beyond
/// 256 before a shard looks.
#[derive(Debug, Clone)]
pub struct ConnectionLimit {
    /// Open now.
    pub open: Arc<InFlight>,
    /// At most.
    pub max: u32,
}

impl ConnectionLimit {
    fn is_near(&self) -> bool {
        self.max <= NEAR || self.open.is_full(self.max - NEAR)
    }

    /// Nothing open, and `max` allowed.
    #[must_use]
    pub fn new(max: u32) -> Self {
        Self { open: Arc::default(), max }
    }
}

/// How far from the limit accepting gets careful.
const NEAR: u32 = 256;

/// A connection's place in the count.
struct Seat(Arc<InFlight>);

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.release();
    }
}

/// Time for handshakes under way at a drain to complete: a round trip.
const HANDSHAKE_MS: u64 = 250;

/// Accepts on all listeners until the shard drains, and then as long as handshakes under way may
/// take: their clients have sent a request perhaps, and closing the listener would reset them.
pub(super) async fn run(
    worker: &Rc<Worker>,
    listeners: Vec<(usize, OwnedFd)>,
    limit: ConnectionLimit,
) {
    // After an upgrade to fewer shards there are several sockets of a listener here.
    let (numbers, sockets): (Vec<usize>, Vec<OwnedFd>) = listeners.into_iter().unzip();
    let acceptors: Vec<Acceptor> =
        sockets.into_iter().map(|socket| Acceptor::new(&worker.ring, socket)).collect();
    let start = |worker: &Rc<Worker>, stream, place: usize, limit: &ConnectionLimit| {
        start(worker, stream, numbers[place], limit);
    };
    let rest = Rest { timer: Timer::new(&worker.ring), reported: Cell::new(None) };
    while let Some((listener, accepted)) = next(worker, &acceptors, &limit, &rest.timer).await {
        match accepted {
            Ok(stream) => start(worker, stream, listener, &limit),
            Err(error) => rest.after(worker, numbers[listener], &error).await,
        }
    }
    if worker.is_handed_over() {
        // The successor takes what waits in the queues of the same sockets.
        acceptors.iter().for_each(Acceptor::stop);
        for (place, acceptor) in acceptors.iter().enumerate() {
            poll_fn(|cx| acceptor.poll_stopped(cx)).await;
            while let Some(stream) = acceptor.take_accepted() {
                start(worker, stream, place, &limit);
            }
        }
        return;
    }
    acceptors.iter().for_each(Acceptor::ignore_new_handshakes);
    let over = Timer::new(&worker.ring);
    over.set(HANDSHAKE_MS);
    while let Some((listener, accepted)) = next_within(&over, &acceptors).await {
        match accepted {
            Ok(stream) => start(worker, stream, listener, &limit),
            Err(error) => rest.after(worker, numbers[listener], &error).await,
        }
    }
    acceptors.iter().for_each(Acceptor::stop);
    for (listener, acceptor) in acceptors.iter().enumerate() {
        // What the ring accepts until then is not lost but taken below.
        poll_fn(|cx| acceptor.poll_stopped(cx)).await;
        while let Ok(Some(stream)) = acceptor.accept_waiting() {
            start(worker, stream, listener, &limit);
        }
    }
}

fn start(worker: &Rc<Worker>, stream: Stream, listener: usize, limit: &ConnectionLimit) {
    let key = worker.enter();
    limit.open.acquire();
    let seat = Seat(Arc::clone(&limit.open));
    spawn(&worker.ring, connection::serve(Rc::clone(worker), stream, listener, key, seat));
}

/// The next connection and its listener; `None` once the shard drains. Holds back while there are
/// as many connections as there may be.
async fn next(
    worker: &Worker,
    acceptors: &[Acceptor],
    limit: &ConnectionLimit,
    recount: &Timer,
) -> Option<(usize, io::Result<Stream>)> {
    let mut held_back = false;
    poll_fn(|cx| {
        if worker.is_ending() {
            return Poll::Ready(None);
        }
        let refusing = worker.yielding() == Some(Yielding::Refusing);
        acceptors.iter().for_each(|acceptor| acceptor.set_deaf(refusing));
        let near = limit.is_near();
        acceptors.iter().for_each(|acceptor| acceptor.set_single(near));
        if !limit.open.is_full(limit.max) {
            held_back = false;
            if let Poll::Ready(accepted) = poll_all(acceptors, cx) {
                return Poll::Ready(Some(accepted));
            }
        } else if !held_back {
            held_back = true;
            worker.metrics.accept_at_limit.increment();
            acceptors.iter().for_each(Acceptor::stop);
        }
        if held_back {
            recount.set(RECOUNT_MS);
            let _ = recount.poll_fired(cx);
        }
        if worker.departed.poll_take(cx).is_ready() {
            cx.waker().wake_by_ref(); // look again
        }
        Poll::Pending
    })
    .await
}

/// The next connection until `over` fires.
async fn next_within(over: &Timer, acceptors: &[Acceptor]) -> Option<(usize, io::Result<Stream>)> {
    poll_fn(|cx| match over.poll_fired(cx) {
        Poll::Ready(()) => Poll::Ready(None),
        Poll::Pending => poll_all(acceptors, cx).map(Some),
    })
    .await
}

fn poll_all(acceptors: &[Acceptor], cx: &mut Context<'_>) -> Poll<(usize, io::Result<Stream>)> {
    for (listener, acceptor) in acceptors.iter().enumerate() {
        if let Poll::Ready(accepted) = acceptor.poll_accept(cx) {
            return Poll::Ready((listener, accepted));
        }
    }
    Poll::Pending
}

/// What happens when accepting failed.
struct Rest {
    timer: Timer,
    reported: Cell<Option<Millis>>,
}

impl Rest {
    /// Out of descriptors means waiting for one, anything else concerns a single connection that is
    /// gone already.
    async fn after(&self, worker: &Worker, listener: usize, error: &io::Error) {
        let exhausted = matches!(
            error.raw_os_error(),
            Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)
        );
        if !exhausted {
            worker.metrics.accept_errors.increment();
            return;
        }
        worker.metrics.accept_no_descriptors.increment();
        self.report(worker, listener);
        self.timer.set(REST_MS);
        poll_fn(|cx| match worker.departed.poll_take(cx) {
            Poll::Ready(()) => Poll::Ready(()),
            Poll::Pending => self.timer.poll_fired(cx),
        })
        .await;
        self.timer.clear();
    }

    fn report(&self, worker: &Worker, listener: usize) {
        let now = worker.now();
        if self.reported.get().is_none_or(|last| now.saturating_sub(last) >= REPORT_MS) {
            self.reported.set(Some(now));
            let listener = worker.service.listeners[listener].name.clone();
            worker.report(Report::NoDescriptors { listener });
        }
    }
}
