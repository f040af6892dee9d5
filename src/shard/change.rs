//! What a shard is given at the start and at each reload: a configuration with everything that goes with it.
//! The control thread makes it ready, so that taking it over costs the shard no more than a few pointers for
//! each upstream and listener, and a new pool for those that changed.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::l7::config::AccessLogFormat;
use crate::l7::generation::{Generation, Listening, Tables};
use crate::l7::log::AccessLog;
use crate::l7::metrics::{ByShard, ListenerMetrics};
use crate::l7::pool::Pool;
use crate::l7::tls::Current;
use crate::l7::upstream::{MemberSet, SharedUpstream};
use crate::l7::worker::Worker;
use crate::ring::executor::spawn;
use crate::shard::accept::Doors;

/// A configuration for one shard.
#[derive(Debug)]
pub struct Change {
    /// Counts changes; 1 is the start.
    pub number: u64,
    /// This shard's copy.
    pub tables: Arc<Tables>,
    /// In the order of the configuration.
    pub listeners: Vec<NextListener>,
    /// In the order of the configuration.
    pub upstreams: Vec<NextUpstream>,
    /// Certificates and keys in force.
    pub tls: Arc<Current>,
    /// The access log.
    pub log: NextLog,
}

/// A listener.
#[derive(Debug)]
pub struct NextListener {
    /// Its address.
    pub bind: SocketAddr,
    /// Its figures.
    pub figures: ByShard<ListenerMetrics>,
    /// This shard's sockets, if it is new: one, or several after an upgrade from more shards.
    pub sockets: Vec<OwnedFd>,
    /// A new length of its queue.
    pub backlog: Option<u32>,
}

/// An upstream.
#[derive(Debug)]
pub struct NextUpstream {
    /// What shards share.
    pub shared: Arc<SharedUpstream>,
    /// Its members.
    pub set: Arc<MemberSet>,
    /// Its place in the configuration before, and what it was there.
    pub previous: Option<(usize, Arc<SharedUpstream>)>,
}

/// An access log.
#[derive(Debug)]
pub enum NextLog {
    /// As before.
    Same,
    /// None.
    Off,
    /// This format, a buffer of so many bytes, this file.
    To(AccessLogFormat, usize, OwnedFd),
}

/// Which shard this is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Identity {
    pub(super) shard: usize,
    pub(super) shards: usize,
    pub(super) seed: u64,
}

impl Identity {
    /// The pool of an upstream, which takes over from `previous` if it has that.
    pub(super) fn pool(self, next: NextUpstream, previous: Option<&Pool>) -> Pool {
        let NextUpstream { shared, set, .. } = next;
        match previous {
            Some(pool) => pool.succeed(shared, set, self.shards),
            None => Pool::new(shared, set, self.shard, self.shards, self.seed),
        }
    }
}

/// What carries changes out.
pub(super) struct Changes {
    pub(super) worker: Rc<Worker>,
    pub(super) doors: Rc<Doors>,
    pub(super) identity: Identity,
    /// Told the number of each change that is in force.
    pub(super) done: Arc<AtomicU64>,
}

impl Changes {
    /// Puts another configuration in force.
    pub(super) fn make(&self, change: Change) {
        let Change { number, tables, listeners, upstreams, tls, log } = change;
        let old = self.worker.generation();
        let pools = upstreams.into_iter().map(|next| self.pool(next, &old.pools)).collect();
        let generation = Rc::new(Generation::new(number, tables, pools, old.tls.succeed(tls)));
        let kept: HashSet<_> = generation.pools.iter().map(Rc::as_ptr).collect();
        let is_removed =
            |pool: &&Rc<Pool>| !kept.contains(&Rc::as_ptr(pool)) && !pool.is_replaced();
        old.pools.iter().filter(is_removed).for_each(|pool| pool.clear());
        self.listeners(listeners, &generation);
        self.log(log);
        self.worker.renew(generation);
        self.done.store(number, Ordering::Release);
    }

    fn pool(&self, next: NextUpstream, old: &[Rc<Pool>]) -> Rc<Pool> {
        let previous = next.previous.as_ref().and_then(|(place, shared)| {
            let is_it = |pool: &&Rc<Pool>| Arc::ptr_eq(&pool.upstream, shared);
            old.get(*place).filter(is_it).or_else(|| old.iter().find(is_it))
        });
        match previous {
            Some(pool) if Arc::ptr_eq(&pool.upstream, &next.shared) => Rc::clone(pool),
            previous => Rc::new(self.identity.pool(next, previous.map(|pool| &**pool))),
        }
    }

    /// Opens, renews and closes listeners.
    pub(super) fn listeners(&self, listeners: Vec<NextListener>, generation: &Rc<Generation>) {
        let wanted: Vec<SocketAddr> = listeners.iter().map(|next| next.bind).collect();
        self.doors.retain(&self.worker, |bind| wanted.contains(&bind));
        for (place, next) in listeners.into_iter().enumerate() {
            let NextListener { bind, figures, sockets, backlog } = next;
            if !sockets.is_empty() {
                let shard = self.identity.shard;
                let listening = Rc::new(Listening::new(bind, figures, shard, place, generation));
                for socket in sockets {
                    self.doors.open(&self.worker, Rc::clone(&listening), socket);
                }
            } else if let Some(listening) = self.doors.find(bind) {
                listening.renew(generation, place);
            }
            if let Some(backlog) = backlog {
                self.doors.set_backlog(bind, backlog);
            }
        }
    }

    /// Begins another access log; what the one before holds is still written.
    pub(super) fn log(&self, next: NextLog) {
        let log = match next {
            NextLog::Same => return,
            NextLog::Off => None,
            NextLog::To(format, capacity, file) => {
                let metrics = Arc::clone(&self.worker.metrics);
                Some(Rc::new(AccessLog::new(format, capacity, file, metrics)))
            }
        };
        if let Some(log) = log.clone() {
            let ring = Rc::clone(&self.worker.ring);
            spawn(&Rc::clone(&ring), async move { log.run(&ring).await });
        }
        if let Some(old) = self.worker.set_log(log) {
            let ring = Rc::clone(&self.worker.ring);
            spawn(&Rc::clone(&ring), async move { old.close(&ring).await });
        }
    }
}
