//! Reading responses off a byte stream, with the product's own codec.
//!
//! What makes it cheap: servers repeat themselves. A head that is byte for byte the last one of the
//! connection means what that meant, so it is compared instead of parsed.

use ringgate::protocol::http1::{
    BodyDecoder, FIELDS_MAX, Framing, HEAD_BYTES_MAX, HeadScanner, Limits, Method, ResponseHead,
    Scan, Step,
};

const LIMITS: Limits = Limits { head_bytes: HEAD_BYTES_MAX, headers: FIELDS_MAX };

/// A response has arrived as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Done {
    pub(crate) status: u16,
    /// The connection may carry more.
    pub(crate) persistent: bool,
}

/// The bytes are no response to the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed;

/// What the last head meant.
#[derive(Debug)]
struct Known {
    head: Vec<u8>,
    method: Method,
    framing: Framing,
    done: Done,
}

/// Reads one response after the other.
#[derive(Debug)]
pub(crate) struct ResponseReader {
    /// The beginning of a head whose end has not come.
    partial: Vec<u8>,
    scanner: HeadScanner,
    parsed: ResponseHead,
    known: Known,
    /// Of the response whose head is known.
    body: Option<BodyDecoder>,
}

impl ResponseReader {
    pub(crate) fn new() -> Self {
        let done = Done { status: 0, persistent: false };
        let (method, framing) = (Method::Other, Framing::None);
        Self {
            partial: Vec::new(),
            scanner: HeadScanner::for_response(),
            parsed: ResponseHead::new(),
            known: Known { head: Vec::new(), method, framing, done },
            body: None,
        }
    }

    /// For a new connection.
    pub(crate) fn reset(&mut self) {
        self.partial.clear();
        self.scanner = HeadScanner::for_response();
        self.body = None;
    }

    /// Looks at the next bytes and takes off what it has consumed, up to the end of the response to
    /// a request with this method; `None` when that has not come.
    pub(crate) fn read(
        &mut self,
        input: &mut &[u8],
        method: Method,
    ) -> Result<Option<Done>, Malformed> {
        loop {
            if let Some(body) = &mut self.body {
                if body.is_done() {
                    self.body = None;
                    return Ok(Some(self.known.done));
                }
                let used = match body.step(input).map_err(|_| Malformed)? {
                    Step::Data { end, .. } | Step::End(end) => end,
                    Step::More => input.len(),
                };
                *input = input.get(used..).unwrap_or_default();
                if input.is_empty() && !body.is_done() {
                    return Ok(None);
                }
            } else if input.is_empty() {
                return Ok(None);
            } else {
                self.read_head(input, method)?;
            }
        }
    }

    /// The connection has ended; `Some` when that ends the response properly.
    pub(crate) fn end(&mut self) -> Option<Done> {
        let mut body = self.body.take()?;
        body.eof().is_ok().then_some(self.known.done)
    }

    fn read_head(&mut self, input: &mut &[u8], method: Method) -> Result<(), Malformed> {
        let repeats = self.partial.is_empty()
            && !self.known.head.is_empty()
            && self.known.method == method
            && input.starts_with(&self.known.head);
        if repeats {
            *input = input.get(self.known.head.len()..).unwrap_or_default();
            self.body = Some(BodyDecoder::new(self.known.framing));
            return Ok(());
        }
        let used = match self.scanner.scan(input, &LIMITS).map_err(|_| Malformed)? {
            Scan::Complete(used) => used,
            Scan::Partial => {
                self.partial.extend_from_slice(input);
                *input = &[];
                return Ok(());
            }
        };
        let (head, rest) = input.split_at_checked(used).ok_or(Malformed)?;
        *input = rest;
        self.scanner = HeadScanner::for_response();
        self.partial.extend_from_slice(head);
        let partial = std::mem::take(&mut self.partial);
        let result = self.note(&partial, method);
        self.partial = partial;
        self.partial.clear();
        result
    }

    fn note(&mut self, head: &[u8], method: Method) -> Result<(), Malformed> {
        self.parsed.parse(head, &LIMITS, method).map_err(|_| Malformed)?;
        if self.parsed.upgrade {
            return Err(Malformed);
        }
        if self.parsed.is_interim() {
            return Ok(());
        }
        let known = &mut self.known;
        known.head.clear();
        known.head.extend_from_slice(head);
        known.method = method;
        known.framing = self.parsed.framing;
        known.done = Done { status: self.parsed.status, persistent: self.parsed.persistent };
        self.body = Some(BodyDecoder::new(known.framing));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Statuses of the responses in these pieces, to requests of one method.
    fn all(pieces: &[&[u8]], method: Method) -> Result<Vec<Done>, Malformed> {
        let (mut reader, mut found) = (ResponseReader::new(), Vec::new());
        for mut piece in pieces.iter().copied() {
            while let Some(done) = reader.read(&mut piece, method)? {
                found.push(done);
            }
            assert!(piece.is_empty());
        }
        found.extend(reader.end());
        Ok(found)
    }

    const fn kept(status: u16) -> Done {
        Done { status, persistent: true }
    }

    const fn last(status: u16) -> Done {
        Done { status, persistent: false }
    }

    #[test]
    fn every_framing_is_read() {
        let table: [(&[u8], &[Done]); 8] = [
            (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n",
             &[kept(200), kept(404)]),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", &[kept(200)]),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nA: b\r\n\r\n", &[kept(200)]),
            (b"HTTP/1.1 200 OK\r\n\r\nuntil the end", &[last(200)]),
            (b"HTTP/1.1 204 No Content\r\n\r\n", &[kept(204)]),
            (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", &[kept(200)]),
            (b"HTTP/1.1 503 Busy\r\nConnection: close\r\nContent-Length: 1\r\n\r\nx", &[last(503)]),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok", &[]),
        ];
        for (input, expected) in table {
            assert_eq!(
                all(&[input], Method::Get).as_deref(),
                Ok(expected),
                "{}",
                input.escape_ascii()
            );
        }
    }

    #[test]
    fn what_is_no_response_is_malformed() {
        for input in [
            &b"SSH-2.0-OpenSSH\r\n\r\n"[..],
            b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        ] {
            assert_eq!(all(&[input], Method::Get), Err(Malformed), "{}", input.escape_ascii());
        }
    }

    #[test]
    fn a_repeated_head_is_read_for_the_method_at_hand() {
        let head = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n";
        let mut reader = ResponseReader::new();
        let mut input = &[&head[..], b"body"].concat()[..];
        assert_eq!(reader.read(&mut input, Method::Get), Ok(Some(kept(200))));
        let mut input = &head[..];
        assert_eq!(reader.read(&mut input, Method::Head), Ok(Some(kept(200))));
        let mut input = &head[..];
        assert_eq!(reader.read(&mut input, Method::Get), Ok(None));
    }

    proptest! {
        #[test]
        fn responses_do_not_depend_on_how_the_stream_is_torn(
            kinds in prop::collection::vec((0usize..3, 0usize..30), 1..8),
            cuts in prop::collection::vec(1usize..50, 0..40),
        ) {
            let mut stream = Vec::new();
            for (kind, len) in &kinds {
                let body = "\r\nHTTP/1.1".chars().cycle().take(*len).collect::<String>();
                stream.extend(match kind {
                    0 => format!("HTTP/1.1 200 OK\r\nContent-Length: {len}\r\n\r\n{body}"),
                    1 if *len > 0 => format!(
                        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{len:x}\r\n{body}\r\n0\r\n\r\n"
                    ),
                    _ => "HTTP/1.1 204 No Content\r\n\r\n".to_owned(),
                }.bytes());
            }
            let (mut pieces, mut rest) = (Vec::new(), stream.as_slice());
            for cut in cuts {
                let (piece, after) = rest.split_at(cut.min(rest.len()));
                pieces.push(piece);
                rest = after;
            }
            pieces.push(rest);
            prop_assert_eq!(all(&pieces, Method::Get).map(|found| found.len()), Ok(kinds.len()));
        }
    }
}
