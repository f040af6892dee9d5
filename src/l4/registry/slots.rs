//! Which slot of the tables belongs to whom, from one set of tables to the next.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use crate::l4::config::ServiceKey;
use crate::l4::figures::Figures;
use crate::l4::handoff::ServicePlace;
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

    /// Gives a server this slot, as another process had it; `None` when it cannot be.
    pub(super) fn restore(
        &mut self,
        id: ServerId,
        service: ServiceKey,
        address: IpAddr,
    ) -> Option<Arc<Figures>> {
        let at = usize::from(id.slot);
        let taken = self.slots.get(at).is_some_and(|one| !one.vacant);
        if id.slot == NO_SLOT || taken {
            return None;
        }
        let figures = Arc::new(Figures::new(self.directors));
        let one = Occupant { service, address, id, figures: Arc::clone(&figures), vacant: false };
        self.put(one);
        Some(figures)
    }

    /// Puts an occupant into its slot; slots before it that are not known are vacant.
    fn put(&mut self, one: Occupant) {
        while self.slots.len() <= usize::from(one.id.slot) {
            let slot = u16::try_from(self.slots.len()).unwrap_or(NO_SLOT);
            let id = ServerId { slot, generation: 0 };
            self.slots.push(Occupant { id, vacant: true, ..one.clone() });
        }
        if let Some(place) = self.slots.get_mut(usize::from(one.id.slot)) {
            *place = one;
        }
    }

    /// Slots that nobody has, each with the generation of the last who had it.
    pub(super) fn vacancies(&self) -> impl Iterator<Item = ServerId> {
        self.slots.iter().filter(|one| one.vacant).map(|one| one.id)
    }

    /// The same of another process: flows of those that were there must not meet the next.
    pub(super) fn restore_vacancy(&mut self, id: ServerId) {
        let taken = self.slots.get(usize::from(id.slot)).is_some_and(|one| !one.vacant);
        // Whoever it was, the next one gets another generation.
        if let Some(any) = self.slots.first().filter(|_| !taken && id.slot != NO_SLOT).cloned() {
            self.put(Occupant { id, vacant: true, ..any });
        }
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

impl Place {
    fn new(key: ServiceKey, directors: usize) -> Self {
        Self {
            key,
            figures: Arc::new(Figures::new(directors)),
            quorate: true,
            base: super::maglev::Base::default(),
            templates: None,
        }
    }
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

    /// Gives a virtual server this slot, as another process had it.
    pub(super) fn restore(&mut self, slot: u16, key: ServiceKey, quorate: bool) {
        let at = usize::from(slot);
        if self.slots.len() <= at {
            self.slots.resize_with(at + 1, || None);
        }
        let directors = self.directors;
        if let Some(empty) = self.slots.get_mut(at).filter(|slot| slot.is_none()) {
            *empty = Some(Place { quorate, ..Place::new(key, directors) });
        }
    }

    /// Servers have had so many turns.
    pub(super) fn set_turns(&self, key: ServiceKey, turns: usize) {
        if let Some(place) = self.slots.iter().flatten().find(|place| place.key == key) {
            place.figures.cursor.store(turns, Relaxed);
        }
    }

    /// Who has which slot.
    pub(super) fn places(&self) -> impl Iterator<Item = ServicePlace> {
        let place = |(slot, place): (usize, &Option<Place>)| {
            let Place { key, quorate, figures, .. } = place.as_ref()?;
            Some(ServicePlace {
                slot: u16::try_from(slot).ok()?,
                protocol: key.protocol.number(),
                address: key.address,
                port: key.port,
                quorate: *quorate,
                turns: figures.cursor.load(Relaxed),
            })
        };
        self.slots.iter().enumerate().filter_map(place)
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
        let place = self.slots.get_mut(at)?.get_or_insert_with(|| Place::new(key, directors));
        Some((slot, place))
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }
}
