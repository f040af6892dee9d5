//! One HTTP request to the collector, over TCP or TLS, with a connection of its own and bounds on everything.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use crate::l7::tracing::Settings;
use crate::protocol::http1::{BodyDecoder, HeadScanner, Limits, Method, ResponseHead, Scan, Step};

/// For the connection, and then for the exchange, TLS handshake included.
const CONNECT_MAX: Duration = Duration::from_secs(2);
const EXCHANGE_MAX: Duration = Duration::from_secs(5);
/// Bytes of an answer that are read, chunks' framing included.
const ANSWER_MAX: usize = 64 * 1024;
/// Of its head.
const LIMITS: Limits = Limits { head_bytes: 16 * 1024, headers: 64 };

/// Why it was not taken.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) why: String,
    /// Another attempt may go better (OTLP specification, "Failures").
    pub(super) again: bool,
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        // A collector that is not who it should be, or speaks no TLS, will not be a moment later either.
        let again = error.kind() != io::ErrorKind::InvalidData;
        Self { why: error.to_string(), again }
    }
}

/// Sends it and returns the body of the answer. `client`: over TLS.
pub(super) fn post(
    settings: &Settings,
    client: Option<&Arc<ClientConfig>>,
    body: &[u8],
) -> Result<Vec<u8>, Refused> {
    let stream =
        Bounded { tcp: connect(&settings.authority)?, until: Instant::now() + EXCHANGE_MAX };
    let named = settings.tls.as_ref().and_then(|tls| tls.server_name.clone());
    match (client, named) {
        (Some(client), Some(name)) => {
            let name = ServerName::try_from(name).map_err(io::Error::other)?;
            let tls = ClientConnection::new(Arc::clone(client), name).map_err(io::Error::other)?;
            converse(StreamOwned::new(tls, stream), settings, body)
        }
        _ => converse(stream, settings, body),
    }?
    .judge()
}

/// A connection on which nothing waits beyond a moment, whatever is read and written until then.
struct Bounded {
    tcp: TcpStream,
    until: Instant,
}

impl Bounded {
    fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(Some(left)) }
    }
}

/// A socket's own timeout, by the name it has elsewhere.
fn timed_out(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::WouldBlock { io::ErrorKind::TimedOut.into() } else { error }
}

impl Read for Bounded {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.tcp.set_read_timeout(self.left()?)?;
        self.tcp.read(into).map_err(timed_out)
    }
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.tcp.set_write_timeout(self.left()?)?;
        self.tcp.write(bytes).map_err(timed_out)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.tcp.flush()
    }
}

fn converse(mut stream: impl Read + Write, settings: &Settings, body: &[u8]) -> io::Result<Answer> {
    stream.write_all(&head(settings, body.len()))?;
    stream.write_all(body)?;
    stream.flush()?;
    read(stream)
}

fn connect(authority: &str) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the collector's name has no address");
    for address in authority.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, CONNECT_MAX) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn head(settings: &Settings, length: usize) -> Vec<u8> {
    let mut head = format!(
        "POST {} HTTP/1.1\r\nHost: {}\r\nUser-Agent: ringgate/{}\r\nContent-Type: \
         application/x-protobuf\r\nContent-Length: {length}\r\nConnection: close\r\n",
        settings.path,
        settings.authority,
        env!("CARGO_PKG_VERSION")
    );
    for (name, value) in &settings.headers {
        head.extend([name, ": ", value, "\r\n"]);
    }
    head.push_str("\r\n");
    head.into_bytes()
}

/// As much of the answer as says what became of the request, or as there is.
fn read(mut stream: impl Read) -> io::Result<Answer> {
    let (mut answer, mut piece, mut received) = (Answer::default(), [0; 4096], 0);
    while received < ANSWER_MAX {
        match stream.read(&mut piece) {
            Ok(0) => break,
            Ok(n) => {
                received += n;
                if answer.take(piece.get(..n).unwrap_or_default()) {
                    break;
                }
            }
            // TLS that ends without close_notify: what has come is judged, as without TLS.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof && received > 0 => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(answer)
}

/// What the collector has answered so far.
struct Answer {
    scanner: HeadScanner,
    head: Vec<u8>,
    /// The status, and what takes the body apart, once the head is there.
    begun: Option<(u16, BodyDecoder)>,
    body: Vec<u8>,
}

impl Default for Answer {
    fn default() -> Self {
        let scanner = HeadScanner::for_response();
        Self { scanner, head: Vec::new(), begun: None, body: Vec::new() }
    }
}

impl Answer {
    /// Takes in what has arrived; true once nothing more is waited for.
    fn take(&mut self, mut input: &[u8]) -> bool {
        loop {
            let rest = match &mut self.begun {
                None if input.is_empty() => return false,
                None => match self.scanner.scan(input, &LIMITS) {
                    Err(_) => return true,
                    Ok(Scan::Complete(end)) => {
                        self.head.extend_from_slice(input.get(..end).unwrap_or_default());
                        if !self.begin() {
                            return true;
                        }
                        end
                    }
                    Ok(_) => {
                        self.head.extend_from_slice(input);
                        return false;
                    }
                },
                Some((_, decoder)) => match decoder.step(input) {
                    Ok(Step::Data { start, end }) => {
                        self.body.extend_from_slice(input.get(start..end).unwrap_or_default());
                        end
                    }
                    Ok(Step::More) => return false,
                    Ok(Step::End(_)) | Err(_) => return true,
                },
            };
            input = input.get(rest..).unwrap_or_default();
        }
    }

    /// Reads a whole head; false if it is none.
    fn begin(&mut self) -> bool {
        let mut head = ResponseHead::new();
        if head.parse(&self.head, &LIMITS, Method::of(b"POST")).is_err() {
            return false;
        }
        if head.status < 200 {
            // An interim response; the one that counts is still to come.
            *self = Self::default();
        } else {
            self.begun = Some((head.status, BodyDecoder::new(head.framing)));
        }
        true
    }

    /// The body of a good answer.
    fn judge(self) -> Result<Vec<u8>, Refused> {
        let Some((status, mut decoder)) = self.begun else {
            return Err(Refused { why: "no answer of HTTP".to_owned(), again: true });
        };
        match status {
            // The status says that spans were taken; a body that breaks off says nothing more.
            200..=299 => Ok(decoder.eof().map_or_else(|_| Vec::new(), |()| self.body)),
            _ => Err(Refused {
                why: format!("status {status}"),
                again: matches!(status, 429 | 502 | 503 | 504),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The answer as read, and how many bytes were left in the connection.
    fn answer(text: &str) -> (Answer, usize) {
        let mut stream = text.as_bytes();
        (read(&mut stream).expect("a slice"), stream.len())
    }

    #[test]
    fn answers() {
        // Each with the body that counts, and whether it ends before the connection does.
        for (text, body, ends) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nabc", "ab", true),
            ("HTTP/1.1 200 OK\r\n\r\nabc", "abc", false),
            ("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No\r\n\r\nabc", "", true),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\
                 2;x=y\r\nab\r\n1\r\nc\r\n0\r\nt: v\r\n\r\nd",
                "abc",
                true,
            ),
            // Broken off.
            ("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabc", "", false),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabc", "", false),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx", "", true),
        ] {
            assert_eq!(answer(text).0.judge().expect(text), body.as_bytes(), "{text}");
            // Byte by byte as well as at once.
            let mut torn = Answer::default();
            let ended = text.bytes().any(|byte| torn.take(&[byte]));
            assert_eq!(torn.judge().expect(text), body.as_bytes(), "{text}");
            assert_eq!(ended, ends, "{text}");
        }
        for (text, again, why) in [
            ("HTTP/1.1 503 x\r\n\r\n", true, "status 503"),
            ("HTTP/1.1 400 x\r\nTransfer-Encoding: chunked\r\n\r\n", false, "status 400"),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na",
                true,
                "no answer of HTTP",
            ),
            ("SSH-2.0-x\r\n", true, "no answer of HTTP"),
            ("", true, "no answer of HTTP"),
        ] {
            let refused = answer(text).0.judge().expect_err(text);
            assert_eq!((refused.again, refused.why.as_str()), (again, why));
        }
    }

    #[test]
    fn an_answer_without_end_is_not_read_to_it() {
        let chunk = format!("1000\r\n{}\r\n", "a".repeat(4096));
        let endless =
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned() + &chunk.repeat(64);
        let (read, left) = answer(&endless);
        assert!(read.body.len() <= ANSWER_MAX && left > endless.len() - 2 * ANSWER_MAX, "{left}");
        assert_eq!(read.judge().expect("a status"), b"");
    }
}
