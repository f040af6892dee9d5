//! The submission and completion queues when there is more than they hold; threads waking threads.

use std::fs::File;
use std::os::fd::RawFd;
use std::time::Duration;

use super::super::{CQ_ENTRIES, SQ_ENTRIES};
use super::*;
use crate::sys::limits;
use crate::sys::notify::EventFd;

#[test]
fn more_completions_than_the_queue_holds_all_arrive_and_are_counted() {
    const READS: usize = CQ_ENTRIES as usize + 2000;
    let _alone = alone();
    let (sum, stats) = run(16, 16, |ring| async move {
        let zero = Rc::new(File::open("/dev/zero").expect("Linux"));
        let reads: Vec<_> =
            (0..READS).map(|_| ring.read(zero.clone(), Vec::with_capacity(3))).collect();
        let mut sum = 0;
        for read in reads {
            let (result, buffer) = read.await;
            assert_eq!(buffer, [0, 0, 0]);
            sum += result.expect("/dev/zero can be read");
        }
        assert!(ring.ops.borrow().is_empty());
        sum
    });
    assert_eq!(sum, READS * 3);
    assert!(stats.cq_overflows.value() > 0, "the overflow is counted");
}

#[test]
fn a_ring_that_never_overflowed_says_so() {
    let _alone = alone();
    let ((), stats) = run(16, 16, |ring| async move { turn(&ring).await });
    assert_eq!(stats.cq_overflows.value(), 0);
}

#[test]
fn more_operations_in_a_round_than_the_queue_holds_are_all_carried_out() {
    const PAIRS: usize = SQ_ENTRIES as usize + 200;
    let _alone = alone();
    assert!(limits::raise_open_files().expect("getrlimit").soft > 2 * PAIRS as u64);
    run(1024, 1024, |ring| async move {
        let pairs: Vec<_> = (0..PAIRS)
            .map(|_| std::os::unix::net::UnixStream::pair().expect("two descriptors"))
            .map(|(a, b)| (Stream::new(&ring, a.into()), Stream::new(&ring, b.into())))
            .collect();
        for (i, (a, b)) in pairs.iter().enumerate() {
            b.watch();
            a.write(bytes::Bytes::from(i.to_be_bytes().to_vec()));
        }
        for (i, (_, b)) in pairs.iter().enumerate() {
            let chunk = b.recv().await.expect("no error").expect("no end");
            assert_eq!(chunk.as_slice(), i.to_be_bytes());
        }
        drop(pairs);
        until(&ring, || is_clean(&ring)).await;
    });
}

#[test]
fn dropping_an_operation_cancels_it() {
    let _alone = alone();
    run(16, 16, |ring| async move {
        let event = Rc::new(EventFd::new().expect("a descriptor"));
        for round in 0..1000 {
            let mut read = pin!(ring.read(event.clone(), Vec::with_capacity(8)));
            if round % 2 == 0 {
                assert!(poll_once(read.as_mut()).await.is_pending());
                turn(&ring).await; // now the kernel has it
            }
        }
        until(&ring, || ring.ops.borrow().is_empty()).await;
        assert_eq!(Rc::strong_count(&event), 1);
        event.notify(); // goes to nobody of them
        let (read, buffer) = ring.read(event, Vec::with_capacity(8)).await;
        assert_eq!((read.expect("readable"), buffer), (8, 1u64.to_ne_bytes().to_vec()));
    });
}

struct Shared(Arc<EventFd>);

impl AsRawFd for Shared {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Waits for a notification on `mine`, answers on `other`; `rounds` times.
async fn play(ring: Rc<Ring>, mine: Arc<EventFd>, other: Arc<EventFd>, rounds: u64) -> u64 {
    let file = Rc::new(Shared(mine));
    let mut buffer = Vec::with_capacity(8);
    let mut seen = 0;
    while seen < rounds {
        let (read, filled) = ring.read(file.clone(), buffer).await;
        assert_eq!(read.expect("readable"), 8);
        seen += u64::from_ne_bytes(filled[..].try_into().expect("8 bytes"));
        buffer = filled;
        other.notify();
    }
    seen
}

#[test]
fn two_threads_wake_each_other_without_losing_a_wake_up() {
    let _alone = alone();
    wake_each_other(10_000, Duration::ZERO);
}

#[test]
fn nor_do_they_when_they_look_for_a_while_before_they_sleep() {
    let _alone = alone();
    // Long enough to find most, and too short for any.
    wake_each_other(10_000, Duration::from_micros(500));
    wake_each_other(10_000, Duration::from_micros(1));
}

fn wake_each_other(rounds: u64, busy_poll: Duration) {
    let make = || Arc::new(EventFd::new().expect("a descriptor"));
    let (ping, pong) = (make(), make());
    let (to_ping, to_pong) = (Arc::clone(&ping), Arc::clone(&pong));
    let play = move |mine, other| {
        move |ring: Rc<Ring>| {
            ring.busy_poll(busy_poll);
            play(ring, mine, other, rounds)
        }
    };
    let other = std::thread::spawn(move || run(16, 16, play(pong, to_ping)).0);
    to_pong.notify();
    let (seen, _) = run(16, 16, play(ping, to_pong));
    assert_eq!(seen, rounds);
    assert_eq!(other.join().expect("the other thread"), rounds);
}
