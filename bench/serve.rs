//! `ringgate-bench serve`: the same response to every request, prebuilt.

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use bytes::Bytes;
use ringgate::ring::accept::Acceptor;
use ringgate::ring::executor::{self, spawn};
use ringgate::ring::{Ring, Settings, Stream, Timer, buffers, probe};
use ringgate::sys::{cpu, limits, socket};

use crate::args::{Placement, Serve};
use crate::request_heads::{Found, RequestHeads};

/// Connections that may wait to be accepted; the kernel caps it at net.core.somaxconn.
const BACKLOG: u32 = 65_535;
/// Small responses are laid out back to back in a block of about this many bytes, so that the
/// answers to a pipelined burst are one slice of it.
const BLOCK_BYTES: usize = 64 * 1024;
/// Responses in that block at most.
const BLOCK_RESPONSES: usize = 64;
/// Queued bytes at which requests are not read until some are sent.
const QUEUED_MAX: usize = 256 * 1024;
/// Receive buffers of a thread at the start.
const BUFFERS: u16 = 128;
/// How long accepting rests after descriptors ran out.
const REST_MS: u64 = 100;

/// Serves until the process is killed.
pub(crate) fn run(options: &Serve) -> Result<(), String> {
    let answer = Arc::new(Answer::new(usize::try_from(options.body).unwrap_or(usize::MAX)));
    let what = format!("serving {} bytes", options.body);
    serve_each(&options.bind, &options.placement, BUFFERS, &what, move |ring, stream| {
        spawn(ring, connection(stream, Arc::clone(&answer)));
    })
}

/// Listens on every address on every thread and hands connections out, until the process is
/// killed. The addresses are printed after `what`.
pub(crate) fn serve_each(
    binds: &[SocketAddr],
    placement: &Placement,
    buffers: u16,
    what: &str,
    serve: impl Fn(&Rc<Ring>, Stream) + Clone + Send + 'static,
) -> Result<(), String> {
    probe::check().map_err(|unusable| unusable.to_string())?;
    // As the proxy does: else accepting stands still whenever the process has twice as many connections as ever before.
    let _ = limits::raise_open_files().and_then(|limit| limits::reserve_descriptors(limit.soft));
    let _ = limits::raise_locked_memory();
    let cpus = placement.cpus();
    let (mut shares, mut urls): (Vec<Vec<OwnedFd>>, Vec<String>) = Default::default();
    shares.resize_with(cpus.len(), Vec::new);
    for &bind in binds {
        let (address, listeners) = listen(bind, cpus.len())
            .map_err(|error| format!("cannot listen on {bind}: {error}"))?;
        urls.push(format!("http://{address}/"));
        shares.iter_mut().zip(listeners).for_each(|(share, listener)| share.push(listener));
    }
    let mut threads = Vec::new();
    for (index, (cpu, listeners)) in cpus.into_iter().zip(shares).enumerate() {
        let serve = serve.clone();
        let thread = thread::Builder::new()
            .name(format!("serve-{index}"))
            .spawn(move || serve_on(cpu, listeners, buffers, serve))
            .map_err(|error| format!("cannot start a thread: {error}"))?;
        threads.push(thread);
    }
    let (urls, count) = (urls.join(" "), threads.len());
    let _ = writeln!(io::stdout(), "{what} on {urls} with {count} threads");
    for thread in threads {
        thread.join().map_err(|_| "a thread panicked".to_owned())??;
    }
    Ok(())
}

/// A socket for each thread on one address; the first settles what port 0 means.
fn listen(bind: SocketAddr, count: usize) -> io::Result<(SocketAddr, Vec<OwnedFd>)> {
    if bind.port() != 0 {
        socket::probe_bind(bind)?;
    }
    let mut listeners = vec![socket::listen(bind, BACKLOG)?];
    let address = socket::local_address(listeners[0].as_fd())?;
    while listeners.len() < count {
        listeners.push(socket::listen(address, BACKLOG)?);
    }
    Ok((address, listeners))
}

fn serve_on(
    cpu: Option<usize>,
    listeners: Vec<OwnedFd>,
    buffers: u16,
    serve: impl Fn(&Rc<Ring>, Stream) + Clone + 'static,
) -> Result<(), String> {
    if let Some(cpu) = cpu.filter(|&cpu| !cpu::pin(cpu)) {
        return Err(format!("cannot pin a thread to CPU {cpu}"));
    }
    let settings =
        Settings { buffers, buffers_limit: buffers::BUFFERS_MAX / 4, epoch: Instant::now() };
    let accept_all = |ring: Rc<Ring>| async move {
        for listener in listeners {
            spawn(&ring, accept(Rc::clone(&ring), listener, serve.clone()));
        }
        std::future::pending().await
    };
    executor::run(settings, Arc::default(), accept_all)
        .map_err(|error| probe::explain(&error, 0).to_string())
}

async fn accept(ring: Rc<Ring>, listener: OwnedFd, serve: impl Fn(&Rc<Ring>, Stream)) {
    let acceptor = Acceptor::new(&ring, listener);
    let rest = Timer::new(&ring);
    loop {
        match acceptor.accept().await {
            Ok(stream) => serve(&ring, stream),
            Err(_) => {
                rest.set(REST_MS);
                rest.fired().await;
            }
        }
    }
}

/// Answers until the client has gone, asks to close, or sends what cannot be followed.
async fn connection(stream: Stream, answer: Arc<Answer>) {
    let mut heads = RequestHeads::default();
    while let Ok(Some(chunk)) = stream.recv().await {
        let more = respond(&stream, &mut heads, chunk.as_slice(), &answer);
        drop(chunk);
        let low = if more { QUEUED_MAX } else { 0 };
        if !flushed(&stream, low).await || !more {
            break;
        }
    }
    let _ = flushed(&stream, 0).await;
}

/// Queues the answers to what is in `input`; false when nothing more is to be read.
fn respond(stream: &Stream, heads: &mut RequestHeads, mut input: &[u8], answer: &Answer) -> bool {
    let mut pending = 0;
    loop {
        let found = heads.next(&mut input);
        if let Ok(Found::Request { head_only: false, close: false }) = found {
            pending += 1;
            continue;
        }
        answer.write(stream, pending);
        pending = 0;
        match found {
            Ok(Found::More) => return true,
            Ok(Found::Request { head_only, close }) => {
                match (head_only, close) {
                    (true, _) => stream.write(answer.head.clone()),
                    (false, true) => {
                        stream.write(answer.last_head.clone());
                        stream.write(answer.body.clone());
                    }
                    (false, false) => {}
                }
                if close {
                    return false;
                }
            }
            Err(_) => {
                stream.write(Bytes::from_static(REFUSAL));
                return false;
            }
        }
    }
}

const REFUSAL: &[u8] =
    b"HTTP/1.1 411 Length Required\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

/// Waits until at most `low` bytes are queued; false when the connection is broken.
pub(crate) async fn flushed(stream: &Stream, low: usize) -> bool {
    std::future::poll_fn(|cx| stream.poll_flushed(cx, low)).await.is_ok()
}

/// The response, in the forms it is sent in.
struct Answer {
    /// As often as fits into a block, back to back.
    block: Bytes,
    /// Bytes of one.
    len: usize,
    /// Without the body.
    head: Bytes,
    /// Without the body, for the last one of a connection.
    last_head: Bytes,
    /// The body alone.
    body: Bytes,
}

impl Answer {
    fn new(body: usize) -> Self {
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: {body}\r\n\r\n"
        );
        let one = [head.as_bytes(), &vec![b'x'; body]].concat();
        let times = (BLOCK_BYTES / one.len()).clamp(1, BLOCK_RESPONSES);
        let close = head.replacen("\r\n\r\n", "\r\nConnection: close\r\n\r\n", 1);
        let block = Bytes::from(one.repeat(times));
        Self {
            len: one.len(),
            body: block.slice(head.len()..one.len()),
            block,
            head: head.into(),
            last_head: close.into(),
        }
    }

    /// Queues it `times` times.
    fn write(&self, stream: &Stream, mut times: usize) {
        while times > 0 {
            let some = times.min(self.block.len() / self.len);
            stream.write(self.block.slice(..some * self.len));
            times -= some;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_whole_responses() {
        for body in [0, 1, 128, 16 * 1024, BLOCK_BYTES, 1024 * 1024] {
            let answer = Answer::new(body);
            assert_eq!(answer.block.len() % answer.len, 0);
            assert!(answer.block.len() >= answer.len);
            assert!(answer.block.starts_with(b"HTTP/1.1 200 OK\r\n"));
            assert_eq!(answer.len - answer.head.len(), body);
            assert_eq!(answer.body, vec![b'x'; body]);
            assert!(answer.last_head.ends_with(b"\r\nConnection: close\r\n\r\n"));
        }
    }
}
