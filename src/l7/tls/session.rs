//! A connection after its handshake: plain bytes above, records below.
//!
//! A record that comes in is copied out of the receive buffers into one vector, opened there, and
//! handed on as it stands; one that goes out is written into the vector it is sealed and sent from.
//! Between records a session holds no buffer.

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use rustls::ConnectionTrafficSecrets;
use rustls::client::ClientConnectionData;
use rustls::kernel::KernelConnection;
use rustls::server::ServerConnectionData;

use super::info::Info;
use super::source::{RecordFailure, Source};
use crate::protocol::tls::message::{Allowance, KEY_UPDATE, Messages, Peer, Refused, kind};
use crate::protocol::tls::record::{
    FRAGMENT_MAX, OVERHEAD_MAX, Opener, RecordError, Sealer, Version,
};
use crate::protocol::tls::{alert, content};
use crate::ring::{Chunk, Stream, WriteBuf};

/// Records without data that a peer may send in a row.
const IDLE_RECORDS_MAX: u32 = 32;
const WARNING: u8 = 1;
const FATAL: u8 = 2;

/// What stays of rustls: key changes and session tickets.
pub(super) enum Kernel {
    Server(KernelConnection<ServerConnectionData>),
    Client(KernelConnection<ClientConnectionData>),
}

impl Kernel {
    fn next_sealer(&mut self) -> Option<Sealer> {
        let (sequence, secrets) = match self {
            Self::Server(kernel) => kernel.update_tx_secret(),
            Self::Client(kernel) => kernel.update_tx_secret(),
        }
        .ok()?;
        Sealer::new(Version::Tls13, sequence, &secrets)
    }

    fn next_opener(&mut self) -> Option<Opener> {
        let (sequence, secrets) = match self {
            Self::Server(kernel) => kernel.update_rx_secret(),
            Self::Client(kernel) => kernel.update_rx_secret(),
        }
        .ok()?;
        Opener::new(Version::Tls13, sequence, &secrets)
    }
}

/// What a handshake leaves to its session.
pub(super) struct Parts {
    pub(super) kernel: Kernel,
    pub(super) sealed: (u64, ConnectionTrafficSecrets),
    pub(super) opened: (u64, ConnectionTrafficSecrets),
    pub(super) source: Source,
    pub(super) info: Info,
}

/// TLS on one connection, after the handshake.
pub struct Session {
    info: Rc<Info>,
    state: RefCell<State>,
}

struct State {
    kernel: Kernel,
    sealer: Sealer,
    opener: Opener,
    source: Source,
    messages: Messages,
    allowance: Allowance,
    /// The peer has asked for a change of our keys: it is made before what we send next, once for
    /// all that was asked until then.
    update_due: bool,
    /// Plain bytes that came while nobody waited for them.
    early: Option<Chunk>,
    /// Records without data since the last with some.
    idle_records: u32,
    /// The peer has ended its direction in order.
    ended: bool,
    /// We have ended ours.
    closed: bool,
    /// Nothing can be read or written any more.
    failed: bool,
}

/// What one record was.
enum Taken {
    Data(Chunk),
    Other,
}

impl Session {
    pub(super) fn new(parts: Parts) -> Option<Self> {
        let Parts { kernel, sealed, opened, source, info } = parts;
        let peer = match kernel {
            Kernel::Server(_) => Peer::Client,
            Kernel::Client(_) => Peer::Server,
        };
        let state = State {
            sealer: Sealer::new(info.version, sealed.0, &sealed.1)?,
            opener: Opener::new(info.version, opened.0, &opened.1)?,
            kernel,
            source,
            messages: Messages::new(info.version, peer),
            allowance: Allowance::default(),
            update_due: false,
            early: None,
            idle_records: 0,
            ended: false,
            closed: false,
            failed: false,
        };
        Some(Self { info: Rc::new(info), state: RefCell::new(state) })
    }

    /// What the handshake agreed on.
    #[must_use]
    pub fn info(&self) -> &Rc<Info> {
        &self.info
    }

    /// True when the peer broke the protocol, or the bytes were damaged on their way.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.state.borrow().failed
    }

    /// True when the connection should end in order, before its keys are worn.
    #[must_use]
    pub fn is_nearly_worn(&self) -> bool {
        self.state.borrow().sealer.is_nearly_worn()
    }

    /// The next plain bytes; `None` once the peer has ended its direction. An end of the TCP stream
    /// without that is an error: something may be missing.
    pub fn poll_recv(
        &self,
        stream: &Stream,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<Option<Chunk>>> {
        self.state.borrow_mut().poll_recv(&self.info, stream, cx)
    }

    /// Appends `parts` to the output, one behind the other, in as few records as possible.
    pub fn write(&self, stream: &Stream, parts: [&[u8]; 2]) {
        self.state.borrow_mut().write(&self.info, stream, parts);
    }

    /// Ends our direction.
    pub fn shutdown_write(&self, stream: &Stream) {
        let state = &mut *self.state.borrow_mut();
        if !state.failed {
            state.alert(stream, WARNING, alert::CLOSE_NOTIFY);
        }
        state.closed = true;
        stream.shutdown_write();
    }

    /// Whether a part of a record has come.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.state.borrow().source.has_begun()
    }

    /// True while the peer has sent nothing that concerns whoever uses the connection.
    #[must_use]
    pub fn is_quiet(&self, stream: &Stream) -> bool {
        let state = &mut *self.state.borrow_mut();
        if state.source.is_empty() && state.early.is_none() && stream.is_quiet() {
            return !state.ended && !state.failed;
        }
        // A ticket may have come, or new keys.
        let mut cx = Context::from_waker(Waker::noop());
        match state.poll_recv(&self.info, stream, &mut cx) {
            Poll::Pending => true,
            Poll::Ready(received) => {
                state.early = received.ok().flatten();
                false
            }
        }
    }
}

impl State {
    fn poll_recv(
        &mut self,
        info: &Info,
        stream: &Stream,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<Option<Chunk>>> {
        if let Some(chunk) = self.early.take() {
            return Poll::Ready(Ok(Some(chunk)));
        }
        loop {
            if self.failed {
                return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
            }
            if self.ended {
                return Poll::Ready(Ok(None));
            }
            let taken = match ready!(self.source.poll_record(stream, cx)) {
                Ok(Some(record)) => self.take(info, stream, record),
                Ok(None) => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                Err(RecordFailure::Io(error)) => return Poll::Ready(Err(error)),
                Err(RecordFailure::Record(error)) => Err(error.alert()),
            };
            match taken {
                Ok(Taken::Data(chunk)) => {
                    self.idle_records = 0;
                    return Poll::Ready(Ok(Some(chunk)));
                }
                Ok(Taken::Other) => {
                    self.idle_records += 1;
                    if self.idle_records > IDLE_RECORDS_MAX {
                        self.fail(stream, alert::UNEXPECTED_MESSAGE);
                    }
                }
                Err(description) => self.fail(stream, description),
            }
        }
    }

    /// Opens a record; an error is the description of the alert that ends the connection.
    fn take(&mut self, info: &Info, stream: &Stream, mut record: WriteBuf) -> Result<Taken, u8> {
        let opened = self.opener.open(&mut record.bytes).map_err(RecordError::alert)?;
        let within_message = !self.messages.is_empty();
        match opened.kind {
            content::APPLICATION_DATA if !within_message => {
                if opened.range.is_empty() {
                    return Ok(Taken::Other);
                }
                record.bytes.truncate(opened.range.end);
                let mut chunk = Chunk::from(record);
                chunk.advance(opened.range.start);
                Ok(Taken::Data(chunk))
            }
            content::ALERT => self.take_alert(&record.bytes[opened.range]),
            content::HANDSHAKE if !opened.range.is_empty() => {
                self.messages.push(&record.bytes[opened.range]);
                self.take_messages(info, stream)
            }
            _ => Err(alert::UNEXPECTED_MESSAGE),
        }
    }

    fn take_alert(&mut self, bytes: &[u8]) -> Result<Taken, u8> {
        let &[level, description] = bytes else { return Err(alert::DECODE_ERROR) };
        match description {
            alert::CLOSE_NOTIFY => self.ended = true,
            alert::USER_CANCELED => {}
            alert::NO_RENEGOTIATION if level == WARNING => {}
            _ => {
                // The peer has given up: it reads no alert of ours.
                self.failed = true;
                self.closed = true;
            }
        }
        Ok(Taken::Other)
    }

    fn take_messages(&mut self, info: &Info, stream: &Stream) -> Result<Taken, u8> {
        while let Some((found, body)) = self.messages.pop().map_err(Refused::alert)? {
            match (&mut self.kernel, info.version, found) {
                (_, Version::Tls13, kind::KEY_UPDATE) => self.take_key_update(&body)?,
                (Kernel::Client(kernel), Version::Tls13, kind::NEW_SESSION_TICKET) => {
                    if self.allowance.ticket() {
                        let kept = kernel.handle_new_session_ticket(&body);
                        kept.map_err(|_| alert::DECODE_ERROR)?;
                    }
                }
                // Whoever asks for another handshake is told once that there is none.
                (Kernel::Client(_), Version::Tls12, kind::HELLO_REQUEST)
                | (Kernel::Server(_), Version::Tls12, kind::CLIENT_HELLO) => {
                    if !self.allowance.renegotiation() {
                        return Err(alert::UNEXPECTED_MESSAGE);
                    }
                    self.alert(stream, WARNING, alert::NO_RENEGOTIATION);
                }
                _ => return Err(alert::UNEXPECTED_MESSAGE),
            }
        }
        Ok(Taken::Other)
    }

    /// RFC 8446 section 4.6.3.
    fn take_key_update(&mut self, body: &[u8]) -> Result<(), u8> {
        let &[requested @ (0 | 1)] = body else { return Err(alert::DECODE_ERROR) };
        if !self.messages.is_empty() {
            return Err(alert::UNEXPECTED_MESSAGE);
        }
        self.opener = self.kernel.next_opener().ok_or(alert::INTERNAL_ERROR)?;
        self.update_due |= requested == 1;
        Ok(())
    }

    /// Goes on with new keys for what we send.
    fn renew_keys(&mut self, stream: &Stream) -> bool {
        let mut out = WriteBuf::new(stream.ring());
        if !self.sealer.seal(content::HANDSHAKE, &[&KEY_UPDATE], &mut out.bytes) {
            return false;
        }
        let Some(next) = self.kernel.next_sealer() else { return false };
        self.sealer = next;
        stream.write(out);
        true
    }

    fn write(&mut self, info: &Info, stream: &Stream, [first, second]: [&[u8]; 2]) {
        if self.failed || self.closed || first.len() + second.len() == 0 {
            return;
        }
        if std::mem::take(&mut self.update_due) && !self.renew_keys(stream) {
            return self.fail(stream, alert::INTERNAL_ERROR);
        }
        let mut out = WriteBuf::new(stream.ring());
        let (mut first, mut second) = (first, second);
        let records = (first.len() + second.len()).div_ceil(FRAGMENT_MAX).min(BUFFER_RECORDS);
        let bytes = (first.len() + second.len()).min(BUFFER_RECORDS * FRAGMENT_MAX);
        out.bytes.reserve(bytes + records * OVERHEAD_MAX);
        let mut sealed = 0;
        while first.len() + second.len() > 0 {
            let before = first.split_off(..first.len().min(FRAGMENT_MAX)).unwrap_or_default();
            let room = second.len().min(FRAGMENT_MAX - before.len());
            let behind = second.split_off(..room).unwrap_or_default();
            if self.sealer.is_worn()
                && !(info.version == Version::Tls13 && self.renew_keys_behind(stream, &mut out))
            {
                return self.fail(stream, alert::INTERNAL_ERROR);
            }
            if !self.sealer.seal(content::APPLICATION_DATA, &[before, behind], &mut out.bytes) {
                return self.fail(stream, alert::INTERNAL_ERROR);
            }
            sealed += 1;
            if sealed % BUFFER_RECORDS == 0 {
                stream.write(std::mem::replace(&mut out, WriteBuf::new(stream.ring())));
            }
        }
        stream.write(out);
    }

    /// As [`State::renew_keys`], behind what `out` holds.
    fn renew_keys_behind(&mut self, stream: &Stream, out: &mut WriteBuf) -> bool {
        stream.write(std::mem::replace(out, WriteBuf::new(stream.ring())));
        self.renew_keys(stream)
    }

    fn alert(&mut self, stream: &Stream, level: u8, description: u8) {
        let mut out = WriteBuf::new(stream.ring());
        if !self.closed
            && self.sealer.seal(content::ALERT, &[&[level, description]], &mut out.bytes)
        {
            stream.write(out);
        }
    }

    /// Ends the connection with an alert.
    fn fail(&mut self, stream: &Stream, description: u8) {
        self.alert(stream, FATAL, description);
        self.failed = true;
        self.closed = true;
    }
}

/// Records that are put into one buffer to be sent.
const BUFFER_RECORDS: usize = 3;

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("info", &self.info).finish_non_exhaustive()
    }
}
