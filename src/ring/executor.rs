//! The ring's place in a glommio executor: tasks run there, the ring's loop is its main task.
//!
//! glommio gives tasks and their scheduling; its own rings carry no socket of ours. The loop lets
//! every woken task run, then submits and sleeps in our ring. Nothing on these threads may wait on
//! glommio's timers or I/O, which would be late while our ring sleeps.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use glommio::{LocalExecutorBuilder, Placement};

use super::{Ring, Settings, Stats};

/// Memory glommio registers for its own I/O. We use none of it; this is about the least it takes.
const GLOMMIO_IO_MEMORY: usize = 64 * 1024;
/// Depth of glommio's own rings, likewise.
const GLOMMIO_RING_DEPTH: usize = 8;
/// Rounds in which tasks may wake each other before the ring is entered without sleeping.
const ROUNDS: usize = 8;

/// Runs `main` on a new executor with a new ring on the calling thread until it is done.
///
/// # Errors
/// When the executor or the ring cannot be made, or io_uring_enter(2) fails for good.
pub fn run<T: 'static, F: Future<Output = T> + 'static>(
    settings: Settings,
    stats: Arc<Stats>,
    main: impl FnOnce(Rc<Ring>) -> F,
) -> io::Result<T> {
    let executor = LocalExecutorBuilder::new(Placement::Unbound)
        .io_memory(GLOMMIO_IO_MEMORY)
        .ring_depth(GLOMMIO_RING_DEPTH)
        .make()
        .map_err(io::Error::from)?;
    let ring = Ring::new(settings, stats)?;
    executor.run(async {
        let result = Rc::new(Cell::new(None));
        let main = main(Rc::clone(&ring));
        let done = Rc::clone(&result);
        spawn(&ring, async move { done.set(Some(main.await)) });
        let end = drive(&ring, &result).await;
        ring.quiesce();
        end
    })
}

/// Starts a task on the ring's executor.
pub fn spawn(ring: &Rc<Ring>, future: impl Future<Output = ()> + 'static) {
    glommio::spawn_local(Counted { ring: Rc::clone(ring), future }).detach();
}

async fn drive<T>(ring: &Ring, result: &Cell<Option<T>>) -> io::Result<T> {
    let mut batch = Vec::with_capacity(super::BATCH);
    loop {
        let idle = run_tasks(ring).await;
        if let Some(result) = result.take() {
            return Ok(result);
        }
        ring.flush();
        ring.enter(idle)?;
        ring.reap(&mut batch);
    }
}

/// Lets tasks run until none is ready any more; false when there may be some left.
///
/// The executor's queue is first in, first out: when this task's turn comes again, every task that
/// was ready before it has run. If none ran in a whole turn, none is ready.
async fn run_tasks(ring: &Ring) -> bool {
    for _ in 0..ROUNDS {
        let before = ring.polls.get();
        yield_now().await;
        if ring.polls.get() == before {
            return true;
        }
    }
    false
}

/// Goes to the end of the executor's queue.
pub async fn yield_now() {
    let mut yielded = false;
    poll_fn(|cx| {
        if yielded {
            return Poll::Ready(());
        }
        yielded = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// A task that counts its polls.
struct Counted<F> {
    ring: Rc<Ring>,
    future: F,
}

impl<F: Future<Output = ()>> Future for Counted<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.ring.polls.set(self.ring.polls.get() + 1);
        // SAFETY: structural pinning of `future`: it is never moved out, `Counted` has no Drop and
        // is not Unpin unless the future is.
        unsafe { self.map_unchecked_mut(|counted| &mut counted.future) }.poll(cx)
    }
}
