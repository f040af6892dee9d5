//! What a run and its agents say to each other: JSON messages behind their length, over TCP.
//!
//! A message is 4 bytes of length, most significant first, and that many bytes of JSON. A report is
//! followed by as many bytes of histogram (HdrHistogram V2) as it says. Sizes are bounded, and every
//! read and write has a deadline. There is neither authentication nor encryption.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::machine::Machine;
use crate::plan::Plan;
use crate::tally::{Counts, HISTOGRAM_BYTES_MAX, Tally};

/// Has to agree on both sides.
const PROTOCOL: u32 = 2;
/// Bytes of the largest message.
const MESSAGE_MAX: usize = 4 * 1024 * 1024;

/// From the host that drives the run.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Order {
    /// Make everything ready for this run.
    Prepare { protocol: u32, plan: Box<Plan> },
    /// Begin.
    Start,
}

/// From an agent.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Answer {
    /// Waits for the start.
    Ready { machine: Machine },
    /// Figures since the last report; that many bytes of histogram follow.
    Report { counts: Counts, seconds: Vec<u64>, histogram_bytes: usize, last: bool },
    /// It cannot, or not any more.
    Failed { why: String },
}

impl Order {
    pub(crate) fn prepare(plan: Plan) -> Self {
        Self::Prepare { protocol: PROTOCOL, plan: Box::new(plan) }
    }

    /// The plan, if this is the order to prepare it.
    pub(crate) fn into_plan(self) -> Result<Plan, String> {
        match self {
            Self::Prepare { protocol: PROTOCOL, plan } => Ok(*plan),
            Self::Prepare { protocol, .. } => Err(format!(
                "this agent speaks version {PROTOCOL}, not {protocol}: use one version"
            )),
            Self::Start => Err("start before prepare".to_owned()),
        }
    }
}

/// One end of the conversation.
pub(crate) struct Line(TcpStream);

impl Line {
    pub(crate) fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        Ok(Self(stream))
    }

    pub(crate) fn send(&mut self, message: &impl Serialize, time: Duration) -> Result<(), String> {
        let json = serde_json::to_vec(message).map_err(|error| error.to_string())?;
        self.write(&framed(&json)?, time)
    }

    pub(crate) fn send_report(
        &mut self,
        tally: &Tally,
        last: bool,
        time: Duration,
    ) -> Result<(), String> {
        let histogram = tally.histogram_bytes()?;
        let histogram_bytes = histogram.len();
        let (counts, seconds) = (tally.counts, tally.seconds.clone());
        self.send(&Answer::Report { counts, seconds, histogram_bytes, last }, time)?;
        self.write(&histogram, time)
    }

    pub(crate) fn receive<T: DeserializeOwned>(&mut self, time: Duration) -> Result<T, String> {
        let mut from = Bounded { stream: &self.0, until: Instant::now() + time };
        receive(&mut from)
    }

    /// What follows a report.
    pub(crate) fn receive_histogram(
        &mut self,
        bytes: usize,
        time: Duration,
    ) -> Result<Vec<u8>, String> {
        let mut from = Bounded { stream: &self.0, until: Instant::now() + time };
        exactly(&mut from, bytes, HISTOGRAM_BYTES_MAX)
    }

    fn write(&mut self, mut bytes: &[u8], time: Duration) -> Result<(), String> {
        let until = Instant::now() + time;
        while !bytes.is_empty() {
            let left =
                until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            self.0.set_write_timeout(Some(left)).map_err(explain)?;
            let written = (&self.0).write(bytes).map_err(explain)?;
            bytes = bytes.get(written..).unwrap_or_default();
            if written == 0 || (Instant::now() >= until && !bytes.is_empty()) {
                return Err("no progress in time".to_owned());
            }
        }
        Ok(())
    }
}

/// A socket to read from until a point in time.
struct Bounded<'a> {
    stream: &'a TcpStream,
    until: Instant,
}

impl Read for Bounded<'_> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(left))?;
        self.stream.read(to)
    }
}

fn framed(json: &[u8]) -> Result<Vec<u8>, String> {
    if json.len() > MESSAGE_MAX {
        return Err(format!("a message of {} bytes, above {MESSAGE_MAX}", json.len()));
    }
    let len = u32::try_from(json.len()).map_err(|error| error.to_string())?;
    Ok([&len.to_be_bytes(), json].concat())
}

fn receive<T: DeserializeOwned>(from: &mut impl Read) -> Result<T, String> {
    let mut len = [0; 4];
    from.read_exact(&mut len).map_err(explain)?;
    let len = usize::try_from(u32::from_be_bytes(len)).unwrap_or(usize::MAX);
    let json = exactly(from, len, MESSAGE_MAX)?;
    serde_json::from_slice(&json).map_err(|error| format!("not understood: {error}"))
}

fn exactly(from: &mut impl Read, len: usize, most: usize) -> Result<Vec<u8>, String> {
    if len > most {
        return Err(format!("{len} bytes announced, above {most}"));
    }
    let mut bytes = vec![0; len];
    from.read_exact(&mut bytes).map_err(explain)?;
    Ok(bytes)
}

fn explain(error: io::Error) -> String {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "nothing came in time".to_owned(),
        io::ErrorKind::UnexpectedEof => "the connection ended".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::plan;

    #[test]
    fn messages_survive() {
        let sent = framed(&serde_json::to_vec(&Order::prepare(plan())).unwrap()).unwrap();
        let order: Order = receive(&mut &sent[..]).unwrap();
        assert_eq!(order.into_plan(), Ok(plan()));
        let later = Order::Prepare { protocol: PROTOCOL + 1, plan: Box::new(plan()) };
        assert!(later.into_plan().unwrap_err().contains("version"));
        assert!(Order::Start.into_plan().is_err());
    }

    #[test]
    fn what_is_too_long_or_no_message_is_refused() {
        let refused = |bytes: &[u8]| receive::<Order>(&mut &bytes[..]).unwrap_err();
        assert!(refused(&[0xff; 8]).contains("above"));
        assert!(refused(&[0, 0, 0, 9, b'{']).contains("ended"));
        assert!(refused(&[0, 0, 0, 2, b'{', b'}']).contains("not understood"));
        assert!(framed(&vec![b' '; MESSAGE_MAX + 1]).is_err());
    }

    #[test]
    fn a_silent_peer_runs_into_the_deadline() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut line = Line::new(peer).unwrap();
        let answer = line.receive::<Answer>(Duration::from_millis(20));
        assert_eq!(answer.unwrap_err(), "nothing came in time");
    }
}
