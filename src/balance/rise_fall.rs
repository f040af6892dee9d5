//! Rise and fall: so many results in a row change a verdict.

/// Counts results in a row. The first result decides at once; after that `rise` good ones in a row make a bad
/// verdict good, and `fall` bad ones a good one bad.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RiseFall {
    good: Option<bool>,
    row: u32,
}

impl RiseFall {
    /// One that has a verdict already, and so many results in a row against it.
    #[must_use]
    pub fn standing(good: bool, row: u32) -> Self {
        Self { good: Some(good), row }
    }

    /// Takes in a result; the new verdict when that changed it.
    pub fn note(&mut self, good: bool, rise: u32, fall: u32) -> Option<bool> {
        match self.good {
            Some(now) if now == good => {
                self.row = 0;
                return None;
            }
            Some(_) => {
                self.row = self.row.saturating_add(1);
                if self.row < if good { rise } else { fall } {
                    return None;
                }
            }
            None => {}
        }
        self.good = Some(good);
        self.row = 0;
        Some(good)
    }

    /// The verdict; `None` before the first result.
    #[must_use]
    pub fn good(&self) -> Option<bool> {
        self.good
    }

    /// Results in a row that speak against the verdict.
    #[must_use]
    pub fn row(&self) -> u32 {
        self.row
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_first_decides_and_then_it_takes_a_row() {
        let mut counting = RiseFall::default();
        for (good, changed) in [
            (true, Some(true)),
            (false, None),
            (false, None),
            (true, None),
            (false, None),
            (false, None),
            (false, Some(false)),
            (false, None),
            (true, None),
            (false, None),
            (true, None),
            (true, Some(true)),
        ] {
            assert_eq!(counting.note(good, 2, 3), changed);
        }
    }

    proptest! {
        /// The verdict is what a look back over the results says.
        #[test]
        fn as_a_look_back_says(
            results in prop::collection::vec(any::<bool>(), 1..200), rise in 1_u32..5, fall in 1_u32..5,
        ) {
            let mut counting = RiseFall::default();
            let mut expected = results[0];
            let mut since = 0;
            for (index, &result) in results.iter().enumerate() {
                counting.note(result, rise, fall);
                let needed = if expected { fall } else { rise } as usize;
                let row = results[since..=index].iter().rev().take_while(|&&r| r != expected).count();
                if row >= needed {
                    expected = !expected;
                    since = index + 1;
                }
                prop_assert_eq!(counting.good(), Some(expected));
            }
        }
    }
}
