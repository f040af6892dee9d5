//! epoll(7): one thread waits for many files.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

use super::check;

/// What to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    /// Input, or the other side's end.
    Read,
    /// Room for output, or the end of a connect.
    Write,
}

impl Interest {
    fn flags(self) -> u32 {
        let flag = match self {
            Self::Read => libc::EPOLLIN | libc::EPOLLRDHUP,
            Self::Write => libc::EPOLLOUT,
        };
        flag.cast_unsigned()
    }
}

/// An epoll instance; level-triggered. Errors and hang-ups are always reported.
#[derive(Debug)]
pub struct Epoll {
    fd: OwnedFd,
    events: Vec<libc::epoll_event>,
}

impl Epoll {
    /// One that hands out so many events at a time.
    ///
    /// # Errors
    /// What epoll_create1(2) says.
    pub fn new(events: usize) -> io::Result<Self> {
        // SAFETY: no pointers are passed.
        let fd = check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        // SAFETY: the call above returned this descriptor, and nobody else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { fd, events: vec![libc::epoll_event { events: 0, u64: 0 }; events.max(1)] })
    }

    /// Waits for a file from now on; `token` comes back with its events.
    ///
    /// # Errors
    /// What epoll_ctl(2) says.
    pub fn add(&self, fd: BorrowedFd<'_>, interest: Interest, token: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, interest, token)
    }

    /// Waits for something else.
    ///
    /// # Errors
    /// What epoll_ctl(2) says.
    pub fn modify(&self, fd: BorrowedFd<'_>, interest: Interest, token: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd, interest, token)
    }

    /// Forgets a file. Closing it would do as long as no other process holds it, which a child between
    /// fork(2) and execve(2) does.
    pub fn remove(&self, fd: BorrowedFd<'_>) {
        let _ = self.control(libc::EPOLL_CTL_DEL, fd, Interest::Read, 0);
    }

    fn control(
        &self,
        operation: libc::c_int,
        fd: BorrowedFd<'_>,
        interest: Interest,
        token: u64,
    ) -> io::Result<()> {
        let mut event = libc::epoll_event { events: interest.flags(), u64: token };
        let (epoll, fd) = (self.fd.as_fd().as_raw_fd(), fd.as_raw_fd());
        // SAFETY: `event` lives across the call, which only reads it; both descriptors are open.
        check(unsafe { libc::epoll_ctl(epoll, operation, fd, &raw mut event) }).map(|_| ())
    }

    /// Waits until there is something, `timeout` at most (rounded up to milliseconds), and puts the tokens of
    /// what is ready into `ready`, which is cleared before.
    ///
    /// # Errors
    /// What epoll_wait(2) says. A signal is no error: nothing is ready then.
    pub fn wait(&mut self, timeout: Option<Duration>, ready: &mut Vec<u64>) -> io::Result<()> {
        ready.clear();
        let timeout = timeout.map_or(-1, |timeout| {
            let up = timeout.as_nanos().div_ceil(1_000_000);
            libc::c_int::try_from(up).unwrap_or(libc::c_int::MAX)
        });
        let room = libc::c_int::try_from(self.events.len()).unwrap_or(libc::c_int::MAX);
        // SAFETY: `events` has room for `room` entries and is ours alone during the call.
        let count = unsafe {
            libc::epoll_wait(self.fd.as_raw_fd(), self.events.as_mut_ptr(), room, timeout)
        };
        let count = match check(count) {
            Ok(count) => usize::try_from(count).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error),
        };
        ready.extend(self.events.iter().take(count).map(|event| event.u64));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::time::Instant;

    use super::*;

    #[test]
    fn tokens_come_back_until_removed() {
        let (one, other) = UnixStream::pair().expect("a pair");
        let mut epoll = Epoll::new(8).expect("an epoll instance");
        let mut ready = Vec::new();
        epoll.add(one.as_fd(), Interest::Read, 7).expect("added");
        let (began, pause) = (Instant::now(), Duration::from_micros(1500));
        epoll.wait(Some(pause), &mut ready).expect("waited");
        assert!(ready.is_empty() && began.elapsed() >= pause);
        epoll.modify(one.as_fd(), Interest::Write, 8).expect("modified");
        epoll.wait(None, &mut ready).expect("waited");
        assert_eq!(ready, [8]);
        epoll.modify(one.as_fd(), Interest::Read, 9).expect("modified");
        drop(other);
        epoll.wait(None, &mut ready).expect("waited");
        assert_eq!(ready, [9]);
        epoll.remove(one.as_fd());
        epoll.wait(Some(Duration::ZERO), &mut ready).expect("waited");
        assert!(ready.is_empty());
    }
}
