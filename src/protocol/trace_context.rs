//! `traceparent` (W3C Trace Context, Level 1): which trace a request belongs to, and which span sent it.

/// Digits of a trace's identifier.
pub const TRACE_LEN: usize = 32;
/// Digits of a span's identifier.
pub const SPAN_LEN: usize = 16;
/// Bytes of a `traceparent` of version 00.
pub const LEN: usize = 55;
/// The caller may have recorded the trace.
pub const SAMPLED: u8 = 1;

/// What a `traceparent` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parent {
    /// The trace, in lower-case hexadecimal digits.
    pub trace: [u8; TRACE_LEN],
    /// The span of whoever sent the request.
    pub span: [u8; SPAN_LEN],
    /// [`SAMPLED`], or 0: other flags are not passed on (section 3.2.2.5).
    pub flags: u8,
}

impl Parent {
    /// Understands a value; `None` if it is to be ignored (section 3.2.2).
    #[must_use]
    pub fn parse(value: &[u8]) -> Option<Self> {
        let (version, rest) = (value.get(..2)?, value.get(2..)?);
        let is_digits = |digits: &[u8]| {
            digits.iter().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(byte))
        };
        if !is_digits(version) || version == b"ff" {
            return None;
        }
        // Later versions may append to it.
        let end = value.get(LEN);
        if end.is_some() && (version == b"00" || end != Some(&b'-')) {
            return None;
        }
        let (trace, rest) =
            (rest.strip_prefix(b"-")?.get(..TRACE_LEN)?, rest.get(TRACE_LEN + 1..)?);
        let (span, rest) = (rest.strip_prefix(b"-")?.get(..SPAN_LEN)?, rest.get(SPAN_LEN + 1..)?);
        let flags = rest.strip_prefix(b"-")?.get(..2)?;
        let is_zero = |digits: &[u8]| digits.iter().all(|byte| *byte == b'0');
        if ![trace, span, flags].into_iter().all(is_digits) || is_zero(trace) || is_zero(span) {
            return None;
        }
        let last = flags.get(1).copied().unwrap_or(b'0');
        let low = if last.is_ascii_digit() { last - b'0' } else { last - b'a' + 10 };
        Some(Self {
            trace: trace.try_into().ok()?,
            span: span.try_into().ok()?,
            flags: low & SAMPLED,
        })
    }

    /// The value, in version 00.
    #[must_use]
    pub fn value(&self) -> [u8; LEN] {
        let mut value = *b"00-00000000000000000000000000000000-0000000000000000-00";
        let parts = [(3, &self.trace[..]), (4 + TRACE_LEN, &self.span[..])];
        for (start, part) in parts {
            value.iter_mut().skip(start).zip(part).for_each(|(to, from)| *to = *from);
        }
        if let Some(last) = value.last_mut() {
            *last = b'0' + (self.flags & SAMPLED);
        }
        value
    }
}

/// Digits that are not all zero, which stands for none.
#[must_use]
pub fn identifier<const N: usize>(digits: [u8; N]) -> [u8; N] {
    let mut digits = digits;
    if digits.iter().all(|byte| *byte == b'0')
        && let Some(last) = digits.last_mut()
    {
        *last = b'1';
    }
    digits
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn the_example_of_the_specification() {
        let parent = Parent::parse(GOOD.as_bytes()).unwrap();
        assert_eq!(&parent.trace, b"4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!((&parent.span, parent.flags), (b"00f067aa0ba902b7", SAMPLED));
        assert_eq!(parent.value(), GOOD.as_bytes());
    }

    #[test]
    fn what_is_ignored_and_what_is_not() {
        let with = |at: usize, text: &str| {
            let mut value = GOOD.to_owned();
            value.replace_range(at..at + text.len(), text);
            value
        };
        for (value, good) in [
            (with(53, "00"), true),
            (with(53, "ff"), true),
            (with(0, "01"), true),
            (format!("cc{}-what-comes", &GOOD[2..]), true),
            (format!("cc{}.what-comes", &GOOD[2..]), false),
            (format!("{GOOD}-x"), false),
            (format!("{GOOD} "), false),
            (with(0, "ff"), false),
            (with(0, "0G"), false),
            (with(2, "_"), false),
            (with(35, "_"), false),
            (with(52, "_"), false),
            (with(3, "4BF9"), false),
            (with(36, "00F0"), false),
            (with(53, "0G"), false),
            (with(3, &"0".repeat(32)), false),
            (with(36, &"0".repeat(16)), false),
            (GOOD[..54].to_owned(), false),
            (String::new(), false),
            ("00".to_owned(), false),
        ] {
            assert_eq!(Parent::parse(value.as_bytes()).is_some(), good, "{value}");
        }
        assert_eq!(Parent::parse(with(53, "fe").as_bytes()).unwrap().flags, 0);
    }

    #[test]
    fn nobody_is_called_zero() {
        assert_eq!(identifier(*b"0000"), *b"0001");
        assert_eq!(identifier(*b"0a00"), *b"0a00");
    }

    proptest! {
        #[test]
        fn any_bytes(value in prop::collection::vec(any::<u8>(), 0..80)) {
            if let Some(parent) = Parent::parse(&value) {
                prop_assert_eq!(Parent::parse(&parent.value()), Some(parent));
            }
        }

        #[test]
        fn there_and_back(trace in "[0-9a-f]{31}1", span in "[0-9a-f]{15}1", flags in 0_u8..2) {
            let (trace, span) = (trace.as_bytes(), span.as_bytes());
            let parent =
                Parent { trace: trace.try_into().unwrap(), span: span.try_into().unwrap(), flags };
            prop_assert_eq!(Parent::parse(&parent.value()), Some(parent));
        }
    }
}
