//! In the place of an earlier process, and in favour of a later one.

use std::cell::OnceCell;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use super::start::{await_free, cannot_listen, listen_once};
use super::watch::Watch;
use super::{Control, Failed};
use crate::control::metrics::connections;
use crate::control::state::{Phase, State};
use crate::control::upgrade::{self, Office, pid_file};
use crate::control::{director, systemd, vrrp};
use crate::ha::Ha;
use crate::ha::handoff::Takeover;
use crate::ha::health::Health;
use crate::l4::engine::Engine;
use crate::ring::accept::Acceptor;
use crate::ring::executor::spawn;
use crate::ring::share::UNSENT;
use crate::ring::{Ring, Timer};
use crate::shard::{Message, Shard};
use crate::sys::{passing, socket};

/// How often a process that was succeeded looks whether it is done.
const LOOK_EVERY_MS: u64 = 500;
/// The HA thread of a successor is ready within this, scripts' first verdicts included.
const ARMED_PATIENCE: Duration = Duration::from_secs(15);

/// Each shard's sockets, with the numbers of their listeners.
type Sockets = Vec<Vec<(usize, OwnedFd)>>;

impl Control {
    /// Opens every listener once for each shard, so that what cannot be opened is known before anything
    /// serves. Sockets of an earlier process are used as they are, queues and all: when it had more shards,
    /// some shards get several sockets of a listener.
    pub(super) fn listen(&self, shards: usize, office: &Office) -> Result<Sockets, Failed> {
        let mut sockets: Sockets = (0..shards).map(|_| Vec::new()).collect();
        // As in a reload, our own sockets of a port, such as the wildcard's, do not count as somebody else's.
        let ours = self.inherited.as_ref().map(|inherited| inherited.listener_ports());
        for (number, listener) in self.config.service.listeners.iter().enumerate() {
            let bind = listener.bind;
            let failed = |error: io::Error| cannot_listen(bind, &error);
            let inherited = self.inherited.as_ref().map(|inherited| inherited.take_listeners(bind));
            let mut opened = inherited.unwrap_or_default();
            if opened.is_empty() {
                match &ours {
                    Some(ports) if ports.contains(&bind.port()) => {}
                    Some(_) => await_free(bind)?,
                    None => socket::probe_bind(bind).map_err(failed)?,
                }
            }
            for socket in &opened {
                passing::set_backlog(socket.as_fd(), listener.backlog).map_err(failed)?;
            }
            while opened.len() < shards {
                opened.push(
                    socket::listen_limited(bind, listener.backlog, Some(UNSENT)).map_err(failed)?,
                );
            }
            for (place, socket) in opened.into_iter().enumerate() {
                office.keep_listener(bind, place, &socket);
                sockets[place % shards].push((number, socket));
            }
        }
        Ok(sockets)
    }

    /// The admin endpoint's socket.
    pub(super) fn admin(&self, office: &Office) -> Result<Option<OwnedFd>, Failed> {
        let Some(bind) = self.config.admin else { return Ok(None) };
        let inherited = self.inherited.as_ref().and_then(|inherited| inherited.take_admin(bind));
        let socket = inherited.map_or_else(|| listen_once(bind), Ok)?;
        office.keep_admin(bind, &socket);
        Ok(Some(socket))
    }

    /// The unix socket.
    pub(super) fn local_socket(
        &self,
        office: &Office,
    ) -> Result<Option<(vrrp::LocalSocket, OwnedFd)>, Failed> {
        let Some(wanted) = &self.config.admin_socket else { return Ok(None) };
        let path = wanted.path.as_path();
        let inherited = self.inherited.as_ref().and_then(|inherited| inherited.take_control(path));
        let opened = match inherited {
            Some(socket) => Ok((vrrp::LocalSocket::inherited(path), socket)),
            None => vrrp::LocalSocket::open(wanted),
        };
        let (guard, socket) = match opened {
            Ok(opened) => opened,
            Err(why) if wanted.required => return Err(Failed(why)),
            Err(why) => {
                self.logger.info("no admin socket", &[("why", &why)]);
                return Ok(None);
            }
        };
        office.keep_control(path, &socket);
        Ok(Some((guard, socket)))
    }

    /// Starts VRRP. In the place of an earlier process: once everything could serve, that process is told,
    /// and its virtual routers and its director go on here. Returns the virtual addresses that are here as well.
    pub(super) fn succeed(
        &self,
        shards: &[Shard],
        l4: Option<&Engine>,
        directors: Vec<director::Watched>,
        health: &Arc<Health>,
    ) -> Result<(OnceCell<Ha>, Vec<IpAddr>), Failed> {
        let Some(inherited) = &self.inherited else {
            accept(shards);
            return Ok((self.start_ha(shards, directors, health, None)?, Vec::new()));
        };
        let (armed, ready) = sync_channel(1);
        let (hand, handed) = sync_channel(1);
        let ha = self.start_ha(shards, directors, health, Some(Takeover { armed, handed }))?;
        let mut keys = Vec::new();
        if ha.get().is_some() {
            keys = ready
                .recv_timeout(ARMED_PATIENCE)
                .map_err(|_| Failed("VRRP was not ready in time".into()))?;
        }
        let role = self.config.real_server.as_ref().map(|role| role.addresses.clone());
        let (states, passed) = match inherited.ready(keys, role.unwrap_or_default()) {
            Ok(states) => states,
            Err(why) => {
                drop(hand); // nothing is taken over, and nothing is touched
                return Err(Failed(why));
            }
        };
        // First those for whom others wait.
        let held = l4.map(|l4| l4.go_on(passed)).transpose().map_err(Failed)?;
        let _ = hand.send(states);
        accept(shards);
        Ok((ha, held.unwrap_or_default()))
    }

    /// What a service manager wants to know of a process that serves.
    pub(super) fn tell_manager(&self, ring: &Rc<Ring>, state: &Rc<State>) {
        if let Some(path) = self.config.node.pid_file.as_deref()
            && let Err(error) = pid_file::write(path)
        {
            let fields = [("file", &*path.to_string_lossy()), ("error", &error.to_string())];
            self.logger.error("pid file not written", &fields);
        }
        systemd::notify("READY=1\nSTATUS=serving\n");
        if let Some(interval) = systemd::watchdog() {
            spawn(ring, systemd::feed(Rc::clone(ring), Rc::clone(state), interval));
        }
    }
}

/// From now on clients are served.
fn accept(shards: &[Shard]) {
    for shard in shards {
        let _ = shard.send(Message::Accept); // the inbox is empty yet
    }
}

impl Watch {
    /// SIGUSR2.
    pub(super) fn upgrade(self: &Rc<Self>, ring: &Rc<Ring>) {
        let (watch, other) = (Rc::clone(self), Rc::clone(ring));
        spawn(ring, async move {
            // Both outcomes are logged where they come about.
            let _ = upgrade::carry_out(&other, &watch.state, None).await;
        });
    }

    /// Waits for a successor that serves, then lets what is under way here run on: for `limit` at most, and
    /// for the drain timeout once a signal says so or the successor has gone.
    pub(super) async fn leave(
        self: &Rc<Self>,
        ring: &Rc<Ring>,
        acceptors: &[Rc<Acceptor>],
        limit: Duration,
    ) {
        self.state.upgrade.handed.take().await;
        let drain_timeout = self.state.drain_timeout.get();
        self.state.phase.set(Phase::Draining);
        self.state.upgrade.forget_sockets();
        acceptors.iter().for_each(|acceptor| acceptor.stop());
        for shard in &self.state.shards {
            if !shard.send(Message::HandOver) {
                self.logger.warn("a shard did not take the order to hand over", &[]);
            }
        }
        let open = || self.state.shards.iter().map(|one| connections(&one.metrics)).sum::<u64>();
        let fields = [
            ("connections", &*open().to_string()),
            ("upgrade_drain_timeout", &format!("{limit:?}")),
        ];
        self.logger.info("handed over: connections that are open run on", &fields);
        let (timer, began) = (Timer::new(ring), Instant::now());
        let left = loop {
            timer.set(LOOK_EVERY_MS);
            timer.fired().await;
            if began.elapsed() >= limit {
                break Duration::ZERO;
            }
            let heir_lives = self.state.upgrade.heir().is_some_and(|(_, lives)| lives);
            if self.hurried.get() || !heir_lives || open() == 0 {
                break drain_timeout.min(limit.saturating_sub(began.elapsed()));
            }
        };
        self.drain_shards(ring, left);
    }
}
