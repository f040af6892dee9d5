//! Finding the end of a head while its bytes arrive.

use memchr::memchr3;

use super::HeadError;

/// The longest head that can be parsed: [`Span`](super::Span) counts in 16 bits.
pub const HEAD_BYTES_MAX: usize = 65_535;

/// Empty lines skipped before a request line (RFC 9112 section 2.2 asks for one at least).
const LEADING_EMPTY_LINES_MAX: u8 = 2;

/// How large a head may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the whole head with its line ends; at most [`HEAD_BYTES_MAX`], larger counts as that.
    pub head_bytes: usize,
    /// Field lines; at most [`FIELDS_MAX`](super::FIELDS_MAX), larger counts as that.
    pub headers: usize,
}

impl Limits {
    pub(super) fn bytes(&self) -> usize {
        self.head_bytes.min(HEAD_BYTES_MAX)
    }

    pub(super) fn fields(&self) -> usize {
        self.headers.min(super::FIELDS_MAX)
    }
}

/// What a scan found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scan {
    /// Every byte belongs to the head, which goes on.
    Partial,
    /// The head ends after this many bytes of the slice just scanned.
    Complete(usize),
}

/// Searches for the empty line that ends a head, looking at each byte once however they arrive.
///
/// It also holds the head to its limits and its lines to CRLF, so that neither a flood nor a torn
/// line has to be collected before it is refused. After an error or [`Scan::Complete`] it is spent.
#[derive(Debug, Clone)]
pub struct HeadScanner {
    /// Bytes seen.
    bytes: usize,
    /// Lines ended, the start line included, leading empty lines not.
    lines: usize,
    leading_empty_lines: u8,
    /// The last byte was a CR.
    after_cr: bool,
    /// The current line has no bytes yet, line end apart.
    line_empty: bool,
}

impl Default for HeadScanner {
    fn default() -> Self {
        Self::new()
    }
}

impl HeadScanner {
    /// For a request: up to two empty lines may precede the request line.
    pub const fn new() -> Self {
        Self { bytes: 0, lines: 0, leading_empty_lines: 0, after_cr: false, line_empty: true }
    }

    /// For a response: the first line is the status line.
    pub const fn for_response() -> Self {
        Self { leading_empty_lines: LEADING_EMPTY_LINES_MAX, ..Self::new() }
    }

    /// For a section of field lines without a start line.
    pub(super) const fn for_trailers() -> Self {
        Self { lines: 1, ..Self::new() }
    }

    /// Whether nothing has been looked at yet.
    pub const fn is_new(&self) -> bool {
        self.bytes == 0
    }

    /// Whether a start line has begun: before that, a connection that closes is merely idle.
    pub const fn has_begun(&self) -> bool {
        self.lines > 0 || !self.line_empty
    }

    /// Looks at the next bytes of a head.
    ///
    /// # Errors
    ///
    /// As soon as the bytes show it: a CR or LF without the other, NUL, too many leading empty
    /// lines, or a limit passed.
    pub fn scan(&mut self, bytes: &[u8], limits: &Limits) -> Result<Scan, HeadError> {
        let room = limits.bytes().saturating_sub(self.bytes);
        let window = bytes.get(..room).unwrap_or(bytes);
        let mut at = 0;
        while let Some(rest) = window.get(at..)
            && let Some(&first) = rest.first()
        {
            if self.after_cr {
                at += 1;
                if self.end_line(first, limits)? {
                    self.bytes += at;
                    return Ok(Scan::Complete(at));
                }
            } else {
                at += self.find_cr(rest)?;
            }
        }
        self.bytes += window.len();
        if window.len() < bytes.len() { Err(self.too_large()) } else { Ok(Scan::Partial) }
    }

    /// Goes past the next CR, or past everything; returns how many bytes that is.
    fn find_cr(&mut self, rest: &[u8]) -> Result<usize, HeadError> {
        let Some(offset) = memchr3(b'\r', b'\n', 0, rest) else {
            self.line_empty = false;
            return Ok(rest.len());
        };
        self.line_empty &= offset == 0;
        match rest.get(offset) {
            Some(b'\r') => self.after_cr = true,
            Some(b'\n') => return Err(HeadError::BareLf),
            _ => return Err(HeadError::Nul),
        }
        Ok(offset + 1)
    }

    /// Takes the byte after a CR; true when that ends the head.
    fn end_line(&mut self, byte: u8, limits: &Limits) -> Result<bool, HeadError> {
        if byte != b'\n' {
            return Err(HeadError::BareCr);
        }
        self.after_cr = false;
        if !self.line_empty {
            self.line_empty = true;
            self.lines += 1;
            let fields = self.lines - 1;
            return if fields > limits.fields() {
                Err(HeadError::TooManyFields)
            } else {
                Ok(false)
            };
        }
        if self.lines > 0 {
            return Ok(true);
        }
        if self.leading_empty_lines >= LEADING_EMPTY_LINES_MAX {
            return Err(HeadError::EmptyLines);
        }
        self.leading_empty_lines += 1;
        Ok(false)
    }

    fn too_large(&self) -> HeadError {
        if self.lines == 0 { HeadError::StartLineTooLong } else { HeadError::TooLarge }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits { head_bytes: 64, headers: 3 };

    fn whole(bytes: &[u8]) -> Result<Scan, HeadError> {
        HeadScanner::new().scan(bytes, &LIMITS)
    }

    /// Feeds pieces of the given sizes, then the rest; the end is counted from the start.
    fn torn(bytes: &[u8], sizes: &[usize], limits: &Limits) -> Result<Scan, HeadError> {
        let mut scanner = HeadScanner::new();
        let mut at = 0_usize;
        for &size in sizes.iter().chain([&usize::MAX]) {
            let piece = &bytes[at..bytes.len().min(at.saturating_add(size))];
            match scanner.scan(piece, limits)? {
                Scan::Complete(end) => return Ok(Scan::Complete(at + end)),
                Scan::Partial => at += piece.len(),
            }
        }
        Ok(Scan::Partial)
    }

    #[test]
    fn ends() {
        let table: &[(&[u8], Result<Scan, HeadError>)] = &[
            (b"", Ok(Scan::Partial)),
            (b"GET / HTTP/1.1\r\n", Ok(Scan::Partial)),
            (b"GET / HTTP/1.1\r\n\r", Ok(Scan::Partial)),
            (b"GET / HTTP/1.1\r\n\r\n", Ok(Scan::Complete(18))),
            (b"GET / HTTP/1.1\r\n\r\nnext\n", Ok(Scan::Complete(18))),
            (b"A\r\nB:\r\nC:\r\n\r\n", Ok(Scan::Complete(13))),
            (b"\r\nA\r\n\r\n", Ok(Scan::Complete(7))),
            (b"\r\n\r\nA\r\n\r\n", Ok(Scan::Complete(9))),
            (b"\r\n\r\n", Ok(Scan::Partial)),
            (b"\r\n\r\n\r\n", Err(HeadError::EmptyLines)),
            (b"\nA", Err(HeadError::BareLf)),
            (b"A\n", Err(HeadError::BareLf)),
            (b"A\r\nB: c\n", Err(HeadError::BareLf)),
            (b"A\r\n\n", Err(HeadError::BareLf)),
            (b"A\rB", Err(HeadError::BareCr)),
            (b"A\r\r\n", Err(HeadError::BareCr)),
            (b"A\r\nB: c\r \n", Err(HeadError::BareCr)),
            (b"A\0", Err(HeadError::Nul)),
            (b"\x16\x03\x01\x00", Err(HeadError::Nul)),
            (b"A\r\na:\r\nb:\r\nc:\r\n\r\n", Ok(Scan::Complete(17))),
            (b"A\r\na:\r\nb:\r\nc:\r\nd:\r\n", Err(HeadError::TooManyFields)),
            (&[b'A'; 64], Ok(Scan::Partial)),
            (&[b'A'; 65], Err(HeadError::StartLineTooLong)),
        ];
        for (bytes, expected) in table {
            assert_eq!(whole(bytes), *expected, "{:?}", String::from_utf8_lossy(bytes));
        }
        let mut long = b"A\r\nB: ".to_vec();
        long.resize(65, b'x');
        assert_eq!(whole(&long), Err(HeadError::TooLarge));
        assert_eq!(HeadError::TooLarge.status(), 431);
        assert_eq!(HeadError::StartLineTooLong.status(), 414);
    }

    #[test]
    fn head_may_fill_its_limit() {
        let mut head = b"A\r\nB: ".to_vec();
        head.resize(60, b'x');
        head.extend_from_slice(b"\r\n\r\n");
        assert_eq!(whole(&head), Ok(Scan::Complete(64)));
        head.extend_from_slice(b"pipelined");
        assert_eq!(whole(&head), Ok(Scan::Complete(64)));
    }

    #[test]
    fn responses_start_at_once() {
        let scan = HeadScanner::for_response().scan(b"\r\nHTTP/1.1 200\r\n\r\n", &LIMITS);
        assert_eq!(scan, Err(HeadError::EmptyLines));
        let scan = HeadScanner::for_response().scan(b"HTTP/1.1 200\r\n\r\n", &LIMITS);
        assert_eq!(scan, Ok(Scan::Complete(16)));
    }

    #[test]
    fn begins_with_the_start_line() {
        let mut scanner = HeadScanner::new();
        assert!(!scanner.has_begun());
        scanner.scan(b"\r\n\r", &LIMITS).unwrap();
        assert!(!scanner.has_begun());
        scanner.scan(b"\nG", &LIMITS).unwrap();
        assert!(scanner.has_begun());
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(
            parts in prop::collection::vec(prop::sample::select(vec![
                "\r\n", "\r\n", "\r", "\n", "\0", "a", "Name: value", "GET / HTTP/1.1\r\n", "\r\n\r\n",
            ]), 0..16),
            sizes in prop::collection::vec(0_usize..8, 0..40),
            head_bytes in 0_usize..80,
        ) {
            let bytes = parts.concat().into_bytes();
            let limits = Limits { head_bytes, headers: 3 };
            let expected = HeadScanner::new().scan(&bytes, &limits);
            prop_assert_eq!(torn(&bytes, &sizes, &limits), expected);
            prop_assert_eq!(torn(&bytes, &vec![1; bytes.len()], &limits), expected);
        }
    }
}
