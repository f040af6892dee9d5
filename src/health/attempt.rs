//! One probe under way: a socket or a child process, moved on whenever it is ready.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::Child;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};

use super::check::{Check, Exec, Http, Kind, Tls, Udp};
use super::http::{self, Judge};
use crate::sys::epoll::Interest;
use crate::sys::{process, socket};

/// What a probe found: good, or why not.
pub(super) type Finding = Result<(), String>;

/// Why a probe could not even begin.
#[derive(Debug)]
pub(super) enum Refused {
    /// For want of something here: it says nothing about the endpoint.
    Local(String),
    /// The endpoint's fault, or the check's.
    Failed(String),
}

/// One probe under way.
#[derive(Debug)]
pub(super) enum Attempt {
    Stream(Box<Conversation>),
    Datagram(UdpSocket),
    Command { child: Child, watch: OwnedFd },
}

/// How far a connection has come.
#[derive(Debug)]
enum Stage {
    Connecting,
    Securing,
    Sending(usize),
    Receiving,
}

/// A TCP connection, with TLS on it or not.
#[derive(Debug)]
pub(super) struct Conversation {
    tcp: TcpStream,
    tls: Option<ClientConnection>,
    stage: Stage,
    request: Vec<u8>,
    judge: Judge,
}

/// Where a probe goes and with what.
#[derive(Debug, Clone, Copy)]
pub(super) struct Aim<'a> {
    pub(super) check: &'a Check,
    pub(super) address: SocketAddr,
    /// The endpoint's name, if it has one.
    pub(super) name: Option<&'a str>,
    pub(super) tls: Option<&'a Arc<ClientConfig>>,
}

impl Attempt {
    pub(super) fn start(aim: Aim<'_>) -> Result<Self, Refused> {
        match &aim.check.kind {
            Kind::Tcp => Conversation::start(aim, Vec::new(), None),
            Kind::Http(http) => {
                Conversation::start(aim, http::request(http, aim.address), http.tls.as_ref())
            }
            Kind::Tls(tls) => Conversation::start(aim, Vec::new(), Some(tls)),
            Kind::Udp(udp) => datagram(udp, aim.address),
            Kind::Exec(exec) => command(exec, aim.address),
        }
    }

    /// The file to wait for.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Stream(conversation) => conversation.tcp.as_fd(),
            Self::Datagram(socket) => socket.as_fd(),
            Self::Command { watch, .. } => watch.as_fd(),
        }
    }

    /// What to wait for.
    pub(super) fn interest(&self) -> Interest {
        match self {
            Self::Stream(conversation) => conversation.interest(),
            _ => Interest::Read,
        }
    }

    /// Goes as far as it can; the finding when it is over.
    pub(super) fn advance(&mut self, check: &Check) -> Option<Finding> {
        match (self, &check.kind) {
            (Self::Stream(conversation), kind) => conversation.advance(kind),
            (Self::Datagram(socket), Kind::Udp(udp)) => answer(socket, udp),
            (Self::Command { child, .. }, _) => ended(child),
            (Self::Datagram(_), _) => Some(Err("not a UDP check".into())),
        }
    }

    /// What it means that the time is over.
    pub(super) fn timed_out(&self, check: &Check) -> Finding {
        match (self, &check.kind) {
            (Self::Datagram(_), Kind::Udp(udp)) if !udp.require_reply => Ok(()),
            (Self::Datagram(_), _) => Err("timeout: no reply".into()),
            (Self::Command { .. }, _) => Err("timeout: killed".into()),
            (Self::Stream(conversation), _) => Err(match conversation.stage {
                Stage::Connecting => "timeout: no connection".into(),
                Stage::Securing => "timeout in the TLS handshake".into(),
                _ => "timeout: no whole response".into(),
            }),
        }
    }
}

/// Errors that say something about this host only.
fn is_local(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::EMFILE
                | libc::ENFILE
                | libc::ENOBUFS
                | libc::ENOMEM
                | libc::EADDRNOTAVAIL
                | libc::EAGAIN
        )
    )
}

fn refused(error: &io::Error) -> Refused {
    if is_local(error) { Refused::Local(error.to_string()) } else { Refused::Failed(plain(error)) }
}

/// Without "(os error 111)", which belongs to logs of programs.
fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    text.split_once(" (os error").map_or_else(|| text.clone(), |(words, _)| words.to_owned())
}

impl Conversation {
    fn start(aim: Aim<'_>, request: Vec<u8>, tls: Option<&Tls>) -> Result<Attempt, Refused> {
        let tls = tls.map(|tls| secured(aim, tls)).transpose()?;
        let fd = socket::stream(aim.address).map_err(|error| refused(&error))?;
        if request.is_empty() && tls.is_none() {
            // Nothing was said: a reset leaves no TIME_WAIT behind, of which there would be thousands.
            let _ = socket::reset_on_close(fd.as_fd());
        }
        socket::connect(fd.as_fd(), aim.address).map_err(|error| refused(&error))?;
        let (tcp, stage) = (TcpStream::from(fd), Stage::Connecting);
        Ok(Attempt::Stream(Box::new(Self { tcp, tls, stage, request, judge: Judge::default() })))
    }

    fn interest(&self) -> Interest {
        let write = match self.stage {
            Stage::Connecting | Stage::Sending(_) => true,
            _ => self.tls.as_ref().is_some_and(|tls| tls.wants_write()),
        };
        if write { Interest::Write } else { Interest::Read }
    }

    fn advance(&mut self, kind: &Kind) -> Option<Finding> {
        match self.go_on(kind) {
            Ok(finding) => finding,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => None,
            Err(error) => Some(Err(match self.stage {
                Stage::Connecting => plain(&error),
                Stage::Securing => format!("TLS: {}", plain(&error)),
                _ => format!("connection lost: {}", plain(&error)),
            })),
        }
    }

    fn go_on(&mut self, kind: &Kind) -> io::Result<Option<Finding>> {
        loop {
            match (&self.stage, kind) {
                (Stage::Connecting, _) => {
                    self.connected()?;
                    if matches!(kind, Kind::Tcp) {
                        return Ok(Some(Ok(())));
                    }
                    let sending = Stage::Sending(0);
                    self.stage = if self.tls.is_some() { Stage::Securing } else { sending };
                }
                (Stage::Securing, _) => {
                    self.shake_hands()?;
                    let Kind::Http(_) = kind else {
                        self.say_goodbye();
                        return Ok(Some(Ok(())));
                    };
                    self.stage = Stage::Sending(0);
                }
                (Stage::Sending(sent), _) => {
                    let sent = *sent;
                    self.send(sent)?;
                    self.stage = Stage::Receiving;
                }
                (Stage::Receiving, Kind::Http(http)) => return self.receive(http),
                (Stage::Receiving, _) => return Ok(Some(Ok(()))),
            }
        }
    }

    fn connected(&self) -> io::Result<()> {
        if let Some(error) = self.tcp.take_error()? {
            return Err(error);
        }
        match self.tcp.peer_addr() {
            Err(error) if error.kind() == io::ErrorKind::NotConnected => {
                Err(io::ErrorKind::WouldBlock.into())
            }
            _ => Ok(()),
        }
    }

    fn shake_hands(&mut self) -> io::Result<()> {
        let Some(tls) = &mut self.tls else { return Ok(()) };
        loop {
            while tls.wants_write() {
                tls.write_tls(&mut self.tcp)?;
            }
            if !tls.is_handshaking() {
                return Ok(());
            }
            if tls.read_tls(&mut self.tcp)? == 0 {
                return Err(io::Error::other("closed in the handshake"));
            }
            if let Err(error) = tls.process_new_packets() {
                // The alert that tells the server why.
                let _ = tls.write_tls(&mut self.tcp);
                return Err(io::Error::other(error.to_string()));
            }
        }
    }

    /// So that the server does not log a connection cut short.
    fn say_goodbye(&mut self) {
        if let Some(tls) = &mut self.tls {
            tls.send_close_notify();
            let _ = tls.write_tls(&mut self.tcp);
        }
    }

    fn send(&mut self, mut sent: usize) -> io::Result<()> {
        if let Some(tls) = &mut self.tls {
            if sent == 0 {
                tls.writer().write_all(&self.request)?;
                self.stage = Stage::Sending(self.request.len());
            }
            while tls.wants_write() {
                tls.write_tls(&mut self.tcp)?;
            }
            return Ok(());
        }
        while let Some(rest) = self.request.get(sent..).filter(|rest| !rest.is_empty()) {
            sent += self.tcp.write(rest)?;
            self.stage = Stage::Sending(sent);
        }
        Ok(())
    }

    fn receive(&mut self, http: &Http) -> io::Result<Option<Finding>> {
        let mut buffer = [0; 8 * 1024];
        loop {
            let count = match &mut self.tls {
                None => self.tcp.read(&mut buffer)?,
                Some(tls) => match read_secured(tls, &mut self.tcp, &mut buffer) {
                    // What was judged by then counts: many servers end without close_notify.
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => 0,
                    count => count?,
                },
            };
            if count == 0 {
                return Ok(Some(self.judge.end(http)));
            }
            let input = buffer.get(..count).unwrap_or_default();
            if let Some(judgement) = self.judge.take(http, input) {
                return Ok(Some(judgement));
            }
        }
    }
}

fn read_secured(
    tls: &mut ClientConnection,
    tcp: &mut TcpStream,
    buffer: &mut [u8],
) -> io::Result<usize> {
    loop {
        match tls.reader().read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            done => return done,
        }
        tls.read_tls(tcp)?;
        tls.process_new_packets().map_err(|error| io::Error::other(error.to_string()))?;
        while tls.wants_write() {
            tls.write_tls(tcp)?;
        }
    }
}

fn secured(aim: Aim<'_>, tls: &Tls) -> Result<ClientConnection, Refused> {
    let failed = |what: String| Refused::Failed(format!("TLS: {what}"));
    let config = aim.tls.ok_or_else(|| failed("nothing to make it with".into()))?;
    let name = match tls.server_name.as_deref().or(aim.name) {
        Some(name) => {
            ServerName::try_from(name.to_owned()).map_err(|error| failed(error.to_string()))?
        }
        None => ServerName::from(aim.address.ip()),
    };
    ClientConnection::new(Arc::clone(config), name).map_err(|error| failed(error.to_string()))
}

fn datagram(udp: &Udp, address: SocketAddr) -> Result<Attempt, Refused> {
    let any: SocketAddr = match address {
        SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
        SocketAddr::V6(_) => ([0u16; 8], 0).into(),
    };
    let open = || {
        let socket = UdpSocket::bind(any)?;
        socket.set_nonblocking(true)?;
        socket.connect(address)?;
        Ok(socket)
    };
    let socket = open().map_err(|error| refused(&error))?;
    socket.send(&udp.payload).map_err(|error| refused(&error))?;
    Ok(Attempt::Datagram(socket))
}

fn answer(socket: &UdpSocket, udp: &Udp) -> Option<Finding> {
    let mut buffer = [0; 64 * 1024];
    match socket.recv(&mut buffer) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
        Err(error) => Some(Err(plain(&error))),
        Ok(length) => {
            let reply = buffer.get(..length).unwrap_or_default();
            match &udp.reply {
                Some(pattern) if !pattern.is_in(reply) => {
                    Some(Err(format!("\"{}\" is not in the reply", pattern.text())))
                }
                _ => Some(Ok(())),
            }
        }
    }
}

fn command(exec: &Exec, address: SocketAddr) -> Result<Attempt, Refused> {
    let (ip, port) = (address.ip().to_string(), address.port().to_string());
    let filled: Vec<String> = exec
        .command
        .iter()
        .map(|word| word.replace("$address", &ip).replace("$port", &port))
        .collect();
    let variables = [("RINGGATE_ADDRESS", ip), ("RINGGATE_PORT", port)];
    let user = exec.user.as_ref().map(|user| &user.0);
    let mut child =
        process::start_bound(&filled, user, &variables).map_err(|error| refused(&error))?;
    match process::watch(&child) {
        Ok(watch) => Ok(Attempt::Command { child, watch }),
        Err(error) => {
            process::kill_group(&child);
            let _ = child.wait(); // killed a moment ago
            Err(refused(&error))
        }
    }
}

fn ended(child: &mut Child) -> Option<Finding> {
    match child.try_wait() {
        Ok(None) => None,
        Ok(Some(status)) if status.success() => Some(Ok(())),
        Ok(Some(status)) => Some(Err(match status.code() {
            Some(code) => format!("exit code {code}"),
            None => "ended by a signal".into(),
        })),
        Err(error) => Some(Err(plain(&error))),
    }
}
