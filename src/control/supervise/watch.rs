//! While it serves: signals, news from other threads, and the end.

use std::cell::Cell;
use std::fs::OpenOptions;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use super::{End, Failed, News, warn_of_expired};
use crate::control::certificates::Change;
use crate::control::config::LogTarget;
use crate::control::director;
use crate::control::logger::Logger;
use crate::control::reload::Cause;
use crate::control::state::{Phase, State};
use crate::control::{probing, resolve, systemd, tuning, vrrp};
use crate::ha;
use crate::l7::worker::Report;
use crate::ring::executor::spawn;
use crate::ring::{Ring, probe};
use crate::shard::Message;
use crate::sys::file::set_blocking;
use crate::sys::notify::EventFd;
use crate::sys::signal::{self, SignalFd};

/// Added to the drain timeout before shards that do not answer are left behind.
const DRAIN_MARGIN: Duration = Duration::from_secs(2);

/// What runs until the end.
pub(super) struct Watch {
    pub(super) logger: Logger,
    pub(super) state: Rc<State>,
    pub(super) end: Rc<End>,
    /// After a hand-over: a signal has asked to end sooner.
    pub(super) hurried: Cell<bool>,
}

/// A descriptor in a form the ring can keep.
struct Keep<T>(T);

impl<T: AsRawFd> AsRawFd for Keep<Arc<T>> {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Watch {
    /// Obeys signals: the first TERM or INT drains, the second ends at once.
    pub(super) async fn obey(self: &Rc<Self>, ring: Rc<Ring>, signals: SignalFd) {
        let signals: Rc<dyn AsRawFd> = Rc::new(signals);
        let mut record = Vec::with_capacity(signal::RECORD_LEN);
        loop {
            let (read, buffer) = ring.read(Rc::clone(&signals), record).await;
            record = buffer;
            if read.is_err() {
                return;
            }
            match signal::number(&record) {
                Some(libc::SIGUSR1) => self.reopen_logs(),
                Some(libc::SIGHUP) => self.state.reload.request(Cause::Signal),
                Some(libc::SIGUSR2) => self.upgrade(&ring),
                Some(_) if self.state.upgrade.has_left() && !self.hurried.replace(true) => {
                    self.logger.info("a signal: what is left gets the drain timeout", &[]);
                }
                Some(_) if self.state.phase.get() == Phase::Draining => {
                    self.logger.warn("second signal: ending at once", &[]);
                    self.end.with(Ok(()));
                }
                Some(_) => self.drain(&ring, self.state.drain_timeout.get()),
                None => {}
            }
        }
    }

    fn drain(self: &Rc<Self>, ring: &Rc<Ring>, timeout: Duration) {
        self.state.phase.set(Phase::Draining);
        self.state.upgrade.forget_sockets();
        systemd::notify("STOPPING=1\nSTATUS=draining\n");
        if self.state.ha.get().is_some() {
            self.logger.info("resigning", &[]);
            let (ring, watch) = (Rc::clone(ring), Rc::clone(self));
            // The addresses go to a peer first; what is under way on them is served meanwhile.
            spawn(&ring.clone(), async move {
                vrrp::stop(&ring, &watch.state).await;
                watch.drain_shards(&ring, timeout);
            });
            return;
        }
        self.drain_shards(ring, timeout);
    }

    pub(super) fn drain_shards(&self, ring: &Rc<Ring>, timeout: Duration) {
        self.logger.info("draining", &[("drain_timeout", &format!("{timeout:?}"))]);
        self.state.health.listeners.set(false);
        for shard in &self.state.shards {
            let _ = shard.send(Message::Drain(timeout));
        }
        let timer = crate::ring::Timer::new(ring);
        timer.set(crate::l7::pool::millis(timeout + DRAIN_MARGIN));
        let end = Rc::clone(&self.end);
        spawn(ring, async move {
            timer.fired().await;
            end.with(Err(Failed("a shard did not end within the drain timeout".into())));
        });
    }

    fn reopen_logs(&self) {
        let log = self.state.log.borrow().clone();
        if log.access.is_none() {
            return;
        }
        for shard in &self.state.shards {
            match open_log(&log.access_file) {
                Ok(file) => {
                    let _ = shard.send(Message::ReopenLog(file));
                }
                Err(error) => return self.logger.error("log not reopened", &[("error", &error.0)]),
            }
        }
        self.logger.info("access log reopened", &[]);
    }

    /// Reads what other threads tell.
    pub(super) async fn read(&self, ring: Rc<Ring>, inbox: Receiver<News>, wake: Arc<EventFd>) {
        let wake: Rc<dyn AsRawFd> = Rc::new(Keep(wake));
        let mut buffer = Vec::with_capacity(8);
        let mut running = self.state.shards.len();
        loop {
            while let Ok(news) = inbox.try_recv() {
                match news {
                    News::Report(report) => self.log_report(&report),
                    News::Certificates(change) => self.log_change(&change),
                    News::Ha(event) => {
                        director::transition(&self.state, &event);
                        vrrp::log(self.logger, &event);
                        if let ha::Event::Asked { instance } = event {
                            spawn(
                                &ring,
                                vrrp::heed(Rc::clone(&ring), Rc::clone(&self.state), instance),
                            );
                        }
                    }
                    News::L4(event) => director::log(self.logger, &event),
                    News::Resolved { name, result } => self.apply_resolved(&name, result),
                    News::Health(event) => probing::log(self.logger, &event),
                    News::FileChanged => self.state.reload.request(Cause::File),
                    News::Tuning(standing) => self.log_drift(standing),
                    News::ShardEnded(index, result) => {
                        running -= 1;
                        self.shard_ended(index, result, running);
                    }
                }
            }
            (_, buffer) = ring.read(Rc::clone(&wake), buffer).await;
        }
    }

    fn shard_ended(&self, index: usize, result: io::Result<()>, running: usize) {
        match result {
            Err(error) => {
                let failed = format!("shard {index} failed: {}", probe::explain(&error, 0));
                self.end.with(Err(Failed(failed)));
            }
            Ok(()) if running == 0 => {
                self.logger.info("drained", &[]);
                self.end.with(Ok(()));
            }
            Ok(()) => {}
        }
    }

    fn log_drift(&self, standing: tuning::Standing) {
        let Some(tuning) = &self.state.tuning else { return };
        let before = tuning.standing.replace(standing);
        let now = tuning.standing.borrow();
        if tuning.required {
            self.state.health.tuning.set(now.drift.is_empty());
        }
        let (gone, back) = tuning::news(&before, &now);
        for drift in gone {
            let fields = [("key", &drift.key[..]), ("now", &drift.now), ("wanted", &drift.wanted)];
            self.logger.warn("a setting of the machine has drifted", &fields);
        }
        for drift in back {
            self.logger.info("a setting of the machine is as wanted again", &[("key", &drift.key)]);
        }
    }

    fn log_report(&self, report: &Report) {
        match report {
            Report::ServerOut { upstream, server, reason } => self.logger.warn(
                "server is out after failures",
                &[("upstream", upstream), ("server", server), ("reason", reason)],
            ),
            Report::ServerTls { upstream, server, error } => self.logger.warn(
                "no TLS with a server",
                &[("upstream", upstream), ("server", server), ("error", error)],
            ),
            Report::ClientLimited { address, what } => self.logger.warn(
                "a client address is limited; further ones are counted in /metrics",
                &[("client", &address.to_string()), ("why", what)],
            ),
            Report::NoDescriptors { listener } => self.logger.error(
                "out of file descriptors: accepting rests (raise LimitNOFILE)",
                &[("listener", listener)],
            ),
        }
    }

    fn log_change(&self, change: &Change) {
        match change {
            Change::Replaced(files) => {
                self.logger.info("certificates replaced", &[("files", &files.join(","))]);
                warn_of_expired(&self.logger, &self.state);
            }
            Change::Refused(what) => self.logger.error(
                "new certificate or key refused, the old one stays in force",
                &[("problem", what)],
            ),
        }
    }

    fn apply_resolved(&self, name: &resolve::Name, result: io::Result<Vec<SocketAddr>>) {
        let host = name.host.as_str();
        let addresses = match result {
            Ok(addresses) => addresses,
            Err(error) => {
                let fields = [("name", host), ("error", &error.to_string())];
                return self.logger.debug("name not resolved; its addresses stay", &fields);
            }
        };
        let text = addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        for upstream in self.state.resolved(host, name.port, &addresses) {
            let shared = &upstream.shared;
            let fields =
                [("upstream", shared.config.name.as_str()), ("name", host), ("addresses", &text)];
            self.logger.info("name resolved", &fields);
            let set = upstream.set.borrow();
            for shard in &self.state.shards {
                if !shard.send(Message::Members(Arc::clone(shared), Arc::clone(&set))) {
                    self.logger.warn("shard did not take new addresses", &fields[..1]);
                }
            }
        }
    }
}

pub(in crate::control) fn open_log(target: &LogTarget) -> Result<OwnedFd, Failed> {
    match target {
        LogTarget::Stdout => io::stdout()
            .as_fd()
            .try_clone_to_owned()
            .map_err(|error| Failed(format!("cannot use standard output for the log: {error}"))),
        LogTarget::File(path) => open_to_append(path).map_err(|error| {
            let hint = match error.raw_os_error() {
                Some(libc::ENXIO) => ": nobody reads from this FIFO",
                _ => "",
            };
            Failed(format!("cannot open log.access_file {}: {error}{hint}", path.display()))
        }),
    }
}

/// Opens without waiting, which a FIFO without a reader would ask for.
fn open_to_append(path: &Path) -> io::Result<OwnedFd> {
    let file =
        OpenOptions::new().create(true).append(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let file = OwnedFd::from(file);
    // Later a write is to wait, in the ring, until there is room for all of it.
    set_blocking(file.as_fd())?;
    Ok(file)
}
