//! What is said on a connection to a server: the request's body there, the response back.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use super::Proxied;
use super::failure::Failure;
use super::respond::{Cut, Patience, Respond, Rest, cut_short};
use crate::l7::channel::Channel;
use crate::l7::config::Route;
use crate::l7::connection::{After, Client};
use crate::l7::exchange::{Addresses, Answer, Exchange, is_extended_connect, response_edits};
use crate::l7::flow::{self, FlushError, PumpError, PumpLimits, pump_request};
use crate::l7::generation::{Generation, Listening};
use crate::l7::headers;
use crate::l7::input::{BodyReadError, Input};
use crate::l7::output::Coding;
use crate::l7::pool::{Connection, Lease, Pool, millis};
use crate::l7::worker::Worker;
use crate::protocol::http1::{Framing, HeadScanner, ResponseHead, Version};
use crate::ring::slots::Held;
use crate::ring::timer::Millis;
use crate::ring::{Timer, WriteBuf};

/// 1xx responses a server may send before the final one.
const INTERIM_MAX: u32 = 16;

/// How a conversation ended.
#[derive(Debug)]
pub(super) enum Answered {
    /// With a response.
    Over { after: After, reusable: bool },
    /// Both sides speak another protocol now.
    Upgraded,
}

impl Proxied<'_> {
    /// Sends the request body while waiting for the response, then forwards that.
    pub(super) async fn converse(
        &mut self,
        lease: &Lease,
        connection: &mut Connection,
    ) -> Result<Answered, Failure> {
        let mut conversation = self.begin(lease, connection);
        let answer = poll_fn(|cx| conversation.poll_response(cx)).await?;
        conversation.judge(&answer.head)?;
        let sent = match conversation.pass_on(&answer) {
            Ok(None) => Ok(()),
            Ok(Some(rest)) => {
                let worker = conversation.worker;
                worker.forwarding.hold(conversation.forward(rest)).await
            }
            Err(cut) => Err(cut),
        };
        let worker = conversation.worker;
        let ended = conversation.end(&answer.head, sent);
        worker.recycle_answer(answer);
        ended
    }

    fn begin<'a>(
        &'a mut self,
        lease: &'a Lease,
        connection: &'a mut Connection,
    ) -> Conversation<'a, impl Future<Output = Result<(), PumpError>>> {
        let keep = self.client.keeps(self.exchange);
        if self.upload.as_ref().is_some_and(|upload| !upload.body.is_over())
            && self.client.input.is_empty()
        {
            self.client.ask_for_the_rest();
        }
        let limits = PumpLimits {
            client_timeout_ms: millis(self.generation.service.http.client_body_timeout),
            server_timeout_ms: millis(self.pool.upstream.config.send_timeout),
            size_max: self.size_max(),
        };
        let Self { worker, generation, route, pool, .. } = *self;
        let reused = connection.is_reused();
        let Connection { stream: server, input: server_input, .. } = connection;
        let server = &*server;
        let Client { stream, input, timer, answer_timer, addresses, listening, .. } =
            &mut *self.client;
        let (client, timer): (&Channel, &Timer) = (stream, timer);
        let address = addresses.peer.ip();
        let x = &mut *self.exchange;
        let coding = match x.request.framing {
            Framing::Chunked => Coding::Chunked,
            _ => Coding::Identity,
        };
        let pumping = self.upload.as_deref_mut().and_then(|upload| {
            let writer = flow::resume_request(upload, server, coding)?;
            let pumping = async move {
                let pace = generation.upload_pace(address, &worker.metrics.clients.slow);
                let limits = (limits, pace.as_ref());
                pump_request((client, input), upload, (server, writer), limits, timer).await
            };
            Some(worker.pumping.hold(pumping))
        });
        Conversation {
            worker,
            generation,
            route,
            pool,
            lease,
            began: self.attempt_began,
            x,
            client,
            addresses,
            listening,
            timer: answer_timer,
            server,
            input: server_input,
            pump: Pump::new(pumping),
            scanner: HeadScanner::for_response(),
            partial: None,
            interim: 0,
            timed: false,
            reused,
            keep,
            written: Cell::new(0),
        }
    }
}

/// All of it in one place, so that no future holds it twice.
struct Conversation<'a, F> {
    worker: &'a Worker,
    generation: &'a Generation,
    route: &'a Route,
    pool: &'a Pool,
    lease: &'a Lease,
    /// When the attempt began.
    began: Millis,
    x: &'a mut Exchange,
    client: &'a Channel,
    addresses: &'a Addresses,
    listening: &'a Listening,
    /// For what is done for the client.
    timer: &'a Timer,
    server: &'a Channel,
    input: &'a mut Input,
    pump: Pump<'a, F>,
    scanner: HeadScanner,
    /// The beginning of a response's head.
    partial: Option<Box<Answer>>,
    /// 1xx responses so far.
    interim: u32,
    /// The timer runs.
    timed: bool,
    /// The connection has served a request before.
    reused: bool,
    /// The client's connection goes on after the response.
    keep: bool,
    /// Bytes of the response's body so far.
    written: Cell<u64>,
}

impl<F: Future<Output = Result<(), PumpError>>> Conversation<'_, F> {
    /// Waits for the final response head and parses it; 1xx responses before it are passed on.
    fn poll_response(&mut self, cx: &mut Context<'_>) -> Poll<Result<Box<Answer>, Failure>> {
        loop {
            let mut answer = ready!(self.poll_head(cx))?;
            let (request, Answer { bytes, head }) = (&self.x.request, &mut *answer);
            let parsed = head.parse(bytes, &self.generation.limits, request.method);
            if parsed.is_err() || (head.upgrade && !request.upgrade_websocket) {
                return Poll::Ready(Err(Failure::Malformed));
            }
            if !head.is_interim() {
                return Poll::Ready(Ok(answer));
            }
            if self.interim == INTERIM_MAX {
                return Poll::Ready(Err(Failure::Malformed));
            }
            self.forward_interim(&answer);
            self.worker.recycle_answer(answer);
            (self.scanner, self.timed) = (HeadScanner::for_response(), false);
            self.interim += 1;
        }
    }

    /// Collects the next response head, pumping the request body meanwhile.
    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<Box<Answer>, Failure>> {
        self.pump.poll(cx);
        let limits = &self.generation.limits;
        let mut answer = self.partial.take().unwrap_or_else(|| self.worker.answer());
        let Answer { bytes, head } = &mut *answer;
        let take = |bytes: &[u8]| head.take(bytes, limits);
        let found = (take, &mut self.scanner);
        if let Poll::Ready(read) = self.input.poll_head(self.server, found, limits, bytes, cx) {
            let failed = |error| Failure::of_head(&error, self.reused);
            return Poll::Ready(read.map(|()| answer).map_err(failed));
        }
        if answer.bytes.is_empty() {
            self.worker.recycle_answer(answer);
        } else {
            self.partial = Some(answer);
        }
        if let Some(failure) = self.pump.take_client_failure() {
            return Poll::Ready(Err(failure));
        }
        if self.pump.end.is_none() {
            return Poll::Pending; // its own deadlines apply
        }
        if !std::mem::replace(&mut self.timed, true) {
            self.timer.set(self.read_timeout());
        }
        if self.client.poll_reset(cx).is_ready() {
            return Poll::Ready(Err(Failure::ClientGone));
        }
        self.timer.poll_fired(cx).map(|()| Err(Failure::Timeout))
    }

    fn read_timeout(&self) -> Millis {
        millis(self.pool.upstream.config.read_timeout)
    }

    /// Passes a 1xx response on; HTTP/1.0 clients do not know them.
    fn forward_interim(&self, answer: &Answer) {
        if self.x.request.version == Version::Http10 {
            return;
        }
        let mut head = WriteBuf::new(&self.worker.ring);
        let (edits, date) = (response_edits(None), || self.worker.date());
        let response = (&*self.x, answer);
        headers::write_response(&mut head.bytes, response, self.addresses, edits, true, date);
        self.client.write_head(head, false);
    }

    /// Whether the response is one to be passed on, which is counted either way.
    fn judge(&mut self, &ResponseHead { status, .. }: &ResponseHead) -> Result<(), Failure> {
        self.x.outcome.upstream_status = Some(status);
        let figures = self.lease.metrics();
        figures.responses.count(status);
        figures.response_ms.add(self.worker.now().saturating_sub(self.began));
        if self.pump.is_done() && self.pool.wants_repeated(self.x, status) {
            return Err(Failure::Status(status));
        }
        self.lease.member().passive.success(self.worker.now());
        if (200..300).contains(&status) && is_extended_connect(self.client, self.x) {
            return Err(Failure::NotUpgraded);
        }
        Ok(())
    }

    /// Sends the response's head and what of its body is there. What is left then, if anything is.
    fn pass_on(&mut self, answer: &Answer) -> Result<Option<Rest>, Cut> {
        let (worker, x, response) = (self.worker, &mut *self.x, &answer.head);
        // The client may send more of a body that the server did not wait for: the connection
        // cannot go on then, and the client is told.
        self.keep = self.keep
            && worker.draining().is_none()
            && !self.listening.is_removed()
            && self.pump.is_done()
            && headers::is_delimited(response.framing, x.request.version);
        let mut head = WriteBuf::new(&worker.ring);
        let (edits, date) = (&self.route.response_headers, || worker.date());
        let (out, addresses) = (&mut head.bytes, self.addresses);
        headers::write_response(out, (x, answer), addresses, edits, self.keep, date);
        x.outcome.status = response.status;
        x.outcome.head_bytes = head.bytes.len() as u64;
        if response.upgrade {
            self.client.write_head(head, false);
            return Ok(None);
        }
        let respond = Respond { client: self.client, server: self.server, written: &self.written };
        respond.begin((response.framing, x.request.version), self.input, head)
    }

    /// Sends the rest of the response while the request body goes on as long as it can.
    async fn forward(&mut self, rest: Rest) -> Result<(), Cut> {
        let service = &self.generation.service;
        let slow = &self.worker.metrics.clients.slow;
        let patience = Patience {
            timer: self.timer,
            read_timeout: self.read_timeout(),
            send_timeout: millis(service.http.send_timeout),
            pace: self.generation.download_pace(self.addresses.peer.ip(), slow),
        };
        let respond = Respond { client: self.client, server: self.server, written: &self.written };
        let mut forward = pin!(respond.forward(rest, self.input, &patience));
        poll_fn(|cx| {
            self.pump.poll(cx);
            forward.as_mut().poll(cx)
        })
        .await
    }

    /// What becomes of both connections.
    fn end(self, response: &ResponseHead, sent: Result<(), Cut>) -> Result<Answered, Failure> {
        let x = self.x;
        if response.upgrade {
            return Ok(Answered::Upgraded);
        }
        x.outcome.body_bytes = self.written.get();
        let reusable = response.persistent && self.pump.is_done() && self.server.queued() == 0;
        match sent {
            Ok(()) if self.keep => Ok(Answered::Over { after: After::Keep, reusable }),
            // Of a body the client may send more than was read.
            Ok(()) if !x.request.persistent && x.request.framing.is_empty() => {
                Ok(Answered::Over { after: After::Finish, reusable })
            }
            Ok(()) => Ok(Answered::Over { after: After::Close, reusable }),
            Err(Cut::Unbegun(failure)) => Err(failure),
            Err(cut) => {
                let after = cut_short(self.worker, self.lease, (x, response.framing), &cut);
                Ok(Answered::Over { after, reusable: false })
            }
        }
    }
}

/// The request body on its way, polled along with whatever else happens.
struct Pump<'a, F> {
    future: Option<Held<'a, F>>,
    end: Option<Result<(), PumpError>>,
}

impl<'a, F: Future<Output = Result<(), PumpError>>> Pump<'a, F> {
    /// None: there is nothing left to be sent.
    fn new(future: Option<Held<'a, F>>) -> Self {
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
    fn is_done(&self) -> bool {
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
}
