//! Descriptors from one process to another: a unix socket pair that keeps messages apart
//! (`SOCK_SEQPACKET`), with `SCM_RIGHTS` (unix(7)).

use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use super::check;

/// Descriptors one message can carry: the kernel's bound (`SCM_MAX_FD`) is 253.
pub const DESCRIPTORS_MAX: usize = 240;
/// Longest message, in bytes.
pub const MESSAGE_MAX: usize = 64 << 10;

/// Room for [`DESCRIPTORS_MAX`] descriptors and their header, aligned as a header has to be.
const CONTROL_WORDS: usize = 128;

/// Two ends of a connection that keeps messages apart. Both close on exec.
///
/// # Errors
/// What socketpair(2) says.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds: [RawFd; 2] = [-1; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: the call writes two descriptors to the array, which has room for two.
    check(unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()) })?;
    // SAFETY: the call above returned both descriptors, and nobody else owns them.
    Ok(unsafe { (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])) })
}

/// Sends one message with descriptors, without waiting.
///
/// # Errors
/// EAGAIN when the other end has not read enough yet, EPIPE when it is closed, EINVAL above
/// [`DESCRIPTORS_MAX`] or [`MESSAGE_MAX`].
pub fn send(to: BorrowedFd<'_>, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    if descriptors.len() > DESCRIPTORS_MAX || bytes.len() > MESSAGE_MAX {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let raw: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let mut control = [0u64; CONTROL_WORDS];
    let mut piece =
        libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let payload = u32::try_from(size_of_val(raw.as_slice())).unwrap_or(u32::MAX);
    // SAFETY: msghdr is integers and pointers, for which all zeroes is valid. The message's pointers are
    // to `piece`, `bytes` and `control`, which outlive the call; the kernel only reads them. The control
    // buffer holds CMSG_SPACE of 240 descriptors (976 bytes of its 1,024), so the header and the
    // descriptors copied behind it are within it.
    let sent = unsafe {
        let mut message: libc::msghdr = mem::zeroed();
        message.msg_iov = &raw mut piece;
        message.msg_iovlen = 1;
        if !raw.is_empty() {
            message.msg_control = control.as_mut_ptr().cast();
            message.msg_controllen = libc::CMSG_SPACE(payload) as _;
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(payload) as _;
            std::ptr::copy_nonoverlapping(raw.as_ptr(), libc::CMSG_DATA(header).cast(), raw.len());
        }
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        libc::sendmsg(to.as_raw_fd(), &raw const message, flags)
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A message and its descriptors, which close on exec. `None` when the other end is closed.
///
/// # Errors
/// EAGAIN when there is none (at once with `wait` false, else after the time of
/// [`wait_at_most`]), EMSGSIZE for one above the bounds.
pub fn receive(from: BorrowedFd<'_>, wait: bool) -> io::Result<Received> {
    loop {
        match receive_once(from, wait) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// A message with its descriptors; `None` at the end.
pub type Received = Option<(Vec<u8>, Vec<OwnedFd>)>;

fn receive_once(from: BorrowedFd<'_>, wait: bool) -> io::Result<Received> {
    let mut bytes = vec![0; MESSAGE_MAX];
    let mut control = [0u64; CONTROL_WORDS];
    let mut piece = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    let mut descriptors = Vec::new();
    // SAFETY: msghdr is integers and pointers, for which all zeroes is valid. Its pointers are to `piece`,
    // `bytes` and `control` with their true lengths, which outlive the call. The kernel fills in whole
    // control messages only, so CMSG_FIRSTHDR and CMSG_NXTHDR stay within what it wrote, and the data of
    // one of SCM_RIGHTS are descriptors that are ours alone now.
    let (length, flags) = unsafe {
        let mut message: libc::msghdr = mem::zeroed();
        message.msg_iov = &raw mut piece;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control) as _;
        let flags = libc::MSG_CMSG_CLOEXEC | if wait { 0 } else { libc::MSG_DONTWAIT };
        let length = libc::recvmsg(from.as_raw_fd(), &raw mut message, flags);
        if length < 0 {
            return Err(io::Error::last_os_error());
        }
        let mut header = libc::CMSG_FIRSTHDR(&raw const message);
        while !header.is_null() {
            if ((*header).cmsg_level, (*header).cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
                let data = libc::CMSG_DATA(header);
                #[allow(clippy::unnecessary_cast)] // another type with other C libraries
                let whole = (*header).cmsg_len as usize;
                let count = whole.saturating_sub(libc::CMSG_LEN(0) as usize) / size_of::<RawFd>();
                for index in 0..count {
                    let raw = data.cast::<RawFd>().add(index).read_unaligned();
                    descriptors.push(OwnedFd::from_raw_fd(raw));
                }
            }
            header = libc::CMSG_NXTHDR(&raw const message, header);
        }
        (length, message.msg_flags)
    };
    if flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0 {
        return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
    }
    bytes.truncate(usize::try_from(length).unwrap_or_default());
    Ok((length > 0).then_some((bytes, descriptors)))
}

/// How long [`receive`] waits.
///
/// # Errors
/// What setsockopt(2) says.
pub fn wait_at_most(socket: BorrowedFd<'_>, time: Duration) -> io::Result<()> {
    let value = libc::timeval {
        tv_sec: libc::time_t::try_from(time.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_usec: libc::suseconds_t::from(time.subsec_micros()),
    };
    #[allow(clippy::cast_possible_truncation)] // 16
    let length = size_of::<libc::timeval>() as libc::socklen_t;
    // SAFETY: the option value is the `length` bytes of `value`, which lives across the call.
    check(unsafe {
        let value = (&raw const value).cast();
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVTIMEO, value, length)
    })?;
    Ok(())
}

/// Standard input as a descriptor that closes on exec, with `/dev/null` in its place; `None` when it is no
/// socket as of [`pair`].
///
/// # Errors
/// What fcntl(2), open(2) and dup3(2) say.
pub fn take_standard_input() -> io::Result<Option<OwnedFd>> {
    let input = io::stdin();
    if kind_of(input.as_fd()) != Some(libc::SOCK_SEQPACKET) {
        return Ok(None);
    }
    let taken = input.as_fd().try_clone_to_owned()?;
    let null = std::fs::File::open("/dev/null")?;
    // SAFETY: no pointers are passed. Descriptor 0 is nobody's but standard input's, which stays open.
    check(unsafe { libc::dup2(null.as_raw_fd(), libc::STDIN_FILENO) })?;
    Ok(Some(taken))
}

/// The socket's type (`SO_TYPE`); `None` for what is no socket.
fn kind_of(fd: BorrowedFd<'_>) -> Option<libc::c_int> {
    let mut kind: libc::c_int = 0;
    #[allow(clippy::cast_possible_truncation)] // 4
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the call writes at most `length` bytes to `kind`, which is that long.
    let result = unsafe {
        let to = (&raw mut kind).cast();
        libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_TYPE, to, &raw mut length)
    };
    (result == 0).then_some(kind)
}

/// Has a listening socket keep so many connections waiting from now on (listen(2)).
///
/// # Errors
/// What listen(2) says.
pub fn set_backlog(listener: BorrowedFd<'_>, backlog: u32) -> io::Result<()> {
    let backlog = libc::c_int::try_from(backlog).unwrap_or(libc::c_int::MAX);
    // SAFETY: no pointers are passed.
    check(unsafe { libc::listen(listener.as_raw_fd(), backlog) })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Seek as _, Write as _};

    use super::*;

    #[test]
    fn messages_stay_apart_and_carry_descriptors() {
        let (one, other) = pair().expect("a pair");
        let mut file = std::fs::File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(std::env::temp_dir().join(format!("ringgate-passing-{}", std::process::id())))
            .expect("a file");
        file.write_all(b"here").expect("written");
        let many = vec![file.as_fd(); DESCRIPTORS_MAX];
        send(one.as_fd(), b"first", &many).expect("sent");
        send(one.as_fd(), b"second", &[]).expect("sent");
        let (bytes, descriptors) = receive(other.as_fd(), false).expect("there").expect("open");
        assert_eq!((&bytes[..], descriptors.len()), (&b"first"[..], DESCRIPTORS_MAX));
        let mut copy = std::fs::File::from(descriptors.into_iter().next_back().expect("one"));
        let mut text = String::new();
        copy.rewind().expect("a file");
        copy.read_to_string(&mut text).expect("readable");
        assert_eq!(text, "here");
        let (bytes, descriptors) = receive(other.as_fd(), true).expect("there").expect("open");
        assert_eq!((&bytes[..], descriptors.len()), (&b"second"[..], 0));
        let none = receive(other.as_fd(), false).expect_err("nothing there");
        assert_eq!(none.kind(), io::ErrorKind::WouldBlock);
        wait_at_most(other.as_fd(), Duration::from_millis(5)).expect("a socket");
        let none = receive(other.as_fd(), true).expect_err("nothing came");
        assert_eq!(none.kind(), io::ErrorKind::WouldBlock);
        drop(one);
        // A child that another test has just forked has a copy until it runs its program.
        wait_at_most(other.as_fd(), Duration::from_secs(60)).expect("a socket");
        assert!(receive(other.as_fd(), true).expect("closed").is_none());
        let too_many = vec![file.as_fd(); DESCRIPTORS_MAX + 1];
        assert!(send(other.as_fd(), b"", &too_many).is_err());
    }
}
