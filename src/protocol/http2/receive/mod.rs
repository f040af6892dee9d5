//! Received bytes to events.

mod control;
mod data;
mod heads;

use super::frame::{self, Header, PAYLOAD_MAX};
use super::limits::Kind as Rate;
use super::message::{Fault, Kind, Summary};
use super::settings::WINDOW_MAX;
use super::{Code, Connection, ConnectionError, FRAME_HEADER_LEN, PREFACE, Reason, Role};

/// What happened. Heads and trailers stand in [`Connection::head`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A request on a new stream; `end` when it has no body.
    Request {
        /// The stream.
        id: u32,
        /// Nothing follows.
        end: bool,
    },
    /// A request with more or longer fields than allowed; to be answered with 431.
    TooLarge {
        /// The stream.
        id: u32,
    },
    /// A response head; `interim` for a 1xx.
    Response {
        /// The stream.
        id: u32,
        /// Nothing follows.
        end: bool,
        /// Another head follows.
        interim: bool,
    },
    /// Bytes of a body, by their place in the input; to be given back with [`Connection::release`].
    Data {
        /// The stream.
        id: u32,
        /// Where they begin.
        from: usize,
        /// Where they end.
        to: usize,
        /// Nothing follows.
        end: bool,
    },
    /// The fields behind a body, which end the stream.
    Trailers {
        /// The stream.
        id: u32,
    },
    /// A stream is over before its time: the peer reset it, or did something on it that made us.
    Reset {
        /// The stream.
        id: u32,
        /// The peer's code, or ours.
        code: Code,
        /// The peer's doing wrong.
        fault: bool,
    },
    /// A window has grown: of one stream, or of the connection or all of them.
    Window {
        /// The stream, 0 for all.
        id: u32,
    },
    /// The peer will not serve streams above `last`.
    GoAway {
        /// The last one it may serve.
        last: u32,
    },
    /// The answer to [`Connection::ping`].
    Pong,
}

/// How far [`Connection::receive`] came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Bytes of the input that are done with.
    pub consumed: usize,
    /// What happened; `None` only when the whole input is consumed.
    pub event: Option<Event>,
}

/// Where in the byte stream the next byte stands.
#[derive(Debug, Clone, Copy)]
enum At {
    /// In the preface, with this many bytes to come.
    Preface(usize),
    /// Before or inside a frame header.
    Header,
    /// Inside the payload of a frame that has to be whole.
    Payload(Header),
    /// Inside a DATA frame.
    Data(Data),
}

#[derive(Debug, Clone, Copy)]
struct Data {
    id: u32,
    /// Bytes of body still to come.
    body: usize,
    /// Bytes of padding behind it.
    padding: usize,
    /// The length of the padding comes first.
    padded: bool,
    end: bool,
    /// Nobody wants it: the stream is over.
    dropped: bool,
}

/// The receiving side's state.
#[derive(Debug)]
pub(super) struct Receive {
    at: At,
    /// What there is of a frame header, or of a payload.
    partial: Vec<u8>,
    /// SETTINGS have come.
    begun: bool,
    /// The field block that is not complete.
    block: Option<Block>,
    fragments: Vec<u8>,
    pub(super) summary: Summary,
}

#[derive(Debug, Clone, Copy)]
struct Block {
    id: u32,
    end: bool,
    continuations: u32,
    /// The stream is to be reset once the block is decoded.
    faulty: bool,
}

impl Receive {
    pub(super) fn new(role: Role) -> Self {
        let preface = if role == Role::Server { PREFACE.len() } else { 0 };
        Self {
            at: if preface > 0 { At::Preface(preface) } else { At::Header },
            partial: Vec::new(),
            begun: false,
            block: None,
            fragments: Vec::new(),
            summary: Summary::default(),
        }
    }
}

type Outcome = Result<Option<Event>, Reason>;

impl Connection {
    /// True before the preface and inside a field block: what has begun has to come within a deadline.
    #[must_use]
    pub fn is_inside_head(&self) -> bool {
        !self.receive.begun || self.receive.block.is_some()
    }

    /// Takes received bytes up to the next event. Call it again with what was not consumed.
    ///
    /// # Errors
    /// When the connection cannot go on: send [`Connection::go_away`] with the reason and close.
    pub fn receive(&mut self, input: &[u8], now_ms: u64) -> Result<Step, ConnectionError> {
        let mut consumed = 0;
        loop {
            let rest = input.get(consumed..).unwrap_or_default();
            let frame_over = matches!(
                self.receive.at,
                At::Data(Data { body: 0, padding: 0, padded: false, .. })
            );
            if rest.is_empty() && !frame_over {
                return Ok(Step { consumed, event: None });
            }
            let (taken, event) = match self.receive.at {
                At::Preface(left) => (self.preface(rest, left)?, None),
                At::Header => self.header(rest, now_ms)?,
                At::Payload(header) => self.payload(rest, header, now_ms)?,
                At::Data(data) => self.data(rest, consumed, data, now_ms)?,
            };
            consumed += taken;
            if event.is_some() {
                return Ok(Step { consumed, event });
            }
        }
    }

    fn preface(&mut self, rest: &[u8], left: usize) -> Result<usize, Reason> {
        let expected = &PREFACE[PREFACE.len() - left..];
        let n = rest.len().min(left);
        if rest[..n] != expected[..n] {
            return Err(Reason::Protocol);
        }
        self.receive.at = if n == left { At::Header } else { At::Preface(left - n) };
        Ok(n)
    }

    fn header(&mut self, rest: &[u8], now: u64) -> Result<(usize, Option<Event>), Reason> {
        let partial = &mut self.receive.partial;
        let n = rest.len().min(FRAME_HEADER_LEN - partial.len());
        partial.extend_from_slice(&rest[..n]);
        let Some(&bytes) = partial.first_chunk().filter(|_| partial.len() == FRAME_HEADER_LEN)
        else {
            return Ok((n, None));
        };
        partial.clear();
        let header = Header::parse(bytes);
        if header.len > PAYLOAD_MAX {
            return Err(Reason::FrameSize);
        }
        if !self.receive.begun && (header.kind != frame::SETTINGS || header.has(frame::ACK)) {
            return Err(Reason::Protocol);
        }
        if let Some(block) = self.receive.block
            && (header.kind != frame::CONTINUATION || header.stream != block.id)
        {
            return Err(Reason::Protocol);
        }
        if header.kind == frame::DATA {
            return Ok((n, self.begin_data(header, now)?));
        }
        self.receive.at = At::Payload(header);
        if header.len == 0 {
            let (_, event) = self.payload(&[], header, now)?;
            return Ok((n, event));
        }
        Ok((n, None))
    }

    /// Collects a payload unless it lies in the input as a whole.
    fn payload(
        &mut self,
        rest: &[u8],
        header: Header,
        now: u64,
    ) -> Result<(usize, Option<Event>), Reason> {
        let n = rest.len().min(header.len - self.receive.partial.len());
        let rest = &rest[..n];
        if n == header.len {
            self.receive.at = At::Header;
            return Ok((n, self.frame(header, rest, now)?));
        }
        self.receive.partial.extend_from_slice(rest);
        if self.receive.partial.len() < header.len {
            return Ok((n, None));
        }
        self.receive.at = At::Header;
        let mut payload = std::mem::take(&mut self.receive.partial);
        let outcome = self.frame(header, &payload, now);
        payload.clear();
        self.receive.partial = payload;
        Ok((n, outcome?))
    }

    fn frame(&mut self, header: Header, payload: &[u8], now: u64) -> Outcome {
        match header.kind {
            frame::HEADERS => self.headers(header, payload, now),
            frame::CONTINUATION => self.continuation(header, payload, now),
            frame::PRIORITY => self.priority(header, payload, now),
            frame::RST_STREAM => self.peer_reset(header, payload, now),
            frame::SETTINGS => self.settings(header, payload, now),
            frame::PING => self.peer_ping(header, payload, now),
            frame::GOAWAY => self.peer_goes_away(header, payload),
            frame::WINDOW_UPDATE => self.window_update(header, payload, now),
            frame::PUSH_PROMISE => Err(Reason::Protocol),
            _ => {
                // Unknown types are ignored (RFC 9113 section 4.1), though not in any number.
                self.count(Rate::Glitch, now)?;
                Ok(None)
            }
        }
    }

    fn count(&mut self, rate: Rate, now: u64) -> Result<(), Reason> {
        self.rates.count(rate, &self.limits, now)
    }

    /// Whether the peer may use this id although no such stream is open: it was, but no longer is.
    fn check_not_idle(&self, id: u32) -> Result<(), Reason> {
        let known = match self.role {
            Role::Server => id % 2 == 1 && id <= self.last_peer,
            Role::Client => id % 2 == 1 && self.has_opened(id),
        };
        if id == 0 || !known { Err(Reason::Protocol) } else { Ok(()) }
    }

    /// Whether what comes on a stream that is not open is to be passed over: it may have been under way
    /// when we reset the stream. A server shares its connection with all our requests, and how many
    /// of them we reset is none of its doing: there every stream we have opened will do.
    fn check_closed(&self, id: u32) -> Result<(), Reason> {
        self.check_not_idle(id)?;
        if self.role == Role::Server && !self.streams.was_reset(id) {
            return Err(Reason::StreamClosed);
        }
        Ok(())
    }

    /// Resets a stream for what the peer did on it.
    fn fault(&mut self, id: u32, code: Code, now: u64) -> Outcome {
        self.count(Rate::Error, now)?;
        self.reset(id, code);
        Ok(Some(Event::Reset { id, code, fault: true }))
    }
}
