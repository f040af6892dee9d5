//! Whether the shards' loops turn: each is asked twice a second, and one that does not answer is told of.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::control::logger::Logger;
use crate::control::state::State;
use crate::ring::executor::spawn;
use crate::ring::{Ring, Timer};

/// How often shards are asked.
const ASK_EVERY_MS: u64 = 500;
/// One that has not answered for so long is stuck: its share of the connections waits.
const STUCK_AFTER: Duration = Duration::from_secs(3);

/// How one shard answers. Pure: counts and times are passed in.
#[derive(Debug, Clone, Copy, Default)]
struct Pulse {
    /// Its beats when it was last asked.
    beats: u64,
    /// When it was asked what it has not answered yet.
    asked: Option<Instant>,
    is_stuck: bool,
    /// Times it was.
    stalls: u64,
}

/// What a look at a shard found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Nothing,
    Stuck,
    Back(Duration),
}

impl Pulse {
    /// Takes in how often it has been awake, and asks again.
    fn look(&mut self, beats: u64, now: Instant) -> Found {
        let answered = self.asked.is_none() || beats != self.beats;
        self.beats = beats;
        let before = self.asked;
        if answered {
            self.asked = Some(now);
        }
        let silent = before.map(|asked| now.saturating_duration_since(asked)).unwrap_or_default();
        match (self.is_stuck, answered) {
            (true, true) => {
                self.is_stuck = false;
                Found::Back(silent)
            }
            (false, false) if silent >= STUCK_AFTER => {
                self.is_stuck = true;
                self.stalls += 1;
                Found::Stuck
            }
            _ => Found::Nothing,
        }
    }
}

/// The shards' pulses, by number.
#[derive(Debug, Default)]
pub struct Pulses(RefCell<Vec<Pulse>>);

impl Pulses {
    /// Shards that are stuck, and for how long.
    #[must_use]
    pub fn stuck(&self) -> Vec<(usize, Duration)> {
        let pulses = self.0.borrow();
        let stuck = pulses.iter().enumerate().filter(|(_, pulse)| pulse.is_stuck);
        let since = |asked: Option<Instant>| asked.map(|at| at.elapsed()).unwrap_or_default();
        stuck.map(|(number, pulse)| (number, since(pulse.asked))).collect()
    }

    /// For how long a shard has been stuck.
    #[must_use]
    pub fn stuck_for(&self, shard: usize) -> Option<Duration> {
        self.stuck().into_iter().find_map(|(number, since)| (number == shard).then_some(since))
    }

    /// Times a shard was stuck.
    #[must_use]
    pub fn stalls(&self, shard: usize) -> u64 {
        self.0.borrow().get(shard).map_or(0, |pulse| pulse.stalls)
    }
}

/// Asks the shards for as long as the process runs.
pub fn watch(ring: &Rc<Ring>, state: &Rc<State>, logger: Logger) {
    let (ring, state) = (Rc::clone(ring), Rc::clone(state));
    spawn(&ring.clone(), async move {
        let timer = Timer::new(&ring);
        loop {
            look(&state, logger);
            timer.set(ASK_EVERY_MS);
            timer.fired().await;
        }
    });
}

fn look(state: &State, logger: Logger) {
    let mut pulses = state.pulses.0.borrow_mut();
    pulses.resize(state.shards.len(), Pulse::default());
    for (number, (shard, pulse)) in state.shards.iter().zip(&mut *pulses).enumerate() {
        let number = number.to_string();
        match pulse.look(shard.heartbeat.beats(), Instant::now()) {
            Found::Nothing => {}
            Found::Stuck => {
                logger.error("a shard does not answer: its connections wait", &[("shard", &number)])
            }
            Found::Back(after) => logger.warn(
                "a shard answers again",
                &[("shard", &number), ("after", &format!("{after:.1?}"))],
            ),
        }
        shard.ask();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_stuck_once_and_ends_with_an_answer() {
        let began = Instant::now();
        let at = |ms| began + Duration::from_millis(ms);
        let mut pulse = Pulse::default();
        assert_eq!(pulse.look(5, at(0)), Found::Nothing, "not asked yet");
        assert_eq!(pulse.look(6, at(500)), Found::Nothing);
        for ms in [1000, 1500, 3000, 3499] {
            assert_eq!(pulse.look(6, at(ms)), Found::Nothing, "{ms}");
        }
        assert_eq!(pulse.look(6, at(3500)), Found::Stuck);
        assert_eq!(pulse.look(6, at(9000)), Found::Nothing, "told once");
        assert_eq!(pulse.look(7, at(9500)), Found::Back(Duration::from_secs(9)));
        assert_eq!(pulse.look(7, at(12_499)), Found::Nothing);
        assert_eq!((pulse.look(7, at(12_500)), pulse.stalls), (Found::Stuck, 2));
    }

    #[test]
    fn a_late_look_is_no_silence() {
        let began = Instant::now();
        let mut pulse = Pulse::default();
        pulse.look(1, began);
        assert_eq!(pulse.look(2, began + Duration::from_secs(60)), Found::Nothing);
    }
}
