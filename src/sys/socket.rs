//! Sockets: creation, options and addresses (socket(7), tcp(7)).

use std::io;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use super::check;

/// A socket address in the kernel's form, and how many bytes of it count.
#[derive(Clone, Copy)]
pub struct RawAddr {
    storage: libc::sockaddr_storage,
    len: libc::socklen_t,
}

impl std::fmt::Debug for RawAddr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("RawAddr").field(&self.to_socket_addr()).finish()
    }
}

impl RawAddr {
    /// Where the address starts.
    #[must_use]
    pub fn as_ptr(&self) -> *const libc::sockaddr {
        (&raw const self.storage).cast()
    }

    /// Bytes that count.
    #[must_use]
    pub fn len(&self) -> libc::socklen_t {
        self.len
    }

    /// True for the address that was never filled in.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn zeroed() -> Self {
        // SAFETY: sockaddr_storage is plain integers, for which all zeroes is a valid value.
        Self { storage: unsafe { mem::zeroed() }, len: 0 }
    }

    /// The address in Rust's form; `None` for a family other than IPv4 and IPv6.
    #[must_use]
    pub fn to_socket_addr(&self) -> Option<SocketAddr> {
        match i32::from(self.storage.ss_family) {
            libc::AF_INET => {
                // SAFETY: the family says that the storage, which is large and aligned enough for
                // every family, holds a sockaddr_in.
                let v4 = unsafe { &*(&raw const self.storage).cast::<libc::sockaddr_in>() };
                let ip = Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr));
                Some(SocketAddr::new(IpAddr::V4(ip), u16::from_be(v4.sin_port)))
            }
            libc::AF_INET6 => {
                // SAFETY: as above, for a sockaddr_in6.
                let v6 = unsafe { &*(&raw const self.storage).cast::<libc::sockaddr_in6>() };
                let ip = Ipv6Addr::from(v6.sin6_addr.s6_addr);
                Some(SocketAddr::new(IpAddr::V6(ip), u16::from_be(v6.sin6_port)))
            }
            _ => None,
        }
    }
}

impl From<SocketAddr> for RawAddr {
    #[allow(clippy::cast_possible_truncation)] // sizes of two C structs and two small constants
    fn from(address: SocketAddr) -> Self {
        let mut raw = Self::zeroed();
        match address {
            SocketAddr::V4(v4) => {
                let to = (&raw mut raw.storage).cast::<libc::sockaddr_in>();
                // SAFETY: sockaddr_storage is large and aligned enough for every address family,
                // and all zeroes is a valid sockaddr_in.
                let to = unsafe { &mut *to };
                to.sin_family = libc::AF_INET as libc::sa_family_t;
                to.sin_port = v4.port().to_be();
                to.sin_addr.s_addr = u32::from(*v4.ip()).to_be();
                raw.len = size_of::<libc::sockaddr_in>() as libc::socklen_t;
            }
            SocketAddr::V6(v6) => {
                let to = (&raw mut raw.storage).cast::<libc::sockaddr_in6>();
                // SAFETY: as above, for a sockaddr_in6.
                let to = unsafe { &mut *to };
                to.sin6_family = libc::AF_INET6 as libc::sa_family_t;
                to.sin6_port = v6.port().to_be();
                to.sin6_addr.s6_addr = v6.ip().octets();
                to.sin6_scope_id = v6.scope_id();
                raw.len = size_of::<libc::sockaddr_in6>() as libc::socklen_t;
            }
        }
        raw
    }
}

fn socket(address: SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no pointers are passed.
    let fd = check(unsafe { libc::socket(family, kind, libc::IPPROTO_TCP) })?;
    // SAFETY: the call above returned this descriptor, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A UDP socket, for ioctls.
///
/// # Errors
/// What socket(2) says.
pub fn datagram(address: SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    // SAFETY: no pointers are passed.
    let fd = check(unsafe { libc::socket(family, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: the call above returned this descriptor, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A socket that sends whole IPv4 packets, their headers included (raw(7)); the kernel fills in the
/// header's checksum and total length.
///
/// # Errors
/// What socket(2) says: EPERM without `CAP_NET_RAW`.
pub fn raw_ipv4() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    // SAFETY: no pointers are passed.
    let fd = check(unsafe { libc::socket(libc::AF_INET, kind, libc::IPPROTO_RAW) })?;
    // SAFETY: the call above returned this descriptor, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A TCP socket ready to be connected, with `TCP_NODELAY` set.
///
/// # Errors
/// What socket(2) says, EMFILE for one.
pub fn stream(address: SocketAddr) -> io::Result<OwnedFd> {
    let fd = socket(address)?;
    set_option(fd.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_NODELAY, 1)?;
    Ok(fd)
}

/// The same, for a side that speaks first and as soon as it is connected: the handshake's last
/// acknowledgement rides on what it sends (`TCP_QUICKACK` off), or goes out 200 ms later.
///
/// # Errors
/// What socket(2) says, EMFILE for one.
pub fn eager_stream(address: SocketAddr) -> io::Result<OwnedFd> {
    let fd = stream(address)?;
    set_option(fd.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_QUICKACK, 0)?;
    Ok(fd)
}

/// Begins to connect a socket of [`stream`]; true when it is connected already, else it is once it can be
/// written to and has no error.
///
/// # Errors
/// What connect(2) says.
pub fn connect(fd: BorrowedFd<'_>, address: SocketAddr) -> io::Result<bool> {
    let raw = RawAddr::from(address);
    // SAFETY: the address and its length are those of `raw`, which lives across the call.
    match check(unsafe { libc::connect(fd.as_raw_fd(), raw.as_ptr(), raw.len()) }) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(false),
        Err(error) => Err(error),
    }
}

/// A listening TCP socket that shares its address with the other shards' (`SO_REUSEPORT`); accepted
/// sockets inherit `TCP_NODELAY`, and acknowledge late from the start (`TCP_QUICKACK` off).
///
/// # Errors
/// What socket(2), bind(2) or listen(2) says: EADDRINUSE, EACCES for a port below 1024.
pub fn listen(address: SocketAddr, backlog: u32) -> io::Result<OwnedFd> {
    listen_limited(address, backlog, None)
}

/// The same; of `unsent` bytes see [`limit_unsent`]. The first connections are established before anybody could say it.
///
/// # Errors
/// See [`listen`].
pub fn listen_limited(
    address: SocketAddr,
    backlog: u32,
    unsent: Option<u32>,
) -> io::Result<OwnedFd> {
    let fd = socket(address)?;
    let raw = fd.as_raw_fd();
    if let Some(bytes) = unsent {
        // What it saves is not worth a refusal.
        let _ = limit_unsent(std::os::fd::AsFd::as_fd(&fd), bytes);
    }
    set_option(raw, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
    set_option(raw, libc::SOL_SOCKET, libc::SO_REUSEPORT, 1)?;
    set_option(raw, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1)?;
    if address.is_ipv6() {
        set_option(raw, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1)?;
    }
    let name = RawAddr::from(address);
    // SAFETY: `name` holds a valid address of `name.len()` bytes and outlives the call.
    check(unsafe { libc::bind(raw, name.as_ptr(), name.len()) })?;
    let backlog = libc::c_int::try_from(backlog).unwrap_or(libc::c_int::MAX);
    // SAFETY: no pointers are passed.
    check(unsafe { libc::listen(raw, backlog) })?;
    // The acknowledgement of a first request rides on the response instead of going out alone. Set last: listen(2) forgets it.
    set_option(raw, libc::IPPROTO_TCP, libc::TCP_QUICKACK, 0)?;
    Ok(fd)
}

/// Has connections that are accepted from now on take so many bytes that cannot be sent yet, and no more
/// (`TCP_NOTSENT_LOWAT`, tcp(7)). The send buffer alone would let a peer with a small window have hundreds of small
/// segments made, at several times the size of what is in them.
///
/// # Errors
/// What setsockopt(2) says.
pub fn limit_unsent(fd: BorrowedFd<'_>, bytes: u32) -> io::Result<()> {
    let bytes = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
    set_option(fd.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, bytes)
}

/// Changes the length of a listening socket's queue (listen(2) again).
///
/// # Errors
/// What listen(2) says.
pub fn set_backlog(fd: BorrowedFd<'_>, backlog: u32) -> io::Result<()> {
    let backlog = libc::c_int::try_from(backlog).unwrap_or(libc::c_int::MAX);
    // SAFETY: no pointers are passed.
    check(unsafe { libc::listen(fd.as_raw_fd(), backlog) })?;
    Ok(())
}

/// Binds without listening, without `SO_REUSEPORT`, and closes again: finds out whether somebody
/// else already listens at `address`, which `SO_REUSEPORT` would hide when it is the same user.
///
/// # Errors
/// What bind(2) says, EADDRINUSE for one.
pub fn probe_bind(address: SocketAddr) -> io::Result<()> {
    let fd = socket(address)?;
    set_option(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
    if address.is_ipv6() {
        set_option(fd.as_raw_fd(), libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1)?;
    }
    let name = RawAddr::from(address);
    // SAFETY: `name` holds a valid address of `name.len()` bytes and outlives the call.
    check(unsafe { libc::bind(fd.as_raw_fd(), name.as_ptr(), name.len()) })?;
    Ok(())
}

fn set_option(fd: RawFd, level: i32, name: i32, value: libc::c_int) -> io::Result<()> {
    #[allow(clippy::cast_possible_truncation)] // 4
    let len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the option value is the `len` bytes of `value`, which lives across the call.
    check(unsafe { libc::setsockopt(fd, level, name, (&raw const value).cast(), len) })?;
    Ok(())
}

/// Sends the end of the stream; nothing can be written afterwards (shutdown(2) with `SHUT_WR`). Does
/// not wait.
///
/// # Errors
/// ENOTCONN when the connection has ended already.
pub fn shutdown_write(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no pointers are passed.
    check(unsafe { libc::shutdown(fd.as_raw_fd(), libc::SHUT_WR) })?;
    Ok(())
}

/// The same, and receives end as well (`SHUT_RDWR`): what the peer sends from now on resets the connection.
///
/// # Errors
/// ENOTCONN when the connection has ended already.
pub fn shutdown_both(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no pointers are passed.
    check(unsafe { libc::shutdown(fd.as_raw_fd(), libc::SHUT_RDWR) })?;
    Ok(())
}

/// Acknowledges at once what has come, and what comes next: a peer that waits for that before it sends the rest
/// of a message (Nagle's algorithm) is not kept waiting (`TCP_QUICKACK`).
///
/// # Errors
/// What setsockopt(2) says.
pub fn acknowledge_at_once(fd: BorrowedFd<'_>) -> io::Result<()> {
    set_option(fd.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_QUICKACK, 1)
}

/// Makes a listening socket ignore new handshakes, while those under way still complete: the kernel
/// drops its SYN segments (a classic BPF program, `SO_ATTACH_FILTER` of socket(7)). Clients send
/// theirs again after a second.
///
/// # Errors
/// What setsockopt(2) says.
pub fn ignore_new_handshakes(fd: BorrowedFd<'_>) -> io::Result<()> {
    const FLAGS: u32 = 13; // offset of the flags in a TCP header (RFC 9293 section 3.1)
    const SYN: u32 = 0x02;
    let step = |code: u32, jt, jf, k| libc::sock_filter {
        code: u16::try_from(code).unwrap_or_default(),
        jt,
        jf,
        k,
    };
    let mut steps = [
        step(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0, 0, FLAGS),
        step(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K, 0, 1, SYN),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
    ];
    let program = libc::sock_fprog { len: 4, filter: steps.as_mut_ptr() };
    #[allow(clippy::cast_possible_truncation)] // 16
    let len = size_of::<libc::sock_fprog>() as libc::socklen_t;
    // SAFETY: the option value is the `len` bytes of `program`, whose `filter` points to the four
    // steps it announces; both live across the call, and the kernel copies them.
    check(unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            len,
        )
    })?;
    Ok(())
}

/// Undoes [`ignore_new_handshakes`] (`SO_DETACH_FILTER` of socket(7)).
///
/// # Errors
/// ENOENT when nothing is ignored.
pub fn heed_new_handshakes(fd: BorrowedFd<'_>) -> io::Result<()> {
    set_option(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_DETACH_FILTER, 0)
}

/// Makes the kernel hand a new connection to the socket of its `SO_REUSEPORT` group that belongs to the CPU
/// which processed the handshake: socket number `n`, in the order of listen(2), to `cpus[n]`. From other
/// CPUs connections are spread by hash as before. (A classic BPF program, `SO_ATTACH_REUSEPORT_CBPF` of
/// socket(7); `fd` is any socket of the group.)
///
/// # Errors
/// What setsockopt(2) says; EINVAL for more CPUs than a program has room for, some 2,000.
pub fn steer_by_cpu(fd: BorrowedFd<'_>, cpus: &[usize]) -> io::Result<()> {
    let step = |code: u32, jt, jf, k| libc::sock_filter {
        code: u16::try_from(code).unwrap_or_default(),
        jt,
        jf,
        k,
    };
    // linux/filter.h: SKF_AD_OFF + SKF_AD_CPU, the number of the CPU that runs the program.
    let load = step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0xffff_f000 + 36);
    let mut steps = vec![load];
    for (index, cpu) in cpus.iter().enumerate() {
        let (index, cpu) = (u32::try_from(index), u32::try_from(*cpu));
        let (Ok(index), Ok(cpu)) = (index, cpu) else { continue };
        steps.push(step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, cpu));
        steps.push(step(libc::BPF_RET | libc::BPF_K, 0, 0, index));
    }
    // No such socket: the kernel falls back to the hash.
    steps.push(step(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX));
    let len = u16::try_from(steps.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let program = libc::sock_fprog { len, filter: steps.as_mut_ptr() };
    #[allow(clippy::cast_possible_truncation)] // 16
    let size = size_of::<libc::sock_fprog>() as libc::socklen_t;
    // SAFETY: the option value is the `size` bytes of `program`, whose `filter` points to the `len`
    // steps it announces; both live across the call, and the kernel copies them.
    check(unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const program).cast(),
            size,
        )
    })?;
    Ok(())
}

/// Makes close(2) of this socket send a reset and drop what is queued (`SO_LINGER` of zero).
///
/// # Errors
/// What setsockopt(2) says.
pub fn reset_on_close(fd: BorrowedFd<'_>) -> io::Result<()> {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    #[allow(clippy::cast_possible_truncation)] // 8
    let len = size_of::<libc::linger>() as libc::socklen_t;
    // SAFETY: the option value is the `len` bytes of `linger`, which lives across the call.
    check(unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            len,
        )
    })?;
    Ok(())
}

/// A number that tells the calling thread's network namespace from all others since boot
/// (`SO_NETNS_COOKIE`, Linux 5.14); the initial one is 1.
///
/// # Errors
/// ENOPROTOOPT on older kernels.
pub fn namespace_cookie() -> io::Result<u64> {
    let any = SocketAddr::from(([0, 0, 0, 0], 0));
    let fd = socket(any)?;
    let mut cookie = 0u64;
    #[allow(clippy::cast_possible_truncation)] // 8
    let mut len = size_of::<u64>() as libc::socklen_t;
    let (level, name) = (libc::SOL_SOCKET, SO_NETNS_COOKIE);
    // SAFETY: the call writes at most `len` bytes to `cookie`, which is that long.
    check(unsafe {
        let to = (&raw mut cookie).cast();
        libc::getsockopt(fd.as_raw_fd(), level, name, to, &raw mut len)
    })?;
    Ok(cookie)
}

/// `asm-generic/socket.h`; the libc crate has it for some targets only.
const SO_NETNS_COOKIE: libc::c_int = 71;

type NameCall =
    unsafe extern "C" fn(libc::c_int, *mut libc::sockaddr, *mut libc::socklen_t) -> libc::c_int;

/// The address at the other end (getpeername(2)).
///
/// # Errors
/// ENOTCONN when the peer has gone already.
pub fn peer_address(fd: BorrowedFd<'_>) -> io::Result<SocketAddr> {
    name(fd, libc::getpeername)
}

/// The address at this end (getsockname(2)).
///
/// # Errors
/// What getsockname(2) says.
pub fn local_address(fd: BorrowedFd<'_>) -> io::Result<SocketAddr> {
    name(fd, libc::getsockname)
}

fn name(fd: BorrowedFd<'_>, call: NameCall) -> io::Result<SocketAddr> {
    let mut raw = RawAddr::zeroed();
    #[allow(clippy::cast_possible_truncation)] // 128
    let mut len = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    // SAFETY: both calls of this type fill at most `len` bytes at the pointer, which is the size of
    // the storage behind it.
    check(unsafe { call(fd.as_raw_fd(), (&raw mut raw.storage).cast(), &raw mut len) })?;
    raw.len = len;
    raw.to_socket_addr().ok_or_else(|| io::Error::from_raw_os_error(libc::EAFNOSUPPORT))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn addresses_survive_the_kernel_form() {
        for text in ["127.0.0.1:80", "255.1.2.3:65535", "[::1]:443", "[2001:db8::7]:8080"] {
            let address: SocketAddr = text.parse().expect("a literal");
            assert_eq!(RawAddr::from(address).to_socket_addr(), Some(address));
        }
    }

    #[test]
    fn handshakes_are_ignored_once_that_is_wanted() {
        let listener = listen("127.0.0.1:0".parse().expect("a literal"), 16).expect("a free port");
        let listener = std::os::fd::AsFd::as_fd(&listener);
        let address = local_address(listener).expect("a bound socket");
        let connect = |patience| {
            std::net::TcpStream::connect_timeout(&address, Duration::from_millis(patience))
        };
        connect(60_000).expect("somebody listens");
        ignore_new_handshakes(listener).expect("a valid program");
        let error = connect(200).expect_err("no answer");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        heed_new_handshakes(listener).expect("there was a filter");
        connect(60_000).expect("somebody listens again");
    }

    #[test]
    fn connections_go_to_the_socket_of_the_cpu_that_took_them() {
        let cpu = *crate::sys::cpu::allowed().first().expect("a CPU");
        let worker = std::thread::spawn(move || {
            assert!(crate::sys::cpu::pin(cpu));
            let first = listen("127.0.0.1:0".parse().expect("a literal"), 64).expect("a free port");
            let address = local_address(std::os::fd::AsFd::as_fd(&first)).expect("a bound socket");
            let second = listen(address, 64).expect("SO_REUSEPORT");
            // The loopback's handshakes are processed on the CPU of this thread.
            steer_by_cpu(std::os::fd::AsFd::as_fd(&first), &[4095, cpu]).expect("a valid program");
            let clients: Vec<_> = (0..16)
                .map(|_| std::net::TcpStream::connect(address).expect("a listener"))
                .collect();
            let listeners = [first, second].map(std::net::TcpListener::from);
            let mut counts = [0; 2];
            // The last packets of the handshakes may still be on their way.
            let began = Instant::now();
            while counts[0] + counts[1] < 16 && began.elapsed() < Duration::from_secs(60) {
                for (count, listener) in counts.iter_mut().zip(&listeners) {
                    *count += std::iter::from_fn(|| listener.accept().ok()).count();
                }
                std::thread::yield_now();
            }
            drop(clients);
            counts
        });
        assert_eq!(worker.join().expect("no panic"), [0, 16]);
    }

    #[test]
    fn two_shards_share_an_address_and_the_probe_sees_them() {
        let first = listen("127.0.0.1:0".parse().expect("a literal"), 16).expect("a free port");
        let address = local_address(std::os::fd::AsFd::as_fd(&first)).expect("a bound socket");
        let second = listen(address, 16).expect("SO_REUSEPORT");
        let error = probe_bind(address).expect_err("somebody listens");
        assert_eq!(error.raw_os_error(), Some(libc::EADDRINUSE));
        drop((first, second));
        probe_bind(address).expect("nobody listens");
    }
}
