//! One HTTP request to the collector, over TCP or TLS, with a connection of its own and bounds on everything.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use crate::l7::tracing::Settings;

/// For the connection, and then for the exchange, TLS handshake included.
const CONNECT_MAX: Duration = Duration::from_secs(2);
const EXCHANGE_MAX: Duration = Duration::from_secs(5);
/// Bytes of an answer that are read.
const ANSWER_MAX: usize = 64 * 1024;

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
    let answer = match (client, named) {
        (Some(client), Some(name)) => {
            let name = ServerName::try_from(name).map_err(io::Error::other)?;
            let tls = ClientConnection::new(Arc::clone(client), name).map_err(io::Error::other)?;
            converse(StreamOwned::new(tls, stream), settings, body)?
        }
        _ => converse(stream, settings, body)?,
    };
    judge(&answer)
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

fn converse(
    mut stream: impl Read + Write,
    settings: &Settings,
    body: &[u8],
) -> io::Result<Vec<u8>> {
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

/// All of the answer until the collector closes, or as much as its head says.
fn read(mut stream: impl Read) -> io::Result<Vec<u8>> {
    let (mut answer, mut piece) = (Vec::new(), [0; 4096]);
    while !is_whole(&answer) && answer.len() < ANSWER_MAX {
        match stream.read(&mut piece) {
            Ok(0) => break,
            Ok(n) => answer.extend_from_slice(piece.get(..n).unwrap_or_default()),
            // TLS that ends without close_notify: what has come is judged, as without TLS.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof && !answer.is_empty() => {
                break;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(answer)
}

/// Status and body of what has come, with the body's length if the head says it.
fn parse(answer: &[u8]) -> Option<(u16, &[u8], Option<usize>)> {
    let mut fields = [httparse::EMPTY_HEADER; 64];
    let mut head = httparse::Response::new(&mut fields);
    let httparse::Status::Complete(length) = head.parse(answer).ok()? else { return None };
    let mut named = head.headers.iter().filter(|f| f.name.eq_ignore_ascii_case("content-length"));
    let told = named.next().and_then(|field| std::str::from_utf8(field.value).ok()?.parse().ok());
    Some((head.code?, answer.get(length..).unwrap_or_default(), told))
}

fn is_whole(answer: &[u8]) -> bool {
    parse(answer).is_some_and(|(_, body, told)| told.is_some_and(|length| body.len() >= length))
}

fn judge(answer: &[u8]) -> Result<Vec<u8>, Refused> {
    let Some((status, body, told)) = parse(answer) else {
        return Err(Refused { why: "no answer of HTTP".to_owned(), again: true });
    };
    match status {
        // A body in chunks is not taken apart: what it could say is how many spans were rejected.
        200..=299 => Ok(told.and_then(|length| body.get(..length)).unwrap_or_default().to_vec()),
        _ => Err(Refused {
            why: format!("status {status}"),
            again: matches!(status, 429 | 502 | 503 | 504),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers() {
        let ok = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nabc";
        assert!(is_whole(ok) && !is_whole(&ok[..39]));
        assert_eq!(judge(ok).expect("good"), b"ab");
        assert_eq!(judge(b"HTTP/1.1 200 OK\r\n\r\nabc").expect("good"), b"");
        for (answer, again, why) in [
            ("HTTP/1.1 503 x\r\n\r\n", true, "status 503"),
            ("HTTP/1.1 400 x\r\n\r\n", false, "status 400"),
            ("SSH-2.0-x\r\n", true, "no answer of HTTP"),
            ("", true, "no answer of HTTP"),
        ] {
            let refused = judge(answer.as_bytes()).expect_err(answer);
            assert_eq!((refused.again, refused.why.as_str()), (again, why));
        }
    }
}
