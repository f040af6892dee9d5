//! Quorum with hysteresis, as keepalived has it: enough weight to serve, or not.

/// Whether the servers that are up carry enough weight together.
///
/// The quorum is gained at `quorum + hysteresis` and lost below `quorum - hysteresis`, so that a server which
/// comes and goes does not make the whole service do so (keepalived.conf(5), `quorum` and `hysteresis`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quorum {
    quorum: u64,
    hysteresis: u64,
    held: bool,
}

impl Quorum {
    /// Held at first, as in keepalived without `alpha`. `hysteresis` must be below `quorum`; what is more
    /// counts as one less.
    #[must_use]
    pub fn new(quorum: u32, hysteresis: u32, held: bool) -> Self {
        let quorum = u64::from(quorum.max(1));
        Self { quorum, hysteresis: u64::from(hysteresis).min(quorum - 1), held }
    }

    /// Takes in the sum of the weights that are up; true when that gained or lost the quorum.
    pub fn note(&mut self, weight_up: u64) -> bool {
        let held = if self.held {
            weight_up >= self.quorum - self.hysteresis
        } else {
            weight_up >= self.quorum + self.hysteresis
        };
        std::mem::replace(&mut self.held, held) != held
    }

    /// True while there is enough.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.held
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gained_above_and_lost_below() {
        let mut quorum = Quorum::new(10, 3, true);
        for (weight, changed, held) in [
            (10, false, true),
            (7, false, true),
            (6, true, false),
            (12, false, false),
            (13, true, true),
            (7, false, true),
            (0, true, false),
        ] {
            assert_eq!((quorum.note(weight), quorum.is_held()), (changed, held), "{weight}");
        }
    }

    #[test]
    fn the_default_is_one_server() {
        let mut quorum = Quorum::new(1, 5, false);
        assert!(quorum.note(1) && quorum.is_held());
        assert!(quorum.note(0) && !quorum.is_held());
        assert!(Quorum::new(0, 0, true).note(0), "never without any");
    }
}
