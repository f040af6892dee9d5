//! Hardware addresses of real servers and peers: asked for before they are needed, asked again while they answer,
//! given up when they do not. Pure: times are milliseconds that are passed in.

use std::net::IpAddr;

use crate::protocol::ethernet::Mac;

/// A neighbour that answers is asked again after this.
const AGAIN_MS: u64 = 2_000;
/// One that does not, after this.
const RETRY_MS: u64 = 500;
/// The first questions come faster.
const FIRST_MS: u64 = 100;
/// Unanswered questions in a row that make it lost.
const TRIES: u32 = 3;

/// Whom to ask for, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Target {
    /// The interface, by number.
    pub(super) interface: u32,
    /// The address.
    pub(super) address: IpAddr,
}

/// How a neighbour stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Asked for the first time.
    Asking,
    /// Answers.
    Reachable,
    /// Does not.
    Lost,
}

impl Standing {
    /// For views.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Asking => "asking",
            Self::Reachable => "reachable",
            Self::Lost => "unreachable",
        }
    }
}

/// A neighbour as shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NeighbourView {
    /// Its address.
    pub address: IpAddr,
    /// The interface, by number.
    pub interface: u32,
    /// Its name; the number, if it has gone.
    pub interface_name: String,
    /// Where it was last.
    pub mac: Option<Mac>,
    /// Whether it answers.
    pub standing: Standing,
}

impl NeighbourView {
    /// It answers.
    pub(super) fn is_reachable(&self) -> bool {
        self.standing == Standing::Reachable
    }
}

#[derive(Debug)]
struct Entry {
    target: Target,
    mac: Option<Mac>,
    standing: Standing,
    unanswered: u32,
    next: u64,
}

/// What changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// It is here now.
    Found(Target, Mac),
    /// It does not answer any more.
    Lost(Target),
}

/// A question to ask: for whom, and of whom if it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Question {
    pub(super) target: Target,
    pub(super) to: Option<Mac>,
}

/// All that are watched.
#[derive(Debug, Default)]
pub(super) struct Neighbours(Vec<Entry>);

impl Neighbours {
    /// Watches these, and no others; what is known of those that stay is kept.
    pub(super) fn watch(&mut self, targets: &[Target], now: u64) {
        self.0.retain(|entry| targets.contains(&entry.target));
        for target in targets {
            if !self.0.iter().any(|entry| entry.target == *target) {
                self.0.push(Entry {
                    target: *target,
                    mac: None,
                    standing: Standing::Asking,
                    unanswered: 0,
                    next: now,
                });
            }
        }
    }

    /// Where it is, as long as it answers.
    pub(super) fn mac(&self, target: Target) -> Option<Mac> {
        let entry = self.0.iter().find(|entry| entry.target == target)?;
        entry.mac.filter(|_| entry.standing == Standing::Reachable)
    }

    /// Somebody says to be there.
    pub(super) fn hear(&mut self, target: Target, mac: Mac, now: u64) -> Option<Change> {
        // A group address or none is nobody's (RFC 1812 section 3.3.2).
        if mac == Mac::ZERO || mac.0[0] & 1 != 0 {
            return None;
        }
        let entry = self.0.iter_mut().find(|entry| entry.target == target)?;
        let news = entry.mac != Some(mac) || entry.standing != Standing::Reachable;
        entry.mac = Some(mac);
        entry.standing = Standing::Reachable;
        entry.unanswered = 0;
        entry.next = now.saturating_add(AGAIN_MS);
        news.then_some(Change::Found(target, mac))
    }

    /// The questions that are due, and who is lost by now.
    pub(super) fn due(&mut self, now: u64) -> (Vec<Question>, Vec<Change>) {
        let (mut questions, mut changes) = (Vec::new(), Vec::new());
        for entry in self.0.iter_mut().filter(|entry| entry.next <= now) {
            if entry.unanswered >= TRIES && entry.standing != Standing::Lost {
                entry.standing = Standing::Lost;
                changes.push(Change::Lost(entry.target));
            }
            // The first question of a round goes to where it was, then everybody is asked: it may have moved.
            let to = entry.mac.filter(|_| entry.unanswered == 0);
            questions.push(Question { target: entry.target, to });
            let first = entry.standing == Standing::Asking;
            entry.unanswered = entry.unanswered.saturating_add(1);
            entry.next = now.saturating_add(if first { FIRST_MS } else { RETRY_MS });
        }
        (questions, changes)
    }

    /// When [`Neighbours::due`] is to be called next.
    pub(super) fn next(&self) -> Option<u64> {
        self.0.iter().map(|entry| entry.next).min()
    }

    /// As shown, with the names of interfaces by number.
    pub(super) fn view(&self, name: impl Fn(u32) -> Option<String>) -> Vec<NeighbourView> {
        let name = |number: u32| name(number).unwrap_or_else(|| number.to_string());
        let view = |entry: &Entry| NeighbourView {
            address: entry.target.address,
            interface: entry.target.interface,
            interface_name: name(entry.target.interface),
            mac: entry.mac,
            standing: entry.standing,
        };
        self.0.iter().map(view).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);

    fn target(last: u8) -> Target {
        Target { interface: 3, address: IpAddr::from([10, 0, 0, last]) }
    }

    #[test]
    fn a_neighbour_is_found_asked_again_and_lost() {
        let mut all = Neighbours::default();
        all.watch(&[target(1)], 0);
        let (questions, changes) = all.due(0);
        assert_eq!(questions, [Question { target: target(1), to: None }]);
        assert!(changes.is_empty());
        assert_eq!(all.hear(target(1), MAC, 10), Some(Change::Found(target(1), MAC)));
        assert_eq!(all.hear(target(1), MAC, 20), None, "nothing new");
        assert_eq!(all.mac(target(1)), Some(MAC));
        assert!(all.due(1000).0.is_empty());
        let mut now = all.next().expect("a time");
        assert_eq!(now, 20 + AGAIN_MS);
        assert_eq!(all.due(now).0, [Question { target: target(1), to: Some(MAC) }]);
        for _ in 1..TRIES {
            now += RETRY_MS;
            assert_eq!(all.due(now), (vec![Question { target: target(1), to: None }], vec![]));
        }
        now += RETRY_MS;
        assert_eq!(all.due(now).1, [Change::Lost(target(1))]);
        assert_eq!(all.mac(target(1)), None);
        assert!(all.due(now + RETRY_MS).1.is_empty(), "told once");
        let other = Mac([2, 0, 0, 0, 0, 2]);
        assert_eq!(all.hear(target(1), other, now), Some(Change::Found(target(1), other)));
    }

    #[test]
    fn one_that_never_answers_is_lost_soon() {
        let mut all = Neighbours::default();
        all.watch(&[target(1)], 0);
        let mut lost_at = None;
        for now in 0..2000 {
            if !all.due(now).1.is_empty() {
                lost_at = Some(now);
                break;
            }
        }
        assert_eq!(lost_at, Some(3 * FIRST_MS));
    }

    #[test]
    fn strangers_and_groups_are_not_heard() {
        let mut all = Neighbours::default();
        all.watch(&[target(1), target(2)], 0);
        assert_eq!(all.hear(target(9), MAC, 0), None);
        assert_eq!(all.hear(target(1), Mac::BROADCAST, 0), None);
        assert_eq!(all.hear(target(1), Mac::ZERO, 0), None);
        all.hear(target(1), MAC, 0);
        all.watch(&[target(1)], 5);
        assert_eq!((all.mac(target(1)), all.view(|_| None).len()), (Some(MAC), 1));
    }
}
