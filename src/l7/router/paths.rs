//! The routes of one host, by path.

use std::collections::HashMap;

use super::hash::BuildHash;
use super::steps;
use crate::l7::config::{PathMatch, Route};

#[derive(Debug, Default)]
pub(super) struct Paths {
    exact: HashMap<Box<[u8]>, Candidates, BuildHash>,
    /// Length of the longest key of `exact`: a longer path need not be hashed.
    exact_len_max: usize,
    /// Routes with a regular expression, in file order.
    regexes: Vec<usize>,
    prefixes: Prefixes,
}

impl Paths {
    /// Adds a route; routes must come in file order, and [`Paths::finish`] after the last.
    pub(super) fn insert(&mut self, index: usize, route: &Route) {
        match &route.path {
            PathMatch::Exact(path) => {
                self.exact_len_max = self.exact_len_max.max(path.len());
                self.exact.entry(path.as_bytes().into()).or_default().push(index, route);
            }
            PathMatch::Prefix(prefix) => self.prefixes.insert(prefix.as_bytes(), index, route),
            PathMatch::Regex(_) => self.regexes.push(index),
        }
    }

    pub(super) fn finish(&mut self) {
        self.prefixes.finish();
    }

    /// The first route in the order of precedence that fits `path` and that `accepts` takes.
    pub(super) fn find(
        &self,
        routes: &[Route],
        path: &[u8],
        accepts: &impl Fn(usize) -> bool,
    ) -> Option<usize> {
        self.find_exact(path, accepts)
            .or_else(|| self.find_regex(routes, path, accepts))
            .or_else(|| self.prefixes.find(path, accepts))
    }

    fn find_exact(&self, path: &[u8], accepts: &impl Fn(usize) -> bool) -> Option<usize> {
        if self.exact.is_empty() || path.len() > self.exact_len_max {
            return None;
        }
        steps::count();
        self.exact.get(path)?.first(accepts)
    }

    fn find_regex(
        &self,
        routes: &[Route],
        path: &[u8],
        accepts: &impl Fn(usize) -> bool,
    ) -> Option<usize> {
        let fits = |index: usize| match routes.get(index).map(|route| &route.path) {
            Some(PathMatch::Regex(regex)) => regex.is_match(path),
            _ => false,
        };
        // The other conditions are the cheaper ones.
        self.regexes.iter().copied().find(|&index| accepts(index) && fits(index))
    }
}

/// Routes with the same host and path, in the order in which they are tried.
#[derive(Debug, Default)]
struct Candidates {
    conditioned: Vec<usize>,
    /// The first route that takes whatever comes: further ones can never be reached.
    otherwise: Option<usize>,
}

impl Candidates {
    fn push(&mut self, index: usize, route: &Route) {
        if !route.methods.is_empty() || !route.headers.is_empty() {
            self.conditioned.push(index);
        } else if self.otherwise.is_none() {
            self.otherwise = Some(index);
        }
    }

    fn first(&self, accepts: &impl Fn(usize) -> bool) -> Option<usize> {
        let mut candidates = self.conditioned.iter().copied().chain(self.otherwise);
        candidates.find(|&index| accepts(index))
    }
}

/// Prefixes in byte order, each linked to the next shorter one it starts with.
///
/// Every prefix of a path sorts at or before the path, and whatever lies between the two starts with
/// that prefix as well. So the last entry not after the path has all prefixes of the path among
/// itself and its chain of parents, and one binary search finds them: those that are no longer than
/// what that entry and the path have in common.
#[derive(Debug, Default)]
struct Prefixes {
    entries: Vec<Prefix>,
}

#[derive(Debug)]
struct Prefix {
    bytes: Box<[u8]>,
    /// Index of the longest other entry that this one starts with.
    parent: Option<usize>,
    candidates: Candidates,
}

impl Prefixes {
    /// Appends; entries are sorted and merged by [`Prefixes::finish`].
    fn insert(&mut self, bytes: &[u8], index: usize, route: &Route) {
        let mut candidates = Candidates::default();
        candidates.push(index, route);
        self.entries.push(Prefix { bytes: bytes.into(), parent: None, candidates });
    }

    fn finish(&mut self) {
        // The sort is stable: equal prefixes stay in file order.
        self.entries.sort_by(|a, b| a.bytes.cmp(&b.bytes));
        self.entries.dedup_by(|later, kept| {
            let same = later.bytes == kept.bytes;
            if same {
                kept.candidates.conditioned.append(&mut later.candidates.conditioned);
                kept.candidates.otherwise =
                    kept.candidates.otherwise.or(later.candidates.otherwise);
            }
            same
        });
        let mut open: Vec<usize> = Vec::new();
        for index in 0..self.entries.len() {
            let (before, rest) = self.entries.split_at_mut(index);
            let Some(entry) = rest.first_mut() else { break };
            let contains = |outer: &usize| {
                before.get(*outer).is_some_and(|outer| entry.bytes.starts_with(&outer.bytes))
            };
            while open.last().is_some_and(|outer| !contains(outer)) {
                open.pop();
            }
            entry.parent = open.last().copied();
            open.push(index);
        }
    }

    fn find(&self, path: &[u8], accepts: &impl Fn(usize) -> bool) -> Option<usize> {
        let after = self.entries.partition_point(|entry| {
            steps::count();
            *entry.bytes <= *path
        });
        let last = after.checked_sub(1)?;
        let common = common_prefix_len(&self.entries.get(last)?.bytes, path);
        let mut next = Some(last);
        while let Some(entry) = next.and_then(|index| self.entries.get(index)) {
            steps::count();
            if entry.bytes.len() <= common
                && let Some(index) = entry.candidates.first(accepts)
            {
                return Some(index);
            }
            next = entry.parent;
        }
        None
    }
}

fn common_prefix_len(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(x, y)| x == y).count()
}
