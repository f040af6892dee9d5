//! Whether enough of a virtual server is alive, as keepalived decides it.

/// The verdict after a change: `before` is the last one, `alive` the sum of the living servers'
/// weights.
#[must_use]
pub(super) fn quorate(before: bool, alive: u64, quorum: u32, hysteresis: u32) -> bool {
    let (quorum, hysteresis) = (u64::from(quorum), u64::from(hysteresis));
    if before { alive >= quorum.saturating_sub(hysteresis) } else { alive >= quorum + hysteresis }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_hysteresis() {
        for before in [false, true] {
            assert!(quorate(before, 3, 3, 0) && !quorate(before, 2, 3, 0));
        }
    }

    #[test]
    fn hysteresis_holds_both_ways() {
        // Up until fewer than 3, down until 7.
        let mut up = true;
        let steps =
            [(5, true), (3, true), (2, false), (5, false), (6, false), (7, true), (4, true)];
        for (alive, expected) in steps {
            up = quorate(up, alive, 5, 2);
            assert_eq!(up, expected, "{alive} alive");
        }
    }
}
