//! One end of a connection: what is sent, and what both directions know of each other.

use super::frame::{self, PAYLOAD_MAX};
use super::hpack::{Decoder, Encoder};
use super::limits::{Kind as Rate, Rates};
use super::message::{self, Assembler, Summary};
use super::receive::Receive;
use super::settings::{self, Remote, TABLE_SIZE, WINDOW_DEFAULT};
use super::stream::{Stream, Streams};
use super::{Code, FRAME_HEADER_LEN, Limits, PREFACE, Reason};

/// The highest stream id.
const ID_MAX: u32 = 0x7fff_ffff;

/// Small window updates that may be outstanding.
const SMALL_UPDATES_MAX: u32 = 1000;
/// Pings that may be outstanding.
const PINGS_MAX: u32 = 1000;

/// Which end of the connection this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Takes requests.
    Server,
    /// Sends them.
    Client,
}

/// One end of an HTTP/2 connection.
#[derive(Debug)]
pub struct Connection {
    pub(super) role: Role,
    pub(super) limits: Limits,
    pub(super) decoder: Decoder,
    encoder: Encoder,
    pub(super) assembler: Assembler,
    pub(super) remote: Remote,
    pub(super) streams: Streams,
    pub(super) receive: Receive,
    pub(super) send_window: i64,
    pub(super) receive_window: i64,
    credit: u32,
    /// Small window updates that are to be expected, since small frames went out.
    pub(super) small_updates: u32,
    /// Pings that are to be expected: some peers measure the way with each piece of a body.
    pub(super) pings_earned: u32,
    /// The highest stream the peer has opened.
    pub(super) last_peer: u32,
    /// Client role: the next stream to open.
    next: u32,
    /// The last stream we said we would serve.
    last_served: Option<u32>,
    /// The last stream the peer said it would serve.
    pub(super) peer_last: Option<u32>,
    pub(super) rates: Rates,
    block: Vec<u8>,
    name: Vec<u8>,
    /// The head or trailers of the last event, as text of HTTP/1.1; the caller may take it.
    pub head: Vec<u8>,
    /// What has to be sent for the connection itself; the caller sends and clears it.
    pub output: Vec<u8>,
    /// Client role: the scheme of requests.
    pub scheme: &'static [u8],
}

impl Connection {
    /// An end that has queued its preface and SETTINGS in [`Connection::output`].
    #[must_use]
    pub fn new(role: Role, limits: Limits) -> Self {
        let mut output = Vec::with_capacity(128);
        if role == Role::Client {
            output.extend_from_slice(PREFACE);
        }
        settings::push_local(&mut output, role, &limits);
        Self {
            role,
            decoder: Decoder::new(TABLE_SIZE),
            encoder: Encoder::default(),
            assembler: Assembler::default(),
            remote: Remote::default(),
            streams: Streams::new(limits.streams),
            receive: Receive::new(role),
            send_window: i64::from(WINDOW_DEFAULT),
            receive_window: i64::from(limits.connection_window.max(WINDOW_DEFAULT)),
            credit: 0,
            small_updates: 0,
            pings_earned: 0,
            last_peer: 0,
            next: 1,
            last_served: None,
            peer_last: None,
            rates: Rates::default(),
            block: Vec::new(),
            name: Vec::new(),
            head: Vec::new(),
            output,
            scheme: b"http",
            limits,
        }
    }

    /// Streams that are not over.
    #[must_use]
    pub fn open_streams(&self) -> usize {
        self.streams.len()
    }

    /// Client role: whether another stream may be opened now.
    #[must_use]
    pub fn may_open(&self) -> bool {
        self.is_usable()
            && u32::try_from(self.streams.len()).is_ok_and(|open| open < self.remote.streams)
    }

    /// Client role: whether streams may be opened at all, once others have ended.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        self.peer_last.is_none() && self.last_served.is_none() && self.next < ID_MAX
    }

    /// Client role: sends a request; `end` when no body follows. `None` if no stream may be opened.
    pub fn open(&mut self, head: &[u8], end: bool, out: &mut Vec<u8>) -> Option<u32> {
        if !self.may_open() {
            return None;
        }
        let id = self.next;
        self.next += 2;
        let is_head_request = head.starts_with(b"HEAD ");
        self.streams.insert(self.new_stream(id, false, end, None, is_head_request));
        self.encode_request(head);
        self.push_block(id, end, out);
        Some(id)
    }

    pub(super) fn new_stream(
        &self,
        id: u32,
        received_end: bool,
        sent_end: bool,
        length_left: Option<u64>,
        is_head_request: bool,
    ) -> Stream {
        Stream {
            id,
            received_end,
            sent_end,
            has_head: self.role == Role::Server,
            send_window: i64::from(self.remote.window),
            receive_window: i64::from(self.limits.stream_window),
            credit: 0,
            untaken: 0,
            length_left,
            is_head_request,
        }
    }

    /// Sends a response head, interim or final, given as HTTP/1.1 text of ours. A 101 becomes the 200
    /// of an extended CONNECT.
    pub fn respond(&mut self, id: u32, head: &[u8], end: bool, out: &mut Vec<u8>) {
        let Some(stream) = self.streams.get_mut(id).filter(|stream| !stream.sent_end) else {
            return;
        };
        stream.sent_end = end;
        let (start, fields) = message::fields_of(head);
        let status = start.get(9..12).and_then(|digits| std::str::from_utf8(digits).ok());
        let status = status.and_then(|digits| digits.parse().ok()).unwrap_or(502);
        self.block.clear();
        self.encoder.begin(&mut self.block);
        self.encoder.status(if status == 101 { 200 } else { status }, &mut self.block);
        for (name, value) in fields {
            lower(&mut self.name, name);
            let accepts = status == 101 && self.name == b"sec-websocket-accept";
            if !message::is_of_connection(&self.name) && !accepts {
                self.encoder.field(&self.name, value, &mut self.block);
            }
        }
        self.push_block(id, end, out);
        self.forget_if_over(id);
    }

    /// DATA with a body has come.
    pub(super) fn earn_ping(&mut self) {
        self.pings_earned = (self.pings_earned + 1).min(PINGS_MAX);
    }

    fn encode_request(&mut self, head: &[u8]) {
        let (start, fields) = message::fields_of(head);
        let mut words = start.splitn(3, |&byte| byte == b' ');
        let method = words.next().unwrap_or_default();
        let path = words.next().unwrap_or_default();
        self.block.clear();
        self.encoder.begin(&mut self.block);
        self.encoder.field(b":method", method, &mut self.block);
        self.encoder.field(b":scheme", self.scheme, &mut self.block);
        self.encoder.field(b":path", path, &mut self.block);
        // `Host` is the first field we write, unless an edit replaces it.
        let (_, mut hosts) = message::fields_of(head);
        if let Some((_, host)) = hosts.find(|(name, _)| name.eq_ignore_ascii_case(b"host")) {
            self.encoder.field(b":authority", host, &mut self.block);
        }
        for (name, value) in fields {
            lower(&mut self.name, name);
            if self.name != b"host" && !message::is_of_connection(&self.name) {
                self.encoder.field(&self.name, value, &mut self.block);
            }
        }
    }

    /// Sends the fields behind a body, which ends the stream.
    pub fn send_trailers<'a>(
        &mut self,
        id: u32,
        trailers: impl Iterator<Item = (&'a [u8], &'a [u8])>,
        out: &mut Vec<u8>,
    ) {
        let Some(stream) = self.streams.get_mut(id).filter(|stream| !stream.sent_end) else {
            return;
        };
        stream.sent_end = true;
        self.block.clear();
        self.encoder.begin(&mut self.block);
        for (name, value) in trailers {
            lower(&mut self.name, name);
            self.encoder.field(&self.name, value, &mut self.block);
        }
        self.push_block(id, true, out);
        self.forget_if_over(id);
    }

    /// Frames `self.block` as HEADERS and as many CONTINUATION as it takes.
    fn push_block(&mut self, id: u32, end: bool, out: &mut Vec<u8>) {
        let end = if end { frame::END_STREAM } else { 0 };
        let mut rest = &self.block[..];
        let mut kind = frame::HEADERS;
        loop {
            let (piece, behind) = rest.split_at(rest.len().min(PAYLOAD_MAX));
            rest = behind;
            let last = if rest.is_empty() { frame::END_HEADERS } else { 0 };
            let first = if kind == frame::HEADERS { end } else { 0 };
            frame::push_header(out, piece.len(), kind, last | first, id);
            out.extend_from_slice(piece);
            kind = frame::CONTINUATION;
            if rest.is_empty() {
                return;
            }
        }
    }

    /// Bytes of DATA that may be sent on a stream now.
    #[must_use]
    pub fn capacity(&self, id: u32) -> usize {
        let window = self.streams.get(id).map_or(0, |stream| stream.send_window);
        let window = window.min(self.send_window).max(0);
        usize::try_from(window).unwrap_or(0).min(PAYLOAD_MAX)
    }

    /// Sends the header of a DATA frame whose payload of `len` bytes, at most
    /// [`Connection::capacity`], the caller sends right behind it.
    pub fn push_data(&mut self, id: u32, len: usize, end: bool, out: &mut Vec<u8>) {
        let Some(stream) = self.streams.get_mut(id) else { return };
        let bytes = i64::try_from(len).unwrap_or(i64::MAX);
        stream.send_window -= bytes;
        self.send_window -= bytes;
        if len > 0 {
            self.pings_earned = (self.pings_earned + 1).min(PINGS_MAX);
        }
        // A frame that was cut to the window earns nothing: the peer may be opening it byte by byte.
        if stream.send_window > 0 && self.send_window > 0 {
            self.small_updates = (self.small_updates + 2).min(SMALL_UPDATES_MAX);
        }
        stream.sent_end |= end;
        out.reserve(FRAME_HEADER_LEN + len.min(4096));
        frame::push_header(out, len, frame::DATA, if end { frame::END_STREAM } else { 0 }, id);
        if end {
            self.forget_if_over(id);
        }
    }

    /// Tells the peer that `len` bytes of a stream's data were taken, so that it may send as many more.
    pub fn release(&mut self, id: u32, len: usize) {
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        let half = self.limits.stream_window / 2;
        let Some(stream) = self.streams.get_mut(id) else { return };
        let len = len.min(stream.untaken); // the rest was given back when the stream ended
        stream.untaken -= len;
        stream.credit += len;
        if stream.credit >= half.max(1) && !stream.received_end {
            stream.receive_window += i64::from(stream.credit);
            frame::push_window_update(&mut self.output, id, stream.credit);
            stream.credit = 0;
        }
        self.release_connection(len);
    }

    pub(super) fn release_connection(&mut self, len: u32) {
        self.credit = self.credit.saturating_add(len);
        if self.credit >= self.limits.connection_window / 2 {
            self.receive_window += i64::from(self.credit);
            frame::push_window_update(&mut self.output, 0, self.credit);
            self.credit = 0;
        }
    }

    /// Gives a stream up.
    pub fn reset(&mut self, id: u32, code: Code) {
        if let Some(stream) = self.streams.remove(id) {
            self.streams.note_reset(id);
            frame::push_reset(&mut self.output, id, code);
            self.release_connection(stream.untaken);
        }
    }

    /// Refuses a stream that was never opened as far as we are concerned.
    pub(super) fn refuse(&mut self, id: u32, code: Code) {
        self.streams.note_reset(id);
        frame::push_reset(&mut self.output, id, code);
    }

    pub(super) fn forget_if_over(&mut self, id: u32) {
        if self.streams.get(id).is_some_and(Stream::is_over)
            && let Some(stream) = self.streams.remove(id)
        {
            self.release_connection(stream.untaken);
        }
    }

    /// Announces that no further stream will be served. Without `last`, those that are under way to
    /// us still are (RFC 9113 section 6.8).
    pub fn go_away(&mut self, reason: Option<Reason>, last: bool) {
        let id = if last || reason.is_some() { self.last_peer } else { ID_MAX };
        if self.last_served.is_some_and(|announced| announced <= id) {
            return;
        }
        self.last_served = Some(id);
        let code = reason.map_or(Code::NO_ERROR, Reason::code);
        let why = reason.map_or("", Reason::label);
        frame::push_goaway(&mut self.output, id, code, why.as_bytes());
    }

    /// Whether a stream of the peer's comes too late to be served.
    pub(super) fn is_too_late(&self, id: u32) -> bool {
        self.last_served.is_some_and(|last| id > last)
    }

    /// Whether [`Connection::go_away`] was called.
    #[must_use]
    pub fn is_going_away(&self) -> bool {
        self.last_served.is_some()
    }

    /// Whether only the first GOAWAY was sent, which takes streams under way.
    #[must_use]
    pub fn is_leaving(&self) -> bool {
        self.last_served == Some(ID_MAX)
    }

    /// A PING, whose answer shows as [`Event::Pong`](super::Event::Pong).
    pub fn ping(&mut self) {
        frame::push_ping(&mut self.output, 0, *b"ringgate");
    }

    /// Whether the peer supports extended CONNECT (RFC 8441).
    #[must_use]
    pub fn allows_extended_connect(&self) -> bool {
        self.remote.connect_protocol
    }

    /// Whether we have ended our half of a stream, or it is over.
    #[must_use]
    pub fn has_sent_end(&self, id: u32) -> bool {
        self.streams.get(id).is_none_or(|stream| stream.sent_end)
    }

    /// Whether the peer has ended its half of a stream, or it is over.
    #[must_use]
    pub fn has_received_end(&self, id: u32) -> bool {
        self.streams.get(id).is_none_or(|stream| stream.received_end)
    }

    pub(super) fn has_opened(&self, id: u32) -> bool {
        id < self.next
    }

    pub(super) fn resize_encoder(&mut self) {
        self.encoder.set_size_max(self.remote.table_size);
    }

    /// The caller resets a stream because of what the peer sent on it.
    ///
    /// # Errors
    /// When that happens too often.
    pub fn reset_faulty(&mut self, id: u32, code: Code, now_ms: u64) -> Result<(), Reason> {
        self.reset(id, code);
        self.rates.count(Rate::Error, &self.limits, now_ms)
    }

    /// What the head of the last event said.
    #[must_use]
    pub fn summary(&self) -> Summary {
        self.receive.summary
    }
}

fn lower(out: &mut Vec<u8>, name: &[u8]) {
    out.clear();
    out.extend_from_slice(name);
    out.make_ascii_lowercase();
}

#[cfg(test)]
mod tests;
