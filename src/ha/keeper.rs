//! Renews leases on a thread of its own. Linux changes addresses under one lock for the whole host (rtnl), and
//! whoever makes or removes interfaces or namespaces holds it for tens of milliseconds: what waits for it must
//! not be the thread that advertises.

use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::packet::netlink::Requests;
use crate::packet::netlink::address::Wanted;

/// How one renewal went.
#[derive(Debug)]
pub(super) struct Renewed {
    /// Interface and address.
    pub(super) key: Key,
    /// What the kernel said; `TimedOut`: its turn came too late.
    pub(super) result: io::Result<()>,
}

/// An address of an interface.
pub(super) type Key = (u32, IpAddr);

/// Renews what it is given, one after the other. Its queue has each address once, so that the configuration
/// bounds it. Dropped, it ends after the renewal that is under way.
#[derive(Debug, Default)]
pub(super) struct Keeper {
    shared: Arc<Shared>,
    started: bool,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Renewal>,
    under_way: Option<Key>,
    done: Vec<Renewed>,
    over: bool,
}

#[derive(Debug)]
struct Renewal {
    wanted: Wanted,
    lifetime: Duration,
    /// It is not done any more after this: who asked for it may not be active by then.
    until: Instant,
}

impl Keeper {
    /// Has the lease of an address renewed, before `patience` is over or not at all. The first call starts the
    /// thread, which has the caller's scheduling.
    ///
    /// # Errors
    /// What netlink or the start of the thread says; nothing will be renewed then.
    pub(super) fn renew(
        &mut self,
        wanted: &Wanted,
        lifetime: Duration,
        patience: Duration,
    ) -> io::Result<()> {
        if !self.started {
            let mut requests = Requests::open()?;
            self.start(move |wanted, lifetime| requests.lease(wanted, Some(lifetime)))?;
        }
        let renewal =
            Renewal { wanted: wanted.clone(), lifetime, until: Instant::now() + patience };
        let mut state = self.shared.lock();
        state.waiting.retain(|waiting| key(&waiting.wanted) != key(wanted));
        state.waiting.push_back(renewal);
        self.shared.changed.notify_all();
        Ok(())
    }

    fn start(
        &mut self,
        renew: impl FnMut(&Wanted, Duration) -> io::Result<()> + Send + 'static,
    ) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        thread::Builder::new().name("vrrp-lease".into()).spawn(move || shared.work(renew))?;
        self.started = true;
        Ok(())
    }

    /// Withdraws what waits for this address, and waits for what is under way: afterwards nothing but the
    /// caller changes it.
    pub(super) fn withdraw(&self, key_of: Key) {
        let mut state = self.shared.lock();
        state.waiting.retain(|waiting| key(&waiting.wanted) != key_of);
        while state.under_way == Some(key_of) {
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.done.retain(|done| done.key != key_of);
    }

    /// What was done since this was last called.
    pub(super) fn done(&self) -> Vec<Renewed> {
        std::mem::take(&mut self.shared.lock().done)
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.shared.lock().over = true;
        self.shared.changed.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self, mut renew: impl FnMut(&Wanted, Duration) -> io::Result<()>) {
        let mut state = self.lock();
        while !state.over {
            let Some(next) = state.waiting.pop_front() else {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let key = key(&next.wanted);
            state.under_way = Some(key);
            drop(state);
            let result = if Instant::now() > next.until {
                Err(io::ErrorKind::TimedOut.into())
            } else {
                renew(&next.wanted, next.lifetime)
            };
            state = self.lock();
            state.under_way = None;
            state.done.retain(|done| done.key != key);
            state.done.push(Renewed { key, result });
            self.changed.notify_all();
        }
    }
}

const fn key(wanted: &Wanted) -> Key {
    (wanted.interface, wanted.address)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn address(last: u8) -> Wanted {
        let address = IpAddr::from([192, 0, 2, last]);
        Wanted { interface: 2, address, prefix: 24, label: None, owner: 112, deprecated: false }
    }

    /// A keeper whose kernel says which address it was asked for, and then holds its lock until it is let go.
    fn keeper() -> (Keeper, Receiver<IpAddr>, Sender<io::Result<()>>) {
        let (asked, asks) = channel();
        let (answer, answers) = channel();
        let mut keeper = Keeper::default();
        let kernel = move |wanted: &Wanted, _| {
            asked.send(wanted.address).map_err(io::Error::other)?;
            answers.recv().map_err(io::Error::other)?
        };
        keeper.start(kernel).expect("a thread");
        (keeper, asks, answer)
    }

    fn await_done(keeper: &Keeper) -> Vec<Renewed> {
        loop {
            let done = keeper.done();
            if !done.is_empty() {
                return done;
            }
            thread::yield_now();
        }
    }

    #[test]
    fn the_caller_does_not_wait_for_the_kernel() {
        let (mut keeper, asks, answer) = keeper();
        for last in [1, 2, 2, 3] {
            keeper.renew(&address(last), LONG, LONG).expect("queued");
        }
        assert_eq!(asks.recv(), Ok(address(1).address));
        // The first is under way; the second stands in the queue once; the third is withdrawn at once.
        keeper.renew(&address(2), LONG, LONG).expect("queued");
        keeper.withdraw(key(&address(3)));
        answer.send(Ok(())).expect("it waits");
        assert_eq!(asks.recv(), Ok(address(2).address));
        assert!(await_done(&keeper)[0].result.is_ok());
        answer.send(Err(io::ErrorKind::PermissionDenied.into())).expect("it waits");
        let failed = await_done(&keeper);
        assert_eq!((failed.len(), failed[0].key), (1, key(&address(2))));
        assert!(failed[0].result.is_err() && keeper.shared.lock().waiting.is_empty());
        assert!(asks.try_recv().is_err());
    }

    #[test]
    fn withdrawing_waits_for_what_is_under_way() {
        let (mut keeper, asks, answer) = keeper();
        keeper.renew(&address(1), LONG, LONG).expect("queued");
        asks.recv().expect("under way");
        thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                keeper.withdraw(key(&address(1)));
                keeper.shared.lock().under_way
            });
            answer.send(Ok(())).expect("it waits");
            assert_eq!(waiting.join().expect("no panic"), None);
        });
        assert!(keeper.done().is_empty());
    }

    #[test]
    fn what_comes_too_late_is_not_done() {
        let (mut keeper, asks, answer) = keeper();
        keeper.renew(&address(1), LONG, LONG).expect("queued");
        asks.recv().expect("under way");
        keeper.renew(&address(2), LONG, Duration::ZERO).expect("queued");
        answer.send(Ok(())).expect("it waits");
        let mut done = await_done(&keeper);
        if done.len() < 2 {
            done.extend(await_done(&keeper));
        }
        let late = done[1].result.as_ref().expect_err("late");
        assert_eq!(late.kind(), io::ErrorKind::TimedOut);
        assert!(asks.try_recv().is_err());
    }
}
