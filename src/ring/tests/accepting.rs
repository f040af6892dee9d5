//! Accepting, and running out of descriptors.

use std::fs::File;
use std::os::fd::RawFd;

use super::super::accept::Acceptor;
use super::*;

#[test]
fn every_connection_is_accepted_once() {
    let _alone = alone();
    run(16, 16, |ring| async move {
        let (listener, address) = listener();
        let acceptor = Acceptor::new(&ring, listener.into());
        let peers = std::thread::spawn(move || {
            (0..100).map(|_| TcpStream::connect(address)).collect::<io::Result<Vec<_>>>()
        });
        let mut accepted = Vec::new();
        while accepted.len() < 100 {
            accepted.push(acceptor.accept().await.expect("descriptors are left"));
        }
        peers.join().expect("the peers").expect("all connected");
        assert!(acceptor.take_accepted().is_none());
        drop((acceptor, accepted));
        until(&ring, || is_clean(&ring)).await;
    });
}

#[test]
fn after_a_stop_connections_wait_until_accepting_goes_on() {
    let _alone = alone();
    run(16, 16, |ring| async move {
        let (listener, address) = listener();
        listener.set_nonblocking(true).expect("a socket");
        let acceptor = Acceptor::new(&ring, listener.into());
        let mut accept = pin!(acceptor.accept());
        assert!(poll_once(accept.as_mut()).await.is_pending());
        turn(&ring).await;
        acceptor.stop();
        let _first = TcpStream::connect(address).expect("the queue has room");
        turn(&ring).await;
        assert!(acceptor.take_accepted().is_none(), "accepting has stopped");
        until(&ring, || acceptor.accept_waiting().expect("no error").is_some()).await;
        let _second = TcpStream::connect(address).expect("the queue has room");
        accept.await.expect("goes on when it is polled");
    });
}

/// Needs a limit of its own on descriptors, so a process of its own.
#[test]
fn without_descriptors_accepting_stops_reports_once_and_recovers() {
    in_a_process_of_its_own("ring::tests::accepting::out_of_descriptors");
}

fn limit_descriptors(to: u64) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid rlimit for the call to fill.
    assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) }, 0);
    limit.rlim_cur = to;
    // SAFETY: the call only reads `limit`.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }, 0);
}

#[test]
#[ignore = "run in a child process by the test above"]
fn out_of_descriptors() {
    run(16, 16, |ring| async move {
        let (listener, address) = listener();
        let acceptor = Acceptor::new(&ring, listener.into());
        let _peers: Vec<_> =
            (0..8).map(|_| TcpStream::connect(address).expect("the queue has room")).collect();
        // Fill the gaps below the highest number, so that the limit leaves room for three.
        let numbers = std::fs::read_dir("/proc/self/fd").expect("procfs");
        let highest = numbers
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<RawFd>().ok())
            .max()
            .expect("some are open");
        let mut fillers = vec![File::open("/dev/null").expect("Linux")];
        while fillers.last().is_some_and(|last| last.as_raw_fd() < highest) {
            fillers.push(File::open("/dev/null").expect("Linux"));
        }
        let used = fillers.iter().map(AsRawFd::as_raw_fd).max().unwrap_or(0).max(highest) + 1;
        limit_descriptors(u64::try_from(used).expect("positive") + 3);
        let mut accepted = Vec::new();
        let error = loop {
            match acceptor.accept().await {
                Ok(stream) => accepted.push(stream),
                Err(error) => break error,
            }
        };
        assert_eq!(error.raw_os_error(), Some(libc::EMFILE));
        assert_eq!(accepted.len(), 3);
        let (enters, completions) = (ring.stats.enters.value(), ring.stats.completions.value());
        let timer = Timer::new(&ring);
        timer.set(50);
        timer.fired().await;
        assert_eq!(ring.stats.completions.value(), completions, "nothing is accepted meanwhile");
        assert!(ring.stats.enters.value() - enters < 10, "the loop sleeps meanwhile");
        // A connection that closes makes room for one.
        drop(accepted.pop());
        timer.set(1);
        timer.fired().await;
        accepted.push(acceptor.accept().await.expect("one descriptor is free"));
        let error = acceptor.accept().await.map(drop).expect_err("and no other");
        assert_eq!(error.raw_os_error(), Some(libc::EMFILE));
        limit_descriptors(1000);
        // Eight came, and one of them is closed.
        while accepted.len() < 7 {
            accepted.push(acceptor.accept().await.expect("descriptors are left again"));
        }
    });
}
