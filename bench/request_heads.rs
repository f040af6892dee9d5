//! Counting requests in received bytes: where heads end, and how long the bodies behind them are.
//!
//! Only what the answer depends on is looked at, because this runs on the server that must never be
//! the bottleneck. It is no parser: what a benchmark's client would not send is refused or, where it
//! makes no difference here, overlooked.

use memchr::{memchr_iter, memmem};

/// Bytes of the longest head.
const HEAD_MAX: usize = 64 * 1024;

/// What the next bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// All input is consumed; nothing ended in it.
    More,
    /// A request has arrived as a whole.
    Request {
        /// No body may be sent.
        head_only: bool,
        /// The client wants the connection closed after the answer.
        close: bool,
    },
}

/// A request that this server does not take: a head without end, a body without a length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refused;

/// Finds requests in a byte stream, however it is torn.
#[derive(Debug, Default)]
pub(crate) struct RequestHeads {
    /// The beginning of a head whose end has not come.
    partial: Vec<u8>,
    /// What the last head said, while its body is still to come.
    pending: Option<Found>,
    /// Bytes of that body to come.
    body: u64,
}

impl RequestHeads {
    /// Looks at the next bytes and takes off what it has consumed.
    pub(crate) fn next(&mut self, input: &mut &[u8]) -> Result<Found, Refused> {
        loop {
            if let Some(found) = self.pending {
                let skip = usize::try_from(self.body).unwrap_or(usize::MAX).min(input.len());
                *input = input.get(skip..).unwrap_or_default();
                self.body -= skip as u64;
                if self.body > 0 {
                    return Ok(Found::More);
                }
                self.pending = None;
                return Ok(found);
            }
            if !self.head(input)? {
                return Ok(Found::More);
            }
        }
    }

    /// Takes a head off the input; false when its end has not come.
    fn head(&mut self, input: &mut &[u8]) -> Result<bool, Refused> {
        if self.partial.is_empty() {
            let Some(end) = head_end(input, 0) else {
                return self.keep(input).map(|()| false);
            };
            let (head, rest) = input.split_at(end);
            self.note(head)?;
            *input = rest;
            return Ok(true);
        }
        let before = self.partial.len();
        let room = HEAD_MAX.saturating_sub(before).min(input.len());
        self.partial.extend_from_slice(&input[..room]);
        let Some(end) = head_end(&self.partial, before.saturating_sub(3)) else {
            self.partial.truncate(before);
            return self.keep(input).map(|()| false);
        };
        let mut head = std::mem::take(&mut self.partial);
        head.truncate(end);
        self.note(&head)?;
        head.clear();
        self.partial = head;
        *input = input.get(end - before..).unwrap_or_default();
        Ok(true)
    }

    /// Keeps all input for later.
    fn keep(&mut self, input: &mut &[u8]) -> Result<(), Refused> {
        if self.partial.len() + input.len() > HEAD_MAX {
            return Err(Refused);
        }
        self.partial.extend_from_slice(input);
        *input = &[];
        Ok(())
    }

    fn note(&mut self, head: &[u8]) -> Result<(), Refused> {
        let mut close = false;
        self.body = 0;
        let mut start = 0;
        for end in memchr_iter(b'\n', head) {
            let line = head.get(start..end).unwrap_or_default();
            if start == 0 {
                close = line.ends_with(b" HTTP/1.0\r");
            } else if let Some(b'c' | b'C' | b't' | b'T') = line.first() {
                if let Some(value) = value_of(line, b"content-length:") {
                    self.body = number(value).ok_or(Refused)?;
                } else if let Some(value) = value_of(line, b"connection:") {
                    close |= value.eq_ignore_ascii_case(b"close");
                } else if value_of(line, b"transfer-encoding:").is_some() {
                    return Err(Refused);
                }
            }
            start = end + 1;
        }
        self.pending = Some(Found::Request { head_only: head.starts_with(b"HEAD "), close });
        Ok(())
    }
}

/// Index behind the empty line that ends a head, which is not before `from`.
fn head_end(bytes: &[u8], from: usize) -> Option<usize> {
    let at = memmem::find(bytes.get(from..)?, b"\r\n\r\n")?;
    Some(from + at + 4)
}

fn value_of<'a>(line: &'a [u8], name_lowercase: &[u8]) -> Option<&'a [u8]> {
    let (name, value) = line.split_at_checked(name_lowercase.len())?;
    name.eq_ignore_ascii_case(name_lowercase).then(|| value.trim_ascii())
}

fn number(digits: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(digits).ok()?;
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PLAIN: Found = Found::Request { head_only: false, close: false };

    /// Everything found in these pieces of a stream.
    fn all(pieces: &[&[u8]]) -> Result<Vec<Found>, Refused> {
        let (mut heads, mut found) = (RequestHeads::default(), Vec::new());
        for mut piece in pieces.iter().copied() {
            loop {
                match heads.next(&mut piece)? {
                    Found::More => break,
                    request => found.push(request),
                }
            }
            assert!(piece.is_empty(), "left {piece:?}");
        }
        Ok(found)
    }

    #[test]
    fn requests_are_recognised() {
        let close = Found::Request { head_only: false, close: true };
        let table: [(&[u8], &[Found]); 8] = [
            (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", &[PLAIN]),
            (b"GET / HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\n", &[PLAIN, PLAIN]),
            (b"POST / HTTP/1.1\r\nContent-Length: 4\r\n\r\n\r\n\r\nGET / HTTP/1.1\r\n", &[PLAIN]),
            (b"POST / HTTP/1.1\r\ncontent-length:2\r\n\r\nx", &[]),
            (b"HEAD / HTTP/1.1\r\n\r\n", &[Found::Request { head_only: true, close: false }]),
            (b"GET / HTTP/1.1\r\nCONNECTION: Close\r\n\r\n", &[close]),
            (b"GET / HTTP/1.0\r\n\r\n", &[close]),
            (b"GET /?close HTTP/1.1\r\nConnection: keep-alive\r\n", &[]),
        ];
        for (input, expected) in table {
            assert_eq!(all(&[input]).as_deref(), Ok(expected), "{}", input.escape_ascii());
        }
    }

    #[test]
    fn what_cannot_be_followed_is_refused() {
        let chunked = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert_eq!(all(&[chunked]), Err(Refused));
        for length in ["", "-1", "+1", "1 2", "99999999999999999999"] {
            let head = format!("POST / HTTP/1.1\r\nContent-Length: {length}\r\n\r\n");
            assert_eq!(all(&[head.as_bytes()]), Err(Refused), "{length:?}");
        }
        let endless = vec![b'x'; HEAD_MAX / 4 + 1];
        assert_eq!(all(&[&endless[..]; 3]), Ok(vec![]));
        assert_eq!(all(&[&endless[..]; 4]), Err(Refused));
    }

    proptest! {
        #[test]
        fn the_count_does_not_depend_on_how_the_stream_is_torn(
            bodies in prop::collection::vec(prop::option::of(0usize..40), 1..8),
            cuts in prop::collection::vec(1usize..60, 0..40),
        ) {
            let mut stream = Vec::new();
            for body in &bodies {
                match body {
                    Some(len) => {
                        stream.extend(format!("POST / HTTP/1.1\r\nContent-Length: {len}\r\n\r\n").bytes());
                        stream.extend(b"\r\n\r\nGET".iter().cycle().take(*len));
                    }
                    None => stream.extend(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
                }
            }
            let (mut pieces, mut rest) = (Vec::new(), stream.as_slice());
            for cut in cuts {
                let (piece, after) = rest.split_at(cut.min(rest.len()));
                pieces.push(piece);
                rest = after;
            }
            pieces.push(rest);
            prop_assert_eq!(all(&pieces).map(|found| found.len()), Ok(bodies.len()));
        }
    }
}
