//! Waking tasks at points in time, to tens of microseconds.
//!
//! The ring's own wheel counts in 4 ms: right for timeouts, too coarse for sending a thousand
//! requests a second at even distances. Here one timerfd, read through the ring, wakes the tasks of
//! a thread from a heap.

use std::cell::{Cell, RefCell};
use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use ringgate::ring::Ring;
use ringgate::sys::timer::TimerFd;

/// Shortest time the timer is set to: what is due within it is woken together, in a small burst.
const SHORTEST_NS: u64 = 50_000;

/// Nanoseconds since the start of a run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock(pub(crate) Instant);

impl Clock {
    pub(crate) fn now(self) -> u64 {
        u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// The alarm clock of one thread.
#[derive(Debug)]
pub(crate) struct Sleeper {
    clock: Clock,
    timer: Rc<TimerFd>,
    /// What the timer is set to; `u64::MAX` when it is not.
    set_to: Cell<u64>,
    heap: RefCell<BinaryHeap<Entry>>,
}

#[derive(Debug)]
struct Entry {
    at: u64,
    waker: Waker,
}

impl Sleeper {
    pub(crate) fn new(clock: Clock) -> io::Result<Self> {
        let timer = Rc::new(TimerFd::new()?);
        Ok(Self { clock, timer, set_to: Cell::new(u64::MAX), heap: RefCell::default() })
    }

    /// Has the task woken at `at` (once; a moment later at most than the timer fires).
    pub(crate) fn wake_at(&self, at: u64, cx: &Context<'_>) {
        self.heap.borrow_mut().push(Entry { at, waker: cx.waker().clone() });
        if at < self.set_to.get() {
            self.set(at);
        }
    }

    /// Waits until `at`.
    pub(crate) async fn sleep_until(&self, at: u64) {
        let mut asked = false;
        std::future::poll_fn(|cx| {
            if self.clock.now() >= at {
                return Poll::Ready(());
            }
            if !asked {
                asked = true;
                self.wake_at(at, cx);
            }
            Poll::Pending
        })
        .await;
    }

    /// Wakes tasks for as long as it is polled.
    pub(crate) async fn run(&self, ring: &Rc<Ring>) {
        let mut buffer = Vec::with_capacity(8);
        loop {
            self.wake_due();
            (_, buffer) = ring.read(Rc::<TimerFd>::clone(&self.timer), buffer).await;
        }
    }

    fn wake_due(&self) {
        let now = self.clock.now();
        self.set_to.set(u64::MAX);
        loop {
            let mut heap = self.heap.borrow_mut();
            match heap.peek() {
                Some(first) if first.at > now => {
                    let at = first.at;
                    drop(heap);
                    return self.set(at);
                }
                Some(_) => {
                    let due = heap.pop();
                    drop(heap);
                    if let Some(due) = due {
                        due.waker.wake();
                    }
                }
                None => return,
            }
        }
    }

    fn set(&self, at: u64) {
        let now = self.clock.now();
        let at = at.max(now.saturating_add(SHORTEST_NS));
        // An expiry that is near enough is left alone.
        if at < self.set_to.get() {
            self.set_to.set(at);
            // Fails for no duration that there is.
            let _ = self.timer.set(Duration::from_nanos(at - now));
        }
    }
}

// The heap gives the largest first, which is to be the earliest.
impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        other.at.cmp(&self.at)
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.at == other.at
    }
}

impl Eq for Entry {}

#[cfg(test)]
mod tests {
    use ringgate::ring::executor::{self, spawn};
    use ringgate::ring::{Settings, event::Event};

    use super::*;

    #[test]
    fn tasks_are_woken_in_order_and_not_early() {
        let epoch = Instant::now();
        let settings = Settings { buffers: 16, buffers_limit: 16, epoch };
        let times = executor::run(settings, std::sync::Arc::default(), |ring| async move {
            let clock = Clock(epoch);
            let sleeper = Rc::new(Sleeper::new(clock).unwrap());
            let (driver, inner) = (Rc::clone(&sleeper), Rc::clone(&ring));
            spawn(&ring, async move { driver.run(&inner).await });
            let (woken, all) = (Rc::new(RefCell::new(Vec::new())), Rc::new(Event::default()));
            let begin = clock.now();
            for after in [3_000_000, 1_000_000, 2_000_000, 1_000_001] {
                let (sleeper, woken, all) =
                    (Rc::clone(&sleeper), Rc::clone(&woken), Rc::clone(&all));
                spawn(&ring, async move {
                    sleeper.sleep_until(begin + after).await;
                    woken.borrow_mut().push((after, clock.now() - begin));
                    all.set();
                });
            }
            while woken.borrow().len() < 4 {
                all.take().await;
            }
            woken.take()
        });
        let times = times.unwrap();
        assert_eq!(times.len(), 4);
        assert!(times.is_sorted() && times.iter().all(|(after, at)| at >= after), "{times:?}");
    }
}
