//! HTTP/2 connections to servers: requests share them.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use super::mux::Mux;
use super::stream::Http2Stream;
use crate::l7::config::Upstream;
use crate::l7::pool::millis;
use crate::l7::transport::Transport;
use crate::protocol::http1;
use crate::protocol::http2::{Code, Limits, Role};
use crate::ring::executor::spawn;
use crate::ring::timer::Millis;
use crate::ring::{Ring, Timer};

/// Requests we have open on one connection, however many the server would take: the window of the
/// connection is as large as those of this many streams, so that no slow reader holds up others.
const STREAMS_MAX: u32 = 100;
const STREAM_WINDOW: u32 = 64 * 1024;
/// Chunks read before other tasks get their turn.
const CHUNKS_MAX: usize = 16;

/// One shard's HTTP/2 connections to one server.
#[derive(Debug, Default)]
pub struct Connections {
    open: RefCell<Vec<Entry>>,
    /// Somebody is connecting; the others wait to share the connection.
    dialing: Cell<bool>,
    waiting: RefCell<Vec<Waker>>,
}

#[derive(Debug)]
struct Entry {
    mux: Rc<Mux>,
    opened: Millis,
    requests: u32,
}

/// How long a connection may carry nothing.
#[derive(Debug, Clone, Copy)]
struct Idle {
    /// From the start to the first request: the server's SETTINGS come first.
    unused_ms: u64,
    /// Between requests.
    used_ms: u64,
}

/// The right to connect, which one request has at a time.
#[derive(Debug)]
pub struct Dialing<'a>(&'a Connections);

impl Drop for Dialing<'_> {
    fn drop(&mut self) {
        self.0.dialing.set(false);
        self.0.waiting.borrow_mut().drain(..).for_each(Waker::wake);
    }
}

impl Connections {
    /// Sends a request on a connection that takes another one; `reused` tells that it has carried
    /// requests before. `None` when there is none.
    pub fn send(
        &self,
        head: &[u8],
        end: bool,
        config: &Upstream,
        now: Millis,
    ) -> Option<(Http2Stream, bool)> {
        let mut open = self.open.borrow_mut();
        open.retain(|entry| {
            let worn = entry.requests >= config.keepalive_requests
                || now.saturating_sub(entry.opened) > millis(config.keepalive_time)
                || entry.mux.transport().is_nearly_worn();
            if worn {
                retire(&entry.mux);
            }
            !worn && !entry.mux.is_closed() && entry.mux.with(|connection| connection.is_usable())
        });
        open.iter_mut().find_map(|entry| {
            if entry.mux.streams() >= STREAMS_MAX as usize {
                return None;
            }
            let stream = Http2Stream::open(&entry.mux, head, end)?;
            let reused = entry.requests > 0;
            entry.requests += 1;
            Some((stream, reused))
        })
    }

    /// The right to connect; pending while somebody else has it, and then `None`, since there may be
    /// a connection to share now.
    pub fn poll_dial(&self, waited: &mut bool, cx: &Context<'_>) -> Poll<Option<Dialing<'_>>> {
        if self.dialing.get() {
            *waited = true;
            self.waiting.borrow_mut().push(cx.waker().clone());
            return Poll::Pending;
        }
        if *waited {
            return Poll::Ready(None);
        }
        self.dialing.set(true);
        Poll::Ready(Some(Dialing(self)))
    }

    /// Starts HTTP/2 on a connected transport; ready once the server's SETTINGS have come.
    ///
    /// # Errors
    /// When the server closes or answers in something other than HTTP/2.
    pub async fn start(
        self: &Rc<Self>,
        transport: Transport,
        limits: &http1::Limits,
        config: &Upstream,
        ring: &Rc<Ring>,
    ) -> io::Result<Rc<Mux>> {
        let limits = Limits {
            head_bytes: limits.head_bytes,
            fields: limits.headers,
            stream_window: STREAM_WINDOW,
            connection_window: STREAM_WINDOW * STREAMS_MAX,
            // What a server does too much of costs its own requests; these only stop a broken one.
            pings: 1000,
            empty: 1000,
            ..Limits::for_streams(STREAMS_MAX)
        };
        let mux = Mux::new(ring, Role::Client, limits);
        if transport.tls().is_some() {
            mux.with(|connection| connection.scheme = b"https");
        }
        mux.attach(transport);
        let idle = Idle {
            unused_ms: millis(config.connect_timeout),
            used_ms: if config.keepalive == 0 { 0 } else { millis(config.keepalive_timeout) },
        };
        let (connections, ended) = (Rc::clone(self), Rc::clone(&mux));
        spawn(ring, async move {
            run(&ended, idle).await;
            connections.open.borrow_mut().retain(|entry| !Rc::ptr_eq(&entry.mux, &ended));
        });
        poll_fn(|cx| mux.poll_settled(cx)).await?;
        if mux.is_closed() {
            return Err(io::Error::from(io::ErrorKind::ConnectionReset));
        }
        let entry = Entry { mux: Rc::clone(&mux), opened: ring.now(), requests: 0 };
        self.open.borrow_mut().push(entry);
        Ok(mux)
    }

    /// Connections that are open.
    #[must_use]
    pub fn len(&self) -> usize {
        self.open.borrow().iter().filter(|entry| !entry.mux.is_closed()).count()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Lets go of all connections: they end with their last request.
    pub fn clear(&self) {
        self.open.borrow_mut().drain(..).for_each(|entry| retire(&entry.mux));
    }
}

/// No further requests on this connection.
pub fn retire(mux: &Rc<Mux>) {
    mux.with(|connection| connection.go_away(None, true));
    mux.wake();
}

/// Reads and writes a connection until it ends.
async fn run(mux: &Rc<Mux>, idle_after: Idle) {
    let timer = Timer::new(mux.ring());
    let (mut idle, mut used) = (false, false);
    let over = poll_fn(|cx| {
        mux.watch(cx);
        let lost = read(mux, cx);
        mux.pump();
        while mux.poll_room(cx).is_ready() {
            mux.pump();
        }
        if let Some(code) = lost {
            return Poll::Ready(code);
        }
        if mux.is_congested() && mux.transport().poll_flushed(cx, 0).is_ready() {
            cx.waker().wake_by_ref();
        }
        if mux.streams() > 0 {
            (idle, used) = (false, true);
            timer.clear();
            return Poll::Pending;
        }
        if !mux.with(|connection| connection.is_usable()) {
            return Poll::Ready(Code::NO_ERROR);
        }
        if !std::mem::replace(&mut idle, true) {
            timer.set(if used { idle_after.used_ms } else { idle_after.unused_ms });
        }
        timer.poll_fired(cx).map(|()| Code::NO_ERROR)
    })
    .await;
    mux.with(|connection| connection.go_away(None, true));
    mux.pump();
    mux.close(over);
    // What is queued goes out, or the server stops taking it.
    timer.set(1_000);
    let _ = timer.guard(poll_fn(|cx| mux.transport().poll_flushed(cx, 0))).await;
}

/// Takes what has come; the code its streams end with when the connection is lost.
fn read(mux: &Mux, cx: &mut Context<'_>) -> Option<Code> {
    let mut chunks = 0;
    while !mux.is_congested() {
        let mut chunk = match mux.transport().poll_recv(cx) {
            Poll::Ready(Ok(Some(chunk))) => chunk,
            Poll::Ready(_) => return Some(Code::CONNECT_ERROR),
            Poll::Pending => return None,
        };
        loop {
            match mux.receive(&mut chunk, mux.ring().now()) {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(error) => return Some(error.0.code()),
            }
        }
        chunks += 1;
        if chunks >= CHUNKS_MAX {
            cx.waker().wake_by_ref();
            return None;
        }
    }
    None
}
