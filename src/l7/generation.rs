//! One generation of the configuration as a shard uses it. A request holds the one it began with; the
//! next reload puts another in force beside it, and the last request to end lets go of the old one.

use std::cell::{Cell, RefCell};
use std::net::{IpAddr, SocketAddr};
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;

use crate::counter::Counter;
use crate::l7::clients::Pace;
use crate::l7::config::{Listener, Service};
use crate::l7::metrics::{ByShard, ListenerMetrics};
use crate::l7::pool::Pool;
use crate::l7::router::Router;
use crate::l7::tls;
use crate::protocol::http1::Limits;

/// What is large and immutable: made, and at the end freed, by the control thread, not by the shard.
#[derive(Debug)]
pub struct Tables {
    /// The configuration, one shard's own copy.
    pub service: Service,
    /// The index over its routes, which shards share.
    pub router: Arc<Router>,
    /// Bounds on heads.
    pub limits: Limits,
}

impl Tables {
    /// For as many shards: each has a copy of its own, so that they do not share the scratch space of
    /// regular expressions.
    #[must_use]
    pub fn for_shards(service: &Service, shards: usize) -> Vec<Arc<Self>> {
        let router = Arc::new(Router::new(&service.routes, service.listeners.len()));
        let http = &service.http;
        let limits = Limits { head_bytes: http.max_head_size, headers: http.max_headers };
        let tables = || Self { service: service.clone(), router: Arc::clone(&router), limits };
        (0..shards).map(|_| Arc::new(tables())).collect()
    }
}

/// Tables with what a shard keeps beside them.
#[derive(Debug)]
pub struct Generation {
    /// Counts reloads; 1 is the start.
    pub number: u64,
    /// By upstream.
    pub pools: Vec<Rc<Pool>>,
    /// Certificates and keys in force.
    pub tls: Rc<tls::Shard>,
    tables: Arc<Tables>,
}

impl Deref for Generation {
    type Target = Tables;

    fn deref(&self) -> &Tables {
        &self.tables
    }
}

impl Generation {
    /// Puts one together.
    #[must_use]
    pub fn new(
        number: u64,
        tables: Arc<Tables>,
        pools: Vec<Rc<Pool>>,
        tls: Rc<tls::Shard>,
    ) -> Self {
        Self { number, pools, tls, tables }
    }

    /// One without listeners, routes and upstreams, for what needs none.
    pub(super) fn parked(&self) -> Self {
        let service = Service {
            http: self.service.http.clone(),
            tls: self.service.tls.clone(),
            listeners: Vec::new(),
            routes: Vec::new(),
            upstreams: Vec::new(),
            clients: None,
            tracing: None,
        };
        let router = Arc::new(Router::new(&[], 0));
        let tables = Tables { service, router, limits: self.limits };
        Self { number: 0, pools: Vec::new(), tls: Rc::clone(&self.tls), tables: Arc::new(tables) }
    }

    /// The least rate at which a client has to take a response, if there is one.
    #[must_use]
    pub fn download_pace<'a>(&'a self, address: IpAddr, slow: &'a Counter) -> Option<Pace<'a>> {
        self.service.clients.as_ref()?.download(address, slow)
    }

    /// The least rate at which a client has to send a request body, if there is one.
    #[must_use]
    pub fn upload_pace<'a>(&'a self, address: IpAddr, slow: &'a Counter) -> Option<Pace<'a>> {
        self.service.clients.as_ref()?.upload(address, slow)
    }

    /// The pool with the upstream of this name.
    #[must_use]
    pub fn pool(&self, name: &str) -> Option<&Rc<Pool>> {
        self.pools.iter().find(|pool| pool.upstream.config.name == name)
    }
}

/// An address that a shard listens on: it outlives changes of the configuration, and is known by its
/// address, whatever the listener is called.
#[derive(Debug)]
pub struct Listening {
    /// The address.
    pub bind: SocketAddr,
    figures: ByShard<ListenerMetrics>,
    shard: usize,
    /// Its place in the generation beside it.
    place: Cell<usize>,
    /// The last generation that has it.
    generation: RefCell<Rc<Generation>>,
    removed: Cell<bool>,
}

impl Listening {
    /// In a generation, of whose listeners it is the one at `place`.
    #[must_use]
    pub fn new(
        bind: SocketAddr,
        figures: ByShard<ListenerMetrics>,
        shard: usize,
        place: usize,
        generation: &Rc<Generation>,
    ) -> Self {
        Self {
            bind,
            figures,
            shard,
            place: Cell::new(place),
            generation: RefCell::new(Rc::clone(generation)),
            removed: Cell::new(false),
        }
    }

    /// This shard's figures.
    #[must_use]
    pub fn figures(&self) -> &ListenerMetrics {
        &self.figures[self.shard]
    }

    /// The generation that requests which begin now are served by, and the listener's place in it.
    #[must_use]
    pub fn current(&self) -> (Rc<Generation>, usize) {
        (Rc::clone(&self.generation.borrow()), self.place.get())
    }

    /// A newer generation has it at `place`.
    pub fn renew(&self, generation: &Rc<Generation>, place: usize) {
        self.place.set(place);
        self.generation.replace(Rc::clone(generation));
    }

    /// The configuration does not have it any more: its connections end after what they are doing.
    pub fn remove(&self) {
        self.removed.set(true);
    }

    /// Whether it was removed.
    #[must_use]
    pub fn is_removed(&self) -> bool {
        self.removed.get()
    }

    /// What the newest generation with it says of it.
    pub fn with<T>(&self, look: impl FnOnce(&Listener) -> T) -> Option<T> {
        self.generation.borrow().service.listeners.get(self.place.get()).map(look)
    }
}
