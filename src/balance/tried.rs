//! The members a request has been sent to already.

use super::MAX_MEMBERS;

const BITS: usize = 64;
const INLINE_WORDS: usize = 2;
const WORDS_MAX: usize = MAX_MEMBERS / BITS;

/// A set of member indices below [`MAX_MEMBERS`]; the first 128 need no allocation.
///
/// Indices beyond the bound count as tried, so that nothing picks them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tried {
    low: [u64; INLINE_WORDS],
    high: Vec<u64>,
}

impl Tried {
    /// The empty set.
    #[must_use]
    pub const fn new() -> Self {
        Self { low: [0; INLINE_WORDS], high: Vec::new() }
    }

    /// Adds a member; true if it was not there before.
    pub fn insert(&mut self, member: usize) -> bool {
        if member >= MAX_MEMBERS {
            return false;
        }
        let (index, bit) = (member / BITS, 1 << (member % BITS));
        let word = match self.low.get_mut(index) {
            Some(word) => word,
            None => {
                let above = index - INLINE_WORDS;
                if self.high.len() <= above {
                    self.high.resize(above + 1, 0);
                }
                &mut self.high[above]
            }
        };
        let new = *word & bit == 0;
        *word |= bit;
        new
    }

    /// True if the member was added, or can not be.
    #[must_use]
    pub fn contains(&self, member: usize) -> bool {
        let (index, bit) = (member / BITS, 1 << (member % BITS));
        if index >= WORDS_MAX {
            return true;
        }
        let high = || self.high.get(index - INLINE_WORDS);
        self.low.get(index).or_else(high).is_some_and(|word| word & bit != 0)
    }

    /// How many members have been added.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.low.iter().chain(&self.high).map(|word| word.count_ones()).sum()
    }

    /// True when nothing has been added.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.low.iter().chain(&self.high).all(|word| *word == 0)
    }

    /// Empties the set and keeps its memory.
    pub fn clear(&mut self) {
        self.low = [0; INLINE_WORDS];
        self.high.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn small_sets_do_not_allocate() {
        let mut tried = Tried::new();
        for member in 0..128 {
            assert!(tried.insert(member));
        }
        assert_eq!((tried.high.capacity(), tried.len()), (0, 128));
        assert!(tried.insert(128));
        assert!(tried.contains(128));
        tried.clear();
        assert!(tried.is_empty() && !tried.contains(5) && !tried.contains(128));
    }

    #[test]
    fn beyond_the_bound() {
        let mut tried = Tried::new();
        assert!(tried.insert(MAX_MEMBERS - 1));
        assert!(!tried.insert(MAX_MEMBERS));
        assert!(tried.contains(MAX_MEMBERS) && tried.contains(usize::MAX));
        assert_eq!(tried.len(), 1);
    }

    proptest! {
        #[test]
        fn like_a_hash_set(members in prop::collection::vec(0..MAX_MEMBERS, 0..200)) {
            let (mut tried, mut model) = (Tried::new(), HashSet::new());
            for member in members {
                prop_assert_eq!(tried.insert(member), model.insert(member));
            }
            prop_assert_eq!(tried.len() as usize, model.len());
            for member in 0..MAX_MEMBERS {
                prop_assert_eq!(tried.contains(member), model.contains(&member));
            }
        }
    }
}
