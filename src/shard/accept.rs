//! Taking connections off the shard's listening sockets, within its limits.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};

use crate::balance::InFlight;
use crate::l7::connection;
use crate::l7::generation::Listening;
use crate::l7::worker::{Report, Worker, Yielding};
use crate::ring::accept::Acceptor;
use crate::ring::event::Event;
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
    /// At most; a reload may change it.
    max: Arc<AtomicU32>,
}

impl ConnectionLimit {
    fn is_near(&self) -> bool {
        self.max() <= NEAR || self.open.is_full(self.max() - NEAR)
    }

    /// Nothing open, and `max` allowed.
    #[must_use]
    pub fn new(max: u32) -> Self {
        Self { open: Arc::default(), max: Arc::new(AtomicU32::new(max)) }
    }

    /// So many may be open.
    #[must_use]
    pub fn max(&self) -> u32 {
        self.max.load(Ordering::Relaxed)
    }

    /// So many may be open from now on.
    pub fn set_max(&self, max: u32) {
        self.max.store(max, Ordering::Relaxed);
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

/// Connections of a queue that are taken before a successor has it alone; what comes meanwhile wakes that.
const LAST_MAX: usize = 4096;

/// Time for handshakes under way at a drain to complete: a round trip.
const HANDSHAKE_MS: u64 = 250;

/// A socket that the shard accepts on, and what its connections need to know of it.
#[derive(Debug)]
pub(super) struct Door {
    pub(super) listening: Rc<Listening>,
    acceptor: Acceptor,
}

/// The sockets a shard accepts on; a reload adds and removes some.
pub(super) struct Doors {
    open: RefCell<Vec<Rc<Door>>>,
    limit: ConnectionLimit,
    /// Removed ones that still take what was under way.
    closing: Cell<usize>,
    /// One of these has closed.
    closed: Event,
}

impl Doors {
    pub(super) fn new(limit: ConnectionLimit) -> Self {
        let (open, closing, closed) = (RefCell::default(), Cell::new(0), Event::default());
        Self { open, limit, closing, closed }
    }

    /// Accepts on this socket too.
    pub(super) fn open(&self, worker: &Worker, listening: Rc<Listening>, fd: OwnedFd) {
        let acceptor = Acceptor::new(&worker.ring, fd);
        acceptor.limit_unsent();
        self.open.borrow_mut().push(Rc::new(Door { listening, acceptor }));
        worker.departed.set(); // what wakes the accepting task
    }

    /// The listening address, if it is open.
    pub(super) fn find(&self, bind: SocketAddr) -> Option<Rc<Listening>> {
        let open = self.open.borrow();
        let door = open.iter().find(|door| door.listening.bind == bind)?;
        Some(Rc::clone(&door.listening))
    }

    /// Changes the length of a listen queue in place.
    pub(super) fn set_backlog(&self, bind: SocketAddr, backlog: u32) {
        let open = self.open.borrow();
        let doors = open.iter().filter(|door| door.listening.bind == bind);
        doors.for_each(|door| door.acceptor.set_backlog(backlog));
    }

    /// Closes those that `keep` does not want. Their clients lose nothing: what waits in the queue and
    /// what completes its handshake is still served.
    pub(super) fn retain(self: &Rc<Self>, worker: &Rc<Worker>, keep: impl Fn(SocketAddr) -> bool) {
        let (kept, removed): (Vec<_>, Vec<_>) =
            self.open.take().into_iter().partition(|door| keep(door.listening.bind));
        self.open.replace(kept);
        if removed.is_empty() {
            return;
        }
        for door in removed {
            door.listening.remove();
            self.closing.set(self.closing.get() + 1);
            let (doors, worker) = (Rc::clone(self), Rc::clone(worker));
            spawn(&Rc::clone(&worker.ring), async move {
                let rest = Rest::new(&worker);
                take_last(&worker, &[door], &doors.limit, &rest).await;
                doors.closing.set(doors.closing.get() - 1);
                doors.closed.set();
            });
        }
        worker.wake_idle();
    }

    /// Accepts until the shard drains, and then as long as handshakes under way may take: their
    /// clients have sent a request perhaps, and closing the socket would reset them.
    pub(super) async fn run(&self, worker: &Rc<Worker>) {
        let rest = Rest::new(worker);
        while let Some((door, accepted)) = self.next(worker, &rest.timer).await {
            match accepted {
                Ok(stream) => start(worker, stream, &door, &self.limit),
                Err(error) => rest.after(worker, &door, &error).await,
            }
        }
        let doors = self.open.take();
        if worker.is_handed_over() {
            // The successor takes what comes to the same sockets from now on. Of the two that wait on a socket the kernel
            // wakes one for each connection; if that was this one, and it stopped instead, the other would not look
            // before the next connection. So what waits now is taken here.
            doors.iter().for_each(|door| door.acceptor.stop());
            for door in &doors {
                poll_fn(|cx| door.acceptor.poll_stopped(cx)).await;
                for _ in 0..LAST_MAX {
                    let Ok(Some(stream)) = door.acceptor.accept_waiting() else { break };
                    start(worker, stream, door, &self.limit);
                }
            }
        } else {
            take_last(worker, &doors, &self.limit, &rest).await;
        }
        while self.closing.get() > 0 {
            self.closed.take().await;
        }
    }

    /// The next connection and its door; `None` once the shard drains. Holds back while there are
    /// as many connections as there may be.
    async fn next(
        &self,
        worker: &Worker,
        recount: &Timer,
    ) -> Option<(Rc<Door>, io::Result<Stream>)> {
        let mut held_back = false;
        poll_fn(|cx| {
            if worker.is_ending() {
                return Poll::Ready(None);
            }
            let doors = self.open.borrow();
            let refusing = worker.yielding().is_some_and(Yielding::is_deaf);
            doors.iter().for_each(|door| door.acceptor.set_deaf(refusing));
            if worker.yielding() == Some(Yielding::Refusing) {
                worker.has_yielded();
            }
            let near = self.limit.is_near();
            doors.iter().for_each(|door| door.acceptor.set_single(near));
            if !self.limit.open.is_full(self.limit.max()) {
                held_back = false;
                if let Poll::Ready(accepted) = poll_all(&doors, cx) {
                    return Poll::Ready(Some(accepted));
                }
                if worker.yielding() == Some(Yielding::Emptying) {
                    if let Some(waiting) = look_into_queues(&doors) {
                        return Poll::Ready(Some(waiting));
                    }
                    if worker.connections() == 0 {
                        worker.has_yielded();
                    }
                }
            } else if !held_back {
                held_back = true;
                worker.metrics.accept_at_limit.increment();
                doors.iter().for_each(|door| door.acceptor.stop());
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
}

/// Takes what waits in the queues and what completes its handshake, and nothing that begins now.
async fn take_last(worker: &Rc<Worker>, doors: &[Rc<Door>], limit: &ConnectionLimit, rest: &Rest) {
    doors.iter().for_each(|door| door.acceptor.ignore_new_handshakes());
    let over = Timer::new(&worker.ring);
    over.set(HANDSHAKE_MS);
    while let Some((door, accepted)) = next_within(&over, doors).await {
        match accepted {
            Ok(stream) => start(worker, stream, &door, limit),
            Err(error) => rest.after(worker, &door, &error).await,
        }
    }
    doors.iter().for_each(|door| door.acceptor.stop());
    for door in doors {
        // What the ring accepts until then is not lost but taken below.
        poll_fn(|cx| door.acceptor.poll_stopped(cx)).await;
        while let Ok(Some(stream)) = door.acceptor.accept_waiting() {
            start(worker, stream, door, limit);
        }
    }
}

fn start(worker: &Rc<Worker>, stream: Stream, door: &Door, limit: &ConnectionLimit) {
    let key = worker.enter();
    limit.open.acquire();
    let seat = Seat(Arc::clone(&limit.open));
    let listening = Rc::clone(&door.listening);
    spawn(&worker.ring, connection::serve(Rc::clone(worker), stream, listening, key, seat));
}

/// A connection that the kernel has and the ring has not told of yet: its client may have sent a request.
fn look_into_queues(doors: &[Rc<Door>]) -> Option<(Rc<Door>, io::Result<Stream>)> {
    doors.iter().find_map(|door| {
        let waiting = door.acceptor.accept_waiting().transpose()?;
        Some((Rc::clone(door), waiting))
    })
}

/// The next connection until `over` fires.
async fn next_within(over: &Timer, doors: &[Rc<Door>]) -> Option<(Rc<Door>, io::Result<Stream>)> {
    poll_fn(|cx| match over.poll_fired(cx) {
        Poll::Ready(()) => Poll::Ready(None),
        Poll::Pending => poll_all(doors, cx).map(Some),
    })
    .await
}

fn poll_all(doors: &[Rc<Door>], cx: &mut Context<'_>) -> Poll<(Rc<Door>, io::Result<Stream>)> {
    for door in doors {
        if let Poll::Ready(accepted) = door.acceptor.poll_accept(cx) {
            return Poll::Ready((Rc::clone(door), accepted));
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
    fn new(worker: &Worker) -> Self {
        Self { timer: Timer::new(&worker.ring), reported: Cell::new(None) }
    }

    /// Out of descriptors means waiting for one, anything else concerns a single connection that is
    /// gone already.
    async fn after(&self, worker: &Worker, door: &Door, error: &io::Error) {
        let exhausted = matches!(
            error.raw_os_error(),
            Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)
        );
        if !exhausted {
            worker.metrics.accept_errors.increment();
            return;
        }
        worker.metrics.accept_no_descriptors.increment();
        self.report(worker, door);
        self.timer.set(REST_MS);
        poll_fn(|cx| match worker.departed.poll_take(cx) {
            Poll::Ready(()) => Poll::Ready(()),
            Poll::Pending => self.timer.poll_fired(cx),
        })
        .await;
        self.timer.clear();
    }

    fn report(&self, worker: &Worker, door: &Door) {
        let now = worker.now();
        if self.reported.get().is_none_or(|last| now.saturating_sub(last) >= REPORT_MS) {
            self.reported.set(Some(now));
            let listener =
                door.listening.with(|listener| listener.name.clone()).unwrap_or_default();
            worker.report(Report::NoDescriptors { listener });
        }
    }
}
