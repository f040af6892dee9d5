//! Taking connections off the shard's listening sockets, within its limits.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::task::{Context, Poll};

use crate::l7::connection;
use crate::l7::worker::{Report, Worker};
use crate::ring::accept::Acceptor;
use crate::ring::executor::spawn;
use crate::ring::timer::Millis;
use crate::ring::{Stream, Timer};

/// How often the operator is told of it.
const REPORT_EVERY_MS: u64 = 10_000;
/// How long accepting rests after descriptors ran out, unless a connection closes before.
const REST_MS: u64 = 100;

/// Accepts on all listeners until the shard drains; then takes what still waits in the listen
/// queues, which closing would reset, and closes them.
pub(super) async fn run(worker: &Rc<Worker>, listeners: Vec<OwnedFd>, connections_max: usize) {
    let acceptors: Vec<Acceptor> =
        listeners.into_iter().map(|listener| Acceptor::new(&worker.ring, listener)).collect();
    let rest = Rest { timer: Timer::new(&worker.ring), report_at: Cell::new(0) };
    while let Some((listener, accepted)) = next(worker, &acceptors, connections_max).await {
        match accepted {
            Ok(stream) => start(worker, stream, listener),
            Err(error) => pause(worker, listener, &error, &rest).await,
        }
    }
    for (listener, acceptor) in acceptors.iter().enumerate() {
        acceptor.stop();
        while let Ok(Some(stream)) = acceptor.accept_waiting() {
            start(worker, stream, listener);
        }
    }
}

/// A pause in accepting.
struct Rest {
    timer: Timer,
    /// Not to be reported before this.
    report_at: Cell<Millis>,
}

fn start(worker: &Rc<Worker>, stream: Stream, listener: usize) {
    let key = worker.enter();
    spawn(&worker.ring, connection::serve(Rc::clone(worker), stream, listener, key));
}

/// The next connection and its listener; `None` once the shard drains. Holds back while there are
/// as many connections as there may be.
async fn next(
    worker: &Worker,
    acceptors: &[Acceptor],
    connections_max: usize,
) -> Option<(usize, io::Result<Stream>)> {
    let mut held_back = false;
    poll_fn(|cx| {
        if worker.draining().is_some() {
            return Poll::Ready(None);
        }
        if worker.connections() < connections_max {
            held_back = false;
            if let Poll::Ready(accepted) = poll_all(acceptors, cx) {
                return Poll::Ready(Some(accepted));
            }
        } else if !held_back {
            held_back = true;
            worker.metrics.accept_at_limit.increment();
            acceptors.iter().for_each(Acceptor::stop);
        }
        match worker.departed.poll_take(cx) {
            Poll::Ready(()) => {
                cx.waker().wake_by_ref(); // look again
                Poll::Pending
            }
            Poll::Pending => Poll::Pending,
        }
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

/// After an error: out of descriptors means waiting for one, anything else concerns a single
/// connection that is gone already.
async fn pause(worker: &Worker, listener: usize, error: &io::Error, rest: &Rest) {
    let exhausted = matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)
    );
    if !exhausted {
        worker.metrics.accept_errors.increment();
        return;
    }
    worker.metrics.accept_no_descriptors.increment();
    if worker.now() >= rest.report_at.get() {
        rest.report_at.set(worker.now() + REPORT_EVERY_MS);
        let listener = worker.service.listeners[listener].name.clone();
        worker.report(Report::NoDescriptors { listener });
    }
    rest.timer.set(REST_MS);
    poll_fn(|cx| match worker.departed.poll_take(cx) {
        Poll::Ready(()) => Poll::Ready(()),
        Poll::Pending => rest.timer.poll_fired(cx),
    })
    .await;
    rest.timer.clear();
}
