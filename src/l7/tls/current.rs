//! Which certificates and keys are in force: replaced as a whole by the control thread, looked up by
//! the shards without a lock until it changes.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustls::ClientConfig;
use rustls::client::Resumption;

use super::server::Endpoint;

/// Sessions kept for resumption by a shard, for each upstream.
const SESSIONS_MAX: usize = 256;

/// Everything that handshakes need, at one time.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// By listener; `None` for those without TLS.
    pub endpoints: Vec<Option<Arc<Endpoint>>>,
    /// By upstream; `None` for those without TLS.
    pub upstreams: Vec<Option<Arc<ClientConfig>>>,
}

/// The snapshot in force.
#[derive(Debug, Default)]
pub struct Current {
    generation: AtomicU64,
    snapshot: Mutex<Arc<Snapshot>>,
}

impl Current {
    /// Begins with this one.
    #[must_use]
    pub fn new(snapshot: Snapshot) -> Self {
        Self { generation: AtomicU64::new(1), snapshot: Mutex::new(Arc::new(snapshot)) }
    }

    /// Puts another in force: handshakes that begin from now on use it.
    pub fn replace(&self, snapshot: Snapshot) {
        *self.snapshot.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(snapshot);
        self.generation.fetch_add(1, Ordering::Release);
    }

    fn load(&self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshot.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A shard's view of it.
#[derive(Debug)]
pub struct Shard {
    current: Arc<Current>,
    generation: Cell<u64>,
    snapshot: RefCell<Arc<Snapshot>>,
    /// The upstreams' with this shard's session stores, next to what they were made from.
    clients: RefCell<Vec<Option<Client>>>,
}

#[derive(Debug, Clone)]
struct Client {
    made_from: Arc<ClientConfig>,
    config: Arc<ClientConfig>,
}

impl Shard {
    /// Of a shard.
    #[must_use]
    pub fn new(current: Arc<Current>) -> Rc<Self> {
        Rc::new(Self {
            current,
            generation: Cell::new(0),
            snapshot: RefCell::default(),
            clients: RefCell::default(),
        })
    }

    /// The view of a newer generation, whose listeners and upstreams may stand in other places. Sessions
    /// with servers are kept where what they were made with is the same.
    #[must_use]
    pub fn succeed(&self, current: Arc<Current>) -> Rc<Self> {
        Rc::new(Self {
            current,
            generation: Cell::new(0),
            snapshot: RefCell::default(),
            clients: RefCell::new(self.clients.borrow().clone()),
        })
    }

    /// What the listener's handshakes are made with; `None` without TLS.
    #[must_use]
    pub fn endpoint(&self, listener: usize) -> Option<Arc<Endpoint>> {
        self.refresh();
        self.snapshot.borrow().endpoints.get(listener)?.clone()
    }

    /// What handshakes with the upstream's servers are made with; `None` without TLS.
    #[must_use]
    pub fn client(&self, upstream: usize) -> Option<Arc<ClientConfig>> {
        self.refresh();
        self.clients.borrow().get(upstream)?.as_ref().map(|client| Arc::clone(&client.config))
    }

    fn refresh(&self) {
        // Read before the snapshot: one that is put in force between the two is taken next time.
        let generation = self.current.generation.load(Ordering::Acquire);
        if self.generation.replace(generation) == generation {
            return;
        }
        let snapshot = self.current.load();
        let mut clients = self.clients.borrow_mut();
        let known: HashMap<*const ClientConfig, &Client> = clients
            .iter()
            .flatten()
            .map(|client| (Arc::as_ptr(&client.made_from), client))
            .collect();
        let renew = |made_from: &Option<Arc<ClientConfig>>| {
            let made_from = made_from.as_ref()?;
            // Sessions outlive a change of something else.
            if let Some(known) = known.get(&Arc::as_ptr(made_from)) {
                return Some(Client::clone(known));
            }
            let mut config = ClientConfig::clone(made_from);
            config.resumption = Resumption::in_memory_sessions(SESSIONS_MAX);
            Some(Client { made_from: Arc::clone(made_from), config: Arc::new(config) })
        };
        let renewed = snapshot.upstreams.iter().map(renew).collect();
        *clients = renewed;
        self.snapshot.replace(snapshot);
    }
}
