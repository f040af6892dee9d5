//! The successor's side: what an earlier process passed, and the steps until it serves in its place.

use std::cell::RefCell;
use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::parent_id;
use std::path::Path;
use std::time::{Duration, Instant};

use super::message::{Hello, Message, Socket, VERSION};
use super::standing::Handed;
use super::{ENVIRONMENT, Elder};
use crate::control::config::Level;
use crate::ha::handoff;
use crate::l4::handoff::Bundle;
use crate::l7::tls::tickets::Secret;
use crate::sys::{cpu, passing, socket};

/// The old process sends all it has at once.
const PATIENCE: Duration = Duration::from_secs(10);
/// The old process needs no longer to hand the main process over to the service manager.
const YOURS_PATIENCE: Duration = Duration::from_secs(2);

/// What was passed by the process that this one succeeds.
#[derive(Debug)]
pub struct Inherited {
    channel: OwnedFd,
    hello: Hello,
    sockets: RefCell<Vec<(Socket, OwnedFd)>>,
    standing: RefCell<Handed>,
    director: RefCell<Bundle>,
    /// The beginning of the clock that both processes share.
    epoch: Option<Instant>,
}

/// What was read.
struct Passed {
    hello: Hello,
    sockets: Vec<(Socket, OwnedFd)>,
    standing: Handed,
    director: Bundle,
    /// When the hello came.
    at: Instant,
}

impl Inherited {
    /// Takes over what the parent process passes; `None` when this process was started by somebody else.
    ///
    /// # Errors
    /// Text: what the parent said cannot be used. It has been told.
    pub fn receive() -> Result<Option<Self>, String> {
        let is_meant = std::env::var(ENVIRONMENT).is_ok_and(|pid| pid == parent_id().to_string());
        if !is_meant {
            return Ok(None);
        }
        let failed = |error| format!("cannot take over from the running process: {error}");
        let Some(channel) = passing::take_standard_input().map_err(failed)? else {
            return Ok(None);
        };
        passing::wait_at_most(channel.as_fd(), PATIENCE).map_err(failed)?;
        match Self::read(&channel) {
            Ok(Passed { hello, sockets, standing, director, at }) => {
                if !hello.cpus.is_empty() {
                    let _ = cpu::confine(&hello.cpus);
                }
                let epoch = hello.age_ms.and_then(|age| at.checked_sub(Duration::from_millis(age)));
                let (sockets, standing) = (RefCell::new(sockets), RefCell::new(standing));
                let director = RefCell::new(director);
                Ok(Some(Self { channel, hello, sockets, standing, director, epoch }))
            }
            Err(reason) => {
                let _ = Message::failed(&reason).send(&channel, &[]);
                Err(reason)
            }
        }
    }

    fn read(channel: &OwnedFd) -> Result<Passed, String> {
        let (mut hello, mut at) = (None, Instant::now());
        let mut passed = Vec::new();
        let mut standing = Handed::default();
        let mut director = Vec::new();
        loop {
            let said = Message::receive(channel, true);
            let (message, descriptors) = said
                .map_err(|error| format!("cannot read what the running process passes: {error}"))?
                .ok_or("the running process has closed the connection")?;
            match message {
                Message::Hello(said) if said.version == VERSION => {
                    (hello, at) = (Some(said), Instant::now());
                }
                Message::Hello(said) => {
                    return Err(format!(
                        "the running process speaks version {} of the upgrade, this one {VERSION}: \
                         restart instead",
                        said.version
                    ));
                }
                Message::Sockets { sockets } if sockets.len() == descriptors.len() => {
                    passed.extend(sockets.into_iter().zip(descriptors));
                }
                Message::Director { parts } if parts.len() == descriptors.len() => {
                    director.extend(parts.into_iter().zip(descriptors));
                }
                Message::Whole => {
                    let hello = hello.ok_or("the running process did not say hello")?;
                    return Ok(Passed { hello, sockets: passed, standing, director, at });
                }
                other => standing
                    .take_in(other)
                    .map_err(|_| "the running process said something out of turn")?,
            }
        }
    }

    /// The process that is succeeded.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.hello.pid
    }

    /// The beginning of the clock that times in [`Inherited::take_standing`] are on.
    #[must_use]
    pub fn epoch(&self) -> Option<Instant> {
        self.epoch
    }

    /// The level of the log, if it was set at run time.
    #[must_use]
    pub fn log_level(&self) -> Option<Level> {
        let name = self.hello.log_level.as_deref()?;
        Level::ALL.into_iter().find(|level| level.name() == name)
    }

    /// Health, and what was changed at run time. Without a common clock health says nothing.
    #[must_use]
    pub fn take_standing(&self) -> Handed {
        let mut standing = self.standing.take();
        if self.epoch.is_none() {
            standing.health.clear();
        }
        standing
    }

    /// What the director goes on with, as far as it was passed first.
    #[must_use]
    pub fn take_director(&self) -> Bundle {
        self.director.take()
    }

    /// Secrets of session tickets.
    #[must_use]
    pub fn tickets(&self) -> Vec<Secret> {
        let imported = |(period, bytes): &(u64, Vec<u8>)| Secret::import(*period, bytes.clone());
        self.hello.tickets.iter().map(imported).collect()
    }

    /// The ports of the listeners that nobody has taken yet.
    #[must_use]
    pub fn listener_ports(&self) -> HashSet<u16> {
        let port = |(what, _): &(Socket, OwnedFd)| match what {
            Socket::Listener { bind, .. } => Some(bind.port()),
            _ => None,
        };
        self.sockets.borrow().iter().filter_map(port).collect()
    }

    /// The sockets that listen at this address, in the order of the old shards.
    #[must_use]
    pub fn take_listeners(&self, bind: SocketAddr) -> Vec<OwnedFd> {
        let of_shard = |socket: &Socket| match socket {
            Socket::Listener { bind: of, shard } if *of == bind => Some(*shard),
            _ => None,
        };
        let mut found = self.take(of_shard);
        found.sort_by_key(|(shard, _)| *shard);
        for (_, listener) in &found {
            // Should the old process have refused handshakes for a while; fails when it did not.
            let _ = socket::heed_new_handshakes(listener.as_fd());
        }
        found.into_iter().map(|(_, listener)| listener).collect()
    }

    /// The admin endpoint's socket.
    #[must_use]
    pub fn take_admin(&self, bind: SocketAddr) -> Option<OwnedFd> {
        let is = |socket: &Socket| (*socket == Socket::Admin { bind }).then_some(());
        self.take(is).pop().map(|(_, socket)| socket)
    }

    /// The unix socket at this path.
    #[must_use]
    pub fn take_control(&self, path: &Path) -> Option<OwnedFd> {
        let is = |socket: &Socket| match socket {
            Socket::Control { path: of } if of == path => Some(()),
            _ => None,
        };
        self.take(is).pop().map(|(_, socket)| socket)
    }

    /// Older processes that still drain.
    pub(super) fn take_elders(&self) -> Vec<Elder> {
        let is = |socket: &Socket| match socket {
            Socket::Elder { pid } => Some(*pid),
            _ => None,
        };
        self.take(is).into_iter().map(|(pid, channel)| Elder::new(pid, channel)).collect()
    }

    fn take<T>(&self, pick: impl Fn(&Socket) -> Option<T>) -> Vec<(T, OwnedFd)> {
        let mut taken = Vec::new();
        let mut left = Vec::new();
        for (what, socket) in self.sockets.take() {
            match pick(&what) {
                Some(picked) => taken.push((picked, socket)),
                None => left.push((what, socket)),
            }
        }
        self.sockets.replace(left);
        taken
    }

    /// Says that everything is open; returns with the state of the virtual routers, and the rest of the director, once
    /// this process is to serve.
    ///
    /// # Errors
    /// Text: the old process serves on.
    pub fn ready(
        &self,
        vrrp: Vec<String>,
        real_server: Vec<IpAddr>,
    ) -> Result<(Vec<handoff::Handed>, Bundle), String> {
        let gone = |error| format!("the running process does not answer: {error}");
        Message::Ready { vrrp, real_server }.send(&self.channel, &[]).map_err(gone)?;
        let mut director = Vec::new();
        loop {
            match Message::receive(&self.channel, true).map_err(gone)? {
                Some((Message::Go { vrrp }, _)) => return Ok((vrrp, director)),
                Some((Message::Director { parts }, descriptors))
                    if parts.len() == descriptors.len() =>
                {
                    director.extend(parts.into_iter().zip(descriptors));
                }
                _ => return Err("the running process goes on itself".into()),
            }
        }
    }

    /// Says that this process serves, and waits until it is the main one. What the new generation does not
    /// use is closed. The connection stays: the old process sees by it that this one lives, and this one
    /// that the old one still drains.
    pub(super) fn serving(self_: &std::rc::Rc<Self>) -> Vec<Elder> {
        let mut elders = self_.take_elders();
        self_.sockets.take();
        // Whoever is gone does not need to be told.
        let _ = Message::Serving.send(&self_.channel, &[]);
        let _ = passing::wait_at_most(self_.channel.as_fd(), YOURS_PATIENCE);
        let _ = Message::receive(&self_.channel, true);
        if let Ok(channel) = self_.channel.try_clone() {
            elders.push(Elder::new(self_.hello.pid, channel));
        }
        elders
    }

    /// Says why this process cannot serve.
    pub fn failed(&self, reason: &str) {
        let _ = Message::failed(reason).send(&self.channel, &[]);
    }
}
