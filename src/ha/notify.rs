//! Notifications of transitions: a command, and a document posted to a URL. One thread carries them out, in
//! order; when too many wait, the newest are dropped and counted.

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::process::Child;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use super::config::Webhook;
use crate::sys::process::{self, Waited};

/// Notifications that wait at most.
const QUEUE_MAX: usize = 64;
/// A command is killed after this.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);
/// Commands that a kill has not ended, at most.
const STUCK_MAX: usize = 4;
/// Connecting, and each read and write, may take this long.
const POST_TIMEOUT: Duration = Duration::from_secs(5);

/// What to carry out.
#[derive(Debug)]
pub(super) enum Job {
    /// Run this.
    Command(Vec<String>),
    /// Post this JSON text.
    Post(Webhook, String),
}

/// What came of notifications.
#[derive(Debug, Default)]
pub(super) struct NotifyStats {
    /// Carried out.
    pub(super) done: AtomicU64,
    /// Failed: the command with another code than 0, the server with another status than 2xx.
    pub(super) failed: AtomicU64,
    /// Dropped because too many waited.
    pub(super) dropped: AtomicU64,
}

/// Hands notifications to their thread.
#[derive(Debug)]
pub(super) struct Notifier {
    jobs: SyncSender<Job>,
    pub(super) stats: Arc<NotifyStats>,
}

impl Notifier {
    /// Starts the thread.
    pub(super) fn start() -> io::Result<Self> {
        let (jobs, waiting) = sync_channel(QUEUE_MAX);
        let stats = Arc::new(NotifyStats::default());
        let shared = Arc::clone(&stats);
        thread::Builder::new().name("vrrp-notify".into()).spawn(move || work(&waiting, &shared))?;
        Ok(Self { jobs, stats })
    }

    /// Never waits.
    pub(super) fn send(&self, job: Job) {
        if self.jobs.try_send(job).is_err() {
            self.stats.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn work(jobs: &Receiver<Job>, stats: &NotifyStats) {
    let mut stuck = Vec::new();
    while let Ok(job) = jobs.recv() {
        let counter = if carry_out(&job, &mut stuck) { &stats.done } else { &stats.failed };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// `stuck`: killed commands that have not gone yet, so many at most; then commands fail.
fn carry_out(job: &Job, stuck: &mut Vec<Child>) -> bool {
    stuck.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
    match job {
        Job::Command(command) => {
            if stuck.len() >= STUCK_MAX {
                return false;
            }
            let Ok(child) = process::start(command, None) else { return false };
            match process::wait(child, COMMAND_TIMEOUT) {
                Waited::Ended(status) => status.success(),
                Waited::Stuck(child) => {
                    stuck.push(child);
                    false
                }
                Waited::Killed | Waited::Failed(_) => false,
            }
        }
        Job::Post(webhook, body) => post(webhook, body).is_ok_and(|status| status / 100 == 2),
    }
}

/// The status that the server answers with.
fn post(webhook: &Webhook, body: &str) -> io::Result<u16> {
    let mut stream = TcpStream::connect_timeout(&webhook.address, POST_TIMEOUT)?;
    stream.set_read_timeout(Some(POST_TIMEOUT))?;
    stream.set_write_timeout(Some(POST_TIMEOUT))?;
    let request = format!(
        "POST {} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        webhook.target,
        webhook.authority,
        body.len(),
    );
    stream.write_all(request.as_bytes())?;
    let mut head = [0; 12]; // "HTTP/1.1 200"
    stream.read_exact(&mut head)?;
    let status = head.get(9..).and_then(|digits| std::str::from_utf8(digits).ok());
    status.and_then(|digits| digits.parse().ok()).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn commands_succeed_or_fail() {
        let command =
            |text: &str| Job::Command(["/bin/sh", "-c", text].map(str::to_owned).to_vec());
        assert!(carry_out(&command("true"), &mut Vec::new()));
        assert!(!carry_out(&command("false"), &mut Vec::new()));
        assert!(!carry_out(&Job::Command(vec!["/nonexistent".into()]), &mut Vec::new()));
    }

    #[test]
    fn a_document_is_posted() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let webhook = Webhook {
            authority: "hooks.example".into(),
            address: listener.local_addr().expect("bound"),
            target: "/vip?x=1".into(),
        };
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            let mut text = Vec::new();
            while !text.ends_with(b"{\"a\":1}") {
                let mut bytes = [0; 256];
                let len = stream.read(&mut bytes).expect("a request");
                text.extend_from_slice(&bytes[..len]);
            }
            stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").expect("a reader");
            String::from_utf8(text).expect("text")
        });
        assert_eq!(post(&webhook, "{\"a\":1}").expect("an answer"), 204);
        let text = server.join().expect("no panic");
        assert!(text.starts_with("POST /vip?x=1 HTTP/1.1\r\nHost: hooks.example\r\n"), "{text}");
        assert!(text.contains("Content-Length: 7\r\n"), "{text}");
    }
}
