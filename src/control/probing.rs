//! The one prober as the control thread holds it: both layers give it their endpoints, and its news are logged here.

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::control::logger::Logger;
use crate::control::upgrade::standing::CheckHealth;
use crate::health::{Counts, Event, Layer, Prober, Row, Target, Tell, Verdict};
use crate::l7::pool::millis;
use crate::ring::{Ring, Timer};

/// Probes at a time; each is a descriptor.
const CONCURRENT_MAX: u64 = 4096;
/// The start waits this long for the first round.
const FIRST_ROUND: Duration = Duration::from_secs(3);
/// How often it looks.
const FIRST_ROUND_LOOK_MS: u64 = 5;

/// The prober, once there is something to probe.
#[derive(Debug)]
pub struct Probing(RefCell<Stage>);

enum Stage {
    /// Probes at a time, and where events go.
    Unused(usize, Tell),
    Running(Prober),
    Over,
}

impl fmt::Debug for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unused(..) => "Unused",
            Self::Running(_) => "Running",
            Self::Over => "Over",
        })
    }
}

impl Probing {
    /// With as many probes at a time as an eighth of the `descriptors` allows.
    #[must_use]
    pub fn new(descriptors: u64, tell: Tell) -> Rc<Self> {
        let concurrent = (descriptors / 8).clamp(16, CONCURRENT_MAX);
        let concurrent = usize::try_from(concurrent).unwrap_or(usize::MAX);
        Rc::new(Self(RefCell::new(Stage::Unused(concurrent, tell))))
    }

    /// Starts the thread, if it does not run yet.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn start(&self) -> io::Result<()> {
        let mut stage = self.0.borrow_mut();
        if let Stage::Unused(concurrent, tell) = &*stage {
            let started = Prober::start(*concurrent, Arc::clone(tell))?;
            *stage = Stage::Running(started);
        }
        Ok(())
    }

    /// Probes these endpoints of a layer from now on, and no others of it, if the thread runs.
    pub fn watch(&self, layer: Layer, targets: Vec<Target>) {
        self.of_prober(|prober| prober.set_targets(layer, targets));
    }

    /// Probes nothing any more: verdicts stay as they are.
    pub fn end(&self) {
        self.0.replace(Stage::Over);
    }

    /// As [`Probing::end`], and waits until commands under way are killed, a second at most.
    pub fn finish(&self) {
        if let Stage::Running(prober) = self.0.replace(Stage::Over) {
            prober.finish();
        }
    }

    /// Waits for the first verdict on every endpoint, 3 s at most; true when it came.
    pub async fn first_round(&self, ring: &Rc<Ring>) -> bool {
        let (timer, began) = (Timer::new(ring), Instant::now());
        while !self.of_prober(Prober::is_first_round_over).unwrap_or(true) {
            if began.elapsed() >= FIRST_ROUND {
                return false;
            }
            timer.set(FIRST_ROUND_LOOK_MS);
            timer.fired().await;
        }
        true
    }

    /// How each endpoint of a layer stands.
    #[must_use]
    pub fn rows(&self, layer: Layer) -> Vec<Row> {
        self.of_prober(|prober| prober.rows(layer)).unwrap_or_default()
    }

    /// The prober's own figures; `None` when nothing is probed.
    #[must_use]
    pub fn counts(&self) -> Option<Counts> {
        self.of_prober(Prober::counts)
    }

    fn of_prober<T>(&self, ask: impl FnOnce(&Prober) -> T) -> Option<T> {
        match &*self.0.borrow() {
            Stage::Running(prober) => Some(ask(prober)),
            _ => None,
        }
    }
}

/// The verdict of another process, if it was made by the same kind of check of the same address.
pub(super) fn resumed(target: &Target, before: CheckHealth) -> Option<Verdict> {
    let same =
        before.kind == target.check.kind.name() && before.probed == target.probed().to_string();
    same.then(|| Verdict {
        up: before.up,
        why: before.why,
        since: Duration::from_millis(before.since_ms),
        row: before.row,
    })
}

/// The verdict, if there is one.
pub(super) fn check_health(row: &Row) -> Option<CheckHealth> {
    Some(CheckHealth {
        kind: row.kind.to_owned(),
        probed: row.probed.clone(),
        up: row.up?,
        why: row.why.clone(),
        since_ms: millis(row.since),
        row: row.pending,
    })
}

/// Writes what the prober tells to the log.
pub fn log(logger: Logger, event: &Event) {
    match event {
        Event::Verdict { layer, group, server, up, why } => {
            let (group_is, what) = match layer {
                Layer::Proxy => ("upstream", ["server is up", "server is down"]),
                Layer::Director => ("virtual_server", ["real server is up", "real server is down"]),
            };
            let fields = [(group_is, &group[..]), ("server", server), ("reason", why)];
            match up {
                true => logger.info(what[0], &fields),
                false => logger.warn(what[1], &fields),
            }
        }
        Event::Starved(why) => {
            logger.error("health checks cannot be made, verdicts stay", &[("error", why)]);
        }
        Event::Fed => logger.info("health checks are made again", &[]),
    }
}
