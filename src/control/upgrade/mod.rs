//! Upgrade of the running binary: the process starts its successor, passes what listens, and drains once
//! the successor serves. Until then nothing has changed, so a successor that fails changes nothing.
//!
//! ```text
//! old                                  new
//! spawn, Hello, Sockets.., Health.., Servers.., Names.., Whole
//!                                 -->  validate, open what is new, make rings, VRRP armed
//!                                 <--  Ready
//! VRRP frozen; Go                 -->  VRRP goes on, shards accept
//!                                 <--  Serving
//! tell the service manager; Yours -->  READY=1, pid file
//! drain                                serve
//! ```

mod inherit;
mod message;
mod offer;
pub mod pid_file;
pub mod standing;

use std::cell::{Cell, RefCell};
use std::ffi::OsString;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

pub use self::inherit::Inherited;
use self::message::Socket;
pub use self::offer::carry_out;
use crate::control::logger::Logger;
use crate::l7::worker::unix_ms;
use crate::ring::event::Event;
use crate::sys::{cpu, passing};

/// Names the process that a successor takes over from, which must be its parent.
pub(crate) const ENVIRONMENT: &str = "RINGGATE_UPGRADE";

/// What this process needs to be succeeded, and what came of it.
#[derive(Debug)]
pub struct Office {
    logger: Logger,
    command: Vec<OsString>,
    program: PathBuf,
    /// CPUs at the start, before the control thread was kept off those of the shards.
    cpus: Vec<usize>,
    timeout: Duration,
    sockets: RefCell<Vec<(Socket, OwnedFd)>>,
    elders: RefCell<Vec<Elder>>,
    under_way: Cell<bool>,
    /// Changes under way: a reload, servers.
    changing: Rc<Cell<u32>>,
    /// Upgrades that failed since this process serves.
    failed: Cell<u64>,
    /// When and why the last one failed.
    last_failure: RefCell<Option<(u64, String)>>,
    /// Processes before this one in the line of upgrades, as far as this one knows.
    inherited: bool,
    /// The successor serves: drain.
    pub handed: Event,
    /// The other end of what the successor holds for as long as it lives.
    heir: RefCell<Option<(u32, OwnedFd)>>,
}

/// A change under way; it ends when this is dropped.
#[derive(Debug)]
pub struct Changing(Rc<Cell<u32>>);

impl Drop for Changing {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

/// An older process of this line that still drains.
#[derive(Debug)]
pub(crate) struct Elder {
    pid: u32,
    channel: OwnedFd,
    since: Instant,
}

impl Elder {
    fn new(pid: u32, channel: OwnedFd) -> Self {
        Self { pid, channel, since: Instant::now() }
    }

    fn is_alive(&self) -> bool {
        // It says nothing any more; its end closes with it.
        !matches!(passing::receive(self.channel.as_fd(), false), Ok(None))
    }
}

impl Office {
    /// To be made before threads are confined to CPUs. A successor gets `timeout` until it can serve.
    #[must_use]
    pub fn new(logger: Logger, timeout: Duration, inherited: bool) -> Self {
        let command: Vec<OsString> = std::env::args_os().collect();
        Self {
            logger,
            program: program(command.first()),
            command,
            cpus: cpu::allowed(),
            timeout,
            sockets: RefCell::default(),
            elders: RefCell::default(),
            under_way: Cell::new(false),
            changing: Rc::default(),
            failed: Cell::new(0),
            last_failure: RefCell::default(),
            inherited,
            handed: Event::default(),
            heir: RefCell::default(),
        }
    }

    /// Keeps a way to the sockets of a listener, by shard, for a successor.
    pub fn keep_listener(&self, bind: SocketAddr, shard: usize, socket: &OwnedFd) {
        self.keep(Socket::Listener { bind, shard }, socket);
    }

    /// Keeps a way to the admin endpoint's socket.
    pub fn keep_admin(&self, bind: SocketAddr, socket: &OwnedFd) {
        self.keep(Socket::Admin { bind }, socket);
    }

    /// Keeps a way to the unix socket.
    pub fn keep_control(&self, path: &Path, socket: &OwnedFd) {
        self.keep(Socket::Control { path: path.to_owned() }, socket);
    }

    fn keep(&self, what: Socket, socket: &OwnedFd) {
        // Without descriptors there is no upgrade without loss; the successor opens its own then.
        if let Ok(copy) = socket.try_clone() {
            self.sockets.borrow_mut().push((what, copy));
        }
    }

    /// A listener has gone from the configuration.
    pub fn forget_listener(&self, bind: SocketAddr) {
        let is =
            |socket: &Socket| matches!(socket, Socket::Listener { bind: of, .. } if *of == bind);
        self.sockets.borrow_mut().retain(|(socket, _)| !is(socket));
    }

    /// Closes every copy: from now on sockets close when their shards do.
    pub fn forget_sockets(&self) {
        self.sockets.borrow_mut().clear();
    }

    /// This process serves in another's place; see [`Inherited`].
    pub fn succeed(&self, inherited: &Rc<Inherited>) {
        let elders = Inherited::serving(inherited);
        self.elders.borrow_mut().extend(elders);
    }

    /// An upgrade is under way: nothing else may change the process meanwhile.
    #[must_use]
    pub fn is_under_way(&self) -> bool {
        self.under_way.get()
    }

    /// Begins a change of what a successor is passed: there is no upgrade before it ends.
    ///
    /// # Errors
    /// An upgrade is under way.
    pub fn change(&self) -> Result<Changing, &'static str> {
        if self.is_under_way() {
            return Err("an upgrade is under way: try again");
        }
        self.changing.set(self.changing.get() + 1);
        Ok(Changing(Rc::clone(&self.changing)))
    }

    /// The process that serves in this one's place, once there is one; and false when it is gone.
    #[must_use]
    pub fn heir(&self) -> Option<(u32, bool)> {
        let heir = self.heir.borrow();
        let (pid, channel) = heir.as_ref()?;
        Some((*pid, !matches!(passing::receive(channel.as_fd(), false), Ok(None))))
    }

    /// Older processes that still drain.
    #[must_use]
    pub fn draining(&self) -> usize {
        let mut elders = self.elders.borrow_mut();
        elders.retain(Elder::is_alive);
        elders.len()
    }

    /// A successor serves in this process's place.
    #[must_use]
    pub fn has_left(&self) -> bool {
        self.heir.borrow().is_some()
    }

    /// Upgrades that failed.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.failed.get()
    }

    fn note_failure(&self, why: &str) {
        self.failed.set(self.failed.get() + 1);
        self.last_failure.replace(Some((unix_ms(), why.to_owned())));
    }

    /// For the status page.
    #[must_use]
    pub fn status(&self) -> Value {
        let _ = self.draining(); // forget those that have ended
        let elders = self.elders.borrow();
        let elders = elders.iter().map(|elder| {
            json!({ "pid": elder.pid, "draining_seconds": elder.since.elapsed().as_secs() })
        });
        let failure = self.last_failure.borrow();
        json!({
            "binary": self.program.display().to_string(),
            "under_way": self.under_way.get(),
            "took_over": self.inherited,
            "draining_processes": elders.collect::<Vec<_>>(),
            "failures": self.failed.get(),
            "last_failure": failure.as_ref().map(|(at, why)| json!({
                "at": String::from_utf8_lossy(&crate::l7::time::rfc3339_ms(*at)),
                "reason": why,
            })),
        })
    }
}

/// The path in a query: percent-encoded bytes; `None` when it is not that.
#[must_use]
pub fn decoded(text: &str) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStringExt as _;
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit = |byte: Option<u8>| (byte? as char).to_digit(16);
        let value = digit(rest.next())? * 16 + digit(rest.next())?;
        bytes.push(u8::try_from(value).ok()?);
    }
    Some(PathBuf::from(OsString::from_vec(bytes)))
}

/// The reverse of [`decoded`].
#[must_use]
pub fn encoded(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt as _;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-".contains(&byte);
    let bytes = path.as_os_str().as_bytes().iter();
    bytes
        .map(
            |byte| {
                if plain(*byte) { char::from(*byte).to_string() } else { format!("%{byte:02X}") }
            },
        )
        .collect()
}

/// The file to start again: as it was called when that is a path (a link may point to a newer one then),
/// else what runs.
fn program(called: Option<&OsString>) -> PathBuf {
    let called = called.map(PathBuf::from);
    match called.filter(|path| path.components().count() > 1) {
        Some(path) => std::path::absolute(&path).unwrap_or(path),
        None => std::env::current_exe().unwrap_or_else(|_| PathBuf::from("/proc/self/exe")),
    }
}
