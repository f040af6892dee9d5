//! `ringgate-bench sink`: counts the UDP packets that arrive.

use std::collections::HashMap;
use std::io::{self, Write as _};
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::args::Sink;
use crate::run::Interruption;

/// How long a receive waits before it looks at the time and at signals.
const WAIT: Duration = Duration::from_millis(50);
/// Packets between two looks at them when they come without a pause.
const BATCH: u32 = 1024;
/// Flows told apart; packets of further ones count, but not as flows.
const FLOWS_MAX: usize = 65_536;

#[derive(Default)]
struct Counts {
    packets: u64,
    bytes: u64,
    /// Packets of each source.
    flows: HashMap<SocketAddr, u64>,
    /// When the first and the last came.
    span: Option<(Instant, Instant)>,
}

/// Counts until the time is over or a signal comes; returns the exit code, 0 for a signal too, which
/// is its usual end.
pub(crate) fn run(options: &Sink) -> Result<u8, String> {
    let failed = |error: io::Error| format!("cannot receive on {}: {error}", options.bind);
    let interruption = Interruption::watch()?;
    let socket = UdpSocket::bind(options.bind).map_err(failed)?;
    socket.set_read_timeout(Some(WAIT)).map_err(failed)?;
    let address = socket.local_addr().map_err(failed)?;
    let mut out = io::stdout();
    if !options.json {
        let _ = writeln!(out, "counting packets to {address}");
    }
    let (mut counts, began, mut buffer) = (Counts::default(), Instant::now(), vec![0; 65_536]);
    while interruption.code() == 0
        && options.duration.is_none_or(|duration| began.elapsed() < duration)
    {
        for _ in 0..BATCH {
            match socket.recv_from(&mut buffer) {
                Ok((length, from)) => counts.note(length, from),
                Err(_) => break,
            }
        }
    }
    let _ = out.write_all(counts.text(options.json).as_bytes());
    Ok(0)
}

impl Counts {
    fn note(&mut self, length: usize, from: SocketAddr) {
        self.packets += 1;
        self.bytes += length as u64;
        let now = Instant::now();
        self.span = Some((self.span.map_or(now, |(first, _)| first), now));
        if let Some(count) = self.flows.get_mut(&from) {
            *count += 1;
        } else if self.flows.len() < FLOWS_MAX {
            self.flows.insert(from, 1);
        }
    }

    fn text(&self, as_json: bool) -> String {
        let seconds = self.span.map_or(0.0, |(first, last)| (last - first).as_secs_f64());
        let per_second = if seconds > 0.0 { self.packets as f64 / seconds } else { 0.0 };
        let (packets, bytes, flows) = (self.packets, self.bytes, self.flows.len());
        if as_json {
            let result = json!({ "tool": "ringgate-bench sink", "packets": packets, "bytes": bytes,
                                 "flows": flows, "seconds": seconds, "packets_per_second": per_second });
            return format!("{result:#}\n");
        }
        format!(
            "{packets} packets of {flows} flows, {bytes} bytes in {seconds:.2} s: {per_second:.0}/s\n"
        )
    }
}
