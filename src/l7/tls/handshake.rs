//! Handshakes, on streams of the ring, by rustls.

use std::future::poll_fn;
use std::mem;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::{ServerName, UnixTime};
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, UnbufferedStatus};
use rustls::{CipherSuite, ClientConfig, CommonState, Error, HandshakeKind, ProtocolVersion};

use super::info::{Application, Info};
use super::metrics::Reason;
use super::server::Endpoint;
use super::session::{Kernel, Parts, Session};
use super::source::{RecordFailure, Source};
use crate::protocol::tls::client_hello::{self, Hello};
use crate::protocol::tls::content;
use crate::protocol::tls::record::{HEADER_LEN, Version};
use crate::protocol::tls::x509;
use crate::ring::{Chunk, Stream, WriteBuf};
use crate::sys::socket;

/// Most bytes of the records of a ClientHello. Those with post-quantum key shares have about 1,800.
const HELLO_MAX: usize = 64 * 1024;
/// Most bytes received for one handshake: certificates of a client, and everything else.
const HANDSHAKE_MAX: usize = 256 * 1024;

/// Why there is no session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// In short, for the metrics.
    pub reason: Reason,
    /// In words, for the log.
    pub text: String,
}

impl Failure {
    fn new(reason: Reason, text: &str) -> Self {
        Self { reason, text: text.to_owned() }
    }

    fn of(error: &Error) -> Self {
        let reason = match error {
            Error::PeerIncompatible(_) | Error::NoApplicationProtocol => Reason::Incompatible,
            Error::InvalidCertificate(_)
            | Error::NoCertificatesPresented
            | Error::InvalidCertRevocationList(_) => Reason::Certificate,
            Error::AlertReceived(_) => Reason::Alert,
            Error::General(_)
            | Error::FailedToGetCurrentTime
            | Error::FailedToGetRandomBytes
            | Error::EncryptError => Reason::Internal,
            _ => Reason::Malformed,
        };
        Self { reason, text: error.to_string() }
    }
}

/// Makes the server's side. `rest` was received already. The caller sets a deadline.
///
/// # Errors
/// See [`Failure`]; the client has been told with an alert where the protocol has one.
pub async fn accept(
    stream: &Stream,
    rest: Option<Chunk>,
    endpoint: &Arc<Endpoint>,
) -> Result<Session, Failure> {
    let mut source = Source::new(rest);
    refuse_plain_http(stream, &mut source).await?;
    let (received, server_name) = read_hello(stream, &mut source).await?;
    let policy = endpoint.policy_of(server_name.as_deref());
    let internal = || Failure::new(Reason::Internal, "no configuration");
    let config = endpoint.config(policy).ok_or_else(internal)?;
    let connection = UnbufferedServerConnection::new(Arc::clone(config));
    let connection = connection.map_err(|error| Failure::of(&error))?;
    let connection = Connection::Server(connection);
    let endpoint = Some((Arc::clone(endpoint), policy));
    Handshake { stream, source, connection, received }.run(server_name, endpoint).await
}

/// Makes the client's side. The caller sets a deadline.
///
/// # Errors
/// See [`Failure`].
pub async fn connect(
    stream: &Stream,
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
) -> Result<Session, Failure> {
    let connection = UnbufferedClientConnection::new(config, name);
    let connection = Connection::Client(connection.map_err(|error| Failure::of(&error))?);
    let source = Source::default();
    Handshake { stream, source, connection, received: Vec::new() }.run(None, None).await
}

/// A request in the clear begins with a method; TLS with a byte that is no letter.
async fn refuse_plain_http(stream: &Stream, source: &mut Source) -> Result<(), Failure> {
    let chunk = poll_fn(|cx| source.poll_chunk(stream, cx)).await;
    let chunk = match chunk {
        Ok(Some(chunk)) => chunk,
        Ok(None) => return Err(Failure::new(Reason::Closed, "closed before the handshake")),
        Err(error) => return Err(Failure { reason: Reason::Closed, text: error.to_string() }),
    };
    if chunk.as_slice().first().is_some_and(u8::is_ascii_uppercase) {
        return Err(Failure::new(Reason::PlainHttp, "a request in the clear"));
    }
    source.rest = Some(chunk);
    Ok(())
}

/// The records of the ClientHello, and the name in it.
async fn read_hello(
    stream: &Stream,
    source: &mut Source,
) -> Result<(Vec<u8>, Option<String>), Failure> {
    let mut greeting = Greeting::default();
    loop {
        let record = next_record(stream, source, !greeting.received.is_empty()).await?;
        let name = greeting.push(&record.bytes);
        if let Some(name) = name.map_err(|text| Failure::new(Reason::Malformed, text))? {
            return Ok((greeting.received, name));
        }
    }
}

/// The records of a ClientHello.
#[derive(Default)]
struct Greeting {
    received: Vec<u8>,
    /// Their content.
    hello: Vec<u8>,
}

impl Greeting {
    /// Takes in a record; the name, or that there is none, once no more are needed.
    fn push(&mut self, record: &[u8]) -> Result<Option<Option<String>>, &'static str> {
        if self.received.len() + record.len() > HELLO_MAX {
            return Err("too long a ClientHello");
        }
        self.received.extend_from_slice(record);
        if record.first() != Some(&content::HANDSHAKE) {
            return Ok(Some(None)); // rustls says what is wrong with it
        }
        let content = record.get(HEADER_LEN..).unwrap_or_default();
        if content.is_empty() {
            return Err("a handshake record without content"); // RFC 8446 section 5.1
        }
        self.hello.extend_from_slice(content);
        Ok(match client_hello::server_name(&self.hello) {
            Hello::Incomplete => None,
            Hello::Whole(name) => Some(name),
            Hello::Other => Some(None),
        })
    }
}

/// The next record. If it has to be waited for, and something has come that was not answered yet, that is acknowledged.
async fn next_record(
    stream: &Stream,
    source: &mut Source,
    mut unanswered: bool,
) -> Result<WriteBuf, Failure> {
    let record = poll_fn(|cx| {
        let record = source.poll_record(stream, cx);
        if record.is_pending() && (mem::take(&mut unanswered) || source.has_begun()) {
            ask_for_the_rest(stream);
        }
        record
    });
    match record.await {
        Ok(Some(record)) => Ok(record),
        Ok(None) => Err(Failure::new(Reason::Closed, "closed inside the handshake")),
        Err(RecordFailure::Io(error)) => {
            Err(Failure { reason: Reason::Closed, text: error.to_string() })
        }
        Err(RecordFailure::Record(_)) => Err(Failure::new(Reason::NotTls, "not a TLS record")),
    }
}

/// Connections acknowledge with what they send next, but a peer may keep the rest of its flight until it knows that the
/// beginning has arrived (Nagle's algorithm, RFC 9293 section 3.7.4).
fn ask_for_the_rest(stream: &Stream) {
    // A connection that is gone tells its receive.
    let _ = socket::acknowledge_at_once(stream.as_fd());
}

#[allow(clippy::large_enum_variant)] // lives on the task for the length of a handshake
enum Connection {
    Server(UnbufferedServerConnection),
    Client(UnbufferedClientConnection),
}

/// What a step of a handshake leads to.
enum Step {
    /// Another step.
    Again,
    /// Sending what was written.
    Send,
    /// Waiting for the peer, unless the handshake is over.
    Wait,
    Failed(Error),
}

impl Connection {
    /// One step over what was received; what it used is taken off.
    fn step(&mut self, received: &mut Vec<u8>, out: &mut Vec<u8>) -> Step {
        let (used, step) = match self {
            Self::Server(connection) => step(connection.process_tls_records(received), out),
            Self::Client(connection) => step(connection.process_tls_records(received), out),
        };
        received.drain(..used.min(received.len()));
        step
    }

    fn common(&self) -> &CommonState {
        match self {
            Self::Server(connection) => connection,
            Self::Client(connection) => connection,
        }
    }
}

fn step<D>(status: UnbufferedStatus<'_, '_, D>, out: &mut Vec<u8>) -> (usize, Step) {
    let step = match status.state {
        Ok(ConnectionState::EncodeTlsData(mut data)) => encode(&mut data, out),
        Ok(ConnectionState::TransmitTlsData(data)) => {
            data.done();
            Step::Send
        }
        Ok(ConnectionState::BlockedHandshake | ConnectionState::WriteTraffic(_)) => Step::Wait,
        Ok(_) => Step::Failed(Error::HandshakeNotComplete),
        Err(error) => Step::Failed(error),
    };
    (status.discard, step)
}

fn encode<D>(data: &mut EncodeTlsData<'_, D>, out: &mut Vec<u8>) -> Step {
    let start = out.len();
    let Err(EncodeError::InsufficientSize(needed)) = data.encode(&mut []) else {
        return Step::Again;
    };
    out.resize(start + needed.required_size, 0);
    match data.encode(&mut out[start..]) {
        Ok(_) => Step::Again,
        Err(error) => Step::Failed(Error::General(error.to_string())),
    }
}

/// A handshake under way.
struct Handshake<'a> {
    stream: &'a Stream,
    source: Source,
    connection: Connection,
    /// Records for rustls. They are given to it one by one, so that it never sees one that belongs
    /// to the session.
    received: Vec<u8>,
}

impl Handshake<'_> {
    async fn run(
        mut self,
        server_name: Option<String>,
        endpoint: Option<(Arc<Endpoint>, usize)>,
    ) -> Result<Session, Failure> {
        let mut total = self.received.len();
        let mut out = WriteBuf::new(self.stream.ring());
        let mut unanswered = true;
        loop {
            match self.connection.step(&mut self.received, &mut out.bytes) {
                Step::Again => {}
                Step::Send => {
                    self.stream.write(mem::replace(&mut out, WriteBuf::new(self.stream.ring())));
                    unanswered = false;
                }
                Step::Wait if !self.connection.common().is_handshaking() => break,
                Step::Wait => {
                    let record = next_record(self.stream, &mut self.source, unanswered).await?;
                    unanswered = true;
                    total += record.bytes.len();
                    if total > HANDSHAKE_MAX {
                        return Err(Failure::new(Reason::Malformed, "too long a handshake"));
                    }
                    self.received.extend_from_slice(&record.bytes);
                }
                Step::Failed(error) => {
                    self.send_alert(out);
                    return Err(Failure::of(&error));
                }
            }
        }
        // What ended the handshake may be all that a client sends before it is acknowledged.
        if unanswered && self.source.is_empty() {
            ask_for_the_rest(self.stream);
        }
        self.into_session(server_name, endpoint)
    }

    /// Sends what rustls has to say about the failure.
    fn send_alert(&mut self, mut out: WriteBuf) {
        while let Step::Again = self.connection.step(&mut Vec::new(), &mut out.bytes) {}
        self.stream.write(out);
    }

    fn into_session(
        self,
        server_name: Option<String>,
        endpoint: Option<(Arc<Endpoint>, usize)>,
    ) -> Result<Session, Failure> {
        if !self.received.is_empty() {
            return Err(Failure::new(Reason::Malformed, "data behind the last handshake message"));
        }
        let common = self.connection.common();
        let resumed = common.handshake_kind() == Some(HandshakeKind::Resumed);
        // A full handshake verifies the certificate; a ticket would outlive it.
        if let (true, true, Some([leaf, ..])) =
            (resumed, endpoint.is_some(), common.peer_certificates())
            && !is_valid_still(x509::fields(leaf).as_ref(), UnixTime::now().as_secs())
        {
            return Err(Failure::new(Reason::Certificate, "resumed with an expired certificate"));
        }
        let info = info(common, server_name, endpoint);
        let (secrets, kernel) = match self.connection {
            Connection::Server(connection) => connection
                .dangerous_into_kernel_connection()
                .map(|(secrets, kernel)| (secrets, Kernel::Server(kernel))),
            Connection::Client(connection) => connection
                .dangerous_into_kernel_connection()
                .map(|(secrets, kernel)| (secrets, Kernel::Client(kernel))),
        }
        .map_err(|error| Failure::of(&error))?;
        let (sealed, opened, source) = (secrets.tx, secrets.rx, self.source);
        Session::new(Parts { kernel, sealed, opened, source, info })
            .ok_or_else(|| Failure::new(Reason::Internal, "unknown cipher"))
    }
}

/// Whether a certificate that was valid once has not expired; not if that cannot be told.
fn is_valid_still(certificate: Option<&x509::Fields>, now: u64) -> bool {
    let now = i64::try_from(now).unwrap_or(i64::MAX);
    certificate.is_some_and(|fields| now <= fields.not_after)
}

fn info(
    common: &CommonState,
    server_name: Option<String>,
    endpoint: Option<(Arc<Endpoint>, usize)>,
) -> Info {
    let tls12 = common.protocol_version() == Some(ProtocolVersion::TLSv1_2);
    // Of a server's connection the peer is a client, and its certificate has been verified.
    let certificate = common.peer_certificates().and_then(<[_]>::first);
    let subject = certificate.filter(|_| endpoint.is_some()).and_then(|der| x509::fields(der));
    Info {
        version: if tls12 { Version::Tls12 } else { Version::Tls13 },
        cipher: match common.negotiated_cipher_suite().map(|suite| suite.suite()) {
            // rustls has names of its own for these.
            Some(CipherSuite::TLS13_AES_128_GCM_SHA256) => "TLS_AES_128_GCM_SHA256",
            Some(CipherSuite::TLS13_AES_256_GCM_SHA384) => "TLS_AES_256_GCM_SHA384",
            Some(CipherSuite::TLS13_CHACHA20_POLY1305_SHA256) => "TLS_CHACHA20_POLY1305_SHA256",
            other => other.and_then(|suite| suite.as_str()).unwrap_or_default(),
        },
        resumed: common.handshake_kind() == Some(HandshakeKind::Resumed),
        server_name,
        application: match common.alpn_protocol() {
            Some(b"h2") => Application::Http2,
            _ => Application::Http1,
        },
        client_subject: subject.map(|fields| fields.subject).unwrap_or_default(),
        endpoint,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(content: &[u8]) -> Vec<u8> {
        let [high, low] = u16::try_from(content.len()).expect("short").to_be_bytes();
        [&[content::HANDSHAKE, 3, 1, high, low], content].concat()
    }

    #[test]
    fn a_greeting_is_bounded_however_it_is_cut() {
        assert!(Greeting::default().push(&record(&[])).is_err());
        let mut greeting = Greeting::default();
        assert_eq!(greeting.push(&record(&[1])), Ok(None));
        assert!(greeting.push(&record(&[])).is_err());
        // One byte a record, of a message that claims to be as long as can be.
        let mut greeting = Greeting::default();
        assert_eq!(greeting.push(&record(&[1, 255, 255, 255])), Ok(None));
        let pushed = (0..HELLO_MAX).take_while(|_| greeting.push(&record(&[0])).is_ok()).count();
        assert_eq!(pushed, (HELLO_MAX - 9) / 6);
        assert!(greeting.received.len() <= HELLO_MAX && greeting.hello.len() <= HELLO_MAX);
        let mut greeting = Greeting::default();
        assert_eq!(greeting.push(&record(&[1, 255, 255, 255])), Ok(None));
        let pushed = (0..9).take_while(|_| greeting.push(&record(&[0; 1 << 14])).is_ok()).count();
        assert_eq!(pushed, 3);
    }

    #[test]
    fn a_ticket_does_not_outlive_the_certificate() {
        let fields = x509::Fields { not_after: 100, subject: String::new() };
        for (now, valid) in [(0, true), (100, true), (101, false), (u64::MAX, false)] {
            assert_eq!(is_valid_still(Some(&fields), now), valid, "{now}");
        }
        assert!(!is_valid_still(None, 0));
    }
}
