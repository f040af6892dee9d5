//! Which route takes a request: an index whose cost does not grow with the number of routes.
//!
//! The order of precedence:
//!
//! 1. **Host.** An exact name, else the longest wildcard `*.suffix` that fits. As with nginx's
//!    `server_name`, the choice is made by host alone: when none of that host's routes takes the
//!    request, less specific hosts are not asked. Only the routes that name no host, which belong
//!    to every host, are tried after it.
//! 2. **Path**, among the routes of that host. As with nginx's `location`: the exact path, then
//!    regular expressions in file order, then prefixes from the longest to the shortest.
//! 3. **Methods and headers.** Of several routes with the same exact path or prefix, those with such
//!    conditions come first, in file order, then the first without. A route whose conditions fail
//!    is passed over and the search goes on with the next candidate of the order above.

mod hash;
mod paths;

use std::collections::HashMap;

use self::hash::BuildHash;
use self::paths::Paths;
use crate::l7::config::{HeaderMatch, HostMatch, Route, ValueMatch};

/// What the router looks at in a request.
pub trait Request {
    /// The host in lower case and without port; empty when there is none.
    fn host(&self) -> &[u8];
    /// The normalised path, without query.
    fn path(&self) -> &[u8];
    /// The method as it came; methods are case-sensitive.
    fn method(&self) -> &[u8];
    /// True when `test` accepts the value of at least one field line called `name_lowercase`.
    fn header_matches(&self, name_lowercase: &str, test: &mut dyn FnMut(&[u8]) -> bool) -> bool;
}

/// An index over the routes of a [`Service`](crate::l7::config::Service); it holds positions, so it
/// is valid only for the routes it was made from.
#[derive(Debug)]
pub struct Router {
    sites: Vec<Site>,
    /// Index into `sites` for each listener; listeners with the same routes share one.
    site_of_listener: Vec<usize>,
}

impl Router {
    /// Indexes `routes` for the listeners `0..listeners`.
    #[must_use]
    pub fn new(routes: &[Route], listeners: usize) -> Self {
        let mut sites: Vec<(Vec<usize>, Site)> = Vec::new();
        let mut site_of_listener = Vec::with_capacity(listeners);
        for listener in 0..listeners {
            let serves = |index: &usize| {
                let named = routes.get(*index).map(|route| route.listeners.as_slice());
                named.is_some_and(|named| named.is_empty() || named.contains(&listener))
            };
            let members: Vec<usize> = (0..routes.len()).filter(serves).collect();
            let same = sites.iter().position(|(others, _)| *others == members);
            site_of_listener.push(same.unwrap_or(sites.len()));
            if same.is_none() {
                let site = Site::new(routes, &members);
                sites.push((members, site));
            }
        }
        Self { sites: sites.into_iter().map(|(_, site)| site).collect(), site_of_listener }
    }

    /// The position in `routes` of the route that takes `request`, which came in on `listener`.
    ///
    /// `routes` are those the router was made from. Does not allocate, except that a regular
    /// expression makes its scratch space when a thread first uses it.
    #[must_use]
    pub fn find(&self, routes: &[Route], listener: usize, request: &impl Request) -> Option<usize> {
        let site = self.sites.get(*self.site_of_listener.get(listener)?)?;
        let accepts = |index: usize| {
            steps::count();
            routes.get(index).is_some_and(|route| conditions_hold(route, request))
        };
        let path = match request.path() {
            // The server as a whole (RFC 9110 section 9.3.7), which is whoever has its root.
            b"*" => b"/",
            path => path,
        };
        site.named(request.host())
            .and_then(|paths| paths.find(routes, path, &accepts))
            .or_else(|| site.any.find(routes, path, &accepts))
    }
}

/// The routes of one listener, by host.
#[derive(Debug, Default)]
struct Site {
    exact: HashMap<Box<[u8]>, Paths, BuildHash>,
    /// Keyed by the suffix without its leading `*.`.
    suffixes: HashMap<Box<[u8]>, Paths, BuildHash>,
    /// Length of the longest key of `suffixes`: the bound for the search, whatever a peer sends.
    suffix_len_max: usize,
    any: Paths,
}

impl Site {
    fn new(routes: &[Route], members: &[usize]) -> Self {
        let mut site = Self::default();
        for &index in members {
            let Some(route) = routes.get(index) else { continue };
            if route.hosts.is_empty() {
                site.any.insert(index, route);
            }
            for host in &route.hosts {
                site.paths_of(host).insert(index, route);
            }
        }
        let tables = site.exact.values_mut().chain(site.suffixes.values_mut());
        tables.for_each(Paths::finish);
        site.any.finish();
        site
    }

    fn paths_of(&mut self, host: &HostMatch) -> &mut Paths {
        match host {
            HostMatch::Exact(name) => {
                self.exact.entry(without_root_dot(name.as_bytes()).into()).or_default()
            }
            HostMatch::Suffix(name) => {
                let name = without_root_dot(name.as_bytes());
                self.suffix_len_max = self.suffix_len_max.max(name.len());
                self.suffixes.entry(name.into()).or_default()
            }
        }
    }

    /// The routes of the most specific name that fits `host`.
    fn named(&self, host: &[u8]) -> Option<&Paths> {
        let host = without_root_dot(host);
        steps::count();
        self.exact.get(host).or_else(|| self.longest_suffix(host))
    }

    fn longest_suffix(&self, host: &[u8]) -> Option<&Paths> {
        if self.suffixes.is_empty() {
            return None;
        }
        // The dot that precedes a suffix has at least one byte before it.
        let first_dot = host.len().saturating_sub(self.suffix_len_max + 1).max(1);
        let tail = host.get(first_dot..)?;
        memchr::memchr_iter(b'.', tail).find_map(|dot| {
            steps::count();
            self.suffixes.get(tail.get(dot + 1..)?)
        })
    }
}

/// `shop.example.` names the same host as `shop.example` (RFC 1034 section 3.1).
fn without_root_dot(host: &[u8]) -> &[u8] {
    host.strip_suffix(b".").unwrap_or(host)
}

fn conditions_hold(route: &Route, request: &impl Request) -> bool {
    let method = request.method();
    let takes_method =
        route.methods.is_empty() || route.methods.iter().any(|known| known.as_bytes() == method);
    takes_method && route.headers.iter().all(|header| header_holds(header, request))
}

fn header_holds(header: &HeaderMatch, request: &impl Request) -> bool {
    request.header_matches(&header.name, &mut |value| match &header.value {
        ValueMatch::Present => true,
        ValueMatch::Exact(expected) => expected.as_bytes() == value,
        ValueMatch::Regex(regex) => regex.is_match(value),
    })
}

/// Counts look-ups, comparisons and conditions tried, for the test that bounds them.
mod steps {
    #[cfg(test)]
    thread_local! {
        static STEPS: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
    }

    #[inline]
    pub(super) fn count() {
        #[cfg(test)]
        STEPS.with(|steps| steps.set(steps.get() + 1));
    }

    #[cfg(test)]
    pub(super) fn take() -> usize {
        STEPS.with(std::cell::Cell::take)
    }
}

#[cfg(test)]
mod tests;
