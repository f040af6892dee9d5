//! The lines of a head taken apart, as long as they are as plain as nearly all lines are.
//!
//! What is not plain is left to httparse, which says what is wrong with it, or takes it after all; what is taken here,
//! httparse takes in the same way (a test compares them).

use super::{Field, FieldId, HEAD_BYTES_MAX, Span, Version, block};

/// Goes through a head, line by line. Each step gives `None` when what comes next is not plain.
#[derive(Debug)]
pub(super) struct Lines<'a> {
    head: &'a [u8],
    at: usize,
}

impl<'a> Lines<'a> {
    /// The lines from `at` on; of more than the longest head there may be, the beginning.
    pub(super) fn new(head: &'a [u8], at: usize) -> Self {
        let head = head.get(..HEAD_BYTES_MAX).unwrap_or(head);
        Self { head, at }
    }

    /// `method SP target SP HTTP/1.x CRLF` (RFC 9112 section 3).
    pub(super) fn request_line(&mut self) -> Option<(Span, Span, Version)> {
        let (method, _) = self.token(b' ')?;
        let target = self.until(block::find_invisible(self.head, self.at)?);
        if target.is_empty() || !self.take(b" ") {
            return None;
        }
        let version = self.version()?;
        self.take(b"\r\n").then_some((method, target, version))
    }

    /// `HTTP/1.x SP status SP reason CRLF` (RFC 9112 section 4).
    pub(super) fn status_line(&mut self) -> Option<(Version, u16, Span)> {
        let version = self.version()?;
        let [b' ', digits @ .., b' '] = *self.rest().first_chunk::<5>()? else { return None };
        let status = digits.iter().try_fold(0, |status, digit| {
            digit.is_ascii_digit().then(|| status * 10 + u16::from(digit - b'0'))
        })?;
        self.at += 5;
        let reason = self.until(self.find_text_end(self.at)?);
        self.take(b"\r\n").then_some((version, status, reason))
    }

    /// Field lines and the empty line behind them; `max` of them at most. How long the head is.
    pub(super) fn fields(&mut self, max: usize, fields: &mut Vec<Field>) -> Option<usize> {
        fields.clear();
        while !self.take(b"\r\n") {
            if fields.len() >= max {
                return None;
            }
            fields.push(self.field()?);
        }
        Some(self.at)
    }

    /// `name: value CRLF` (RFC 9112 section 5).
    #[inline]
    fn field(&mut self) -> Option<Field> {
        let (name, id, underscore) = self.name()?;
        let rest = self.rest();
        let (blanks, one_space) = match rest {
            [b' ', next, ..] if !is_blank(*next) => (1, true),
            _ => (rest.iter().position(|&byte| !is_blank(byte))?, false),
        };
        let start = self.at + blanks;
        let end = self.find_text_end(start)?;
        if self.head.get(end..)?.first_chunk() != Some(b"\r\n") {
            return None;
        }
        let text = self.head.get(start..end)?;
        let trailing = text.iter().rev().take_while(|&&byte| is_blank(byte)).count();
        let value = Span::within_head(start, end - trailing);
        self.at = end + 2;
        Some(Field { name, value, id, plain: one_space && trailing == 0, underscore })
    }

    /// A name and the colon behind it; which field that is, and whether there is an underscore in it.
    #[inline]
    fn name(&mut self) -> Option<(Span, FieldId, bool)> {
        let (start, length) = (self.at, block::name_length(self.head, self.at));
        let end = start + length;
        if length > 0 && self.head.get(end) == Some(&b':') {
            self.at = end + 1;
            return Some((
                Span::within_head(start, end),
                FieldId::of_plain(self.head, start, length),
                false,
            ));
        }
        let (name, underscore) = self.token(b':')?;
        Some((name, FieldId::Other, underscore))
    }

    /// A token with this behind it, which is gone past; and whether there is an underscore in it.
    fn token(&mut self, end: u8) -> Option<(Span, bool)> {
        let mut seen = 0;
        let length = self.rest().iter().position(|&byte| {
            let class = CLASSES[usize::from(byte)];
            seen |= class;
            class == 0
        })?;
        let token = self.until(self.at + length);
        (!token.is_empty() && self.take(&[end])).then_some((token, seen & UNDERSCORE != 0))
    }

    fn version(&mut self) -> Option<Version> {
        let version = match self.rest().first_chunk::<8>()? {
            b"HTTP/1.1" => Version::Http11,
            b"HTTP/1.0" => Version::Http10,
            _ => return None,
        };
        self.at += 8;
        Some(version)
    }

    /// Goes on to `end`; what lies before it.
    fn until(&mut self, end: usize) -> Span {
        let span = Span::within_head(self.at, end);
        self.at = end;
        span
    }

    /// Goes past these bytes if they come next.
    fn take(&mut self, bytes: &[u8]) -> bool {
        let comes = self.rest().starts_with(bytes);
        self.at += if comes { bytes.len() } else { 0 };
        comes
    }

    /// Where the first control character other than HTAB at or behind `at` is.
    #[inline(always)] // called for each line, of which most have a word or two
    fn find_text_end(&self, at: usize) -> Option<usize> {
        let mut end = block::find_control(self.head, at)?;
        while self.head.get(end) == Some(&b'\t') {
            end = block::find_control(self.head, end + 1)?;
        }
        Some(end)
    }

    fn rest(&self) -> &'a [u8] {
        self.head.get(self.at..).unwrap_or_default()
    }
}

fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

/// Of [`CLASSES`]: part of a token.
const TOKEN: u8 = 1;
/// Likewise, and an underscore.
const UNDERSCORE: u8 = 2;

/// What a byte can be in a token (RFC 9110 section 5.6.2); 0 for what cannot be in one.
const CLASSES: [u8; 256] = {
    let mut classes = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        #[expect(clippy::cast_possible_truncation, reason = "below 256")]
        let letter = byte as u8;
        classes[byte] = match letter {
            b'_' => UNDERSCORE,
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => TOKEN,
            b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' => TOKEN,
            b'-' | b'.' | b'^' | b'`' | b'|' | b'~' => TOKEN,
            _ => 0,
        };
        byte += 1;
    }
    classes
};

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What httparse makes of a request's head: the parts of its first line, then names and values.
    type Parts<'a> = (&'a [u8], &'a [u8], u8, Pairs<'a>);
    /// The same of a response, without its reason.
    type Answer<'a> = (u8, u16, Pairs<'a>);
    type Pairs<'a> = Vec<(&'a [u8], &'a [u8])>;

    fn theirs(head: &[u8]) -> Option<Parts<'_>> {
        let mut slots = [httparse::EMPTY_HEADER; 8];
        let mut request = httparse::Request::new(&mut slots);
        let parsed = request.parse(head).ok()?;
        (parsed == httparse::Status::Complete(head.len())).then_some(())?;
        let fields = request.headers.iter().map(|field| (field.name.as_bytes(), field.value));
        let (method, target) = (request.method?.as_bytes(), request.path?.as_bytes());
        Some((method, target, request.version?, fields.collect()))
    }

    fn ours(head: &[u8]) -> Option<Parts<'_>> {
        let (mut lines, mut fields) = (Lines::new(head, 0), Vec::new());
        let (method, target, version) = lines.request_line()?;
        (lines.fields(8, &mut fields)? == head.len()).then_some(())?;
        let parts = |field: &Field| (field.name.of(head), field.value.of(head));
        let fields = fields.iter().map(parts).collect();
        Some((method.of(head), target.of(head), u8::from(version == Version::Http11), fields))
    }

    fn their_response(head: &[u8]) -> Option<Answer<'_>> {
        let mut slots = [httparse::EMPTY_HEADER; 8];
        let mut response = httparse::Response::new(&mut slots);
        let parsed = response.parse(head).ok()?;
        (parsed == httparse::Status::Complete(head.len())).then_some(())?;
        let fields = response.headers.iter().map(|field| (field.name.as_bytes(), field.value));
        Some((response.version?, response.code?, fields.collect()))
    }

    fn our_response(head: &[u8]) -> Option<Answer<'_>> {
        let (mut lines, mut fields) = (Lines::new(head, 0), Vec::new());
        let (version, status, _) = lines.status_line()?;
        (lines.fields(8, &mut fields)? == head.len()).then_some(())?;
        let parts = |field: &Field| (field.name.of(head), field.value.of(head));
        Some((u8::from(version == Version::Http11), status, fields.iter().map(parts).collect()))
    }

    #[test]
    fn what_is_plain_is_taken() {
        let plain: [&[u8]; 6] = [
            b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            b"M-SEARCH * HTTP/1.0\r\n\r\n",
            b"GET /~a?b=%20 HTTP/1.1\r\nA:b\r\nB:\r\nC: \t d \t\r\nD: \xe9\te\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nDate: now\r\n\r\n",
            b"HTTP/1.0 404 \r\n\r\n",
            b"HTTP/1.1 200 n\xe9\r\nA: \r\n\r\n",
        ];
        for head in plain {
            let taken = ours(head).is_some() || our_response(head).is_some();
            assert!(taken, "{:?}", String::from_utf8_lossy(head));
            for end in 0..head.len() {
                assert!(ours(&head[..end]).is_none() && our_response(&head[..end]).is_none());
            }
        }
    }

    #[test]
    fn only_lines_in_their_plain_form_are_marked_so() {
        let head = b"A: b\r\nB:c\r\nC: d \r\nD:\te\r\nE:  f\r\nF_g: h\r\nG:\r\nH: \r\n\r\n";
        let mut fields = Vec::new();
        Lines::new(head, 0).fields(9, &mut fields).unwrap();
        let marks: Vec<_> = fields.iter().map(|field| (field.plain, field.underscore)).collect();
        let (plain, other) = ((true, false), (false, false));
        assert_eq!(marks, [plain, other, other, other, other, (true, true), other, plain]);
    }

    /// Pieces of heads, good and bad, with any byte among them now and then.
    fn pieces(first: &'static [&'static str]) -> impl Strategy<Value = Vec<u8>> {
        let pieces = prop::sample::select(vec![
            "Host: a\r\n",
            "A:b\r\n",
            "B: \t c\t \r\n",
            "C:\r\n",
            "d_e: f\r\n",
            "\r\n",
            "\n",
            "\r",
            " ",
            "\t",
            ":",
            "\0",
            "\x7f",
            "é",
            "x",
            "Long-Name-Of-A-Field: with a long value\tof \u{fc} bytes\r\n",
        ]);
        let piece = prop_oneof![
            8 => pieces.prop_map(|piece| piece.as_bytes().to_vec()),
            1 => any::<u8>().prop_map(|byte| vec![byte]),
        ];
        let middle = prop::collection::vec(piece, 0..6).prop_map(|pieces| pieces.concat());
        (prop::sample::select(first), middle, any::<bool>()).prop_map(|(first, middle, ends)| {
            [first.as_bytes(), &middle, if ends { b"\r\n" } else { b"" }].concat()
        })
    }

    proptest! {
        #[test]
        fn what_is_taken_of_requests_httparse_takes_in_the_same_way(
            head in pieces(&["GET / HTTP/1.1\r\n", "POST /é HTTP/1.0\r\n", "GET / HTTP/1.2\r\n", "G", "GET  ", "GET /a"])
        ) {
            if let Some(parts) = ours(&head) {
                prop_assert_eq!(Some(parts), theirs(&head));
            }
        }

        #[test]
        fn and_of_responses(head in pieces(&["HTTP/1.1 200 OK\r\n", "HTTP/1.0 099 \r\n", "HTTP/1.1 20", "HTTP/1.1 200"])) {
            if let Some(parts) = our_response(&head) {
                prop_assert_eq!(Some(parts), their_response(&head));
            }
        }
    }
}
