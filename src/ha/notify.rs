//! Notifications of transitions: a command, and a document posted to a URL. One thread carries them out, in
//! order; when too many wait, the newest are dropped and counted.

use std::io;
use std::process::Child;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use super::config::Webhook;
use super::webhook;
use crate::sys::process::{self, Waited};

/// Notifications that wait at most.
const QUEUE_MAX: usize = 64;
/// A command is killed after this.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);
/// Commands that a kill has not ended, at most.
const STUCK_MAX: usize = 4;

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
    /// Why the last one failed; `None` when it did not.
    pub(super) problem: Mutex<Option<String>>,
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
        let result = carry_out(&job, &mut stuck);
        let counter = if result.is_ok() { &stats.done } else { &stats.failed };
        counter.fetch_add(1, Ordering::Relaxed);
        *stats.problem.lock().unwrap_or_else(PoisonError::into_inner) = result.err();
    }
}

/// `stuck`: killed commands that have not gone yet, so many at most; then commands fail.
fn carry_out(job: &Job, stuck: &mut Vec<Child>) -> Result<(), String> {
    stuck.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
    match job {
        Job::Command(command) => run(command, stuck).map_err(|what| {
            let program = command.first().map_or("", String::as_str);
            format!("the notification {program} {what}")
        }),
        Job::Post(webhook, body) => webhook::post(webhook, body)
            .map_err(|error| format!("the notification to {} failed: {error}", webhook.authority)),
    }
}

fn run(command: &[String], stuck: &mut Vec<Child>) -> Result<(), String> {
    if stuck.len() >= STUCK_MAX {
        return Err("was not run: too many that were killed have not gone".into());
    }
    let child = process::start(command, None).map_err(|error| format!("cannot run: {error}"))?;
    match process::wait(child, COMMAND_TIMEOUT) {
        Waited::Ended(status) if status.success() => Ok(()),
        Waited::Ended(status) => Err(format!("failed: {status}")),
        Waited::Stuck(child) => {
            stuck.push(child);
            Err("was killed after its time and has not gone".into())
        }
        Waited::Killed => Err("was killed after its time".into()),
        Waited::Failed(error) => Err(format!("failed: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_succeed_or_fail() {
        let command =
            |text: &str| Job::Command(["/bin/sh", "-c", text].map(str::to_owned).to_vec());
        assert_eq!(carry_out(&command("true"), &mut Vec::new()), Ok(()));
        let failed = "the notification /bin/sh failed: exit status: 1".to_owned();
        assert_eq!(carry_out(&command("false"), &mut Vec::new()), Err(failed));
        let error = carry_out(&Job::Command(vec!["/nonexistent".into()]), &mut Vec::new());
        assert!(
            error.is_err_and(|text| text.starts_with("the notification /nonexistent cannot run"))
        );
    }
}
