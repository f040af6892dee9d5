//! Connecting.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::{Poll, Waker};

use io_uring::opcode;

use super::{Inner, Stream};
use crate::ring::timer::keep_waker;
use crate::ring::{Ring, Tag, user_data};
use crate::sys::socket::{self, RawAddr};

/// A connect(2) under way.
pub(super) struct Connect {
    /// Where the kernel reads it: the box does not move.
    address: RawAddr,
    result: Option<i32>,
    pub(super) waker: Option<Waker>,
}

impl Inner {
    pub(in crate::ring) fn on_connect(&self, ring: &Ring, result: i32) {
        let waker = self.connect.borrow_mut().as_mut().and_then(|connect| {
            connect.result = Some(result);
            connect.waker.take()
        });
        if let Some(waker) = waker {
            waker.wake();
        }
        self.finished(ring);
    }

    /// The handle is gone.
    pub(super) fn stop_connecting(&self) {
        if self.connect.borrow().as_ref().is_some_and(|connect| connect.result.is_none()) {
            self.ring.cancel(user_data(Tag::Connect, self.key.get()));
        }
    }
}

impl Stream {
    /// Connects to `address`, to send at once: the peer may learn of the connection only then (see
    /// [`socket::eager_stream`]). Dropping the future gives up.
    ///
    /// # Errors
    /// What socket(2) or connect(2) says.
    pub async fn connect(ring: &Rc<Ring>, address: SocketAddr) -> io::Result<Self> {
        let stream = Self::new(ring, socket::eager_stream(address)?);
        {
            let mut connect = stream.0.connect.borrow_mut();
            let begun = Connect { address: RawAddr::from(address), result: None, waker: None };
            let address = &connect.insert(Box::new(begun)).address;
            let entry = opcode::Connect::new(stream.0.raw(), address.as_ptr(), address.len());
            stream.0.submit(ring, Tag::Connect, entry.build());
        }
        let result = poll_fn(|cx| {
            let connect = &mut *stream.0.connect.borrow_mut();
            match connect {
                Some(begun) if begun.result.is_none() => {
                    keep_waker(&mut begun.waker, cx);
                    Poll::Pending
                }
                _ => Poll::Ready(
                    connect.take().and_then(|done| done.result).unwrap_or(-libc::ECANCELED),
                ),
            }
        })
        .await;
        if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(stream) }
    }
}
