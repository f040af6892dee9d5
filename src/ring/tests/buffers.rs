//! The receive pool: exhaustion, growth, back-pressure.

use std::io::{ErrorKind, Read, Write};
use std::rc::Rc;

use super::*;

#[test]
fn with_fewer_buffers_than_streams_all_data_arrives() {
    const STREAMS: u64 = 64;
    const LEN: usize = 200_000;
    let _alone = alone();
    let (received, stats) = run(16, 16, |ring| async move {
        let (listener, _) = listener();
        let (count, done) = tally();
        for seed in 0..STREAMS {
            let (stream, mut peer) = connection(&ring, &listener);
            let data = noise(seed, LEN);
            // Enough waits before anybody receives that 16 buffers cannot take it.
            peer.write_all(&data[..32 * 1024]).expect("the socket's buffers take this much");
            stream.watch();
            std::thread::spawn(move || peer.write_all(&data[32 * 1024..]));
            let count = Rc::clone(&count);
            executor::spawn(&ring, async move {
                let all = read_to_end(&stream).await.expect("an orderly end");
                assert_eq!(all, noise(seed, LEN), "stream {seed}");
                count.set(count.get() + 1);
            });
        }
        until(&ring, || done.get() == 64).await;
        until(&ring, || is_clean(&ring)).await;
        done.get()
    });
    assert_eq!(received, 64);
    assert!(stats.buffers_exhausted.value() > 0);
    assert_eq!(stats.buffers_allocated.value(), 16);
}

#[test]
fn the_pool_grows_when_chunks_are_held() {
    const STREAMS: usize = 150;
    let _alone = alone();
    let (held, stats) = run(16, 200, |ring| async move {
        let (listener, _) = listener();
        let mut streams = Vec::new();
        for _ in 0..STREAMS {
            let (stream, mut peer) = connection(&ring, &listener);
            peer.write_all(b"hold this").expect("an empty socket");
            stream.watch();
            streams.push((stream, peer));
        }
        let mut held: Vec<Chunk> = Vec::new();
        for (stream, _) in &streams {
            held.push(stream.recv().await.expect("no error").expect("no end"));
        }
        assert_eq!(usize::from(ring.pool.capacity() - ring.pool.available()), STREAMS);
        held.iter().filter(|chunk| chunk.as_slice() == b"hold this").count()
    });
    assert_eq!(held, STREAMS);
    assert_eq!(stats.buffers_allocated.value(), 200);
}

#[test]
fn a_stream_that_starved_and_closed_does_not_disturb_the_next_one_in_its_place() {
    let _alone = alone();
    run(16, 16, |ring| async move {
        let (listener, _) = listener();
        let mut hoarders = Vec::new();
        for _ in 0..16 {
            let (stream, mut peer) = connection(&ring, &listener);
            peer.write_all(b"x").expect("an empty socket");
            let chunk = stream.recv().await.expect("no error").expect("no end");
            hoarders.push((stream, peer, chunk));
        }
        for _ in 0..500 {
            let (stream, mut peer) = connection(&ring, &listener);
            stream.watch();
            peer.write_all(b"starve").expect("an empty socket");
            until(&ring, || stream.state().0).await;
        }
        assert_eq!(ring.starved.borrow().len(), 0, "closed streams are off the list");
        let (stream, mut peer) = connection(&ring, &listener);
        stream.watch();
        peer.write_all(b"late").expect("an empty socket");
        until(&ring, || stream.state().0).await;
        hoarders.clear();
        let chunk = stream.recv().await.expect("no error").expect("no end");
        assert_eq!(chunk.as_slice(), b"late");
    });
}

#[test]
fn a_sender_nobody_reads_from_is_paused_and_loses_nothing() {
    const LEN: usize = 32 << 20;
    let _alone = alone();
    run(256, 256, |ring| async move {
        let (listener, _) = listener();
        let (stream, mut peer) = connection(&ring, &listener);
        let data = noise(7, LEN);
        peer.set_nonblocking(true).expect("a socket");
        stream.watch();
        let mut sent = 0;
        // The sender goes on until it has been refused in many turns in a row.
        let mut refusals = 0;
        while refusals < 100 {
            match peer.write(&data[sent..]) {
                Ok(n) => (sent, refusals) = (sent + n, 0),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::WouldBlock);
                    refusals += 1;
                    turn(&ring).await;
                }
            }
        }
        assert!(sent < LEN, "the sender is held back");
        let held = stream.state().1;
        let taken = ring.pool.capacity() - ring.pool.available();
        assert_eq!(held, usize::from(taken));
        assert!(held < 128, "{held} buffers for a stream that nobody reads");
        peer.set_nonblocking(false).expect("a socket");
        let writer = std::thread::spawn(move || {
            peer.write_all(&data[sent..]).expect("the reader reads again");
            data
        });
        let received = read_to_end(&stream).await.expect("an orderly end");
        assert_eq!(received.len(), LEN);
        assert!(received == writer.join().expect("the writer"), "the bytes differ");
        assert_eq!(ring.pool.available(), ring.pool.capacity());
    });
}

#[test]
fn small_pieces_for_a_slow_reader_do_not_hold_the_pool() {
    let _alone = alone();
    run(64, 64, |ring| async move {
        let (listener, _) = listener();
        let (from, mut source) = connection(&ring, &listener);
        let (to, mut sink) = connection(&ring, &listener);
        shrink(&to.as_fd(), libc::SO_SNDBUF, 65536);
        to.write(bytes::Bytes::from(vec![b'-'; 4 << 20])); // the sink does not read: this blocks
        turn(&ring).await;
        for i in 0..400u32 {
            source.write_all(&i.to_be_bytes()).expect("read at once");
            to.write(from.recv().await.expect("no error").expect("no end"));
        }
        let taken = ring.pool.capacity() - ring.pool.available();
        assert!(taken <= 2, "400 pieces of 4 bytes hold {taken} buffers of 16 KiB");
        let chunks = to.state().2;
        assert!(chunks <= 4, "400 pieces of 4 bytes are {chunks} chunks");
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            sink.read_to_end(&mut all).map(|_| all)
        });
        flushed(&to).await.expect("the sink reads");
        to.shutdown_write();
        turn(&ring).await;
        let all = reader.join().expect("the reader").expect("an orderly end");
        let numbers: Vec<u32> = all[4 << 20..]
            .chunks(4)
            .map(|four| u32::from_be_bytes(four.try_into().expect("whole numbers")))
            .collect();
        assert_eq!(numbers, (0..400).collect::<Vec<_>>());
    });
}

#[test]
fn who_receives_singly_holds_one_buffer() {
    let _alone = alone();
    run(64, 64, |ring| async move {
        let (listener, _) = listener();
        let (stream, mut peer) = connection(&ring, &listener);
        stream.watch();
        turn(&ring).await;
        stream.receive_singly();
        turn(&ring).await;
        let data = noise(3, 200_000);
        let sent = data.clone();
        let peer = std::thread::spawn(move || peer.write_all(&sent).map(|()| peer));
        let mut received = Vec::new();
        while received.len() < data.len() {
            until(&ring, || stream.state().1 > 0).await;
            for _ in 0..20 {
                turn(&ring).await;
                assert_eq!(stream.state().1, 1, "nobody has asked for more");
            }
            let chunk = stream.recv().await.expect("no error").expect("no end");
            received.extend_from_slice(chunk.as_slice());
            stream.watch();
        }
        assert!(received == data, "the bytes differ");
        drop(peer.join().expect("the writer").expect("all is read"));
    });
}

#[test]
fn a_reader_that_takes_nothing_may_hold_less() {
    let _alone = alone();
    run(64, 64, |ring| async move {
        let (listener, _) = listener();
        let (stream, mut sink) = connection(&ring, &listener);
        shrink(&stream.as_fd(), libc::SO_SNDBUF, 65536);
        let untried = stream.hold();
        assert!(!stream.is_slow());
        stream.write(bytes::Bytes::from(vec![b'-'; 16 << 20]));
        until(&ring, || stream.sent() > 0 && stream.is_slow()).await;
        assert!(stream.hold() < untried, "{} of {untried}", stream.hold());
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            sink.read_to_end(&mut all).map(|_| all.len())
        });
        flushed(&stream).await.expect("the sink reads");
        stream.shutdown_write();
        turn(&ring).await;
        assert_eq!(reader.join().expect("the reader").expect("an orderly end"), 16 << 20);
    });
}
