//! Keys of a terminal in raw mode. Read here and not through crossterm, which reads the end of a terminal that
//! has gone for ever, at whatever moment it goes.

use std::fs::File;
use std::io::{self, IsTerminal as _, Read as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::time::Duration;

use crate::sys::poll;

/// What a key asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    /// Ends the view.
    End,
    /// So many rows down, or up.
    Scroll(i16),
    /// To the first row.
    Home,
}

/// Where keys come from.
#[derive(Debug)]
pub(super) struct Keyboard(File);

impl Keyboard {
    /// Standard input if that is a terminal, else the controlling one.
    ///
    /// # Errors
    /// What open(2) says.
    pub(super) fn open() -> io::Result<Self> {
        let stdin = io::stdin();
        if stdin.is_terminal() {
            return Ok(Self(File::from(stdin.as_fd().try_clone_to_owned()?)));
        }
        File::open("/dev/tty").map(Self)
    }

    /// The keys of the next moment; a terminal that has gone ends the view.
    ///
    /// # Errors
    /// What ppoll(2) says.
    pub(super) fn wait(&mut self, moment: Duration) -> io::Result<Vec<Key>> {
        let (mut ready, mut scratch) = (Vec::new(), Vec::new());
        poll::readable(&[self.0.as_raw_fd()], Some(moment), &mut ready, &mut scratch)?;
        if ready.is_empty() {
            return Ok(Vec::new());
        }
        let mut bytes = [0; 256];
        match self.0.read(&mut bytes) {
            Ok(0) | Err(_) => Ok(vec![Key::End]),
            Ok(len) => Ok(keys(bytes.get(..len).unwrap_or_default())),
        }
    }
}

/// The keys in what was read at once: bytes, and sequences as ECMA-48 and xterm have them.
fn keys(mut bytes: &[u8]) -> Vec<Key> {
    let mut keys = Vec::new();
    while let Some((&first, rest)) = bytes.split_first() {
        bytes = rest;
        let key = match (first, rest) {
            (b'q' | 0x03, _) | (0x1b, []) => Some(Key::End),
            (b'j', _) => Some(Key::Scroll(1)),
            (b'k', _) => Some(Key::Scroll(-1)),
            (0x1b, [b'[' | b'O', sequence @ ..]) => {
                // Parameters, then one byte that ends it.
                let last = sequence.iter().position(|byte| (0x40..0x7f).contains(byte));
                let end = last.map_or(sequence.len(), |last| last + 1);
                let (sequence, after) = sequence.split_at(end);
                bytes = after;
                named(sequence)
            }
            _ => None,
        };
        keys.extend(key);
    }
    keys
}

fn named(sequence: &[u8]) -> Option<Key> {
    match sequence {
        b"A" => Some(Key::Scroll(-1)),
        b"B" => Some(Key::Scroll(1)),
        b"5~" => Some(Key::Scroll(-10)),
        b"6~" => Some(Key::Scroll(10)),
        b"H" | b"1~" | b"7~" => Some(Key::Home),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_sequences_are_keys() {
        use Key::{End, Home, Scroll};
        let cases: [(&[u8], &[Key]); 12] = [
            (b"q", &[End]),
            (b"\x03", &[End]),
            (b"\x1b", &[End]),
            (b"jk", &[Scroll(1), Scroll(-1)]),
            (b"\x1b[A\x1bOB", &[Scroll(-1), Scroll(1)]),
            (b"\x1b[5~\x1b[6~", &[Scroll(-10), Scroll(10)]),
            (b"\x1b[H\x1b[1~\x1bOH", &[Home, Home, Home]),
            (b"\x1b[1;5Aj", &[Scroll(1)]),
            (b"\x1b[200", &[]),
            (b"x\xff\0", &[]),
            (b"\x1bq", &[End]),
            (b"", &[]),
        ];
        for (bytes, expected) in cases {
            assert_eq!(keys(bytes), expected, "{}", bytes.escape_ascii());
        }
    }
}
