//! What the two processes of an upgrade say to each other: JSON, one message a datagram, with the sockets
//! it names beside it. Keys that one side does not know are ignored; what changes the meaning of a key
//! gets another [`VERSION`].

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::standing::{MemberHealth, PassedName, PassedServer, RealServerHealth};
use crate::ha::handoff::Handed;
use crate::l4::handoff::Part;
use crate::sys::passing;

/// A successor that speaks another version refuses, and the old process serves on.
pub(super) const VERSION: u32 = 1;
/// A reason is cut to so many characters.
const REASON_MAX: usize = 4096;

/// In the order they are said; those up to `Whole` and [`Message::Go`] and [`Message::Yours`] by the old one.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(super) enum Message {
    /// Who speaks.
    Hello(Hello),
    /// Sockets; a descriptor for each comes with it.
    Sockets { sockets: Vec<Socket> },
    /// How servers stand.
    Health { members: Vec<MemberHealth> },
    /// Servers of an upstream that were changed at run time; what the file's list was, to tell another one.
    Servers { upstream: String, file: String, servers: Vec<PassedServer> },
    /// Addresses of servers' names.
    Names { names: Vec<PassedName> },
    /// How checks of real servers stand.
    RealServers { servers: Vec<RealServerHealth> },
    /// Of the director; a descriptor for each comes with it. Before `Whole` what takes time, before `Go` the rest.
    Director { parts: Vec<Part> },
    /// That is all.
    Whole,
    /// Everything is open and could serve; these virtual routers and addresses of the real server would be taken over.
    Ready {
        vrrp: Vec<String>,
        #[serde(default)]
        real_server: Vec<IpAddr>,
    },
    /// It cannot serve; the old one is to go on.
    Failed { reason: String },
    /// Serve; the virtual routers stand like this.
    Go { vrrp: Vec<Handed> },
    /// It serves; the old one may drain.
    Serving,
    /// The service manager knows which process is the main one now.
    Yours,
}

/// What the successor has to know first.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Hello {
    pub(super) version: u32,
    /// Of the old process.
    pub(super) pid: u32,
    /// CPUs the process was started with, if the thread that starts the successor has fewer.
    #[serde(default)]
    pub(super) cpus: Vec<usize>,
    /// Random secrets of session tickets, each with its period.
    #[serde(default)]
    pub(super) tickets: Vec<(u64, Vec<u8>)>,
    /// How long the clock of times in other messages has run.
    #[serde(default)]
    pub(super) age_ms: Option<u64>,
    /// The level of the log, if it was set at run time.
    #[serde(default)]
    pub(super) log_level: Option<String>,
}

/// What a passed socket is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Socket {
    /// A listener's socket of one shard.
    Listener { bind: SocketAddr, shard: usize },
    /// The admin endpoint.
    Admin { bind: SocketAddr },
    /// The unix socket for `ringgate ctl`.
    Control { path: PathBuf },
    /// A still older process that drains; it looks at the other end to know that its heirs live.
    Elder { pid: u32 },
}

impl Message {
    pub(super) fn failed(reason: &str) -> Self {
        Self::Failed { reason: reason.chars().take(REASON_MAX).collect() }
    }

    /// Sends it without waiting.
    pub(super) fn send(&self, to: &OwnedFd, sockets: &[BorrowedFd<'_>]) -> io::Result<()> {
        let bytes = serde_json::to_vec(self)?;
        passing::send(to.as_fd(), &bytes, sockets)
    }

    /// The next one; `None` when the other process has closed its end.
    pub(super) fn receive(from: &OwnedFd, wait: bool) -> io::Result<Option<(Self, Vec<OwnedFd>)>> {
        let Some((bytes, sockets)) = passing::receive(from.as_fd(), wait)? else {
            return Ok(None);
        };
        Ok(Some((serde_json::from_slice(&bytes)?, sockets)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_the_way_and_unknown_keys_are_ignored() {
        let (one, other) = passing::pair().expect("a pair");
        let hello = Hello {
            version: VERSION,
            pid: 7,
            tickets: vec![(3, vec![1, 255])],
            ..Hello::default()
        };
        let bind: SocketAddr = "[::1]:443".parse().expect("a literal");
        let handed = Handed {
            key: "a".into(),
            active: true,
            released: false,
            preferred: true,
            checksums: vec![(bind.ip(), 1)],
        };
        for message in [
            Message::Hello(hello),
            Message::Sockets {
                sockets: vec![
                    Socket::Listener { bind, shard: 1 },
                    Socket::Admin { bind },
                    Socket::Control { path: "/run/x".into() },
                    Socket::Elder { pid: 4 },
                ],
            },
            Message::Whole,
            Message::Director { parts: vec![Part::Standing, Part::Flows { director: 1 }] },
            Message::Ready { vrrp: vec!["a".into()], real_server: vec![bind.ip()] },
            Message::Go { vrrp: vec![handed] },
            Message::Serving,
            Message::Yours,
        ] {
            message.send(&one, &[]).expect("sent");
            let (read, sockets) = Message::receive(&other, false).expect("there").expect("open");
            assert_eq!((read, sockets.len()), (message, 0));
        }
        passing::send(one.as_fd(), br#"{"kind":"ready","vrrp":[],"later":1}"#, &[]).expect("sent");
        let (read, _) = Message::receive(&other, false).expect("there").expect("open");
        assert_eq!(read, Message::Ready { vrrp: vec![], real_server: vec![] });
        for bad in [&b"{}"[..], b"{\"kind\":\"other\"}", b"\xff"] {
            passing::send(one.as_fd(), bad, &[]).expect("sent");
            assert!(Message::receive(&other, false).is_err());
        }
        let Message::Failed { reason } = Message::failed(&"x".repeat(9999)) else { panic!() };
        assert_eq!(reason.len(), REASON_MAX);
    }
}
