//! Requests to hand over, sent to the active router and answered to others. What is under way is finished by the rest
//! of the process: it is told, and gives [`super::Order::HandOver`] when it has.

use std::net::IpAddr;

use super::clock::Clock;
use super::engine::Engine;
use super::instance::{Arrival, Instance};
use super::sockets::Sockets;
use super::{Event, Order};
use crate::protocol::vrrp::{Action, HandOver, Moment, NotPreferred, OWNER, Path, Signal};

impl Engine {
    /// Members of the sync group of this place, or only itself: an order for one is an order for all.
    pub(super) fn group_of(&self, place: usize) -> Vec<usize> {
        let group = self.groups.iter().find(|group| group.members.contains(&place));
        group.map_or_else(|| vec![place], |group| group.members.clone())
    }

    /// What became of a request.
    pub(super) fn tell_hand_over(&mut self, place: usize, news: HandOver, peer: IpAddr) {
        let Some(instance) = self.instances.get_mut(place) else { return };
        if let Some(count) = instance.counts.hand_overs.get_mut(news.index()) {
            *count += 1;
        }
        let instance = instance.config.name.clone();
        (self.reporter.0)(Event::HandOver { instance, news, peer });
    }

    /// Has the rest of the process finish what is under way.
    pub(super) fn finish(&mut self, place: usize) {
        let Some(instance) = self.instances.get_mut(place) else { return };
        if !(self.reporter.0)(Event::Asked { instance: instance.config.name.clone() }) {
            instance.router.cannot_finish();
        }
    }
}

impl Instance {
    /// Carries out an order.
    ///
    /// # Errors
    /// Only of `prefer`.
    pub(super) fn obey(
        &mut self,
        order: Order,
        now: Moment,
        out: &mut Vec<Action>,
    ) -> Result<(), NotPreferred> {
        let router = &mut self.router;
        match order {
            Order::Release => router.release(now, out),
            Order::Resume => router.resume(now, out),
            Order::Prefer => router.prefer(now, out)?,
            Order::HandOver => {
                let _ = router.hand_over(now, out);
            }
            Order::Stop if self.config.priority == OWNER => router.shutdown(now, out),
            Order::Stop => router.release(now, out),
            Order::StopNow => router.shutdown(now, out),
        }
        Ok(())
    }

    /// One of our own messages came in with its VRID.
    pub(super) fn hear_signal(
        &mut self,
        heard: &Arrival<'_>,
        path: Path,
        now: Moment,
        own: bool,
        out: &mut Vec<Action>,
    ) {
        let source = heard.datagram.source;
        match self.receiver.judge_signal(heard.datagram, heard.packet, own, heard.unix) {
            Ok(Signal::HandOver) => self.router.on_asked(now, path, source, out),
            Ok(Signal::Accepted) => self.router.on_answer(now, source, true, out),
            Ok(Signal::Refused) => self.router.on_answer(now, source, false, out),
            Err(error) => self.refuse(source, error, now),
        }
    }

    /// Asks the active router to hand over.
    pub(super) fn ask(&mut self, sockets: &Sockets) {
        let ways: Vec<_> = self.router.active_ways().collect();
        for (path, peer) in ways {
            self.send_signal(Signal::HandOver, path, peer, sockets);
        }
    }

    /// Answers a request.
    pub(super) fn answer(&mut self, path: Path, peer: IpAddr, accepted: bool, sockets: &Sockets) {
        let signal = if accepted { Signal::Accepted } else { Signal::Refused };
        self.send_signal(signal, path, peer, sockets);
    }

    fn send_signal(&mut self, signal: Signal, path: Path, peer: IpAddr, sockets: &Sockets) {
        let Some((index, source)) = self.way_out(path) else { return };
        let unix = Clock::unix();
        for form in self.receiver.forms_for(peer).iter() {
            self.sender.build_signal(&mut self.payload, signal, source, peer, form, unix);
            if sockets.send(index, source, peer, &self.payload).is_err() {
                self.counts.send_errors += 1;
            }
        }
    }

    /// What is shown of a request under way.
    pub(super) fn hand_over_text(&self) -> Option<String> {
        if let Some(peer) = self.router.finishing_for() {
            return Some(format!("{peer} asked for the addresses: finishing what is under way"));
        }
        let (peer, _) = self.router.active_peer()?;
        Some(match self.router.asking()? {
            true => format!("{peer} was asked for the addresses and finishes what is under way"),
            false => format!("{peer} is asked for the addresses"),
        })
    }
}
