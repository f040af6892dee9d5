//! From one process to its successor: virtual routers go on in the state they are in. The old thread
//! freezes, so that nothing is sent or renewed by both; the new one, which has its sockets open and knows
//! its health, advertises at once. If the successor fails nevertheless, the old thread goes on.

use std::net::IpAddr;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::Ha;
use super::engine::Engine;
use super::instance::Instance;
use crate::protocol::vrrp::{Action, Form, Moment, State};

/// How often a waiting successor looks at its health and empties its sockets.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// A successor does not wait longer for the first verdicts of its shards and scripts.
const VERDICTS_PATIENCE: Duration = Duration::from_secs(10);

/// The forms of checksums by their place; new ones come last.
const FORMS: [Form; 3] = [Form::Message, Form::Pseudo, Form::PseudoMulticast];

/// One virtual router as the successor goes on with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handed {
    /// Name, interface, VRID and version: what makes it the same router to its peers.
    pub key: String,
    /// It is the active router and has the addresses.
    pub active: bool,
    /// The operator has released it.
    pub released: bool,
    /// The operator prefers it.
    pub preferred: bool,
    /// What each peer's checksums cover, as a place in a list: one that only listens does not show it.
    #[serde(default)]
    pub checksums: Vec<(IpAddr, usize)>,
}

/// What the old thread is told.
#[derive(Debug)]
pub(super) enum Step {
    /// Say how the routers stand and do nothing any more. Those that the successor does not take resign.
    Freeze { taken: Vec<String>, reply: SyncSender<Vec<Handed>> },
    /// The successor failed: go on.
    Thaw,
    /// The successor has taken over: end, and touch nothing.
    Leave,
}

/// The successor's side: what it waits for before it takes part.
#[derive(Debug)]
pub struct Takeover {
    /// Told, with the keys of its routers, once it could begin at once.
    pub armed: SyncSender<Vec<String>>,
    /// How the routers stand.
    pub handed: Receiver<Vec<Handed>>,
}

impl Ha {
    /// Freezes the thread for a successor that takes the routers with these keys; how they stand comes to
    /// the receiver. [`Ha::thaw`] or [`Ha::leave`] has to follow.
    pub fn freeze(&self, taken: Vec<String>) -> Receiver<Vec<Handed>> {
        let (reply, answer) = sync_channel(1);
        let _ = self.steps.try_send(Step::Freeze { taken, reply });
        self.wake.notify();
        answer
    }

    /// The successor failed: the thread goes on.
    pub fn thaw(&self) {
        let _ = self.steps.try_send(Step::Thaw);
    }

    /// The successor has taken over: the thread ends without resigning and without removing addresses.
    pub fn leave(&self) {
        let _ = self.steps.try_send(Step::Leave);
        let began = Instant::now();
        while !self.is_over() && began.elapsed() < super::END_PATIENCE {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Engine {
    /// Looks whether there is a successor; false when it has taken over and the thread is to end.
    pub(super) fn heed_successor(&mut self) -> bool {
        let Ok(Step::Freeze { taken, reply }) = self.steps.try_recv() else { return true };
        let now = self.clock.now();
        let mut handed = Vec::new();
        for place in 0..self.instances.len() {
            let one = &self.instances[place];
            let key = one.key();
            if taken.contains(&key) {
                handed.push(Handed {
                    key,
                    active: one.router.state() == State::Active,
                    released: one.router.is_released(),
                    preferred: one.router.is_preferred(),
                    checksums: one.checksums(),
                });
                continue;
            }
            let mut out = Vec::new();
            self.instances[place].start_or_stop(now, true, &mut out);
            self.carry_out(place, &mut out, now);
            self.instances[place].clean_up(&mut self.network, now);
        }
        let _ = reply.try_send(handed);
        // Nothing else is heard or done until it is known what became of the successor.
        loop {
            match self.steps.recv() {
                Ok(Step::Thaw) => {
                    // Routers that the successor did not have start again.
                    let now = self.clock.now();
                    self.look(now);
                    return true;
                }
                Ok(Step::Freeze { reply, .. }) => drop(reply),
                Ok(Step::Leave) | Err(_) => return false,
            }
        }
    }

    /// The successor's start: waits until everything is known and open, says so, and goes on with the
    /// routers as they were. False when there is nothing to take over after all.
    pub(super) fn take_over(&mut self, takeover: &Takeover) -> bool {
        let began = Instant::now();
        let mut armed = false;
        let handed = loop {
            let now = self.clock.now();
            // An error shows in the next change that is made.
            let _ = self.network.update();
            self.check_shards(now);
            self.stand(now);
            self.prepare_ways();
            let known = self.sources.is_known() && self.pulses.iter().all(|pulse| pulse.known);
            if !armed && (known || began.elapsed() >= VERDICTS_PATIENCE) {
                armed = true;
                let _ = takeover.armed.send(self.instances.iter().map(Instance::key).collect());
            }
            // Routers in Initialize ignore what comes; it only must not wait until they do not.
            self.hear();
            match takeover.handed.recv_timeout(LOOK_EVERY) {
                Ok(handed) => break handed,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        };
        let now = self.clock.now();
        for place in 0..self.instances.len() {
            let key = self.instances[place].key();
            let Some(handed) = handed.iter().find(|one| one.key == key) else { continue };
            let mut out = Vec::new();
            self.instances[place].go_on(handed, now, &mut out);
            self.carry_out(place, &mut out, now);
        }
        true
    }
}

impl Instance {
    /// What makes it the same virtual router to its peers.
    pub(super) fn key(&self) -> String {
        let config = &self.config;
        let version = config.version as u8;
        format!("{}/{}/{}/{version}", config.name, config.interface, config.vrid)
    }

    /// What peers' checksums cover.
    fn checksums(&self) -> Vec<(IpAddr, usize)> {
        let place = |form: &Form| FORMS.iter().position(|known| known == form);
        let forms = self.receiver.peers_forms().iter();
        forms.filter_map(|(peer, form)| Some((*peer, place(form)?))).collect()
    }

    fn go_on(&mut self, handed: &Handed, now: Moment, out: &mut Vec<Action>) {
        if !self.can_take_part() {
            return; // started like a new one, should its interface come up
        }
        let forms = handed.checksums.iter();
        let forms = forms.filter_map(|(peer, place)| Some((*peer, *FORMS.get(*place)?)));
        self.receiver.inherit_forms(forms);
        self.mark_started();
        self.router.go_on(now, handed.active, (handed.released, handed.preferred), out);
    }
}
