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

#[derive(Default)]
pub(super) struct Connect {
    address: Option<Box<RawAddr>>,
    result: Option<i32>,
    pub(super) waker: Option<Waker>,
}

impl Inner {
    pub(in crate::ring) fn on_connect(&self, ring: &Ring, result: i32) {
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

    /// The handle is gone.
    pub(super) fn stop_connecting(&self) {
        if self.connect.borrow().address.is_some() {
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
}
