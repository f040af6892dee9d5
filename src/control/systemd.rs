//! What a service manager is told (sd_notify(3)): nothing unless it has named a socket in the environment.

use std::rc::Rc;
use std::time::Duration;

use crate::control::state::State;
use crate::ring::{Ring, Timer};
use crate::sys::datagram;

/// The watchdog is fed so many times in its interval.
const FEEDS: u32 = 3;

/// Sends assignments, a line each. There is nobody to tell when that fails.
pub fn notify(assignments: &str) {
    if let Ok(name) = std::env::var("NOTIFY_SOCKET")
        && !name.is_empty()
    {
        let _ = datagram::send_to(&name, assignments.as_bytes());
    }
}

/// Within which time the manager wants to be fed; `None`: it does not watch this process.
#[must_use]
pub fn watchdog() -> Option<Duration> {
    wanted(
        std::env::var("WATCHDOG_USEC").ok().as_deref(),
        std::env::var("WATCHDOG_PID").ok().as_deref(),
        std::process::id(),
    )
}

fn wanted(micros: Option<&str>, pid: Option<&str>, own: u32) -> Option<Duration> {
    let is_ours = pid.is_none_or(|pid| pid.parse() == Ok(own));
    let micros: u64 = micros?.parse().ok()?;
    (is_ours && micros > 0).then(|| Duration::from_micros(micros))
}

/// Feeds the watchdog for as long as every shard answers, and this thread runs.
pub async fn feed(ring: Rc<Ring>, state: Rc<State>, interval: Duration) {
    let timer = Timer::new(&ring);
    let every = u64::try_from((interval / FEEDS).as_millis()).unwrap_or(u64::MAX).max(1);
    let mut seen = vec![0; state.shards.len()];
    loop {
        // A beat that came since it was asked for proves that the shard's loop turns.
        let answered = |(shard, seen): (&crate::shard::Shard, &mut u64)| {
            let beats = shard.heartbeat.beats();
            std::mem::replace(seen, beats) != beats
        };
        let beats = state.shards.iter().zip(&mut seen);
        if beats.map(answered).filter(|answered| *answered).count() == state.shards.len() {
            notify("WATCHDOG=1\n");
        }
        for shard in &state.shards {
            shard.ask();
        }
        timer.set(every);
        timer.fired().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watchdog_is_ours_when_it_says_so() {
        let second = Some(Duration::from_secs(1));
        assert_eq!(wanted(Some("1000000"), None, 7), second);
        assert_eq!(wanted(Some("1000000"), Some("7"), 7), second);
        assert_eq!(wanted(Some("1000000"), Some("8"), 7), None);
        assert_eq!(wanted(Some("0"), None, 7), None);
        assert_eq!(wanted(Some("x"), None, 7), None);
        assert_eq!(wanted(None, Some("7"), 7), None);
    }
}
