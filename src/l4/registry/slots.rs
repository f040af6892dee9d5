//! Which slot of the tables belongs to whom, from one set of tables to the next.

use std::net::IpAddr;
use std::sync::Arc;

use crate::l4::config::ServiceKey;
use crate::l4::figures::Figures;
use crate::l4::persistence::Templates;
use crate::l4::tables::{NO_SLOT, ServerId};

/// A real server in its slot.
#[derive(Debug, Clone)]
pub(super) struct Occupant {
    pub(super) service: ServiceKey,
    pub(super) address: IpAddr,
    pub(super) id: ServerId,
    pub(super) figures: Arc<Figures>,
    /// Not the slot's any more.
    vacant: bool,
}

/// The slots of all real servers.
#[derive(Debug)]
pub(super) struct ServerSlots {
    directors: usize,
    slots: Vec<Occupant>,
}

impl ServerSlots {
    pub(super) fn new(directors: usize) -> Self {
        Self { directors, slots: Vec::new() }
    }

    /// The slot of a server, a new one if it has none; `None` when all are taken.
    pub(super) fn claim(&mut self, service: ServiceKey, address: IpAddr) -> Option<Occupant> {
        let own = |one: &&Occupant| !one.vacant && (one.service, one.address) == (service, address);
        if let Some(found) = self.slots.iter().find(own) {
            return Some(found.clone());
        }
        let figures = Arc::new(Figures::new(self.directors));
        if let Some(free) = self.slots.iter_mut().find(|one| one.vacant) {
            let generation = free.id.generation.wrapping_add(1);
            let id = ServerId { generation, ..free.id };
            *free = Occupant { service, address, id, figures, vacant: false };
            return Some(free.clone());
        }
        let slot = u16::try_from(self.slots.len()).ok().filter(|slot| *slot != NO_SLOT)?;
        let id = ServerId { slot, generation: 0 };
        self.slots.push(Occupant { service, address, id, figures, vacant: false });
        self.slots.last().cloned()
    }

    /// Servers that have a slot.
    pub(super) fn occupants(&self) -> impl Iterator<Item = &Occupant> {
        self.slots.iter().filter(|one| !one.vacant)
    }

    /// Gives up the slots of those that are not to be kept.
    pub(super) fn keep(&mut self, keep: impl Fn(&Occupant) -> bool) {
        for one in &mut self.slots {
            one.vacant |= !keep(one);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }
}

/// What stays of a virtual server from one set of tables to the next.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) key: ServiceKey,
    pub(super) figures: Arc<Figures>,
    pub(super) quorate: bool,
    pub(super) base: super::maglev::Base,
    pub(super) templates: Option<Arc<Templates>>,
}

/// The slots of all virtual servers.
#[derive(Debug)]
pub(super) struct ServiceSlots {
    directors: usize,
    slots: Vec<Option<Place>>,
}

impl ServiceSlots {
    pub(super) fn new(directors: usize) -> Self {
        Self { directors, slots: Vec::new() }
    }

    /// Gives up the slots of virtual servers that are not in `keys`.
    pub(super) fn keep(&mut self, keep: impl Fn(ServiceKey) -> bool) {
        for slot in &mut self.slots {
            slot.take_if(|place| !keep(place.key));
        }
    }

    /// The slot of a virtual server, a new one if it has none.
    pub(super) fn claim(&mut self, key: ServiceKey) -> Option<(u16, &mut Place)> {
        let own = |slot: &Option<Place>| slot.as_ref().is_some_and(|place| place.key == key);
        let at =
            self.slots.iter().position(own).or_else(|| self.slots.iter().position(Option::is_none));
        let at = at.unwrap_or(self.slots.len());
        let slot = u16::try_from(at).ok()?;
        if at == self.slots.len() {
            self.slots.push(None);
        }
        let directors = self.directors;
        let place = self.slots.get_mut(at)?.get_or_insert_with(|| Place {
            key,
            figures: Arc::new(Figures::new(directors)),
            quorate: true,
            base: super::maglev::Base::default(),
            templates: None,
        });
        Some((slot, place))
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }
}
