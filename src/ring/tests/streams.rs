//! What a connection carries, and how it ends.

use std::io::{Read, Write};
use std::thread;

use super::super::WriteBuf;
use super::super::event::Event;
use super::*;

#[test]
fn a_large_vectored_write_reaches_a_slow_reader_intact() {
    let _alone = alone();
    run(64, 64, |ring| async move {
        let (listener, _) = listener();
        let (stream, mut peer) = connection(&ring, &listener);
        shrink(&stream.as_fd(), libc::SO_SNDBUF, 32 * 1024); // so that sends are partial
        let mut expected = Vec::new();
        for i in 0..120u64 {
            let piece = noise(i, 1 + usize::try_from(i * i * 7).expect("small"));
            expected.extend_from_slice(&piece);
            if i % 3 == 0 {
                let mut buffer = WriteBuf::new(&ring);
                buffer.bytes.extend_from_slice(&piece);
                stream.write(buffer);
            } else {
                stream.write(bytes::Bytes::from(piece));
            }
            if i % 10 == 0 {
                turn(&ring).await; // some pieces come while a send is under way
            }
        }
        stream.shutdown_write();
        let reader = thread::spawn(move || {
            let (mut all, mut piece) = (Vec::new(), [0; 1500]);
            loop {
                match peer.read(&mut piece).expect("no reset") {
                    0 => return all,
                    n => all.extend_from_slice(&piece[..n]),
                }
            }
        });
        flushed(&stream).await.expect("the reader reads");
        assert_eq!(stream.sent(), expected.len() as u64);
        assert!(reader.join().expect("the reader") == expected, "the bytes differ");
    });
}

/// A sender that has filled the window is not to wait 40 ms for an acknowledgement that waits for an answer.
#[test]
fn a_long_message_is_no_conversation() {
    let _alone = alone();
    run(16, 16, |ring| async move {
        let (listener, _) = listener();
        let (stream, mut peer) = connection(&ring, &listener);
        peer.set_nodelay(true).expect("a socket"); // else it waits for an acknowledgement, which tells the kernel too
        for _ in 0..2 {
            let mut short = 0;
            // Unless this thread had to wait for the CPU, three are enough.
            while short < 3 || !acknowledges_late(&stream.as_fd()) {
                peer.write_all(&[b'?'; 9000]).expect("an empty socket");
                receive(&stream, 9000).await;
                stream.write(bytes::Bytes::from_static(b"!"));
                flushed(&stream).await.expect("an empty socket");
                peer.read_exact(&mut [0]).expect("the answer");
                short += 1;
            }
            for _ in 0..20 {
                peer.write_all(&[b'.'; 9000]).expect("the receiver reads");
                receive(&stream, 9000).await;
            }
            assert!(!acknowledges_late(&stream.as_fd()), "a long one");
        }
    });
}

async fn receive(stream: &Stream, mut bytes: usize) {
    while bytes > 0 {
        let chunk = stream.recv().await.expect("no reset").expect("no end");
        bytes = bytes.checked_sub(chunk.len()).expect("no more than was sent");
    }
}

#[test]
fn after_the_half_close_the_other_direction_goes_on() {
    let _alone = alone();
    run(16, 16, |ring| async move {
        let (listener, _) = listener();
        let (stream, mut peer) = connection(&ring, &listener);
        stream.write(bytes::Bytes::from_static(b"question"));
        stream.shutdown_write();
        let peer = thread::spawn(move || {
            let mut question = String::new();
            peer.read_to_string(&mut question).expect("an orderly end");
            peer.write_all(b"answer").expect("still open in this direction");
            question
        });
        assert_eq!(read_to_end(&stream).await.expect("an orderly end"), b"answer");
        assert_eq!(peer.join().expect("the peer"), "question");
        assert!(stream.recv().await.expect("an end stays an end").is_none());
    });
}

#[test]
fn half_closing_starts_no_kernel_worker() {
    let _alone = alone();
    run(16, 16, |ring| async move {
        let (listener, _) = listener();
        let (stream, mut peer) = connection(&ring, &listener);
        stream.shutdown_write();
        turn(&ring).await;
        assert_eq!(peer.read(&mut [0]).expect("an orderly end"), 0);
        let tasks = std::fs::read_dir("/proc/self/task").expect("procfs");
        let workers = tasks
            .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok())
            .filter(|name| name.starts_with("iou-wrk"))
            .count();
        assert_eq!(workers, 0);
    });
}

#[test]
fn a_reset_is_an_error_for_both_directions() {
    let _alone = alone();
    run(16, 16, |ring| async move {
        let (listener, _) = listener();
        let (stream, peer) = connection(&ring, &listener);
        reset(peer);
        let error = stream.recv().await.map(drop).expect_err("a reset is no end");
        assert_eq!(error.raw_os_error(), Some(libc::ECONNRESET));
        stream.write(bytes::Bytes::from_static(b"too late"));
        assert!(flushed(&stream).await.is_err());
        assert!(!stream.is_quiet());
    });
}

/// The kernel tells an error once. When it tells the send, the receive sees an end.
#[test]
fn a_reset_that_the_send_is_told_of_is_no_end_for_the_receiver() {
    let _alone = alone();
    run(16, 16, |ring| async move {
        let (listener, _) = listener();
        let (stream, mut peer) = connection(&ring, &listener);
        stream.watch();
        peer.write_all(b"half of an answer").expect("an empty socket");
        turn(&ring).await;
        reset(peer);
        stream.write(bytes::Bytes::from_static(b"more of the question"));
        let first = stream.recv().await.expect("came before the reset").expect("likewise");
        assert_eq!(first.as_slice(), b"half of an answer");
        let second = stream.recv().await.map(|chunk| chunk.is_none());
        assert!(second.is_err(), "a reset connection seems to have ended in order: {second:?}");
    });
}

#[test]
fn an_answer_is_received_although_sending_failed() {
    let _alone = alone();
    run(16, 16, |ring| async move {
        let (listener, _) = listener();
        for _ in 0..200 {
            let (stream, mut peer) = connection(&ring, &listener);
            stream.watch();
            peer.write_all(b"early answer").expect("an empty socket");
            reset(peer);
            stream.write(bytes::Bytes::from_static(b"body that nobody wants"));
            let answer = stream.recv().await.expect("came before the reset").expect("likewise");
            assert_eq!(answer.as_slice(), b"early answer");
        }
    });
}

/// The loop expects about as many completions as the last time, and goes on when fewer come: down to one.
#[test]
fn a_loop_that_waits_for_several_goes_on_with_fewer() {
    const CONNECTIONS: usize = 64;
    let _alone = alone();
    run(256, 256, |ring| async move {
        ring.gather_completions();
        let (listener, _) = listener();
        let (count, ended) = tally();
        let signal = Rc::new(Event::default());
        let mut peers = Vec::new();
        for _ in 0..CONNECTIONS {
            let (stream, peer) = connection(&ring, &listener);
            peers.push(peer);
            let (ended, signal) = (Rc::clone(&ended), Rc::clone(&signal));
            executor::spawn(&ring, async move {
                while let Ok(Some(chunk)) = stream.recv().await {
                    stream.write(chunk);
                }
                ended.set(ended.get() + 1);
                signal.set();
            });
        }
        let client = thread::spawn(move || {
            for round in 0..300usize {
                // All of them, then a few, then one: bursts, and what follows on them.
                let count = [CONNECTIONS, CONNECTIONS, 5, 1][round % 4];
                let byte = u8::try_from(round % 251).expect("a byte");
                let mut got = [0];
                for peer in &mut peers[..count] {
                    peer.write_all(&[byte]).expect("an echo server");
                }
                for peer in &mut peers[..count] {
                    peer.read_exact(&mut got).expect("the echo");
                    assert_eq!(got, [byte]);
                }
            }
        });
        while count.get() < CONNECTIONS {
            signal.take().await; // asleep meanwhile, as a shard is
        }
        client.join().expect("every byte came back");
    });
}
