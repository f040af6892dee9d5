//! One-shot operations on files: read and write with a buffer that the ring owns meanwhile.

use std::fmt;
use std::future::Future;
use std::io;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use io_uring::opcode;
use io_uring::types::Fd;

use super::timer::keep_waker;
use super::{Ring, Tag, user_data};

/// An operation in the ring's table. The buffer and the file stay here until the completion.
pub(super) struct Entry {
    buffer: Vec<u8>,
    /// Keeps the descriptor open until the kernel has its own reference.
    _file: Rc<dyn AsRawFd>,
    result: Option<i32>,
    waker: Option<Waker>,
    /// The future is gone: drop the entry at the completion.
    abandoned: bool,
}

pub(super) fn complete(ring: &Ring, key: usize, result: i32) {
    let mut ops = ring.ops.borrow_mut();
    let Some(entry) = ops.get_mut(key) else { return };
    if entry.abandoned {
        ops.remove(key);
        return;
    }
    entry.result = Some(result);
    if let Some(waker) = entry.waker.take() {
        waker.wake();
    }
}

/// An operation under way; yields the result and the buffer. Dropping it cancels.
pub struct Operation {
    ring: Rc<Ring>,
    key: Option<usize>,
}

impl Ring {
    /// Reads into the spare capacity of `buffer` at the file's position.
    pub fn read(self: &Rc<Self>, file: Rc<dyn AsRawFd>, mut buffer: Vec<u8>) -> Operation {
        buffer.clear();
        let fd = Fd(file.as_raw_fd());
        let len = u32::try_from(buffer.capacity()).unwrap_or(u32::MAX);
        let (key, start) = self.enter_op(file, buffer);
        let entry = opcode::Read::new(fd, start, len).offset(u64::MAX).build();
        // `start` is the buffer in the table, which stays there until the completion.
        self.push(&entry.user_data(user_data(Tag::Op, key_u32(key))));
        Operation { ring: Rc::clone(self), key: Some(key) }
    }

    /// Writes `buffer` from `from` on, at the file's position (the end for `O_APPEND`).
    pub fn write(
        self: &Rc<Self>,
        file: Rc<dyn AsRawFd>,
        buffer: Vec<u8>,
        from: usize,
    ) -> Operation {
        let fd = Fd(file.as_raw_fd());
        let from = from.min(buffer.len());
        let len = u32::try_from(buffer.len() - from).unwrap_or(u32::MAX);
        let (key, start) = self.enter_op(file, buffer);
        // SAFETY: `from` is at most the length of the buffer.
        let start = unsafe { start.add(from) };
        let entry = opcode::Write::new(fd, start, len).offset(u64::MAX).build();
        // `start` is in the buffer in the table, which stays there until the completion.
        self.push(&entry.user_data(user_data(Tag::Op, key_u32(key))));
        Operation { ring: Rc::clone(self), key: Some(key) }
    }

    fn enter_op(&self, file: Rc<dyn AsRawFd>, buffer: Vec<u8>) -> (usize, *mut u8) {
        let mut ops = self.ops.borrow_mut();
        let key =
            ops.insert(Entry { buffer, _file: file, result: None, waker: None, abandoned: false });
        (key, ops[key].buffer.as_mut_ptr())
    }
}

fn key_u32(key: usize) -> u32 {
    u32::try_from(key).unwrap_or(u32::MAX)
}

impl Future for Operation {
    type Output = (io::Result<usize>, Vec<u8>);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(key) = self.key else { return Poll::Pending };
        let mut ops = self.ring.ops.borrow_mut();
        // After the ring has ended the table is empty, and nothing completes any more.
        let Some(entry) = ops.get_mut(key) else { return Poll::Pending };
        let Some(result) = entry.result else {
            keep_waker(&mut entry.waker, cx);
            return Poll::Pending;
        };
        let mut buffer = ops.remove(key).buffer;
        drop(ops);
        self.key = None;
        let result = match usize::try_from(result) {
            Ok(n) => {
                if buffer.is_empty() && n <= buffer.capacity() {
                    // SAFETY: a read into the empty buffer filled its first `n` bytes; a write of
                    // an empty buffer moves nothing, so that `n` is zero.
                    unsafe { buffer.set_len(n) };
                }
                Ok(n)
            }
            Err(_) => Err(io::Error::from_raw_os_error(-result)),
        };
        Poll::Ready((result, buffer))
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        let Some(key) = self.key else { return };
        let mut ops = self.ring.ops.borrow_mut();
        let Some(entry) = ops.get_mut(key) else { return };
        if entry.result.is_some() {
            ops.remove(key);
            return;
        }
        entry.abandoned = true;
        entry.waker = None;
        drop(ops);
        self.ring.cancel(user_data(Tag::Op, key_u32(key)));
    }
}

impl fmt::Debug for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Operation").field("key", &self.key).finish_non_exhaustive()
    }
}
