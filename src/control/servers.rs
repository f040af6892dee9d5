//! The servers of an upstream as the operator has them: the file's list, and what was changed since.

use std::fmt;

use crate::balance::MAX_MEMBERS;
use crate::l7::config::Server;
use crate::l7::upstream::Standing;

/// What the operator may do to servers.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// One more.
    Add(Server),
    /// One less; requests on it are finished.
    Remove,
    /// No new requests, those on it are finished.
    Drain,
    /// Take requests again.
    Undrain,
    /// Another share of the requests.
    Weight(u32),
}

/// Why a change was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// There is no such server; these there are.
    Unknown(String, Vec<String>),
    /// It is there already.
    Known(String),
    /// Nobody would be left to take requests.
    Last(String),
    /// There are as many as there may be.
    Full,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(server, known) => {
                write!(f, "there is no server {server}; there are {}", known.join(", "))
            }
            Self::Known(server) => write!(f, "{server} is there already"),
            Self::Last(server) => write!(
                f,
                "{server} is the last that takes requests: every request would be answered with 502; \
                 `force` does it all the same"
            ),
            Self::Full => write!(f, "there are {MAX_MEMBERS} servers, which is as many as may be"),
        }
    }
}

/// How a server differs from the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drift {
    /// Its address as written.
    pub server: String,
    /// What is different.
    pub what: String,
}

/// The servers of one upstream.
#[derive(Debug)]
pub struct Servers {
    file: Vec<Server>,
    now: Vec<Standing>,
}

impl Servers {
    /// As the file has them.
    #[must_use]
    pub fn new(file: &[Server]) -> Self {
        Self { file: file.to_vec(), now: Standing::of(file) }
    }

    /// As they stand now.
    #[must_use]
    pub fn now(&self) -> &[Standing] {
        &self.now
    }

    /// As the file has them, what was persisted included.
    #[must_use]
    pub fn file(&self) -> &[Server] {
        &self.file
    }

    /// A copy to try changes on.
    #[must_use]
    pub fn preview(&self) -> Self {
        Self { file: Vec::new(), now: self.now.clone() }
    }

    /// The list after a change of the server called `name`, without carrying it out.
    ///
    /// # Errors
    /// See [`Refused`]. `force` allows that nobody is left to take requests.
    pub fn after(
        &self,
        name: &str,
        change: &Change,
        force: bool,
    ) -> Result<Vec<Standing>, Refused> {
        let mut now = self.now.clone();
        let at = now.iter().position(|standing| standing.server.address.to_string() == name);
        let unknown = || {
            let known = self.now.iter().map(|standing| standing.server.address.to_string());
            Refused::Unknown(name.to_owned(), known.collect())
        };
        match change {
            Change::Add(_) if at.is_some() => return Err(Refused::Known(name.to_owned())),
            Change::Add(_) if now.len() >= MAX_MEMBERS => return Err(Refused::Full),
            Change::Add(server) => {
                let free = |id: &usize| self.now.iter().all(|standing| standing.id != *id);
                let id = (0..=now.len()).find(free).unwrap_or(now.len());
                now.push(Standing { id, server: server.clone(), drained: false });
            }
            Change::Remove => {
                now.remove(at.ok_or_else(unknown)?);
            }
            Change::Drain => now[at.ok_or_else(unknown)?].drained = true,
            Change::Undrain => {
                let standing = &mut now[at.ok_or_else(unknown)?];
                standing.drained = false;
                standing.server.down = false;
            }
            Change::Weight(weight) => now[at.ok_or_else(unknown)?].server.weight = *weight,
        }
        let takes = |list: &[Standing]| list.iter().any(|one| !one.drained && !one.server.down);
        if takes(&self.now) && !takes(&now) && !force {
            return Err(Refused::Last(name.to_owned()));
        }
        Ok(now)
    }

    /// Makes this the list.
    pub fn set(&mut self, now: Vec<Standing>) {
        self.now = now;
    }

    /// The file says so of this server from now on.
    pub fn persisted(&mut self, name: &str, change: &Change) {
        let at = self.file.iter().position(|server| server.address.to_string() == name);
        match (change, at) {
            (Change::Add(server), None) => self.file.push(server.clone()),
            (Change::Remove, Some(at)) => {
                self.file.remove(at);
            }
            (Change::Drain, Some(at)) => self.file[at].down = true,
            (Change::Undrain, Some(at)) => self.file[at].down = false,
            (Change::Weight(weight), Some(at)) => self.file[at].weight = *weight,
            _ => {}
        }
    }

    /// How the servers differ from the file.
    #[must_use]
    pub fn drift(&self) -> Vec<Drift> {
        let mut drift = Vec::new();
        let mut say = |server: &Server, what: String| {
            drift.push(Drift { server: server.address.to_string(), what });
        };
        for standing in &self.now {
            let server = &standing.server;
            let Some(file) = self.file.iter().find(|file| file.address == server.address) else {
                say(server, "added".to_owned());
                continue;
            };
            match (standing.drained || server.down, file.down) {
                (true, false) => say(server, "drained".to_owned()),
                (false, true) => say(server, "undrained".to_owned()),
                _ => {}
            }
            if server.weight != file.weight {
                say(server, format!("weight {} instead of {}", server.weight, file.weight));
            }
        }
        for file in &self.file {
            if self.now.iter().all(|standing| standing.server.address != file.address) {
                say(file, "removed".to_owned());
            }
        }
        drift
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::l7::config::ServerAddress;

    use proptest::prelude::*;

    use super::*;

    fn server(port: u16) -> Server {
        Server {
            address: ServerAddress::Name("a".into(), port),
            weight: 1,
            max_fails: 1,
            fail_timeout: Duration::from_secs(10),
            backup: false,
            max_conns: 0,
            down: false,
        }
    }

    fn servers(count: u16) -> Servers {
        Servers::new(&(1..=count).map(server).collect::<Vec<_>>())
    }

    fn told(servers: &Servers) -> Vec<String> {
        servers.drift().into_iter().map(|one| format!("{} {}", one.server, one.what)).collect()
    }

    fn apply(servers: &mut Servers, name: &str, change: &Change) -> Result<(), Refused> {
        let now = servers.after(name, change, false)?;
        servers.set(now);
        Ok(())
    }

    #[test]
    fn changes_show_as_drift_until_the_file_has_them() {
        let mut all = servers(3);
        assert!(told(&all).is_empty());
        let added = Change::Add(server(4));
        apply(&mut all, "a:1", &Change::Drain).unwrap();
        apply(&mut all, "a:2", &Change::Weight(5)).unwrap();
        apply(&mut all, "a:3", &Change::Remove).unwrap();
        apply(&mut all, "a:4", &added).unwrap();
        assert_eq!(
            told(&all),
            ["a:1 drained", "a:2 weight 5 instead of 1", "a:4 added", "a:3 removed"]
        );
        for (name, change) in [
            ("a:1", Change::Drain),
            ("a:2", Change::Weight(5)),
            ("a:3", Change::Remove),
            ("a:4", added),
        ] {
            all.persisted(name, &change);
        }
        assert!(told(&all).is_empty());
        apply(&mut all, "a:1", &Change::Undrain).unwrap();
        assert_eq!(told(&all), ["a:1 undrained"]);
    }

    #[test]
    fn refusals() {
        let mut all = servers(2);
        let unknown = all.after("a:9", &Change::Drain, false).unwrap_err();
        assert_eq!(unknown.to_string(), "there is no server a:9; there are a:1, a:2");
        assert_eq!(
            all.after("a:1", &Change::Add(server(1)), false),
            Err(Refused::Known("a:1".into()))
        );
        apply(&mut all, "a:1", &Change::Drain).unwrap();
        for change in [Change::Drain, Change::Remove] {
            assert_eq!(all.after("a:2", &change, false), Err(Refused::Last("a:2".into())));
            assert!(all.after("a:2", &change, true).is_ok());
        }
    }

    #[test]
    fn an_id_is_free_once_its_server_is_gone() {
        let mut all = servers(2);
        apply(&mut all, "a:1", &Change::Remove).unwrap();
        apply(&mut all, "a:7", &Change::Add(server(7))).unwrap();
        assert_eq!(all.now().iter().map(|one| one.id).collect::<Vec<_>>(), [1, 0]);
    }

    proptest! {
        /// Ids stay unique and below the most there may be, whatever is done.
        #[test]
        fn ids_are_unique(steps in prop::collection::vec((0_u16..8, 0_u8..5), 0..60)) {
            let mut all = servers(3);
            for (port, what) in steps {
                let change = match what {
                    0 => Change::Add(server(port)),
                    1 => Change::Remove,
                    2 => Change::Drain,
                    3 => Change::Undrain,
                    _ => Change::Weight(u32::from(port) + 1),
                };
                let _ = apply(&mut all, &format!("a:{port}"), &change);
                let mut ids: Vec<usize> = all.now().iter().map(|one| one.id).collect();
                ids.sort_unstable();
                ids.dedup();
                prop_assert_eq!(ids.len(), all.now().len());
                prop_assert!(ids.iter().all(|id| *id < 12));
                prop_assert!(all.now().iter().any(|one| !one.drained));
            }
        }
    }
}
