//! Waiting for a server's response while the request body is still on its way.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use super::failure::Failure;
use crate::l7::channel::Channel;
use crate::l7::exchange::{Addresses, Exchange, response_edits};
use crate::l7::flow::{FlushError, PumpError};
use crate::l7::headers;
use crate::l7::input::{BodyReadError, Input};
use crate::l7::worker::Worker;
use crate::protocol::http1::{HeadScanner, Limits, Version};
use crate::ring::slots::Held;
use crate::ring::{Timer, WriteBuf};

/// 1xx responses a server may send before the final one.
const INTERIM_MAX: u32 = 16;

/// The request body on its way, polled along with whatever else happens.
pub(super) struct Pump<'a, F> {
    future: Option<Held<'a, F>>,
    end: Option<Result<(), PumpError>>,
}

impl<'a, F: Future<Output = Result<(), PumpError>>> Pump<'a, F> {
    /// None: there is nothing left to be sent.
    pub(super) fn new(future: Option<Held<'a, F>>) -> Self {
        let end = if future.is_none() { Some(Ok(())) } else { None };
        Self { future, end }
    }

    fn poll(&mut self, cx: &mut Context<'_>) {
        if self.end.is_none()
            && let Some(future) = &mut self.future
            && let Poll::Ready(end) = Pin::new(future).poll(cx)
        {
            self.end = Some(end);
        }
    }

    /// The whole body went to the server.
    pub(super) fn is_done(&self) -> bool {
        matches!(self.end, Some(Ok(())))
    }

    /// The client's part in a failure, if it failed.
    fn take_client_failure(&mut self) -> Option<Failure> {
        match self.end.take() {
            Some(Err(PumpError::Client(BodyReadError::Io(_)))) => Some(Failure::ClientGone),
            Some(Err(PumpError::Client(error))) => Some(Failure::Body(error)),
            Some(Err(PumpError::ClientTimeout)) => Some(Failure::BodyTimeout),
            Some(Err(PumpError::TooLarge)) => Some(Failure::BodyTooLarge),
            Some(Err(PumpError::Server(FlushError::Timeout))) => Some(Failure::Timeout),
            other => {
                self.end = other;
                None
            }
        }
    }

    /// Runs `forward` to its end while the body goes on as long as it can.
    pub(super) async fn alongside<T>(&mut self, mut forward: impl Future<Output = T> + Unpin) -> T {
        poll_fn(|cx| {
            self.poll(cx);
            Pin::new(&mut forward).poll(cx)
        })
        .await
    }
}

/// Waiting for a response head.
pub(super) struct Waiting<'a> {
    pub(super) worker: &'a Worker,
    pub(super) limits: Limits,
    pub(super) client: &'a Channel,
    pub(super) addresses: &'a Addresses,
    pub(super) server: &'a Channel,
    pub(super) timer: &'a Timer,
    pub(super) read_timeout: u64,
    /// The connection has served a request before.
    pub(super) reused: bool,
}

impl Waiting<'_> {
    /// Waits for the final response head and parses it; 1xx responses before it are passed on.
    pub(super) async fn response<F: Future<Output = Result<(), PumpError>>>(
        &self,
        pump: &mut Pump<'_, F>,
        input: &mut Input,
        x: &mut Exchange,
    ) -> Result<(), Failure> {
        let (mut scanner, mut timed, mut interim) = (HeadScanner::for_response(), false, 0);
        x.answer.clear();
        poll_fn(|cx| {
            loop {
                ready!(self.poll_head(pump, input, x, (&mut scanner, &mut timed), cx))?;
                let parsed = x.response.parse(&x.answer, &self.limits, x.request.method);
                if parsed.is_err() || (x.response.upgrade && !x.request.upgrade_websocket) {
                    return Poll::Ready(Err(Failure::Malformed));
                }
                if !x.response.is_interim() {
                    return Poll::Ready(Ok(()));
                }
                if interim == INTERIM_MAX {
                    return Poll::Ready(Err(Failure::Malformed));
                }
                self.forward_interim(x);
                x.answer.clear();
                (scanner, timed, interim) = (HeadScanner::for_response(), false, interim + 1);
            }
        })
        .await
    }

    /// Passes a 1xx response on; HTTP/1.0 clients do not know them.
    fn forward_interim(&self, x: &Exchange) {
        if x.request.version == Version::Http10 {
            return;
        }
        let mut head = WriteBuf::new(&self.worker.ring);
        let date = self.worker.date();
        headers::write_response(
            &mut head.bytes,
            x,
            self.addresses,
            response_edits(None),
            true,
            &date,
        );
        self.client.write_head(head, false);
    }

    /// Collects the next response head, pumping the request body meanwhile.
    fn poll_head<F: Future<Output = Result<(), PumpError>>>(
        &self,
        pump: &mut Pump<'_, F>,
        input: &mut Input,
        x: &mut Exchange,
        (scanner, timed): (&mut HeadScanner, &mut bool),
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Failure>> {
        pump.poll(cx);
        let Exchange { answer, response, .. } = x;
        let take = |bytes: &[u8]| response.take(bytes, &self.limits);
        let read = input.poll_head(self.server, (take, scanner), &self.limits, answer, cx);
        if let Poll::Ready(read) = read {
            return Poll::Ready(read.map_err(|error| Failure::of_head(&error, self.reused)));
        }
        if let Some(failure) = pump.take_client_failure() {
            return Poll::Ready(Err(failure));
        }
        if pump.end.is_none() {
            return Poll::Pending; // its own deadlines apply
        }
        if !std::mem::replace(timed, true) {
            self.timer.set(self.read_timeout);
        }
        if self.client.poll_reset(cx).is_ready() {
            return Poll::Ready(Err(Failure::ClientGone));
        }
        self.timer.poll_fired(cx).map(|()| Err(Failure::Timeout))
    }
}
