//! Server names: exact ones and wildcards of one label (RFC 6125 section 6.4.3).

use std::collections::HashMap;

/// Values by server name.
#[derive(Debug)]
pub(super) struct Names<T> {
    exact: HashMap<String, T>,
    /// By what stands behind `*.`
    wildcard: HashMap<String, T>,
}

impl<T> Default for Names<T> {
    fn default() -> Self {
        Self { exact: HashMap::new(), wildcard: HashMap::new() }
    }
}

impl<T: Default> Names<T> {
    /// The value of a name as a certificate has it, made if it is not there.
    pub(super) fn entry(&mut self, name: &str) -> &mut T {
        let name = name.to_ascii_lowercase();
        match name.strip_prefix("*.") {
            Some(suffix) => self.wildcard.entry(suffix.to_owned()).or_default(),
            None => self.exact.entry(name).or_default(),
        }
    }
}

impl<T> Names<T> {
    /// Visits every value.
    pub(super) fn each(&mut self, visit: impl FnMut(&mut T)) {
        self.exact.values_mut().chain(self.wildcard.values_mut()).for_each(visit);
    }

    /// The same names with other values.
    pub(super) fn map<U>(self, make: impl Fn(T) -> U) -> Names<U> {
        let exact = self.exact.into_iter().map(|(name, value)| (name, make(value)));
        let wildcard = self.wildcard.into_iter().map(|(name, value)| (name, make(value)));
        Names { exact: exact.collect(), wildcard: wildcard.collect() }
    }

    /// The value for a name in lower case that somebody asks for.
    pub(super) fn find(&self, name: &str) -> Option<&T> {
        self.exact.get(name).or_else(|| {
            let (_, suffix) = name.split_once('.')?;
            self.wildcard.get(suffix)
        })
    }

    /// The value for a name in lower case, or else that of the nearest wildcard above it, however
    /// many labels lie between: what is asked of clients holds for everything below, as routes do.
    pub(super) fn inherit(&self, name: &str) -> Option<&T> {
        self.exact.get(name).or_else(|| {
            let dots = memchr::memchr_iter(b'.', name.as_bytes());
            dots.filter_map(|dot| name.get(dot + 1..)).find_map(|suffix| self.wildcard.get(suffix))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exact_comes_before_wildcard_and_a_wildcard_is_one_label() {
        let mut names = Names::default();
        for (value, name) in ["a.test", "*.a.test", "b.a.test", "*.X.test"].iter().enumerate() {
            *names.entry(name) = value;
        }
        for (name, value) in [
            ("a.test", Some(0)),
            ("c.a.test", Some(1)),
            ("b.a.test", Some(2)),
            ("d.c.a.test", None),
            ("y.x.test", Some(3)),
            ("x.test", None),
            ("test", None),
            ("", None),
        ] {
            assert_eq!(names.find(name).copied(), value, "{name}");
        }
    }

    #[test]
    fn what_is_asked_of_clients_holds_at_any_depth() {
        let mut names = Names::default();
        for (value, name) in ["a.test", "*.a.test", "b.a.test", "*.c.a.test"].iter().enumerate() {
            *names.entry(name) = value;
        }
        for (name, value) in [
            ("a.test", Some(0)),
            ("d.a.test", Some(1)),
            ("e.d.a.test", Some(1)),
            ("f.e.d.a.test", Some(1)),
            ("b.a.test", Some(2)),
            ("d.b.a.test", Some(1)),
            ("c.a.test", Some(1)),
            ("d.c.a.test", Some(3)),
            ("e.d.c.a.test", Some(3)),
            ("*.c.a.test", Some(3)),
            ("xa.test", None),
            ("test", None),
            ("", None),
            (".", None),
        ] {
            assert_eq!(names.inherit(name).copied(), value, "{name}");
        }
    }
}
