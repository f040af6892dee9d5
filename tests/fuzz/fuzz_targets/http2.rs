//! HTTP/2: any bytes, in any pieces, at either end; then what was accepted is answered.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringgate::protocol::http1;
use ringgate::protocol::http2::{Connection, Event, Limits, PREFACE, Role, Step};

const HEADS: http1::Limits = http1::Limits { head_bytes: 4096, headers: 40 };

fuzz_target!(|input: (bool, bool, Vec<(u8, Vec<u8>)>)| {
    let (server, handshake, pieces) = input;
    let role = if server { Role::Server } else { Role::Client };
    let limits = Limits { head_bytes: 4096, fields: 40, streams: 10, ..Limits::default() };
    let mut connection = Connection::new(role, limits);
    let mut out = Vec::new();
    if handshake {
        let start: &[u8] = if server { PREFACE } else { b"" };
        let first = [start, b"\0\0\0\x04\0\0\0\0\0"].concat();
        drain(&mut connection, &first, 0, &mut out);
        if !server {
            for head in ["GET / HTTP/1.1\r\nhost: a\r\n\r\n", "HEAD / HTTP/1.1\r\nhost: a\r\n\r\n"] {
                connection.open(head.as_bytes(), true, &mut out);
            }
        }
    }
    let mut now = 0;
    for (pause, piece) in pieces {
        now += u64::from(pause) * 10;
        if !drain(&mut connection, &piece, now, &mut out) {
            return;
        }
    }
});

/// Takes the bytes as a driver would; false once the connection is given up.
fn drain(connection: &mut Connection, mut input: &[u8], now: u64, out: &mut Vec<u8>) -> bool {
    loop {
        let Ok(Step { consumed, event }) = connection.receive(input, now) else {
            connection.go_away(None, true);
            return false;
        };
        assert!(consumed <= input.len());
        if let Some(Event::Data { from, to, .. }) = event {
            assert!(from <= to && to <= consumed);
        }
        input = &input[consumed..];
        let Some(event) = event else {
            assert!(input.is_empty(), "only an event leaves input behind");
            return true;
        };
        answer(connection, event, out);
        out.clear();
        assert!(connection.output.len() < 1 << 20);
        connection.output.clear();
        assert!(connection.open_streams() <= 100);
    }
}

fn answer(connection: &mut Connection, event: Event, out: &mut Vec<u8>) {
    match event {
        Event::Request { id, .. } => {
            // Whatever is accepted here is one whole head there, of the same length.
            let mut head = http1::RequestHead::new();
            if let Err(error) = head.parse(&connection.head, &HEADS) {
                let harmless = matches!(
                    error,
                    http1::RequestError::Host(_)
                        | http1::RequestError::Expectation
                        | http1::RequestError::Head(
                            http1::HeadError::TooLarge
                                | http1::HeadError::TooManyFields
                                | http1::HeadError::StartLine
                                | http1::HeadError::MethodTooLong
                        )
                );
                assert!(harmless, "{error:?} of {:?}", String::from_utf8_lossy(&connection.head));
            }
            connection.respond(id, b"HTTP/1.1 200 OK\r\nserver: x\r\nA: b\r\n\r\n", false, out);
            let n = connection.capacity(id).min(100);
            connection.push_data(id, n, id % 4 == 1, out);
        }
        Event::TooLarge { id } => {
            connection.respond(id, b"HTTP/1.1 431 X\r\n\r\n", true, out);
        }
        Event::Response { id, .. } => {
            let mut head = http1::ResponseHead::new();
            let parsed = head.parse(&connection.head, &HEADS, http1::Method::Get);
            if let Err(error) = parsed {
                let limit = error.fault() == http1::Fault::Limit;
                assert!(limit, "{error:?} of {:?}", String::from_utf8_lossy(&connection.head));
            }
            let _ = connection.capacity(id);
        }
        Event::Data { id, from, to, .. } => connection.release(id, to - from),
        Event::Trailers { .. } | Event::Reset { .. } | Event::Window { .. } => {}
        Event::GoAway { .. } | Event::Pong => {}
    }
}
