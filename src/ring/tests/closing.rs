//! Letting go while the kernel holds on: nothing may leak, and nothing may hit the wrong socket.

use std::io::{Read, Write};
use std::thread;

use super::super::accept::Acceptor;
use super::*;

/// How many times streams are dropped under load.
const DROPS: usize = 3000;

#[test]
fn dropped_streams_give_everything_back_whatever_was_in_flight() {
    in_a_process_of_its_own("ring::tests::closing::drops_under_load");
}

#[test]
#[ignore = "run in a child process by the test above"]
fn drops_under_load() {
    run(64, 64, |ring| async move {
        let (listener, _) = listener();
        turn(&ring).await;
        let before = descriptors();
        let big = bytes::Bytes::from(noise(1, 512 * 1024));
        for round in 0..DROPS {
            let (stream, mut peer) = connection(&ring, &listener);
            shrink(&stream.as_fd(), libc::SO_SNDBUF, 4096);
            stream.watch();
            peer.write_all(b"something to receive").expect("an empty socket");
            // Two chunks, so that both kinds of send come up: with and without a header.
            stream.write(big.clone());
            if round % 2 == 0 {
                stream.write(big.clone());
            }
            if round % 3 > 0 {
                turn(&ring).await;
                assert!(stream.queued() > 0, "the send is in flight");
            }
            if round % 3 == 2 {
                peer.write_all(b"more").expect("an empty socket"); // completes beside the cancel
            }
            if round % 5 == 0 {
                reset(peer);
            }
        }
        until(&ring, || is_clean(&ring)).await;
        turn(&ring).await;
        until(&ring, || descriptors() == before).await;
    });
}

#[test]
fn dropping_a_connect_cancels_it() {
    in_a_process_of_its_own("ring::tests::closing::drops_of_connects");
}

#[test]
#[ignore = "run in a child process by the test above"]
fn drops_of_connects() {
    run(16, 16, |ring| async move {
        // A listen queue that is full drops what comes, so that connecting takes seconds.
        let full = crate::sys::socket::listen((Ipv4Addr::LOCALHOST, 0).into(), 0).expect("a port");
        let address = crate::sys::socket::local_address(full.as_fd()).expect("a bound socket");
        let _queued = TcpStream::connect(address).expect("one fits");
        turn(&ring).await;
        let before = descriptors();
        for round in 0..300 {
            let mut connect = pin!(Stream::connect(&ring, address));
            assert!(poll_once(connect.as_mut()).await.is_pending());
            if round % 2 == 0 {
                turn(&ring).await;
                assert!(poll_once(connect.as_mut()).await.is_pending(), "the queue is full");
            }
        }
        until(&ring, || is_clean(&ring) && descriptors() == before).await;
    });
}

#[test]
fn a_refused_connect_says_so() {
    let _alone = alone();
    let (error, _) = run(16, 16, |ring| async move {
        let (listener, address) = listener();
        drop(listener);
        Stream::connect(&ring, address).await.map(drop).expect_err("nobody listens")
    });
    assert_eq!(error.raw_os_error(), Some(libc::ECONNREFUSED));
}

/// A shutdown that is carried out later than the close behind it hits the descriptor's next owner:
/// here a connection that is accepted in the same turn.
#[test]
fn a_shutdown_never_reaches_the_next_socket_with_the_same_number() {
    const AT_ONCE: usize = 60;
    let _alone = alone();
    run(64, 64, |ring| async move {
        let (listener, address) = listener();
        for round in 0..30 {
            let olds: Vec<_> = (0..AT_ONCE).map(|_| connection(&ring, &listener)).collect();
            let mut peers: Vec<_> = (0..AT_ONCE)
                .map(|_| TcpStream::connect(address).expect("the queue has room"))
                .collect();
            let acceptor = Acceptor::new(&ring, listener.try_clone().expect("open").into());
            let mut old_peers = Vec::new();
            for (old, peer) in olds {
                old.shutdown_write();
                ring.flush();
                drop(old);
                old_peers.push(peer);
            }
            let mut news = Vec::new();
            for _ in 0..AT_ONCE {
                news.push(acceptor.accept().await.expect("descriptors are left"));
            }
            for mut old_peer in old_peers {
                assert_eq!(old_peer.read(&mut [0]).expect("an orderly end"), 0);
            }
            for (new, peer) in news.iter().zip(&mut peers) {
                let mut five = [0; 5];
                new.write(bytes::Bytes::from_static(b"alive"));
                flushed(new).await.unwrap_or_else(|error| panic!("round {round}: {error}"));
                peer.read_exact(&mut five).unwrap_or_else(|error| panic!("round {round}: {error}"));
                new.reset_on_close();
            }
        }
    });
}

/// Nothing is cancelled: the receive under way ends with the output, although the peer keeps its side open.
#[test]
fn ending_both_ways_lets_go_of_a_peer_that_does_not_close() {
    const BYTES: usize = 300_000;
    let _alone = alone();
    run(64, 64, |ring| async move {
        let (listener, _) = listener();
        turn(&ring).await;
        let mut peers = Vec::new();
        for (round, watches) in (0..40).zip([true, false].into_iter().cycle()) {
            let (stream, peer) = connection(&ring, &listener);
            let mut reader = peer.try_clone().expect("open");
            if watches {
                stream.watch();
                turn(&ring).await;
            }
            let sent = noise(round, BYTES);
            stream.write(bytes::Bytes::from(sent.clone()));
            stream.shutdown_both();
            let reader = thread::spawn(move || {
                let mut all = Vec::new();
                reader.read_to_end(&mut all).expect("an orderly end");
                all
            });
            flushed(&stream).await.expect("the peer reads");
            drop(stream);
            assert!(reader.join().expect("the reader") == sent, "round {round}: the bytes differ");
            peers.push(peer);
        }
        until(&ring, || is_clean(&ring)).await;
        assert_eq!(peers.len(), 40, "none of them has closed");
    });
}

#[test]
fn the_end_of_the_ring_closes_what_is_open() {
    in_a_process_of_its_own("ring::tests::closing::ends_of_rings");
}

#[test]
#[ignore = "run in a child process by the test above"]
fn ends_of_rings() {
    run(16, 16, |ring| async move { turn(&ring).await }); // what is opened once and kept
    let before = descriptors();
    let ((mut peers, _kept), _) = run(64, 64, |ring| async move {
        let (listener, _) = listener();
        let mut peers = Vec::new();
        for _ in 0..20 {
            let (stream, peer) = connection(&ring, &listener);
            stream.watch();
            stream.write(bytes::Bytes::from(vec![0; 8 << 20]));
            turn(&ring).await;
            peers.push(peer);
            // A task that still waits when the ring ends.
            executor::spawn(&ring, async move {
                let _ = stream.recv().await;
            });
        }
        turn(&ring).await;
        (peers, listener)
    });
    for peer in &mut peers {
        // The queued 8 MiB are cut off by the end, but the end comes.
        let mut sink = Vec::new();
        peer.set_read_timeout(Some(std::time::Duration::from_secs(20))).expect("a socket");
        if let Err(error) = peer.read_to_end(&mut sink) {
            assert_eq!(error.raw_os_error(), Some(libc::ECONNRESET));
        }
    }
    drop((peers, _kept));
    // glommio keeps an eventfd of every executor there was.
    assert_eq!(descriptors(), before + 1);
}
