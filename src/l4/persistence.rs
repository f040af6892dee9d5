//! Which server a client's earlier flows went to (`persistence_timeout`).
//!
//! Shared by all directors, and looked at for new flows only: locks, of which two directors seldom
//! want the same.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::tables::ServerId;
use crate::balance::hash::{below, hash_ip};

const SHARDS: usize = 64;
/// Clients (networks of them) of one virtual server that are remembered.
const CLIENTS_MAX: usize = 1 << 20;

/// The memory of one virtual server.
#[derive(Debug)]
pub struct Templates {
    shards: Box<[Mutex<Shard>]>,
    /// Most clients of a shard.
    room: usize,
}

#[derive(Debug, Default)]
struct Shard {
    clients: HashMap<IpAddr, Template>,
    /// When nothing was over at the last search for what is.
    searched: u64,
}

#[derive(Debug, Clone, Copy)]
struct Template {
    server: ServerId,
    until: u64,
}

impl Default for Templates {
    fn default() -> Self {
        Self::new(CLIENTS_MAX)
    }
}

impl Templates {
    fn new(clients: usize) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            room: (clients / SHARDS).max(1),
        }
    }

    /// The server of a client, unless its time is over.
    pub(super) fn find(&self, client: IpAddr, now: u64) -> Option<ServerId> {
        let template = *self.shard(client)?.clients.get(&client)?;
        (template.until > now).then_some(template.server)
    }

    /// Remembers a client until then; false if there is no room.
    pub(super) fn store(&self, client: IpAddr, server: ServerId, now: u64, until: u64) -> bool {
        let Some(mut shard) = self.shard(client) else { return false };
        if shard.clients.len() >= self.room && !shard.clients.contains_key(&client) {
            // At most once a second, since it goes over all of them.
            if now.saturating_sub(shard.searched) < 1000 && shard.searched > 0 {
                return false;
            }
            shard.searched = now.max(1);
            shard.clients.retain(|_, template| template.until > now);
            if shard.clients.len() >= self.room {
                return false;
            }
        }
        shard.clients.insert(client, Template { server, until });
        true
    }

    /// Hands every client whose time is not over to `each`, with its server and what is left of the time; those only
    /// whose time ends at `from` or later.
    pub(super) fn pass_on(&self, now: u64, from: u64, mut each: impl FnMut(IpAddr, ServerId, u64)) {
        for shard in &self.shards {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            for (client, template) in &shard.clients {
                if template.until > now && template.until >= from {
                    each(*client, template.server, template.until - now);
                }
            }
        }
    }

    /// Clients remembered, those included whose time is over.
    #[must_use]
    pub fn len(&self) -> usize {
        let lock = |shard: &Mutex<Shard>| {
            shard.lock().unwrap_or_else(PoisonError::into_inner).clients.len()
        };
        self.shards.iter().map(lock).sum()
    }

    /// True if nobody is remembered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn shard(&self, client: IpAddr) -> Option<MutexGuard<'_, Shard>> {
        let at = usize::try_from(below(hash_ip(client), SHARDS as u64)).unwrap_or_default();
        Some(self.shards.get(at)?.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: ServerId = ServerId { slot: 1, generation: 0 };

    fn client(n: u16) -> IpAddr {
        let [a, b] = n.to_be_bytes();
        IpAddr::from([10, 0, a, b])
    }

    #[test]
    fn until_its_time_is_over() {
        let templates = Templates::default();
        assert!(templates.is_empty());
        assert!(templates.store(client(1), A, 0, 500));
        assert_eq!(templates.find(client(1), 499), Some(A));
        assert_eq!(templates.find(client(1), 500), None);
        assert_eq!(templates.find(client(2), 0), None);
    }

    /// Full: nobody is pushed out, and what is over makes room.
    #[test]
    fn bounded() {
        let templates = Templates::new(SHARDS * 2);
        let stored = (0..1000).filter(|n| templates.store(client(*n), A, 10, 500)).count();
        assert!(stored <= SHARDS * 2 && stored == templates.len(), "{stored}");
        let known = (0..1000).find(|n| templates.find(client(*n), 20).is_some()).unwrap();
        assert!(templates.store(client(known), A, 20, 900), "an old client stays one");
        let stored = (1000..2000).filter(|n| templates.store(client(*n), A, 2000, 2500)).count();
        assert!(stored > SHARDS, "{stored}");
        assert!(templates.len() <= SHARDS * 2);
    }
}
