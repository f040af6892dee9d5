//! A child process that keeps the kernel silent for a moment after this process has died.
//!
//! The silence ends with the last descriptor of its socket. A killed process would so leave a kernel that still has the
//! leased virtual addresses, still gets the clients' packets until their ARP caches know the new director, and answers
//! them with RST: the flows that the other director is about to take over would be gone. So a child holds the
//! descriptor until the lease has run out. It does nothing else, and ends at once when it is told to.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

/// The hidden command of this program that the child runs.
pub const COMMAND: &str = "keep-silence";
/// What tells it to end.
const END: &[u8] = b".";

#[derive(Debug)]
pub(super) struct Keeper(Child);

impl Keeper {
    /// Starts the child, which holds `silence` for `linger` after this process has died.
    pub(super) fn start(silence: OwnedFd, linger: Duration) -> io::Result<Self> {
        let child = Command::new("/proc/self/exe")
            .args([COMMAND, &linger.as_millis().to_string()])
            .stdin(Stdio::piped())
            // Nothing is ever written to it.
            .stdout(Stdio::from(silence))
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self(child))
    }

    /// Ends the child.
    pub(super) fn end(mut self) {
        if let Some(mut pipe) = self.0.stdin.take() {
            // One that has died already need not be told.
            let _ = pipe.write_all(END);
        }
        let _ = self.0.wait();
    }
}

/// What the child does.
pub fn keep_silence(linger: Duration) {
    let mut told = [0];
    match io::stdin().read(&mut told) {
        Ok(0) | Err(_) => thread::sleep(linger),
        Ok(_) => {}
    }
}
