//! What passes to a successor, as files in memory.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;

use crate::l4::handoff::{RECORD, Record, Standing};
use crate::sys::file;

/// Bytes written or read in one go: whole records.
const PIECE: usize = 4096 * RECORD;

/// A file of records while it is written.
#[derive(Debug)]
pub(super) struct Records {
    file: File,
    buffer: Vec<u8>,
    result: io::Result<()>,
}

impl Records {
    /// For records of this kind.
    pub(super) fn new<T: Record>() -> io::Result<Self> {
        let file = file::in_memory(c"ringgate-flows")?;
        let mut buffer = Vec::with_capacity(PIECE + T::MARK.len());
        buffer.extend_from_slice(&T::MARK);
        Ok(Self { file, buffer, result: Ok(()) })
    }

    pub(super) fn push(&mut self, record: &impl Record) {
        self.buffer.extend_from_slice(&record.encode());
        if self.buffer.len() >= PIECE {
            self.flush();
        }
    }

    fn flush(&mut self) {
        if self.result.is_ok() {
            self.result = self.file.write_all(&self.buffer);
        }
        self.buffer.clear();
    }

    /// The file, whole.
    pub(super) fn finish(mut self) -> io::Result<OwnedFd> {
        self.flush();
        self.result?;
        Ok(self.file.into())
    }
}

/// Hands every record of a file to `each`.
///
/// # Errors
/// Text: it has another layout, or cannot be read.
pub(super) fn read<T: Record>(file: &File, mut each: impl FnMut(T)) -> Result<(), String> {
    let failed = |error: io::Error| error.to_string();
    let mut mark = [0; 8];
    let known = file.read_at(&mut mark, 0).map_err(failed)?;
    if mark.get(..known) != Some(&T::MARK) {
        let seen = mark.escape_ascii();
        return Err(format!("layout {seen}, not {}", T::MARK.escape_ascii()));
    }
    let (mut at, mut piece) = (T::MARK.len() as u64, vec![0; PIECE]);
    loop {
        let length = fill(file, &mut piece, at).map_err(failed)?;
        let (records, _) = piece.get(..length).unwrap_or_default().as_chunks::<RECORD>();
        records.iter().filter_map(T::decode).for_each(&mut each);
        if length < PIECE {
            return Ok(());
        }
        at += length as u64;
    }
}

fn fill(file: &File, piece: &mut [u8], at: u64) -> io::Result<usize> {
    let mut length = 0;
    while let Some(room) = piece.get_mut(length..).filter(|room| !room.is_empty()) {
        match file.read_at(room, at + length as u64)? {
            0 => break,
            more => length += more,
        }
    }
    Ok(length)
}

/// A file with how the engine stands.
pub(super) fn write_standing(standing: &Standing) -> io::Result<OwnedFd> {
    let mut file = file::in_memory(c"ringgate-standing")?;
    file.write_all(&serde_json::to_vec(standing)?)?;
    Ok(file.into())
}

/// The reverse.
pub(super) fn read_standing(fd: OwnedFd) -> io::Result<Standing> {
    let file = File::from(fd);
    let length = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
    let mut text = vec![0; length];
    file.read_exact_at(&mut text, 0)?;
    Ok(serde_json::from_slice(&text)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::l4::handoff::Client;
    use crate::l4::tables::ServerId;

    #[test]
    fn any_number_of_records() {
        for count in [0, 1, 4095, 4096, 4097, 10_000] {
            let client = |n: u32| Client {
                address: std::net::Ipv4Addr::from(n).into(),
                service: 1,
                server: ServerId { slot: 2, generation: 3 },
                rest: u64::from(n),
            };
            let mut written = Records::new::<Client>().expect("a file");
            (0..count).for_each(|n| written.push(&client(n)));
            let file = File::from(written.finish().expect("written"));
            let mut seen = Vec::new();
            read(&file, |one: Client| seen.push(one)).expect("our layout");
            assert_eq!(seen, (0..count).map(client).collect::<Vec<_>>());
            let other = read(&file, |_: crate::l4::flow::Passed| {});
            assert!(other.is_err(), "flows are something else");
        }
    }

    #[test]
    fn a_standing_survives() {
        let standing = Standing { directors: 3, ..Standing::default() };
        let fd = write_standing(&standing).expect("a file");
        assert_eq!(read_standing(fd).expect("JSON"), standing);
    }
}
