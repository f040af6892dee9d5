//! Timers on the running ring, and that it sleeps when there is nothing to do.

use std::cell::RefCell;
use std::future::ready;
use std::time::Duration;

use super::super::timer::Elapsed;
use super::*;

#[test]
fn timers_fire_in_order_and_not_early() {
    let _alone = alone();
    let (fired, _) = run(16, 16, |ring| async move {
        let fired = Rc::new(RefCell::new(Vec::new()));
        for after in [60, 10, 35, 20, 50] {
            let (fired, ring_of_task) = (Rc::clone(&fired), Rc::clone(&ring));
            executor::spawn(&ring, async move {
                let timer = Timer::new(&ring_of_task);
                let began = ring_of_task.now();
                timer.set(after);
                timer.fired().await;
                fired.borrow_mut().push((after, ring_of_task.now() - began));
            });
        }
        let timer = Timer::new(&ring);
        while fired.borrow().len() < 5 {
            timer.set(1);
            timer.fired().await;
        }
        fired.take()
    });
    assert_eq!(fired.iter().map(|(after, _)| *after).collect::<Vec<_>>(), [10, 20, 35, 50, 60]);
    for (after, took) in fired {
        // By the ring's clock, which stands still between wake-ups.
        assert!(took >= after, "{after}: {took}");
    }
}

#[test]
fn a_guard_prefers_the_result_to_the_deadline() {
    let _alone = alone();
    run(16, 16, |ring| async move {
        let timer = Timer::new(&ring);
        timer.set(0);
        timer.fired().await;
        assert!(timer.has_fired());
        assert_eq!(timer.guard(ready(1)).await, Ok(1));
        assert_eq!(timer.guard(std::future::pending::<()>()).await, Err(Elapsed));
        timer.clear();
        assert!(!timer.has_fired());
    });
}

#[test]
fn data_that_came_before_the_deadline_wins_over_it() {
    use std::io::Write;
    let _alone = alone();
    run(16, 16, |ring| async move {
        let (listener, _) = listener();
        let (stream, mut peer) = connection(&ring, &listener);
        stream.watch();
        turn(&ring).await;
        let timer = Timer::new(&ring);
        timer.set(2);
        peer.write_all(b"in time").expect("an empty socket");
        // The thread is busy beyond the deadline: both have happened when the ring is entered.
        let busy = Instant::now();
        while busy.elapsed() < Duration::from_millis(20) {}
        let chunk = timer.guard(pin!(stream.recv())).await.expect("the data was there in time");
        assert_eq!(chunk.expect("no error").expect("no end").as_slice(), b"in time");
    });
}

fn cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid timespec for the call to fill.
    let done = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    assert_eq!(done, 0);
    let nanos = u32::try_from(time.tv_nsec).expect("below 10^9");
    Duration::new(u64::try_from(time.tv_sec).expect("since the start"), nanos)
}

#[test]
fn an_idle_ring_sleeps() {
    idle(Duration::ZERO);
}

#[test]
fn an_idle_ring_sleeps_although_it_may_look_for_work_before() {
    idle(Duration::from_millis(1));
}

fn idle(busy_poll: Duration) {
    let _alone = alone();
    let ((cpu, wall, enters), _) = run(16, 16, |ring| async move {
        ring.busy_poll(busy_poll);
        let (listener, _) = listener();
        let (stream, _peer) = connection(&ring, &listener);
        stream.watch();
        turn(&ring).await;
        let timer = Timer::new(&ring);
        let (cpu, wall, enters) = (cpu_time(), Instant::now(), ring.stats.enters.value());
        timer.set(300);
        timer.fired().await;
        (cpu_time() - cpu, wall.elapsed(), ring.stats.enters.value() - enters)
    });
    assert!(wall >= Duration::from_millis(295));
    assert!(cpu * 20 < wall, "{cpu:?} of CPU in {wall:?} of idleness");
    assert!(enters < 10, "{enters} system calls in {wall:?} of idleness");
}

#[test]
fn a_task_that_never_rests_does_not_keep_data_from_the_others() {
    use std::io::Write;
    let _alone = alone();
    run(16, 16, |ring| async move {
        let (listener, _) = listener();
        let (stream, mut peer) = connection(&ring, &listener);
        stream.watch();
        turn(&ring).await;
        peer.write_all(b"hello").expect("an empty socket");
        let (over, restless) = tally();
        let task = Rc::clone(&restless);
        executor::spawn(&ring, async move {
            while task.get() == 0 {
                executor::yield_now().await;
            }
        });
        let timer = Timer::new(&ring);
        timer.set(5);
        assert!(stream.recv().await.expect("no error").is_some());
        timer.fired().await;
        over.set(1);
    });
}
