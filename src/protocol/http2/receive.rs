//! Received bytes to events.

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

    /// Resets a stream for what the peer did on it.
    fn fault(&mut self, id: u32, code: Code, now: u64) -> Outcome {
        self.count(Rate::Error, now)?;
        self.reset(id, code);
        Ok(Some(Event::Reset { id, code, fault: true }))
    }

    fn begin_data(&mut self, header: Header, now: u64) -> Outcome {
        let id = header.stream;
        let len = i64::try_from(header.len).unwrap_or(i64::MAX);
        self.receive_window -= len;
        if self.receive_window < 0 {
            return Err(Reason::FlowControl);
        }
        if header.has(frame::PADDED) && header.len == 0 {
            return Err(Reason::FrameSize);
        }
        let end = header.has(frame::END_STREAM);
        if header.len == 0 && !end {
            self.count(Rate::Empty, now)?;
        }
        let padded = header.has(frame::PADDED);
        let mut data = Data { id, body: header.len, padding: 0, padded, end, dropped: false };
        let fault = match self.streams.get_mut(id) {
            Some(stream) if stream.received_end => Some(Code::STREAM_CLOSED),
            Some(stream) if !stream.has_head => Some(Code::PROTOCOL_ERROR),
            Some(stream) => {
                stream.receive_window -= len;
                (stream.receive_window < 0).then_some(Code::FLOW_CONTROL_ERROR)
            }
            None => {
                self.check_not_idle(id)?;
                if !self.streams.was_reset(id) {
                    return Err(Reason::StreamClosed);
                }
                data.dropped = true;
                None
            }
        };
        data.dropped |= fault.is_some();
        self.receive.at = At::Data(data);
        match fault {
            Some(code) => self.fault(id, code, now),
            None => Ok(None),
        }
    }

    fn data(
        &mut self,
        rest: &[u8],
        offset: usize,
        mut data: Data,
        now: u64,
    ) -> Result<(usize, Option<Event>), Reason> {
        if data.padded {
            let Some(&padding) = rest.first() else { return Ok((0, None)) };
            data.padded = false;
            data.padding = usize::from(padding);
            data.body = (data.body - 1).checked_sub(data.padding).ok_or(Reason::Protocol)?;
            self.give_back(&data, data.padding + 1);
            self.receive.at = At::Data(data);
            return Ok((1, None));
        }
        let n = rest.len().min(data.body);
        let skipped = if n == data.body { (rest.len() - n).min(data.padding) } else { 0 };
        data.body -= n;
        data.padding -= skipped;
        let over = data.body == 0 && data.padding == 0;
        self.receive.at = if over { At::Header } else { At::Data(data) };
        let event = if data.dropped {
            self.release_connection(u32::try_from(n).unwrap_or(0));
            None
        } else {
            self.take_data(&mut data, offset, n, over, now)?
        };
        if data.dropped && !over {
            self.receive.at = At::Data(data);
        }
        Ok((n + skipped, event))
    }

    /// Padding is taken at once.
    fn give_back(&mut self, data: &Data, len: usize) {
        let len = u32::try_from(len).unwrap_or(0);
        match self.streams.get_mut(data.id).filter(|_| !data.dropped) {
            Some(stream) => {
                stream.untaken += len;
                self.release(data.id, len as usize);
            }
            None => self.release_connection(len),
        }
    }

    fn take_data(
        &mut self,
        data: &mut Data,
        offset: usize,
        n: usize,
        over: bool,
        now: u64,
    ) -> Outcome {
        let (id, end) = (data.id, data.end && over);
        let Some(stream) = self.streams.get_mut(id) else {
            // Reset by the caller since the frame began.
            self.release_connection(u32::try_from(n).unwrap_or(0));
            return Ok(None);
        };
        stream.untaken += u32::try_from(n).unwrap_or(0);
        let wrong = stream.length_left.as_mut().is_some_and(|left| {
            let fits = left.checked_sub(n as u64);
            *left = fits.unwrap_or(0);
            fits.is_none() || (end && *left > 0)
        });
        if wrong {
            data.dropped = true;
            return self.fault(id, Code::PROTOCOL_ERROR, now);
        }
        if end {
            stream.received_end = true;
            self.forget_if_over(id);
        }
        Ok((n > 0 || end).then_some(Event::Data { id, from: offset, to: offset + n, end }))
    }

    fn headers(&mut self, header: Header, payload: &[u8], now: u64) -> Outcome {
        let id = header.stream;
        if id == 0 {
            return Err(Reason::Protocol);
        }
        let mut fragment = frame::unpadded(header, payload).ok_or(Reason::Protocol)?;
        let mut faulty = false;
        if header.has(frame::WITH_PRIORITY) {
            let (priority, rest) = fragment.split_first_chunk::<5>().ok_or(Reason::FrameSize)?;
            faulty = frame::number(priority).is_some_and(|on| on & 0x7fff_ffff == id);
            fragment = rest;
        }
        if self.streams.get(id).is_none() && !self.is_new(id) {
            self.check_not_idle(id)?;
            if !self.streams.was_reset(id) {
                return Err(Reason::StreamClosed);
            }
        }
        let end = header.has(frame::END_STREAM);
        let block = Block { id, end, continuations: 0, faulty };
        if header.has(frame::END_HEADERS) {
            return self.block(block, fragment, now);
        }
        if fragment.is_empty() {
            self.count(Rate::Empty, now)?;
        }
        self.receive.fragments.clear();
        self.receive.fragments.extend_from_slice(fragment);
        self.receive.block = Some(block);
        Ok(None)
    }

    fn is_new(&self, id: u32) -> bool {
        self.role == Role::Server && id % 2 == 1 && id > self.last_peer
    }

    fn continuation(&mut self, header: Header, payload: &[u8], now: u64) -> Outcome {
        let Some(mut block) = self.receive.block else { return Err(Reason::Protocol) };
        block.continuations += 1;
        // What cannot be decoded to less than the limit need not be collected to be refused; Huffman
        // codes are 30 bits at most, so that honest heads are never that long.
        let len = self.receive.fragments.len() + payload.len();
        if block.continuations > self.limits.continuations || len > 2 * self.limits.head_bytes {
            return Err(Reason::ContinuationFlood);
        }
        self.receive.fragments.extend_from_slice(payload);
        self.receive.block = Some(block);
        if !header.has(frame::END_HEADERS) {
            if payload.is_empty() {
                self.count(Rate::Empty, now)?;
            }
            return Ok(None);
        }
        self.receive.block = None;
        let fragments = std::mem::take(&mut self.receive.fragments);
        let outcome = self.block(block, &fragments, now);
        self.receive.fragments = fragments;
        outcome
    }

    /// A whole field block.
    fn block(&mut self, block: Block, bytes: &[u8], now: u64) -> Outcome {
        let Block { id, end, faulty, .. } = block;
        let stream = self.streams.get(id);
        let kind = match (self.role, stream) {
            (Role::Server, None) => Kind::Request,
            (_, Some(stream)) if stream.has_head => Kind::Trailers,
            (Role::Server, Some(_)) => Kind::Trailers,
            (Role::Client, _) => Kind::Response,
        };
        let is_closed = stream.is_some_and(|stream| stream.received_end);
        self.assembler.begin(kind);
        let (assembler, limits) = (&mut self.assembler, &self.limits);
        self.decoder
            .decode(bytes, |name, value| {
                assembler.field(name, value, limits.fields, limits.head_bytes);
            })
            .map_err(|_| Reason::Compression)?;
        if self.streams.get(id).is_none() {
            if !self.is_new(id) {
                self.count(Rate::Glitch, now)?;
                return Ok(None); // behind a reset of ours: only decoded
            }
            return self.request(id, end, faulty, now);
        }
        if is_closed {
            return self.fault(id, Code::STREAM_CLOSED, now);
        }
        let assembled = self.assembler.finish(end, &mut self.head);
        let Ok(summary) = assembled.map_err(|_| ()) else {
            return self.fault(id, Code::PROTOCOL_ERROR, now);
        };
        if kind == Kind::Trailers {
            self.trailers(id, now)
        } else {
            self.response(id, end, summary, now)
        }
    }

    fn request(&mut self, id: u32, end: bool, faulty: bool, now: u64) -> Outcome {
        self.last_peer = id;
        if self.is_too_late(id) {
            self.streams.note_reset(id); // the GOAWAY has told that it is not served
            return Ok(None);
        }
        if u32::try_from(self.streams.len()).is_ok_and(|open| open >= self.limits.streams) {
            self.count(Rate::Error, now)?;
            self.refuse(id, Code::REFUSED_STREAM);
            return Ok(None);
        }
        let assembled = self.assembler.finish(end, &mut self.head);
        let length = match assembled {
            Ok(summary) => {
                self.receive.summary = summary;
                summary.length
            }
            Err(_) => None,
        };
        if faulty || assembled == Err(Fault::Malformed) {
            self.count(Rate::Error, now)?;
            self.refuse(id, Code::PROTOCOL_ERROR);
            return Ok(Some(Event::Reset { id, code: Code::PROTOCOL_ERROR, fault: true }));
        }
        let stream = self.new_stream(id, end, false, length, false);
        self.streams.insert(stream);
        Ok(Some(match assembled {
            Ok(_) => Event::Request { id, end },
            Err(_) => Event::TooLarge { id },
        }))
    }

    fn response(&mut self, id: u32, end: bool, summary: Summary, now: u64) -> Outcome {
        let interim = summary.status < 200;
        if interim {
            self.count(Rate::Glitch, now)?;
        }
        let Some(stream) = self.streams.get_mut(id) else { return Ok(None) };
        stream.has_head = !interim;
        let bodiless = stream.is_head_request || matches!(summary.status, 204 | 304);
        if !bodiless {
            stream.length_left = summary.length;
        }
        if end && stream.length_left.is_some_and(|left| left > 0) {
            return self.fault(id, Code::PROTOCOL_ERROR, now);
        }
        self.receive.summary = summary;
        if end {
            stream.received_end = true;
            self.forget_if_over(id);
        }
        Ok(Some(Event::Response { id, end, interim }))
    }

    fn trailers(&mut self, id: u32, now: u64) -> Outcome {
        let Some(stream) = self.streams.get_mut(id) else { return Ok(None) };
        if stream.length_left.is_some_and(|left| left > 0) {
            return self.fault(id, Code::PROTOCOL_ERROR, now);
        }
        stream.received_end = true;
        self.forget_if_over(id);
        Ok(Some(Event::Trailers { id }))
    }

    fn priority(&mut self, header: Header, payload: &[u8], now: u64) -> Outcome {
        self.count(Rate::Glitch, now)?; // deprecated; a browser sends a few at the start
        if header.stream == 0 {
            return Err(Reason::Protocol);
        }
        let Some(on) = frame::number(payload).filter(|_| payload.len() == 5) else {
            return self.stream_fault(header.stream, Code::FRAME_SIZE_ERROR, now);
        };
        if on & 0x7fff_ffff == header.stream {
            return self.stream_fault(header.stream, Code::PROTOCOL_ERROR, now);
        }
        Ok(None)
    }

    /// Resets a stream that may not be open.
    fn stream_fault(&mut self, id: u32, code: Code, now: u64) -> Outcome {
        if self.streams.get(id).is_some() {
            return self.fault(id, code, now);
        }
        self.count(Rate::Error, now)?;
        self.refuse(id, code);
        Ok(None)
    }

    fn peer_reset(&mut self, header: Header, payload: &[u8], now: u64) -> Outcome {
        let Some(code) = frame::number(payload).filter(|_| payload.len() == 4) else {
            return Err(Reason::FrameSize);
        };
        self.check_not_idle(header.stream)?;
        // A server that refuses streams may have reason to refuse many.
        if self.role == Role::Server {
            self.count(Rate::Reset, now)?;
        }
        let Some(stream) = self.streams.remove(header.stream) else { return Ok(None) };
        self.release_connection(stream.untaken);
        Ok(Some(Event::Reset { id: header.stream, code: Code(code), fault: false }))
    }

    fn settings(&mut self, header: Header, payload: &[u8], now: u64) -> Outcome {
        self.count(Rate::Settings, now)?;
        if header.stream != 0 {
            return Err(Reason::Protocol);
        }
        if header.has(frame::ACK) {
            return if payload.is_empty() { Ok(None) } else { Err(Reason::FrameSize) };
        }
        self.receive.begun = true;
        let before = i64::from(self.remote.window);
        self.remote.apply(payload, self.role)?;
        let by = i64::from(self.remote.window) - before;
        if !self.streams.iter_mut().all(|stream| stream.widen(by)) {
            return Err(Reason::FlowControl);
        }
        self.resize_encoder();
        frame::push_header(&mut self.output, 0, frame::SETTINGS, frame::ACK, 0);
        Ok(Some(Event::Window { id: 0 }))
    }

    fn peer_ping(&mut self, header: Header, payload: &[u8], now: u64) -> Outcome {
        let Some(&payload) = payload.first_chunk::<8>().filter(|_| payload.len() == 8) else {
            return Err(Reason::FrameSize);
        };
        if header.stream != 0 {
            return Err(Reason::Protocol);
        }
        if header.has(frame::ACK) {
            self.count(Rate::Glitch, now)?;
            return Ok(Some(Event::Pong));
        }
        self.count(Rate::Ping, now)?;
        frame::push_ping(&mut self.output, frame::ACK, payload);
        Ok(None)
    }

    fn peer_goes_away(&mut self, header: Header, payload: &[u8]) -> Outcome {
        if header.stream != 0 {
            return Err(Reason::Protocol);
        }
        let Some(last) = frame::number(payload).filter(|_| payload.len() >= 8) else {
            return Err(Reason::FrameSize);
        };
        let last = (last & 0x7fff_ffff).min(self.peer_last.unwrap_or(u32::MAX));
        self.peer_last = Some(last);
        Ok(Some(Event::GoAway { last }))
    }

    fn window_update(&mut self, header: Header, payload: &[u8], now: u64) -> Outcome {
        const SMALL: i64 = 256;
        let Some(by) = frame::number(payload).filter(|_| payload.len() == 4) else {
            return Err(Reason::FrameSize);
        };
        let by = i64::from(by & 0x7fff_ffff);
        let id = header.stream;
        if by < SMALL && self.small_updates > 0 {
            self.small_updates -= 1;
        } else if by < SMALL {
            self.count(Rate::SmallUpdate, now)?;
        }
        if id == 0 {
            self.send_window += by;
            if by == 0 {
                return Err(Reason::Protocol);
            }
            let within = self.send_window <= WINDOW_MAX;
            return if within {
                Ok(Some(Event::Window { id: 0 }))
            } else {
                Err(Reason::FlowControl)
            };
        }
        let Some(stream) = self.streams.get_mut(id) else {
            self.check_not_idle(id)?;
            return Ok(None); // it may have been under way
        };
        if by == 0 {
            return self.fault(id, Code::PROTOCOL_ERROR, now);
        }
        if !stream.widen(by) {
            return self.fault(id, Code::FLOW_CONTROL_ERROR, now);
        }
        Ok(Some(Event::Window { id }))
    }
}
