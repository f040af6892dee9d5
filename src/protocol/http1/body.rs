//! Telling body bytes from framing bytes.

use super::{
    Framing,
    error::plain_error,
    trailers::{Trailers, TrailersError},
};

/// `2^64 - 1` has 16 hexadecimal digits; more, leading zeros included, are refused.
const SIZE_DIGITS_MAX: u8 = 16;

/// Bytes of one chunk's extensions.
const EXTENSION_BYTES_MAX: u16 = 256;

/// Bytes of all extensions of a body: one such line per byte of data would be a cheap attack.
const EXTENSION_BYTES_TOTAL_MAX: u32 = 16 * 1024;

plain_error! {
    /// Why a body was refused; RFC 9112 section 7.1.
    pub enum BodyError {
        /// The chunk size is not hexadecimal digits only.
        ChunkSize = (Malformed, 400, "malformed chunk size"),
        /// A control character in a chunk extension, or whitespace with no extension behind it.
        ChunkExtension = (Malformed, 400, "malformed chunk extension"),
        /// CR without LF in a framing line.
        BareCr = (Malformed, 400, "CR without LF in the chunked coding"),
        /// LF without CR in a framing line.
        BareLf = (Malformed, 400, "LF without CR in the chunked coding"),
        /// The chunk's data is not followed by CRLF.
        ChunkEnd = (Malformed, 400, "chunk longer than its size"),
        /// A trailer field breaks the grammar of fields.
        Trailers = (Malformed, 400, "malformed trailer"),
        /// The connection ended within the body.
        Truncated = (Malformed, 400, "body ended early"),
        /// More than 16 digits of chunk size.
        ChunkSizeTooLong = (Limit, 413, "chunk size too long"),
        /// Too many bytes of chunk extensions.
        ChunkExtensionsTooLong = (Limit, 413, "chunk extensions too long"),
        /// Too many trailer fields, or bytes of them.
        TrailersTooLarge = (Limit, 431, "trailers too large"),
    }
}

impl From<TrailersError> for BodyError {
    fn from(error: TrailersError) -> Self {
        match error {
            TrailersError::Malformed => Self::Trailers,
            TrailersError::TooLarge => Self::TrailersTooLarge,
        }
    }
}

/// What a step found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Body bytes from `start` up to `end`. Those before `start` were framing; all up to `end` are
    /// consumed, and a further step takes the rest.
    Data {
        /// Index of the first body byte.
        start: usize,
        /// Index behind the last one.
        end: usize,
    },
    /// All input is consumed and held no body bytes.
    More,
    /// The body is over after this many bytes of input; what follows is not part of it.
    End(usize),
}

/// Decodes one body. It looks at no body byte, and at each framing byte once.
#[derive(Debug)]
pub struct BodyDecoder {
    state: State,
    /// Bytes still to come: of the body, or of the current chunk.
    remaining: u64,
    size_digits: u8,
    extension_bytes: u16,
    extension_bytes_total: u32,
    /// Boxed, because few bodies have any.
    trailers: Option<Box<Trailers>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Counting down a `Content-Length`.
    Length,
    /// Everything until the connection ends.
    Close,
    /// Before the first digit of a chunk size.
    SizeStart,
    Size,
    /// Whitespace between size and extension.
    ExtensionSpace,
    Extension,
    /// The LF that ends a chunk size line.
    SizeLf,
    ChunkData,
    /// The CR behind a chunk's data.
    ChunkCr,
    ChunkLf,
    /// The first byte behind the last chunk.
    TrailersStart,
    Trailers,
    /// The last LF of a body without trailers.
    EndLf,
    Done,
    Failed(BodyError),
}

impl BodyDecoder {
    /// For a body with this framing.
    pub const fn new(framing: Framing) -> Self {
        let (state, remaining) = match framing {
            Framing::None | Framing::Length(0) => (State::Done, 0),
            Framing::Length(length) => (State::Length, length),
            Framing::Chunked => (State::SizeStart, 0),
            Framing::Close => (State::Close, 0),
        };
        Self {
            state,
            remaining,
            size_digits: 0,
            extension_bytes: 0,
            extension_bytes_total: 0,
            trailers: None,
        }
    }

    /// Looks at the next bytes. Call it again with what it left until it says [`Step::More`] or
    /// [`Step::End`]. The input may be empty.
    ///
    /// # Errors
    ///
    /// See [`BodyError`]; from then on always the same.
    pub fn step(&mut self, input: &[u8]) -> Result<Step, BodyError> {
        match self.state {
            State::Length => Ok(self.data(input, 0, State::Done)),
            State::Close if input.is_empty() => Ok(Step::More),
            State::Close => Ok(Step::Data { start: 0, end: input.len() }),
            State::Done => Ok(Step::End(0)),
            State::Failed(error) => Err(error),
            _ => self.chunked(input).inspect_err(|&error| self.state = State::Failed(error)),
        }
    }

    /// The connection has ended.
    ///
    /// # Errors
    ///
    /// [`BodyError::Truncated`] if the body has not; the error of an earlier step.
    pub fn eof(&mut self) -> Result<(), BodyError> {
        match self.state {
            State::Close | State::Done => {
                self.state = State::Done;
                Ok(())
            }
            State::Failed(error) => Err(error),
            _ => {
                self.state = State::Failed(BodyError::Truncated);
                Err(BodyError::Truncated)
            }
        }
    }

    /// Whether the body is over.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Bytes of the body still to come, where that is known.
    pub fn remaining_hint(&self) -> Option<u64> {
        match self.state {
            State::Length => Some(self.remaining),
            State::Done => Some(0),
            _ => None,
        }
    }

    /// Bytes that are known to come: of the body, or of the current chunk, whose size may have been
    /// announced before any of its data came.
    pub fn announced(&self) -> u64 {
        match self.state {
            State::Length | State::ChunkData => self.remaining,
            _ => 0,
        }
    }

    /// Names and values of the trailer fields, once the body is over. Fields that frame, route,
    /// authenticate or describe the message are left out (RFC 9110 section 6.5.1).
    pub fn trailers(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.trailers.iter().filter(|_| self.is_done()).flat_map(|trailers| trailers.iter())
    }

    fn chunked(&mut self, input: &[u8]) -> Result<Step, BodyError> {
        let mut at = 0;
        loop {
            match self.state {
                State::ChunkData => return Ok(self.data(input, at, State::ChunkCr)),
                State::Trailers => return self.collect_trailers(input, at),
                State::Done => return Ok(Step::End(at)),
                _ => {}
            }
            let Some(&byte) = input.get(at) else { return Ok(Step::More) };
            if self.state == State::TrailersStart && byte != b'\r' {
                self.state = State::Trailers;
                continue;
            }
            at += 1;
            self.state = self.framing_byte(byte)?;
        }
    }

    /// Passes on what belongs to the current run of data, which is followed by `next`.
    fn data(&mut self, input: &[u8], start: usize, next: State) -> Step {
        let available = input.len().saturating_sub(start);
        let len = usize::try_from(self.remaining).map_or(available, |left| left.min(available));
        if len == 0 {
            return Step::More;
        }
        self.remaining -= len as u64;
        if self.remaining == 0 {
            self.state = next;
        }
        Step::Data { start, end: start + len }
    }

    fn framing_byte(&mut self, byte: u8) -> Result<State, BodyError> {
        match (self.state, byte) {
            (State::SizeStart, _) => {
                self.size_digits = 0;
                self.extension_bytes = 0;
                self.size_digit(byte)
            }
            (State::Size | State::Extension, b'\r') => Ok(State::SizeLf),
            (State::Size | State::Extension | State::ExtensionSpace, b'\n') => {
                Err(BodyError::BareLf)
            }
            (State::Size | State::ExtensionSpace, b';') => self.extension_byte(State::Extension),
            (State::Size | State::ExtensionSpace, b' ' | b'\t') => {
                self.extension_byte(State::ExtensionSpace)
            }
            (State::Size, _) => self.size_digit(byte),
            (State::Extension, b'\t' | b' '..=b'~' | 0x80..) => {
                self.extension_byte(State::Extension)
            }
            (State::Extension | State::ExtensionSpace, _) => Err(BodyError::ChunkExtension),
            (State::SizeLf, b'\n') if self.remaining == 0 => Ok(State::TrailersStart),
            (State::SizeLf, b'\n') => Ok(State::ChunkData),
            (State::ChunkCr, b'\r') => Ok(State::ChunkLf),
            (State::ChunkLf, b'\n') => Ok(State::SizeStart),
            (State::TrailersStart, b'\r') => Ok(State::EndLf),
            (State::EndLf, b'\n') => Ok(State::Done),
            (State::SizeLf | State::ChunkLf | State::EndLf, _) => Err(BodyError::BareCr),
            _ => Err(BodyError::ChunkEnd),
        }
    }

    fn size_digit(&mut self, byte: u8) -> Result<State, BodyError> {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            b'A'..=b'F' => byte - b'A' + 10,
            _ => return Err(BodyError::ChunkSize),
        };
        self.size_digits += 1;
        if self.size_digits > SIZE_DIGITS_MAX {
            return Err(BodyError::ChunkSizeTooLong);
        }
        self.remaining = (self.remaining << 4) | u64::from(digit);
        Ok(State::Size)
    }

    fn extension_byte(&mut self, next: State) -> Result<State, BodyError> {
        self.extension_bytes += 1;
        self.extension_bytes_total += 1;
        if self.extension_bytes > EXTENSION_BYTES_MAX
            || self.extension_bytes_total > EXTENSION_BYTES_TOTAL_MAX
        {
            return Err(BodyError::ChunkExtensionsTooLong);
        }
        Ok(next)
    }

    fn collect_trailers(&mut self, input: &[u8], at: usize) -> Result<Step, BodyError> {
        let rest = input.get(at..).unwrap_or_default();
        if rest.is_empty() {
            return Ok(Step::More);
        }
        let trailers = self.trailers.get_or_insert_default();
        let Some(end) = trailers.collect(rest)? else { return Ok(Step::More) };
        self.state = State::Done;
        Ok(Step::End(at + end))
    }
}

#[cfg(test)]
mod tests;
