//! `ringgate-bench relay`: bytes to and fro between clients and one server, and nothing else.
//!
//! The floor of the benchmark: what a request costs when nobody reads it, on the reactor and with
//! the buffers that the proxy has. It keeps a server connection per client connection, where the
//! proxy has a pool of them.

use std::net::SocketAddr;
use std::rc::Rc;

use ringgate::ring::executor::spawn;
use ringgate::ring::{Ring, Stream};

use crate::args::Relay;
use crate::serve::{flushed, serve_each};

/// Queued bytes at which the other side is not read until some are sent; the proxy's own bound.
const QUEUED_MAX: usize = 128 * 1024;
/// Receive buffers of a thread at the start, as in the proxy's default.
const BUFFERS: u16 = 512;
/// A chunk shorter than this ends a burst.
const BUFFER_BYTES: usize = 16 * 1024;

/// Relays until the process is killed.
pub(crate) fn run(options: &Relay) -> Result<(), String> {
    let to = options.to;
    serve_each(&[options.bind], &options.placement, BUFFERS, "relaying", move |ring, client| {
        ring.gather_completions(); // as the proxy's shards do
        spawn(ring, connection(Rc::clone(ring), client, to));
    })
}

async fn connection(ring: Rc<Ring>, client: Stream, to: SocketAddr) {
    let Ok(server) = Stream::connect(&ring, to).await else {
        return client.reset_on_close();
    };
    let (client, server) = (Rc::new(client), Rc::new(server));
    spawn(&ring, pump(Rc::clone(&server), Rc::clone(&client)));
    pump(client, server).await;
}

/// Copies until `from` ends, which ends `to` as well; both close when both directions have ended.
async fn pump(from: Rc<Stream>, to: Rc<Stream>) {
    while let Ok(Some(chunk)) = from.recv().await {
        if chunk.len() < BUFFER_BYTES {
            from.end_bulk();
        }
        to.write(chunk);
        if to.queued() > QUEUED_MAX && !flushed(&to, QUEUED_MAX).await {
            break;
        }
    }
    // Once both directions have ended the streams are dropped, and with them what is still queued.
    let _ = flushed(&to, 0).await;
    to.shutdown_write();
}
