//! One HTTP request to the collector, with a connection of its own and bounds on everything.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use crate::l7::tracing::Settings;

/// For the connection, and then for the exchange.
const CONNECT_MAX: Duration = Duration::from_secs(2);
const EXCHANGE_MAX: Duration = Duration::from_secs(5);
/// Bytes of an answer that are read.
const ANSWER_MAX: u64 = 64 * 1024;

/// Why it was not taken.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) why: String,
    /// Another attempt may go better (OTLP specification, "Failures").
    pub(super) again: bool,
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        Self { why: error.to_string(), again: true }
    }
}

/// Sends it and returns the body of the answer.
pub(super) fn post(settings: &Settings, body: &[u8]) -> Result<Vec<u8>, Refused> {
    let mut stream = connect(&settings.authority)?;
    stream.set_write_timeout(Some(EXCHANGE_MAX))?;
    stream.write_all(&head(settings, body.len()))?;
    stream.write_all(body)?;
    judge(&read(stream)?)
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
fn read(mut stream: TcpStream) -> io::Result<Vec<u8>> {
    let (began, mut answer, mut piece) = (Instant::now(), Vec::new(), [0; 4096]);
    while !is_whole(&answer) && (answer.len() as u64) < ANSWER_MAX {
        let left = EXCHANGE_MAX.saturating_sub(began.elapsed());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut piece) {
            Ok(0) => break,
            Ok(n) => answer.extend_from_slice(piece.get(..n).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(io::ErrorKind::TimedOut.into());
            }
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
