//! The running process's side of an upgrade.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::sync::mpsc::TryRecvError;
use std::time::{Duration, Instant};

use super::message::{Hello, Message, Socket, VERSION};
use super::{ENVIRONMENT, Office, standing};
use crate::control::state::{Phase, State};
use crate::control::systemd;
use crate::ha::handoff::Handed;
use crate::l4::engine::Passing;
use crate::l4::handoff::{Bundle, Part};
use crate::ring::{Ring, Timer};
use crate::sys::passing;

/// How often an answer is looked for.
const LOOK_EVERY_MS: u64 = 4;
/// While VRRP is frozen, more often.
const LOOK_OFTEN_MS: u64 = 1;
/// From `Go` on a successor has nothing left to do that takes time.
const SERVING_PATIENCE: Duration = Duration::from_secs(5);
/// The HA thread freezes within this.
const FREEZE_PATIENCE: Duration = Duration::from_secs(1);
/// A successor that has ended is known within this.
const STATUS_PATIENCE: Duration = Duration::from_millis(500);

/// Starts the successor and returns, with a line for the operator, once it serves; this process is to drain
/// then, which [`Office::handed`] says.
///
/// # Errors
/// Why this process serves on.
pub async fn carry_out(
    ring: &Rc<Ring>,
    state: &State,
    binary: Option<PathBuf>,
) -> Result<String, String> {
    let office = &state.upgrade;
    if office.changing.get() > 0 {
        return Err("a reload or a change of servers is under way: try again".into());
    }
    if office.under_way.replace(true) {
        return Err("an upgrade is under way already".into());
    }
    let program = binary.unwrap_or_else(|| office.program.clone());
    let shown = program.display().to_string();
    office.logger.info("upgrade begins", &[("binary", &shown)]);
    systemd::notify("RELOADING=1\nSTATUS=upgrading\n");
    let result = attempt(ring, state, &program).await;
    office.under_way.set(false);
    match result {
        Ok(pid) => {
            office.handed.set();
            office.logger.info("upgraded", &[("binary", &shown), ("pid", &pid.to_string())]);
            Ok(format!("process {pid} ({shown}) serves; this one drains"))
        }
        Err(why) => {
            office.note_failure(&why);
            office.logger.error("upgrade failed, this process serves on", &[("reason", &why)]);
            systemd::notify("READY=1\nSTATUS=serving; the last upgrade failed\n");
            Err(why)
        }
    }
}

async fn attempt(ring: &Rc<Ring>, state: &State, program: &Path) -> Result<u32, String> {
    if state.phase.get() != Phase::Serving {
        return Err("this process is draining".into());
    }
    if std::process::id() == 1 {
        return Err(
            "this process is the first of its container, which would end with it: start a \
                    new container, or run ringgate below an init"
                .into(),
        );
    }
    let (channel, theirs) = passing::pair().map_err(|error| format!("no socket pair: {error}"))?;
    let child = start(&state.upgrade, program, theirs)
        .map_err(|error| format!("cannot start {}: {error}", program.display()))?;
    let pid = child.id();
    let mut attempt = Attempt { timer: Timer::new(ring), channel, child: Some(child) };
    attempt.pass(state).await?;
    let (vrrp, real_server) = attempt.ready(state.upgrade.timeout).await?;
    if state.phase.get() != Phase::Serving {
        return Err("this process was told to end meanwhile".into());
    }
    let done = match attempt.freeze(state, vrrp).await {
        Ok((handed, director)) => attempt.go(handed, director).await,
        Err(why) => Err(why),
    };
    match &done {
        Ok(()) => leave(state, real_server),
        // Whoever was frozen goes on, once the successor is gone.
        Err(_) => {
            drop(attempt);
            thaw(state);
            return done.map(|()| pid);
        }
    }
    attempt.child = None; // it lives on
    systemd::notify(&format!("MAINPID={pid}\n"));
    let _ = Message::Yours.send(&attempt.channel, &[]);
    let channel = attempt.channel.try_clone();
    state.upgrade.heir.replace(channel.ok().map(|channel| (pid, channel)));
    Ok(pid)
}

/// The successor serves.
fn leave(state: &State, real_server: Vec<IpAddr>) {
    if let Some(ha) = state.ha.get() {
        ha.leave();
    }
    // The successor probes servers and looks their names up now. What this process still has to finish goes by the last verdicts.
    state.checks.end();
    state.resolver.look_up(Vec::new());
    if let Some(l4) = &state.l4 {
        l4.leave(real_server);
    }
}

/// The successor failed.
fn thaw(state: &State) {
    if let Some(l4) = &state.l4 {
        l4.thaw();
    }
    if let Some(ha) = state.ha.get() {
        ha.thaw();
    }
}

/// The same command line; the connection is its standard input, the one descriptor that no other child
/// can inherit by accident.
fn start(office: &Office, program: &Path, channel: OwnedFd) -> io::Result<Child> {
    let mut command = Command::new(program);
    if let Some((name, arguments)) = office.command.split_first() {
        command.arg0(name).args(arguments);
    }
    command
        .env(ENVIRONMENT, std::process::id().to_string())
        .env_remove("WATCHDOG_PID")
        .stdin(Stdio::from(channel))
        .spawn()
}

/// As many messages as it takes for so many descriptors.
fn director(mut parts: Bundle) -> Vec<(Message, Vec<OwnedFd>)> {
    let mut messages = Vec::new();
    while !parts.is_empty() {
        let some = parts.drain(..parts.len().min(passing::DESCRIPTORS_MAX));
        let (parts, descriptors) = some.unzip();
        messages.push((Message::Director { parts }, descriptors));
    }
    messages
}

/// An upgrade that may still fail: dropped, it kills the successor.
struct Attempt {
    timer: Timer,
    channel: OwnedFd,
    child: Option<Child>,
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Both fail only for one that has gone already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Attempt {
    async fn pass(&mut self, state: &State) -> Result<(), String> {
        let office = &state.upgrade;
        let hello = Hello {
            version: VERSION,
            pid: std::process::id(),
            cpus: office.cpus.clone(),
            tickets: state.tls.ticket_secrets().iter().filter_map(|s| s.export()).collect(),
            age_ms: Some(state.now()),
            log_level: Some(state.logger.level())
                .filter(|level| *level != state.log.borrow().level)
                .map(|level| level.name().to_owned()),
        };
        let mut passed = vec![(Message::Hello(hello), Vec::new())];
        {
            let sockets = office.sockets.borrow();
            let copied = |(what, socket): &(Socket, OwnedFd)| {
                socket.try_clone().map(|socket| (what.clone(), socket))
            };
            let elders = office.elders.borrow();
            let elders = elders.iter().map(|elder| {
                let pid = elder.pid;
                elder.channel.try_clone().map(|channel| (Socket::Elder { pid }, channel))
            });
            let all = sockets.iter().map(copied).chain(elders).collect::<io::Result<Vec<_>>>();
            let mut all = all.map_err(|error| format!("cannot copy the sockets: {error}"))?;
            while !all.is_empty() {
                let some = all.drain(..all.len().min(passing::DESCRIPTORS_MAX));
                let (sockets, descriptors) = some.unzip();
                passed.push((Message::Sockets { sockets }, descriptors));
            }
        }
        passed.extend(standing::messages(state).into_iter().map(|message| (message, Vec::new())));
        if let Some(l4) = &state.l4 {
            let parts = self.collect(l4.pass_on(), office.timeout).await?;
            passed.extend(director(parts));
        }
        passed.push((Message::Whole, Vec::new()));
        self.say(passed, office.timeout).await
    }

    async fn say(
        &mut self,
        messages: Vec<(Message, Vec<OwnedFd>)>,
        timeout: Duration,
    ) -> Result<(), String> {
        let began = Instant::now();
        for (message, descriptors) in messages {
            let borrowed: Vec<_> = descriptors.iter().map(|socket| socket.as_fd()).collect();
            loop {
                match message.send(&self.channel, &borrowed) {
                    Ok(()) => break,
                    Err(error)
                        if error.kind() == io::ErrorKind::WouldBlock
                            && began.elapsed() < timeout =>
                    {
                        self.pause(LOOK_OFTEN_MS).await;
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        return Err("the new process does not read what it is passed".into());
                    }
                    Err(error) => return Err(self.ended(&error.to_string()).await),
                }
            }
        }
        Ok(())
    }

    /// Everything that the director passes.
    async fn collect(&self, passing: Passing, timeout: Duration) -> Result<Bundle, String> {
        let (began, mut parts) = (Instant::now(), Vec::new());
        loop {
            match passing.try_recv() {
                Ok(part) => parts.push(part),
                Err(TryRecvError::Disconnected) => return Ok(parts),
                Err(TryRecvError::Empty) if began.elapsed() < timeout => {
                    self.pause(LOOK_OFTEN_MS).await;
                }
                Err(TryRecvError::Empty) => return Err("layer 4 does not answer".into()),
            }
        }
    }

    /// Waits until the successor could serve; the virtual routers and the addresses of the real server it would take.
    async fn ready(&mut self, timeout: Duration) -> Result<(Vec<String>, Vec<IpAddr>), String> {
        match self.next(timeout, LOOK_EVERY_MS).await? {
            Message::Ready { vrrp, real_server } => Ok((vrrp, real_server)),
            Message::Failed { reason } => Err(format!("the new process cannot serve: {reason}")),
            _ => Err("the new process said something out of turn".into()),
        }
    }

    /// Stops this side's VRRP and director; how they stand.
    async fn freeze(
        &self,
        state: &State,
        taken: Vec<String>,
    ) -> Result<(Vec<Handed>, Bundle), String> {
        let mut bundle = Vec::new();
        // First: its frames wait in their rings, while advertisements must not.
        if let Some(l4) = &state.l4 {
            bundle = self.collect(l4.freeze(), FREEZE_PATIENCE).await?;
            let stopped = bundle.iter().filter(|(part, _)| matches!(part, Part::Flows { .. }));
            if stopped.count() != l4.board.directors.len() {
                return Err("a director does not pass its flows".into());
            }
        }
        let Some(answer) = state.ha.get().map(|ha| ha.freeze(taken)) else {
            return Ok((Vec::new(), bundle));
        };
        let began = Instant::now();
        loop {
            match answer.try_recv() {
                Ok(handed) => return Ok((handed, bundle)),
                Err(TryRecvError::Empty) if began.elapsed() < FREEZE_PATIENCE => {
                    self.pause(LOOK_OFTEN_MS).await;
                }
                Err(_) => return Err("VRRP does not answer".into()),
            }
        }
    }

    async fn go(&mut self, vrrp: Vec<Handed>, parts: Bundle) -> Result<(), String> {
        let mut messages = director(parts);
        messages.push((Message::Go { vrrp }, Vec::new()));
        self.say(messages, FREEZE_PATIENCE).await?;
        match self.next(SERVING_PATIENCE, LOOK_OFTEN_MS).await? {
            Message::Serving => Ok(()),
            Message::Failed { reason } => Err(format!("the new process cannot serve: {reason}")),
            _ => Err("the new process said something out of turn".into()),
        }
    }

    async fn next(&mut self, timeout: Duration, every_ms: u64) -> Result<Message, String> {
        let began = Instant::now();
        loop {
            match Message::receive(&self.channel, false) {
                Ok(Some((message, _))) => return Ok(message),
                Ok(None) => return Err(self.ended("it said nothing").await),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(self.ended(&error.to_string()).await),
            }
            if began.elapsed() >= timeout {
                return Err(format!("the new process was not ready within {timeout:?}"));
            }
            self.pause(every_ms).await;
        }
    }

    /// Why the successor ended, as far as it shows.
    async fn ended(&mut self, otherwise: &str) -> String {
        // Its last word may not have been read yet.
        if let Ok(Some((Message::Failed { reason }, _))) = Message::receive(&self.channel, false) {
            return format!("the new process cannot serve: {reason}");
        }
        let began = Instant::now();
        while let Some(child) = &mut self.child
            && began.elapsed() < STATUS_PATIENCE
        {
            if let Ok(Some(status)) = child.try_wait() {
                return match (status.code(), status.signal()) {
                    (Some(code), _) => format!("the new process ended with exit code {code}"),
                    (None, Some(signal)) => format!("the new process was ended by signal {signal}"),
                    (None, None) => "the new process ended".into(),
                };
            }
            self.pause(LOOK_EVERY_MS).await;
        }
        format!("the new process does not talk: {otherwise}")
    }

    async fn pause(&self, ms: u64) {
        self.timer.set(ms);
        self.timer.fired().await;
    }
}
