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

/// A client and a server between which the SETTINGS have been exchanged.
fn pair() -> (End, End) {
    let (mut client, mut server) = (End::new(Role::Client), End::new(Role::Server));
    exchange(&mut client, &mut server, &mut std::iter::repeat(usize::MAX));
    (client, server)
}

fn ask(client: &mut End, head: &str) -> u32 {
    let mut out = Vec::new();
    let id = client.connection.open(head.as_bytes(), true, &mut out).expect("few streams");
    client.outgoing.append(&mut out);
    id
}

fn answer(server: &mut End, id: u32, head: &str, end: bool) {
    let mut out = Vec::new();
    server.connection.respond(id, head.as_bytes(), end, &mut out);
    server.outgoing.append(&mut out);
}

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

#[test]
fn a_server_may_send_many_interim_heads() {
    let (mut client, mut server) = pair();
    let mut whole = std::iter::repeat(usize::MAX);
    for _ in 0..60 {
        let id = ask(&mut client, GET);
        exchange(&mut client, &mut server, &mut whole);
        for _ in 0..5 {
            answer(&mut server, id, "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n", false);
        }
        answer(&mut server, id, "HTTP/1.1 200 OK\r\n\r\n", true);
        exchange(&mut client, &mut server, &mut whole);
    }
    assert_eq!(client.heads.len(), 360);
}

#[test]
fn answers_to_any_number_of_cancelled_requests_are_passed_over() {
    let (mut client, mut server) = pair();
    for _ in 0..10 {
        let ids: Vec<u32> = (0..100).map(|_| ask(&mut client, GET)).collect();
        let requests = client.output();
        server.take(&requests).unwrap();
        // The answers and the resets cross.
        ids.iter().for_each(|&id| client.connection.reset(id, Code::CANCEL));
        for &id in &ids {
            answer(&mut server, id, "HTTP/1.1 200 OK\r\n\r\n", false);
            server.send(id, &mut &b"body"[..]);
        }
        let answers = server.output();
        client.take(&answers).expect("dropped, not counted");
        ids.iter().for_each(|&id| server.connection.reset(id, Code::CANCEL));
        server.connection.output.clear();
        client.connection.output.clear();
    }
    assert!(client.heads.is_empty() && client.bodies.is_empty());
    let never_opened = [0, 0, 1, 0, 0, 0, 0, 99, 99, 0];
    assert_eq!(client.take(&never_opened), Err(Reason::Protocol));
}

#[test]
fn resets_of_streams_that_are_over_are_glitches() {
    let (mut client, mut server) = pair();
    let mut whole = std::iter::repeat(usize::MAX);
    let id = ask(&mut client, GET);
    exchange(&mut client, &mut server, &mut whole);
    answer(&mut server, id, "HTTP/1.1 200 OK\r\n\r\n", true);
    exchange(&mut client, &mut server, &mut whole);
    let reset = [0, 0, 4, 3, 0, 0, 0, 0, 1, 0, 0, 0, 8];
    for _ in 0..100 {
        server.take(&reset).unwrap();
    }
    assert_eq!(server.take(&reset), Err(Reason::GlitchFlood));
}

#[test]
fn all_streams_may_be_reset_at_once() {
    let (mut client, mut server) = pair();
    let mut resets = 0;
    let flood = loop {
        let id = ask(&mut client, GET);
        client.connection.reset(id, Code::CANCEL);
        client.outgoing.append(&mut client.connection.output);
        let bytes = std::mem::take(&mut client.outgoing);
        if let Err(reason) = server.take(&bytes) {
            break reason;
        }
        resets += 1;
    };
    assert_eq!((resets, flood), (256, Reason::ResetFlood));
}

#[test]
fn data_earns_pings() {
    let (mut client, mut server) = pair();
    let ping = [0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
    let mut out = Vec::new();
    let head = b"POST / HTTP/1.1\r\nHost: a\r\n\r\n";
    let id = client.connection.open(head, false, &mut out).unwrap();
    client.outgoing.append(&mut out);
    for _ in 0..300 {
        client.connection.push_data(id, 1, false, &mut client.outgoing);
        client.outgoing.push(b'x');
        let bytes = client.output();
        server.take(&bytes).unwrap();
        server.take(&ping).unwrap();
    }
    for _ in 0..100 {
        server.take(&ping).unwrap();
    }
    assert_eq!(server.take(&ping), Err(Reason::PingFlood));
}

#[test]
fn a_response_to_head_gets_no_length() {
    let (mut client, mut server) = pair();
    let mut whole = std::iter::repeat(usize::MAX);
    for (fields, expected) in [("", ""), ("Content-Length: 7\r\n", "content-length: 7\r\n")] {
        let id = ask(&mut client, "HEAD / HTTP/1.1\r\nHost: a\r\n\r\n");
        exchange(&mut client, &mut server, &mut whole);
        answer(&mut server, id, &format!("HTTP/1.1 200 OK\r\n{fields}\r\n"), true);
        exchange(&mut client, &mut server, &mut whole);
        let (_, head) = client.heads.last().unwrap();
        assert_eq!(head, &format!("HTTP/1.1 200 OK\r\n{expected}\r\n"));
    }
}
