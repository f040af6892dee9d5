//! The ring's place in a glommio executor: the ring's loop is its main task.
//!
//! The loop polls the tasks that are ready, then submits and sleeps in our ring. The tasks are the
//! ring's own and not glommio's, whose wakers count references with locked instructions several
//! times a request. Nothing on these threads may wait on glommio's timers or I/O, which would be
//! late while our ring sleeps.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use glommio::{LocalExecutorBuilder, Placement};

use super::{Ring, Settings, Stats};

/// Memory glommio registers for its own I/O. We use none of it; this is about the least it takes.
const GLOMMIO_IO_MEMORY: usize = 64 * 1024;
/// Depth of glommio's own rings, likewise.
const GLOMMIO_RING_DEPTH: usize = 8;
/// Polls of tasks before the ring is entered again, without sleeping if some are still ready.
const POLLS_MAX: usize = 4096;

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
        .map_err(|error| io::Error::other(error.to_string()))?;
    let ring = Ring::new(settings, stats)?;
    executor.run(async {
        let result = Rc::new(Cell::new(None));
        let main = main(Rc::clone(&ring));
        let done = Rc::clone(&result);
        spawn(&ring, async move { done.set(Some(main.await)) });
        let end = drive(&ring, &result).await;
        ring.tasks.clear();
        ring.quiesce();
        end
    })
}

/// Starts a task on the ring's thread.
pub fn spawn(ring: &Rc<Ring>, future: impl Future<Output = ()> + 'static) {
    ring.tasks.spawn(Box::pin(future));
}

async fn drive<T>(ring: &Ring, result: &Cell<Option<T>>) -> io::Result<T> {
    let mut batch = Vec::with_capacity(super::BATCH);
    loop {
        let idle = ring.tasks.run(POLLS_MAX);
        if let Some(result) = result.take() {
            return Ok(result);
        }
        ring.flush();
        ring.enter(idle)?;
        ring.reap(&mut batch);
        // glommio's own tasks, should anybody start some here.
        yield_now().await;
    }
}

/// Goes to the end of the queue of whatever executor polls this.
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
