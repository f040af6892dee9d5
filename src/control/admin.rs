//! The admin endpoint: HTTP over the unix socket and over the loopback listener, one request a
//! connection. What there is to ask stands in [`api::VERBS`].

use std::cell::Cell;
use std::fmt;
use std::future::poll_fn;
use std::rc::Rc;

use aws_lc_rs::{constant_time, digest};

use crate::control::api::{self, Call, Handler, Reply, Request, Route, Verb, Who};
use crate::control::state::State;
use crate::l7::channel::Channel;
use crate::l7::flow::flush;
use crate::l7::input::{BodyReadError, BodyReader, Input};
use crate::protocol::http1::{Field, HeadScanner, Limits, Method, RequestHead};
use crate::ring::accept::Acceptor;
use crate::ring::executor::spawn;
use crate::ring::{Ring, Timer, WriteBuf};

/// Connections at a time; more wait in the listen queue.
const CONNECTIONS_MAX: usize = 64;
/// How long accepting rests at that many, and after an error.
const REST_MS: u64 = 100;
/// A client has this long to ask, and to take the answer.
const TIMEOUT_MS: u64 = 10_000;
const LIMITS: Limits = Limits { head_bytes: 16 * 1024, headers: 64 };
/// Longest body of an order.
const BODY_MAX: usize = 64 * 1024;

/// The token that makes an operator of whoever has it; only its hash is kept.
#[derive(Clone)]
pub struct Token(digest::Digest);

impl Token {
    /// This one.
    #[must_use]
    pub fn new(secret: &[u8]) -> Self {
        Self(digest::digest(&digest::SHA256, secret))
    }

    /// True for the same; takes the same time whatever differs.
    fn is(&self, secret: &[u8]) -> bool {
        let other = digest::digest(&digest::SHA256, secret);
        constant_time::verify_slices_are_equal(self.0.as_ref(), other.as_ref()).is_ok()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

/// How clients come to an endpoint, which decides what they may.
#[derive(Debug, Clone)]
pub enum Access {
    /// Through the unix socket, whose permissions say who may give orders.
    Local,
    /// Over the network: whoever has the token, if there is one, may give orders; everybody may look.
    Network(Option<Token>),
}

impl Access {
    /// What a client with this `Authorization` may.
    fn of(&self, authorization: Option<&[u8]>) -> Result<Who, Reply> {
        let token = match (self, authorization) {
            (Self::Local, _) => return Ok(Who::Operator),
            (Self::Network(None), _) | (Self::Network(_), None) => return Ok(Who::Anyone),
            (Self::Network(Some(token)), Some(value)) => (token, value),
        };
        let (token, value) = token;
        let secret =
            value.split_at_checked(7).filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"bearer "));
        match secret {
            Some((_, secret)) if token.is(secret.trim_ascii()) => Ok(Who::Operator),
            _ => Err(unauthorized("this is not the token of admin.token_file")),
        }
    }

    /// The answer to an order of somebody who may only look.
    fn refuse(&self) -> Reply {
        match self {
            Self::Network(Some(_)) => unauthorized("orders need the token of admin.token_file"),
            _ => Reply::error(
                403,
                "orders are taken through admin.socket, or here with admin.token_file",
            ),
        }
    }
}

/// RFC 6750 section 3.
fn unauthorized(why: &str) -> Reply {
    Reply::error(401, why).with("WWW-Authenticate", "Bearer realm=\"ringgate\"")
}

/// Serves the endpoint for as long as the process runs.
pub async fn serve(ring: Rc<Ring>, acceptor: Rc<Acceptor>, state: Rc<State>, access: Access) {
    let open = Rc::new(Cell::new(0));
    let pause = Timer::new(&ring);
    loop {
        let stream = if open.get() < CONNECTIONS_MAX {
            let next = poll_fn(|cx| match state.upgrade.has_left() {
                // What waits is answered; the successor is woken for what comes then.
                true => acceptor
                    .poll_stopped(cx)
                    .map(|()| acceptor.accept_waiting().ok().flatten().ok_or(())),
                false => acceptor.poll_accept(cx).map_err(drop),
            });
            let next = next.await.ok();
            if next.is_none() && state.upgrade.has_left() {
                return;
            }
            next
        } else {
            acceptor.stop();
            None
        };
        let Some(stream) = stream else {
            pause.set(REST_MS);
            pause.fired().await;
            continue;
        };
        open.set(open.get() + 1);
        let (state, open, access) = (Rc::clone(&state), Rc::clone(&open), access.clone());
        spawn(&ring, async move {
            answer(&stream.into(), &state, &access).await;
            open.set(open.get() - 1);
        });
    }
}

async fn answer(stream: &Channel, state: &Rc<State>, access: &Access) {
    let timer = Timer::new(stream.ring());
    timer.set(TIMEOUT_MS);
    let (mut input, mut scanner) = (Input::default(), HeadScanner::new());
    let (mut head, mut request) = (Vec::new(), RequestHead::new());
    let read = poll_fn(|cx| {
        let take = |bytes: &[u8]| request.take(bytes, &LIMITS);
        input.poll_head(stream, (take, &mut scanner), &LIMITS, &mut head, cx)
    });
    let Ok(Ok(())) = timer.guard(read).await else { return };
    let reply = match request.parse(&head, &LIMITS) {
        Ok(()) => {
            let asked = Asked { head: &head, request: &request };
            match permitted(&asked, access) {
                Err(reply) => reply,
                Ok((verb, argument)) => match body(stream, &mut input, &request, &timer).await {
                    Err(Some(reply)) => reply,
                    Err(None) => return,
                    Ok(body) => {
                        let request = asked.request(body);
                        let (ring, state) = (Rc::clone(stream.ring()), Rc::clone(state));
                        let call = Call { ring, state, request, argument };
                        match verb.handler {
                            Handler::Now(handler) => handler(&call),
                            Handler::Later(handler) => handler(call).await,
                        }
                    }
                },
            }
        }
        Err(error) => Reply::error(error.status(), error.to_string()),
    };
    let mut buffer = WriteBuf::new(stream.ring());
    reply.write(&mut buffer.bytes, request.method == Method::Head);
    stream.write(buffer);
    if flush(stream, 0, &timer, TIMEOUT_MS).await.is_ok() {
        stream.shutdown_write();
        // Until the client has closed: closing first could reset the answer away.
        timer.set(TIMEOUT_MS);
        while let Ok(Ok(Some(_))) = timer.guard(poll_fn(|cx| stream.poll_recv(cx))).await {}
    }
}

/// A parsed head.
struct Asked<'a> {
    head: &'a [u8],
    request: &'a RequestHead,
}

impl Asked<'_> {
    fn target(&self) -> (&[u8], &[u8]) {
        let target = self.request.target.of(self.head);
        let end = target.iter().position(|byte| *byte == b'?').unwrap_or(target.len());
        let (path, query) = target.split_at(end);
        (path, query.get(1..).unwrap_or_default())
    }

    /// The first value of a field.
    fn value(&self, name: &str) -> Option<&[u8]> {
        let named = |field: &&Field| field.name.of(self.head).eq_ignore_ascii_case(name.as_bytes());
        self.request.fields.iter().find(named).map(|field| field.value.of(self.head))
    }

    fn request(&self, body: Vec<u8>) -> Request {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (path, query) = self.target();
        let accept = self.value("accept").map(text).unwrap_or_default();
        Request { path: text(path), query: text(query), accept, body }
    }
}

/// The verb that is asked for, if this client may use it.
fn permitted(asked: &Asked<'_>, access: &Access) -> Result<(&'static Verb, String), Reply> {
    let may = access.of(asked.value("authorization"))?;
    let path = String::from_utf8_lossy(asked.target().0);
    match api::route(asked.request.method, &path) {
        Route::Verb(verb, argument) if verb.who == Who::Anyone || may == Who::Operator => {
            Ok((verb, argument))
        }
        Route::Verb(..) => Err(access.refuse()),
        Route::Refused(reply) => Err(reply),
    }
}

/// The body, as far as it may be long. `None` as error: nobody waits for an answer.
async fn body(
    stream: &Channel,
    input: &mut Input,
    request: &RequestHead,
    timer: &Timer,
) -> Result<Vec<u8>, Option<Reply>> {
    let mut reader = BodyReader::on(stream, request.framing);
    let mut body = Vec::new();
    if request.expect_continue {
        let mut buffer = WriteBuf::new(stream.ring());
        buffer.bytes.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
        stream.write(buffer);
    }
    loop {
        let read = timer.guard(poll_fn(|cx| reader.poll_piece(input, stream, cx))).await;
        match read {
            Ok(Ok(Some(piece))) if body.len() + piece.len() <= BODY_MAX => {
                body.extend_from_slice(piece.as_slice());
            }
            Ok(Ok(Some(_))) => {
                return Err(Some(Reply::error(413, format!("the body exceeds {BODY_MAX} bytes"))));
            }
            Ok(Ok(None)) => return Ok(body),
            Ok(Err(BodyReadError::Malformed(_))) => {
                return Err(Some(Reply::error(400, "the framing of the body is malformed")));
            }
            Ok(Err(_)) => return Err(None),
            Err(_) => return Err(Some(Reply::error(408, "the body did not come in time"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn may(access: &Access, value: Option<&str>) -> Result<Who, u16> {
        access.of(value.map(str::as_bytes)).map_err(|reply| reply.status)
    }

    #[test]
    fn who_may_what() {
        let (local, open) = (Access::Local, Access::Network(None));
        let guarded = Access::Network(Some(Token::new(b"secret-of-sixteen")));
        assert_eq!(may(&local, None), Ok(Who::Operator));
        assert_eq!(may(&open, None), Ok(Who::Anyone));
        assert_eq!(may(&open, Some("Bearer secret-of-sixteen")), Ok(Who::Anyone));
        assert_eq!(may(&guarded, None), Ok(Who::Anyone));
        assert_eq!(may(&guarded, Some("Bearer secret-of-sixteen")), Ok(Who::Operator));
        assert_eq!(may(&guarded, Some("bearer secret-of-sixteen")), Ok(Who::Operator));
        for wrong in [
            "Bearer secret-of-sixteeN",
            "Bearer ",
            "Bearer",
            "Basic c2VjcmV0",
            "",
            "Bearer secret-of-sixteen2",
            "secret-of-sixteen",
        ] {
            assert_eq!(may(&guarded, Some(wrong)), Err(401), "{wrong}");
        }
        assert_eq!((open.refuse().status, guarded.refuse().status), (403, 401));
    }

    #[test]
    fn a_token_is_not_shown() {
        assert_eq!(format!("{:?}", Token::new(b"secret-of-sixteen")), "Token");
    }
}
