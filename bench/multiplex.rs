//! Requests that share an HTTP/2 connection, with the product's protocol layer.

use std::collections::VecDeque;

use ringgate::l7::transport::Transport;
use ringgate::protocol::http2::{Code, Connection, Event, Limits, Role};
use ringgate::ring::WriteBuf;

use crate::client::Pending;
use crate::response::Malformed;
use crate::target::Wire;

/// Window of a stream, as of a client that means to receive.
const STREAM_WINDOW: u32 = 1 << 20;
/// Window of the connection.
const CONNECTION_WINDOW: u32 = 16 << 20;
/// Request bodies are not framed while this much waits to be sent.
const QUEUED_MAX: usize = 256 * 1024;
/// A buffer of frames is handed on at this size.
const FRAMES_MAX: usize = 16 * 1024;

/// What has become of requests since the last look.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Answered, with these statuses.
    pub(crate) answered: Vec<(Pending, u16)>,
    /// Not acted on, as the server says.
    pub(crate) refused: Vec<Pending>,
    /// Reset by the server.
    pub(crate) reset: usize,
    /// Answered by what is no response.
    pub(crate) malformed: usize,
}

#[derive(Debug)]
struct Flight {
    pending: Pending,
    status: u16,
}

/// A request body that is not sent as a whole.
#[derive(Debug)]
struct Upload {
    id: u32,
    wire: usize,
    sent: usize,
}

/// The client's end of a connection.
#[derive(Debug)]
pub(crate) struct Multiplexed {
    connection: Connection,
    /// By stream, in the order they were opened; `None` when it is over.
    flights: VecDeque<Option<Flight>>,
    /// The stream of the first of them.
    first: u32,
    in_flight: usize,
    uploads: VecDeque<Upload>,
}

impl Multiplexed {
    pub(crate) fn new(tls: bool) -> Self {
        // The server is measured, not judged: whatever it sends a lot of is taken.
        let limits = Limits {
            stream_window: STREAM_WINDOW,
            connection_window: CONNECTION_WINDOW,
            errors: u32::MAX,
            pings: u32::MAX,
            settings: u32::MAX,
            empty: u32::MAX,
            small_updates: u32::MAX,
            glitches: u32::MAX,
            ..Limits::default()
        };
        let mut connection = Connection::new(Role::Client, limits);
        connection.scheme = if tls { b"https" } else { b"http" };
        Self {
            connection,
            flights: VecDeque::new(),
            first: 1,
            in_flight: 0,
            uploads: VecDeque::new(),
        }
    }

    /// Requests that are not answered.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Whether the server takes another one now.
    pub(crate) fn may_open(&self) -> bool {
        self.connection.may_open()
    }

    /// Whether it never will.
    pub(crate) fn is_spent(&self) -> bool {
        !self.connection.is_usable()
    }

    /// Begins a request, if [`Multiplexed::may_open`].
    pub(crate) fn open(&mut self, pending: Pending, wire: &Wire) {
        let mut out = std::mem::take(&mut self.connection.output);
        let opened = self.connection.open(&wire.head, wire.body.is_empty(), &mut out);
        self.connection.output = out;
        let Some(id) = opened else { return };
        self.flights.push_back(Some(Flight { pending, status: 0 }));
        self.in_flight += 1;
        if !wire.body.is_empty() {
            self.uploads.push_back(Upload { id, wire: pending.wire, sent: 0 });
        }
    }

    /// Hands over what there is to send; pieces of bodies as far as windows and `transport` take them.
    pub(crate) fn flush(&mut self, transport: &Transport, wires: &[Wire]) {
        let mut out = WriteBuf::new(transport.ring());
        out.bytes.append(&mut self.connection.output);
        for _ in 0..self.uploads.len() {
            let Some(mut upload) = self.uploads.pop_front() else { break };
            while let Some(rest) = wires.get(upload.wire).and_then(|w| w.body.get(upload.sent..)) {
                let n = rest.len().min(self.connection.capacity(upload.id));
                let waiting = transport.queued() + out.bytes.len();
                if n == 0 || waiting > QUEUED_MAX || self.flight(upload.id).is_none() {
                    break;
                }
                self.connection.push_data(upload.id, n, n == rest.len(), &mut out.bytes);
                out.bytes.extend_from_slice(&rest[..n]);
                upload.sent += n;
                if out.bytes.len() > FRAMES_MAX {
                    transport.write(std::mem::replace(&mut out, WriteBuf::new(transport.ring())));
                }
            }
            let length = wires.get(upload.wire).map_or(0, |wire| wire.body.len());
            if upload.sent < length && self.flight(upload.id).is_some() {
                self.uploads.push_back(upload);
            }
        }
        transport.write(out);
    }

    /// Whether pieces of bodies wait for room in the transport.
    pub(crate) fn has_uploads(&self) -> bool {
        !self.uploads.is_empty()
    }

    /// Takes received bytes.
    pub(crate) fn receive(
        &mut self,
        mut input: &[u8],
        now_ms: u64,
        outcome: &mut Outcome,
    ) -> Result<(), Malformed> {
        loop {
            let step = match self.connection.receive(input, now_ms) {
                Ok(step) => step,
                Err(error) => {
                    self.connection.go_away(Some(error.0), true);
                    return Err(Malformed);
                }
            };
            input = input.get(step.consumed..).unwrap_or_default();
            let Some(event) = step.event else { return Ok(()) };
            self.take(event, outcome);
        }
    }

    fn take(&mut self, event: Event, outcome: &mut Outcome) {
        match event {
            Event::Response { interim: true, .. } => {}
            Event::Response { id, end, .. } => {
                let status = self.connection.summary().status;
                if let Some(flight) = self.flight(id) {
                    flight.status = status;
                }
                if end {
                    self.answered(id, outcome);
                }
            }
            Event::Data { id, from, to, end } => {
                self.connection.release(id, to - from);
                if end {
                    self.answered(id, outcome);
                }
            }
            Event::Trailers { id } => self.answered(id, outcome),
            Event::Reset { id, code, fault } => {
                let Some(flight) = self.remove(id) else { return };
                match code {
                    _ if fault => outcome.malformed += 1,
                    Code::REFUSED_STREAM => outcome.refused.push(flight.pending),
                    _ => outcome.reset += 1,
                }
            }
            Event::GoAway { last } => {
                let ids = (0..self.flights.len()).map(|place| self.id_at(place));
                for id in ids.filter(|&id| id > last).collect::<Vec<_>>() {
                    outcome.refused.extend(self.remove(id).map(|flight| flight.pending));
                }
            }
            Event::Request { .. } | Event::TooLarge { .. } => {}
            Event::Window { .. } | Event::Pong => {}
        }
    }

    fn answered(&mut self, id: u32, outcome: &mut Outcome) {
        if let Some(Flight { pending, status }) = self.remove(id) {
            outcome.answered.push((pending, status));
        }
    }

    /// Announces the end of the connection.
    pub(crate) fn leave(&mut self) {
        self.connection.go_away(None, true);
    }

    fn id_at(&self, place: usize) -> u32 {
        self.first.saturating_add(u32::try_from(place * 2).unwrap_or(u32::MAX))
    }

    fn place(&self, id: u32) -> usize {
        usize::try_from(id.wrapping_sub(self.first) / 2).unwrap_or(usize::MAX)
    }

    fn flight(&mut self, id: u32) -> Option<&mut Flight> {
        let place = self.place(id);
        self.flights.get_mut(place)?.as_mut()
    }

    fn remove(&mut self, id: u32) -> Option<Flight> {
        let place = self.place(id);
        let flight = self.flights.get_mut(place)?.take()?;
        self.in_flight -= 1;
        while let Some(None) = self.flights.front() {
            self.flights.pop_front();
            self.first += 2;
        }
        Some(flight)
    }
}

#[cfg(test)]
mod tests {
    use ringgate::protocol::http1::Method;

    use super::*;

    fn wire(head: &str) -> Wire {
        Wire { head: head.to_owned().into(), body: bytes::Bytes::new(), method: Method::Get }
    }

    /// A server's end that has read the client's preface, and what it answered.
    fn greeted(client: &mut Multiplexed) -> (Connection, Vec<u32>) {
        let mut server = Connection::new(Role::Server, Limits::default());
        let sent = std::mem::take(&mut client.connection.output);
        let ids = requests(&mut server, &sent);
        (server, ids)
    }

    fn requests(server: &mut Connection, mut sent: &[u8]) -> Vec<u32> {
        let mut ids = Vec::new();
        loop {
            let step = server.receive(sent, 0).expect("well-formed");
            sent = &sent[step.consumed..];
            match step.event {
                Some(Event::Request { id, .. }) => ids.push(id),
                Some(_) => {}
                None => return ids,
            }
        }
    }

    fn pending(since: u64) -> Pending {
        Pending { since, wire: 0 }
    }

    #[test]
    fn answers_are_told_apart_in_whatever_order_they_come() {
        let mut client = Multiplexed::new(true);
        let request = wire("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
        (1..=3).for_each(|since| client.open(pending(since), &request));
        let (mut server, ids) = greeted(&mut client);
        assert_eq!(ids, [1, 3, 5]);
        let mut answers = std::mem::take(&mut server.output);
        server.respond(5, b"HTTP/1.1 404 No\r\n\r\n", true, &mut answers);
        server.respond(1, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", false, &mut answers);
        server.push_data(1, 2, true, &mut answers);
        answers.extend_from_slice(b"ok");
        let mut outcome = Outcome::default();
        client.receive(&answers, 0, &mut outcome).expect("well-formed");
        let seen = outcome.answered.iter().map(|(pending, status)| (pending.since, *status));
        assert_eq!(seen.collect::<Vec<_>>(), [(3, 404), (1, 200)]);
        assert_eq!((client.in_flight(), client.first), (1, 3));
    }

    #[test]
    fn what_a_leaving_server_does_not_serve_is_sent_again() {
        let mut client = Multiplexed::new(false);
        let request = wire("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
        (1..=2).for_each(|since| client.open(pending(since), &request));
        let (mut server, _) = greeted(&mut client);
        client.open(pending(3), &request); // on its way when the server leaves
        server.go_away(None, true);
        server.reset(3, Code::CANCEL);
        let answers = std::mem::take(&mut server.output);
        let mut outcome = Outcome::default();
        client.receive(&answers, 0, &mut outcome).expect("well-formed");
        assert_eq!(outcome.refused.iter().map(|one| one.since).collect::<Vec<_>>(), [3]);
        assert_eq!((outcome.reset, client.in_flight(), client.is_spent()), (1, 1, true));
        assert!(!client.may_open());
    }

    #[test]
    fn nonsense_is_malformed() {
        let mut client = Multiplexed::new(false);
        let answer = b"HTTP/1.1 400 Bad Request\r\n\r\n";
        assert_eq!(client.receive(answer, 0, &mut Outcome::default()), Err(Malformed));
    }
}
