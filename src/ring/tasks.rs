//! The tasks of one ring and the queue of those that are ready.
//!
//! A waker is nothing but a task's number: copying and dropping it is free, and waking pushes the
//! number onto the thread's queue. A number may outlive its task and be given to another one; waking
//! that is a poll too many and harms nothing.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::ptr;
use std::task::{Context, RawWaker, RawWakerVTable, Waker};

use slab::Slab;

type Task = Pin<Box<dyn Future<Output = ()>>>;

thread_local! {
    static READY: RefCell<Ready> = const { RefCell::new(Ready::new()) };
}

/// Numbers of tasks to be polled, each at most once, first in first out.
struct Ready {
    queue: VecDeque<usize>,
    /// One bit a number: it stands in the queue. This also bounds the queue by the number of tasks.
    queued: Vec<u64>,
}

impl Ready {
    const fn new() -> Self {
        Self { queue: VecDeque::new(), queued: Vec::new() }
    }

    fn push(&mut self, key: usize) {
        let (word, bit) = (key / 64, 1 << (key % 64));
        if word >= self.queued.len() {
            self.queued.resize(word + 1, 0);
        }
        if self.queued[word] & bit == 0 {
            self.queued[word] |= bit;
            self.queue.push_back(key);
        }
    }

    fn pop(&mut self) -> Option<usize> {
        let key = self.queue.pop_front()?;
        self.queued[key / 64] &= !(1 << (key % 64));
        Some(key)
    }

    fn clear(&mut self) {
        self.queue.clear();
        self.queued.fill(0);
    }
}

/// The tasks of one ring.
#[derive(Default)]
pub(super) struct Tasks {
    /// `None` while the task is being polled.
    slots: RefCell<Slab<Option<Task>>>,
}

impl Tasks {
    /// Adds a task; it is polled for the first time in the next turn.
    pub(super) fn spawn(&self, task: Task) {
        let key = self.slots.borrow_mut().insert(Some(task));
        push(key);
    }

    /// Polls tasks until none is ready or `budget` have been polled; true when none is ready.
    pub(super) fn run(&self, mut budget: usize) -> bool {
        while budget > 0 {
            let Some(key) = READY.with_borrow_mut(Ready::pop) else { return true };
            self.poll(key);
            budget -= 1;
        }
        READY.with_borrow(|ready| ready.queue.is_empty())
    }

    fn poll(&self, key: usize) {
        let task = self.slots.borrow_mut().get_mut(key).and_then(Option::take);
        let Some(mut task) = task else { return };
        let waker = waker(key);
        let over = task.as_mut().poll(&mut Context::from_waker(&waker)).is_ready();
        if over {
            drop(task); // before its number can be given away, and outside the borrow
            self.slots.borrow_mut().try_remove(key);
        } else if let Some(slot) = self.slots.borrow_mut().get_mut(key) {
            *slot = Some(task);
        }
    }

    /// Drops all tasks.
    pub(super) fn clear(&self) {
        loop {
            let key = self.slots.borrow().iter().next().map(|(key, _)| key);
            let Some(key) = key else { break };
            let slot = self.slots.borrow_mut().try_remove(key);
            drop(slot); // outside the borrow: a task's end may wake others
        }
        READY.with_borrow_mut(Ready::clear);
    }
}

fn push(key: usize) {
    READY.with_borrow_mut(|ready| ready.push(key));
}

/// The waker of the task with this number. Waking it on another thread queues the number there,
/// where at worst it polls a task too often: there is no memory behind it that could be raced for.
fn waker(key: usize) -> Waker {
    // SAFETY: the functions of the table treat the pointer as the number it was made from and never
    // follow it, so that they uphold RawWaker's contract, thread safety included, for any value.
    unsafe { Waker::from_raw(raw_waker(ptr::without_provenance(key))) }
}

fn raw_waker(key: *const ()) -> RawWaker {
    static TABLE: RawWakerVTable =
        RawWakerVTable::new(raw_waker, |key| push(key.addr()), |key| push(key.addr()), |_| {});
    RawWaker::new(key, &TABLE)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::poll_fn;
    use std::rc::Rc;
    use std::task::Poll;

    use super::*;

    #[test]
    fn a_task_is_polled_once_however_often_it_was_woken() {
        let (tasks, polls) = (Tasks::default(), Rc::new(Cell::new(0)));
        let count = Rc::clone(&polls);
        let kept: Rc<RefCell<Option<Waker>>> = Rc::default();
        let keep = Rc::clone(&kept);
        tasks.spawn(Box::pin(poll_fn(move |cx| {
            count.set(count.get() + 1);
            keep.replace(Some(cx.waker().clone()));
            Poll::Pending
        })));
        assert!(tasks.run(10));
        let waker = kept.take().expect("kept by the first poll");
        waker.wake_by_ref();
        waker.wake_by_ref();
        waker.wake();
        assert!(tasks.run(10));
        assert_eq!(polls.get(), 2);
        tasks.clear();
    }

    #[test]
    fn waking_what_has_ended_does_nothing() {
        let tasks = Tasks::default();
        let kept: Rc<RefCell<Option<Waker>>> = Rc::default();
        let keep = Rc::clone(&kept);
        tasks.spawn(Box::pin(poll_fn(move |cx| {
            keep.replace(Some(cx.waker().clone()));
            Poll::Ready(())
        })));
        assert!(tasks.run(10));
        kept.take().expect("kept").wake();
        assert!(tasks.run(10));
    }

    #[test]
    fn the_budget_bounds_tasks_that_wake_themselves() {
        let (tasks, polls) = (Tasks::default(), Rc::new(Cell::new(0)));
        let count = Rc::clone(&polls);
        tasks.spawn(Box::pin(poll_fn(move |cx| {
            count.set(count.get() + 1);
            cx.waker().wake_by_ref();
            Poll::Pending
        })));
        assert!(!tasks.run(7));
        assert_eq!(polls.get(), 7);
        tasks.clear();
        assert!(tasks.run(7));
        assert_eq!(polls.get(), 7);
    }

    #[test]
    fn a_task_may_start_others_and_be_dropped_with_them() {
        let (tasks, dropped) = (Rc::new(Tasks::default()), Rc::new(Cell::new(0)));
        struct Count(Rc<Cell<i32>>);
        impl Drop for Count {
            fn drop(&mut self) {
                self.0.set(self.0.get() + 1);
            }
        }
        let (inner, outer) = (Count(Rc::clone(&dropped)), Count(Rc::clone(&dropped)));
        let spawner = Rc::clone(&tasks);
        tasks.spawn(Box::pin(async move {
            let _outer = outer;
            spawner.spawn(Box::pin(async move {
                let _inner = inner;
                std::future::pending::<()>().await;
            }));
            std::future::pending::<()>().await;
        }));
        assert!(tasks.run(10));
        tasks.clear();
        assert_eq!(dropped.get(), 2);
    }
}
