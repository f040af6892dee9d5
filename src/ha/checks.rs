//! Check scripts and tracked files, on threads of their own: neither a fork nor a slow file system may hold up
//! an advertisement.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::config::Script;
use super::health::Verdict;
use crate::balance::RiseFall;
use crate::sys::notify::EventFd;
use crate::sys::process::{self, Waited};

/// How often tracked files are read.
const FILES_EVERY: Duration = Duration::from_millis(500);
/// A tracked file longer than this holds no number.
const FILE_MAX: u64 = 64;

/// What a script has said so far.
#[derive(Debug, Default)]
pub(super) struct ScriptState {
    /// After `rise` and `fall`; unknown before the first verdict.
    pub(super) verdict: Verdict,
    /// Runs that succeeded.
    pub(super) successes: AtomicU64,
    /// Runs that failed, timeouts included.
    pub(super) failures: AtomicU64,
    /// Runs that were killed after their timeout.
    pub(super) timeouts: AtomicU64,
    /// A reload has removed the script.
    pub(super) over: AtomicBool,
}

/// Runs `script` at its interval for as long as the process lives; `wake` is told of each new verdict.
pub(super) fn run_script(script: Script, wake: Arc<EventFd>) -> io::Result<Arc<ScriptState>> {
    let state = Arc::new(ScriptState::default());
    let shared = Arc::clone(&state);
    let name = format!("check-{}", script.name);
    thread::Builder::new().name(name).spawn(move || {
        let (mut counting, mut stuck) = (RiseFall::default(), None);
        while !shared.over.load(Ordering::Relaxed) {
            let began = Instant::now();
            let success = run_once(&script, &shared, &mut stuck);
            let counter = if success { &shared.successes } else { &shared.failures };
            counter.fetch_add(1, Ordering::Relaxed);
            if let Some(good) = counting.note(success, script.rise, script.fall) {
                shared.verdict.set(good);
                wake.notify();
            }
            thread::sleep(script.interval.saturating_sub(began.elapsed()));
        }
    })?;
    Ok(state)
}

/// `stuck`: a killed run that has not gone yet. Until it has, nothing else is run, which is a failure too.
fn run_once(script: &Script, state: &ScriptState, stuck: &mut Option<Child>) -> bool {
    if let Some(child) = stuck
        && matches!(child.try_wait(), Ok(None))
    {
        return false;
    }
    *stuck = None;
    let Ok(child) = process::start(&script.command, script.user.as_ref()) else { return false };
    let waited = process::wait(child, script.timeout);
    if let Waited::Killed | Waited::Stuck(_) = waited {
        state.timeouts.fetch_add(1, Ordering::Relaxed);
    }
    match waited {
        Waited::Ended(status) => return status.success(),
        Waited::Stuck(child) => *stuck = Some(child),
        Waited::Killed | Waited::Failed(_) => {}
    }
    false
}

/// Watches files; the number in each, 0 while there is none. Ends once nobody has the values any more.
pub(super) fn watch_files(
    paths: Vec<PathBuf>,
    wake: Arc<EventFd>,
) -> io::Result<Vec<Arc<AtomicI32>>> {
    let values: Vec<Arc<AtomicI32>> =
        paths.iter().map(|path| Arc::new(AtomicI32::new(read_number(path)))).collect();
    if paths.is_empty() {
        return Ok(values);
    }
    let shared = values.clone();
    thread::Builder::new().name("track-files".into()).spawn(move || {
        while shared.iter().any(|value| Arc::strong_count(value) > 1) {
            thread::sleep(FILES_EVERY);
            for (path, value) in paths.iter().zip(&shared) {
                let now = read_number(path);
                if value.swap(now, Ordering::Relaxed) != now {
                    wake.notify();
                }
            }
        }
    })?;
    Ok(values)
}

fn read_number(path: &Path) -> i32 {
    use std::io::Read as _;
    let mut text = String::new();
    let read =
        std::fs::File::open(path).and_then(|file| file.take(FILE_MAX).read_to_string(&mut text));
    read.ok().and_then(|_| text.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script(command: &str) -> Script {
        Script {
            name: "t".into(),
            command: ["/bin/sh", "-c", command].map(str::to_owned).to_vec(),
            interval: Duration::from_secs(3600),
            timeout: Duration::from_secs(60), // for a shell on a busy machine
            rise: 2,
            fall: 3,
            weight: None,
            user: None,
        }
    }

    #[test]
    fn rise_and_fall_count_runs_in_a_row() {
        let script = script("");
        let mut counting = RiseFall::default();
        let runs = [
            (true, true),
            (false, true),
            (false, true),
            (true, true),
            (false, true),
            (false, true),
            (false, false),
            (true, false),
            (false, false),
            (true, false),
            (true, true),
        ];
        for (step, (success, good)) in runs.into_iter().enumerate() {
            counting.note(success, script.rise, script.fall);
            assert_eq!(counting.good(), Some(good), "step {step}");
        }
    }

    #[test]
    fn exit_codes_and_timeouts_are_failures() {
        let (state, mut stuck) = (ScriptState::default(), None);
        assert!(run_once(&script("exit 0"), &state, &mut stuck));
        assert!(!run_once(&script("exit 1"), &state, &mut stuck));
        assert_eq!(state.timeouts.load(Ordering::Relaxed), 0);
        let slow = Script { timeout: Duration::from_millis(50), ..script("sleep 100") };
        assert!(!run_once(&slow, &state, &mut stuck));
        assert_eq!(state.timeouts.load(Ordering::Relaxed), 1);
        // On a busy machine the end of a killed one takes longer than is waited for.
        if let Some(child) = &mut stuck {
            child.wait().expect("our child");
        }
        assert!(run_once(&script("exit 0"), &state, &mut stuck));
        assert!(stuck.is_none());
    }

    #[test]
    fn nothing_runs_until_a_stuck_run_has_gone() {
        // Stands for one that a kill does not end.
        let child = process::start(&["/bin/sleep".into(), "100".into()], None).expect("a child");
        let (state, mut stuck) = (ScriptState::default(), Some(child));
        for _ in 0..3 {
            assert!(!run_once(&script("exit 0"), &state, &mut stuck));
        }
        let mut child = stuck.take().expect("it is kept");
        child.kill().expect("our child");
        child.wait().expect("our child");
        stuck = Some(child);
        assert!(run_once(&script("exit 0"), &state, &mut stuck));
        assert!(stuck.is_none());
    }

    #[test]
    fn files_hold_a_number_or_count_as_zero() {
        let path = std::env::temp_dir().join(format!("ringgate-track-{}", std::process::id()));
        for (text, value) in [("1\n", 1), (" -5 ", -5), ("", 0), ("down", 0), ("99999999999", 0)] {
            std::fs::write(&path, text).expect("a temporary file");
            assert_eq!(read_number(&path), value, "{text:?}");
        }
        std::fs::remove_file(&path).expect("just written");
        assert_eq!(read_number(&path), 0);
    }
}
