//! A listening socket on the ring: a multishot accept, or one accept after the other.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use io_uring::types::Fd;
use io_uring::{cqueue, opcode};

use super::share;
use super::timer::keep_waker;
use super::{Ring, Stream, Tag, user_data};
use crate::sys::socket;

pub(super) struct Inner {
    listener: OwnedFd,
    key: Cell<u32>,
    closed: Cell<bool>,
    /// Accept one connection at a time instead of all there are.
    single: Cell<bool>,
    /// New handshakes are ignored.
    deaf: Cell<bool>,
    /// Connections take little that cannot be sent yet.
    limited: Cell<bool>,
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    /// Accepted and not taken yet; at most the listen backlog, since accepting stops with the owner.
    queue: VecDeque<OwnedFd>,
    armed: bool,
    error: Option<i32>,
    waker: Option<Waker>,
}

impl Inner {
    fn arm(&self, ring: &Ring, state: &mut State) {
        if !state.armed {
            state.armed = true;
            let fd = Fd(self.listener.as_raw_fd());
            let entry = if self.single.get() {
                let nobody = std::ptr::null_mut();
                opcode::Accept::new(fd, nobody, std::ptr::null_mut())
                    .flags(libc::SOCK_CLOEXEC)
                    .build()
            } else {
                opcode::AcceptMulti::new(fd).flags(libc::SOCK_CLOEXEC).build()
            };
            // The entry points to no memory; the listener is open until the table lets go of it.
            ring.push(&entry.user_data(user_data(Tag::Accept, self.key.get())));
        }
    }

    pub(super) fn on_accept(&self, ring: &Ring, result: i32, flags: u32) {
        let waker = {
            let mut state = self.state.borrow_mut();
            if result >= 0 {
                // SAFETY: a non-negative result of accept is a new descriptor that is ours alone.
                state.queue.push_back(unsafe { OwnedFd::from_raw_fd(result) });
            } else if result != -libc::ECANCELED {
                state.error = Some(-result);
            }
            if !cqueue::more(flags) {
                state.armed = false;
                if self.closed.get() {
                    let entry = ring.acceptors.borrow_mut().try_remove(self.key.get() as usize);
                    drop(entry);
                }
            }
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// Accepts connections; dropping it stops and closes the listening socket, which resets what waits
/// in its queue (drain first: [`Acceptor::stop`]).
pub struct Acceptor {
    inner: Rc<Inner>,
    ring: Rc<Ring>,
}

impl Acceptor {
    /// Takes over a listening socket.
    #[must_use]
    pub fn new(ring: &Rc<Ring>, listener: OwnedFd) -> Self {
        let inner = Rc::new(Inner {
            listener,
            key: Cell::new(0),
            closed: Cell::new(false),
            single: Cell::new(false),
            deaf: Cell::new(false),
            limited: Cell::new(false),
            state: RefCell::default(),
        });
        let key = ring.acceptors.borrow_mut().insert(Rc::clone(&inner));
        inner.key.set(u32::try_from(key).unwrap_or(u32::MAX));
        Self { inner, ring: Rc::clone(ring) }
    }

    /// Has the kernel take little of what is written to connections and cannot be sent yet, until a peer has shown to be
    /// quick.
    pub fn limit_unsent(&self) {
        // Fails for no TCP socket; what it saves is not worth a refusal.
        let limited = socket::limit_unsent(self.inner.listener.as_fd(), share::UNSENT);
        self.inner.limited.set(limited.is_ok());
    }

    fn stream(&self, fd: OwnedFd) -> Stream {
        let stream = Stream::new(&self.ring, fd);
        if self.inner.limited.get() {
            stream.note_limited();
        }
        stream
    }

    /// The next connection. After an error nothing is accepted until this is called again.
    pub fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<Stream>> {
        let mut state = self.inner.state.borrow_mut();
        if let Some(fd) = state.queue.pop_front() {
            drop(state);
            return Poll::Ready(Ok(self.stream(fd)));
        }
        if let Some(errno) = state.error.take() {
            return Poll::Ready(Err(io::Error::from_raw_os_error(errno)));
        }
        self.inner.arm(&self.ring, &mut state);
        keep_waker(&mut state.waker, cx);
        Poll::Pending
    }

    /// See [`Acceptor::poll_accept`].
    ///
    /// # Errors
    /// What accept(2) says: EMFILE and ENFILE when descriptors run out.
    pub async fn accept(&self) -> io::Result<Stream> {
        poll_fn(|cx| self.poll_accept(cx)).await
    }

    /// From now on one connection is accepted for each that is taken (`single`), which is exact, or
    /// all that come in, which is cheaper.
    pub fn set_single(&self, single: bool) {
        if self.inner.single.replace(single) != single {
            self.stop(); // armed again in the new way
        }
    }

    /// Stops accepting; connections wait in the listen queue until [`Acceptor::poll_accept`] is
    /// called again.
    pub fn stop(&self) {
        if self.inner.state.borrow().armed {
            self.ring.cancel(user_data(Tag::Accept, self.inner.key.get()));
        }
    }

    /// Changes the length of the listen queue; what waits in it stays.
    pub fn set_backlog(&self, backlog: u32) {
        // Fails for nothing that listens already.
        let _ = socket::set_backlog(self.inner.listener.as_fd(), backlog);
    }

    /// New handshakes are ignored from now on; those under way still lead to connections.
    pub fn ignore_new_handshakes(&self) {
        // Should the kernel refuse, what comes in just before the close is reset, no worse.
        let _ = socket::ignore_new_handshakes(self.inner.listener.as_fd());
    }

    /// Ignores new handshakes for a while (`deaf`), or listens to them again.
    pub fn set_deaf(&self, deaf: bool) {
        if self.inner.deaf.replace(deaf) == deaf {
            return;
        }
        if deaf {
            self.ignore_new_handshakes();
        } else {
            // Fails only when there is no filter, and then nothing is ignored.
            let _ = socket::heed_new_handshakes(self.inner.listener.as_fd());
        }
    }

    /// Ready once the kernel accepts nothing more, after [`Acceptor::stop`].
    pub fn poll_stopped(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.inner.state.borrow_mut();
        if !state.armed {
            return Poll::Ready(());
        }
        keep_waker(&mut state.waker, cx);
        Poll::Pending
    }

    /// A connection that was accepted before accepting stopped.
    #[must_use]
    pub fn take_accepted(&self) -> Option<Stream> {
        let fd = self.inner.state.borrow_mut().queue.pop_front()?;
        Some(self.stream(fd))
    }

    /// Connections that wait in the listen queue are accepted without waiting for more (for a
    /// drain: closing the socket would reset them).
    ///
    /// # Errors
    /// What accept4(2) says, other than that nobody waits.
    pub fn accept_waiting(&self) -> io::Result<Option<Stream>> {
        if let Some(stream) = self.take_accepted() {
            return Ok(Some(stream));
        }
        let listener = self.inner.listener.as_raw_fd();
        // SAFETY: no address is asked for, so both pointers may be null.
        let fd = unsafe {
            libc::accept4(
                listener,
                std::ptr::null_mut(),
                std::ptr::null_mut(),
                libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
            )
        };
        if fd >= 0 {
            // SAFETY: the call above returned this descriptor, and nobody else owns it.
            let fd = unsafe { OwnedFd::from_raw_fd(fd) };
            return Ok(Some(self.stream(fd)));
        }
        let error = io::Error::last_os_error();
        if error.kind() == io::ErrorKind::WouldBlock { Ok(None) } else { Err(error) }
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        self.inner.closed.set(true);
        let armed = {
            let mut state = self.inner.state.borrow_mut();
            state.waker = None;
            state.queue.clear();
            state.armed
        };
        if armed {
            self.ring.cancel(user_data(Tag::Accept, self.inner.key.get()));
        } else {
            let key = self.inner.key.get() as usize;
            let entry = self.ring.acceptors.borrow_mut().try_remove(key);
            drop(entry);
        }
    }
}

impl fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acceptor").field("fd", &self.inner.listener).finish_non_exhaustive()
    }
}
