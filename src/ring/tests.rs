//! The reactor on a real ring, with real loopback sockets.
//!
//! Nothing here waits for a time to pass but the tests of timers and of idleness. What has to have
//! happened in the kernel is waited for in [`turn`]s of the ring's loop.

mod accepting;
mod buffers;
mod closing;
mod queues;
mod streams;
mod timing;

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Instant;

use super::{Chunk, Ring, Settings, Stats, Stream, Timer, executor};

/// No test takes longer than this, however busy the machine.
const PATIENCE_MS: u64 = 300_000;

/// The tests look at this process's threads and at the CPU, so only one of them may run at a time.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `main` on a ring of its own with a pool of `buffers` that may grow to `buffers_limit`.
fn run<T: 'static, F: Future<Output = T> + 'static>(
    buffers: u16,
    buffers_limit: u16,
    main: impl FnOnce(Rc<Ring>) -> F,
) -> (T, Arc<Stats>) {
    let settings = Settings { buffers, buffers_limit, epoch: Instant::now() };
    let stats = Arc::new(Stats::default());
    let result = executor::run(settings, Arc::clone(&stats), |ring| {
        let main = main(Rc::clone(&ring));
        async move { within(&ring, main).await }
    });
    (result.expect("the ring works"), stats)
}

/// Fails the test when `future` takes longer than any test should.
async fn within<T>(ring: &Rc<Ring>, future: impl Future<Output = T>) -> T {
    let timer = Timer::new(ring);
    timer.set(PATIENCE_MS);
    timer.guard(pin!(future)).await.expect("done in time")
}

/// One turn of the loop at least: everything queued before is with the kernel, and what it could
/// answer at once has been handed out.
async fn turn(ring: &Rc<Ring>) {
    let zero = Rc::new(std::fs::File::open("/dev/zero").expect("Linux"));
    let (read, _) = ring.read(zero, Vec::with_capacity(1)).await;
    assert_eq!(read.expect("/dev/zero can be read"), 1);
}

/// Turns the loop until `condition` holds.
async fn until(ring: &Rc<Ring>, condition: impl Fn() -> bool) {
    while !condition() {
        turn(ring).await;
    }
}

/// Polls once.
async fn poll_once<F: Future>(mut future: Pin<&mut F>) -> Poll<F::Output> {
    poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await
}

/// The rest of the stream.
async fn read_to_end(stream: &Stream) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    while let Some(chunk) = stream.recv().await? {
        all.extend_from_slice(chunk.as_slice());
    }
    Ok(all)
}

async fn flushed(stream: &Stream) -> io::Result<()> {
    poll_fn(|cx| stream.poll_flushed(cx, 0)).await
}

fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let address = listener.local_addr().expect("a bound socket");
    (listener, address)
}

/// A connection: our end on the ring, the peer's as a blocking socket.
fn connection(ring: &Rc<Ring>, listener: &TcpListener) -> (Stream, TcpStream) {
    let address = listener.local_addr().expect("a bound socket");
    let peer = TcpStream::connect(address).expect("the listener's queue has room");
    let (ours, _) = listener.accept().expect("the peer has connected");
    ours.set_nodelay(true).expect("a socket");
    (Stream::new(ring, OwnedFd::from(ours)), peer)
}

fn shrink(socket: &impl AsRawFd, option: libc::c_int, bytes: libc::c_int) {
    let len = libc::socklen_t::try_from(size_of::<libc::c_int>()).expect("4");
    // SAFETY: the option value is the `len` bytes of `bytes`, which lives across the call.
    let done = unsafe {
        let fd = socket.as_raw_fd();
        libc::setsockopt(fd, libc::SOL_SOCKET, option, (&raw const bytes).cast(), len)
    };
    assert_eq!(done, 0);
}

/// Whether the kernel keeps acknowledgements back for what is sent next (`TCP_QUICKACK` of tcp(7) reads 0).
fn acknowledges_late(socket: &impl AsRawFd) -> bool {
    let mut quick: libc::c_int = -1;
    let mut len = libc::socklen_t::try_from(size_of_val(&quick)).expect("4");
    let (level, option) = (libc::IPPROTO_TCP, libc::TCP_QUICKACK);
    // SAFETY: the call writes at most `len` bytes to `quick`, which is that long.
    let result = unsafe {
        let to = (&raw mut quick).cast();
        libc::getsockopt(socket.as_raw_fd(), level, option, to, &raw mut len)
    };
    assert_eq!(result, 0);
    quick == 0
}

/// Makes the peer's close a reset.
fn reset(peer: TcpStream) {
    crate::sys::socket::reset_on_close(peer.as_fd()).expect("a socket");
    drop(peer);
}

/// Bytes that differ from place to place and from seed to seed.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Runs an ignored test in a process of its own: others of this one open and close descriptors meanwhile.
fn in_a_process_of_its_own(test: &str) {
    let done = std::process::Command::new(std::env::current_exe().expect("procfs"))
        .args(["--exact", test, "--ignored", "--test-threads=1"])
        .output()
        .expect("the test binary runs");
    let text = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success() && text.contains("1 passed"), "{text}");
}

/// Open descriptors of this process, which has to run this test only.
fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("procfs").count()
}

/// Nothing is left in any table, and every buffer is back.
fn is_clean(ring: &Ring) -> bool {
    ring.streams.borrow().is_empty()
        && ring.acceptors.borrow().is_empty()
        && ring.pool.available() == ring.pool.capacity()
}

/// A number that tasks count up together.
fn tally() -> (Rc<Cell<usize>>, Rc<Cell<usize>>) {
    let count = Rc::new(Cell::new(0));
    (Rc::clone(&count), count)
}
