//! Two ends joined in memory.

use proptest::prelude::*;

use crate::protocol::http2::{Code, Connection, Event, Limits, Reason, Role, Step};

/// One end and what it has done so far.
struct End {
    connection: Connection,
    /// Bytes of body that came, by stream.
    bodies: Vec<(u32, Vec<u8>)>,
    heads: Vec<(u32, String)>,
    ended: Vec<u32>,
    outgoing: Vec<u8>,
}

impl End {
    fn new(role: Role) -> Self {
        let limits = Limits {
            stream_window: 1000,
            connection_window: 70_000,
            small_updates: u32::MAX,
            empty: u32::MAX,
            ..Limits::default()
        };
        let connection = Connection::new(role, limits);
        Self { connection, bodies: vec![], heads: vec![], ended: vec![], outgoing: vec![] }
    }

    fn body(&mut self, id: u32) -> &mut Vec<u8> {
        if !self.bodies.iter().any(|(known, _)| *known == id) {
            self.bodies.push((id, Vec::new()));
        }
        let found = self.bodies.iter_mut().find(|(known, _)| *known == id);
        &mut found.expect("just added").1
    }

    fn take(&mut self, mut input: &[u8]) -> Result<(), Reason> {
        loop {
            let step = self.connection.receive(input, 0).map_err(|error| error.0)?;
            let Step { consumed, event: Some(event) } = step else { return Ok(()) };
            match event {
                Event::Data { id, from, to, end } => {
                    self.body(id).extend_from_slice(&input[from..to]);
                    self.connection.release(id, to - from);
                    self.ended.extend(end.then_some(id));
                }
                Event::Request { id, end } | Event::Response { id, end, .. } => {
                    let head = String::from_utf8(self.connection.head.clone()).unwrap();
                    self.heads.push((id, head));
                    self.ended.extend(end.then_some(id));
                }
                _ => {}
            }
            input = &input[consumed..];
        }
    }

    /// Sends as much of a body as the windows take.
    fn send(&mut self, id: u32, body: &mut &[u8]) {
        while !body.is_empty() {
            let n = self.connection.capacity(id).min(body.len());
            if n == 0 {
                return;
            }
            let (now, later) = body.split_at(n);
            self.connection.push_data(id, n, later.is_empty(), &mut self.outgoing);
            self.outgoing.extend_from_slice(now);
            *body = later;
        }
    }

    fn output(&mut self) -> Vec<u8> {
        let mut all = std::mem::take(&mut self.connection.output);
        all.append(&mut self.outgoing);
        all
    }
}

/// Carries bytes both ways in pieces of these sizes until nothing moves.
fn exchange(a: &mut End, b: &mut End, sizes: &mut impl Iterator<Item = usize>) {
    loop {
        let (there, back) = (a.output(), b.output());
        if there.is_empty() && back.is_empty() {
            return;
        }
        for (bytes, end) in [(there, &mut *b), (back, &mut *a)] {
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let n = sizes.next().unwrap_or(rest.len()).clamp(1, rest.len());
                end.take(&rest[..n]).expect("both ends keep the rules");
                rest = &rest[n..];
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn bodies_arrive_whole_whatever_the_pieces(
        lens in prop::collection::vec(1..5000_usize, 1..6),
        sizes in prop::collection::vec(1..3000_usize, 1..50),
    ) {
        let (mut client, mut server) = (End::new(Role::Client), End::new(Role::Server));
        let mut sizes = sizes.iter().copied().cycle();
        exchange(&mut client, &mut server, &mut sizes);
        let bodies: Vec<Vec<u8>> = lens.iter().map(|&len| vec![b'x'; len]).collect();
        let mut asked = Vec::new();
        for body in &bodies {
            let head = b"POST /p HTTP/1.1\r\nHost: a\r\nX-Y: z\r\nConnection: close\r\n\r\n";
            let mut out = Vec::new();
            let id = client.connection.open(head, false, &mut out).expect("few streams");
            client.outgoing.append(&mut out);
            asked.push((id, &body[..]));
        }
        while asked.iter().any(|(_, rest)| !rest.is_empty()) {
            for (id, rest) in &mut asked {
                client.send(*id, rest);
            }
            exchange(&mut client, &mut server, &mut sizes);
        }
        prop_assert_eq!(server.heads.len(), lens.len());
        for ((id, _), body) in asked.iter().zip(&bodies) {
            let (_, head) = server.heads.iter().find(|(known, _)| known == id).expect("came");
            prop_assert_eq!(
                head.as_str(),
                "POST /p HTTP/1.1\r\nhost: a\r\nx-y: z\r\ntransfer-encoding: chunked\r\n\r\n"
            );
            prop_assert_eq!(server.body(*id).len(), body.len());
            prop_assert!(server.ended.contains(id));
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
            let mut out = Vec::new();
            server.connection.respond(*id, answer, true, &mut out);
            server.outgoing.append(&mut out);
        }
        exchange(&mut client, &mut server, &mut sizes);
        prop_assert_eq!(client.ended.len(), lens.len());
        prop_assert_eq!((client.connection.open_streams(), server.connection.open_streams()), (0, 0));
    }

    #[test]
    fn any_bytes_are_judged(server: bool, bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let mut end = End::new(if server { Role::Server } else { Role::Client });
        let start: &[u8] = if server { b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" } else { b"" };
        end.take(&[start, b"\0\0\0\x04\0\0\0\0\0"].concat()).expect("a good start");
        let _ = end.take(&bytes);
    }
}

#[test]
fn goaway_in_two_steps() {
    let (mut client, mut server) = (End::new(Role::Client), End::new(Role::Server));
    let mut whole = std::iter::repeat(usize::MAX);
    exchange(&mut client, &mut server, &mut whole);
    let open = |client: &mut End| {
        let mut out = Vec::new();
        let head = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        let id = client.connection.open(head, true, &mut out);
        client.outgoing.append(&mut out);
        id
    };
    assert_eq!(open(&mut client), Some(1));
    server.connection.go_away(None, false);
    assert!(server.connection.is_leaving());
    // Under way when the first GOAWAY was: still served.
    let late = client.output();
    server.take(&late).unwrap();
    assert_eq!(server.heads.len(), 1);
    server.connection.go_away(None, true);
    assert!(!server.connection.is_leaving());
    exchange(&mut client, &mut server, &mut whole);
    assert!(!client.connection.is_usable());
    assert_eq!(open(&mut client), None);
}

#[test]
fn what_is_reset_is_forgotten_but_for_what_is_under_way() {
    let (mut client, mut server) = (End::new(Role::Client), End::new(Role::Server));
    let mut whole = std::iter::repeat(usize::MAX);
    exchange(&mut client, &mut server, &mut whole);
    let mut out = Vec::new();
    let head = b"POST / HTTP/1.1\r\nHost: a\r\n\r\n";
    let id = client.connection.open(head, false, &mut out).unwrap();
    client.outgoing.append(&mut out);
    exchange(&mut client, &mut server, &mut whole);
    let mut body = &[b'x'; 900][..];
    client.send(id, &mut body);
    server.connection.reset(id, Code::CANCEL);
    exchange(&mut client, &mut server, &mut whole);
    assert_eq!((client.connection.open_streams(), server.connection.open_streams()), (0, 0));
    assert!(server.bodies.is_empty(), "dropped");
}
