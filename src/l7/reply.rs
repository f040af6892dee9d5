//! Responses made here: errors, fixed responses, redirects.

use std::future::poll_fn;
use std::task::Poll;

use crate::l7::config::{Redirect, Respond, Route};
use crate::l7::connection::{After, Client};
use crate::l7::exchange::{Context, Exchange, is_extended_connect, response_edits};
use crate::l7::headers;
use crate::l7::input::BodyReader;
use crate::l7::pool::millis;
use crate::protocol::http1::{Method, encode};
use crate::ring::{Chunk, WriteBuf};

/// An unwanted request body up to this size is read so that the connection can be kept.
const DISCARD_MAX: u64 = 64 * 1024;

/// Answers with a status and a line of text.
pub async fn status(
    client: &mut Client,
    exchange: &mut Exchange,
    route: Option<&Route>,
    status: u16,
) -> After {
    let keep = discard_body(client, exchange).await;
    write_status(client, exchange, route, status, keep);
    if keep { After::Keep } else { After::Close }
}

/// Writes a status and a line of text; the request's body is not looked at.
pub fn write_status(
    client: &Client,
    exchange: &mut Exchange,
    route: Option<&Route>,
    status: u16,
    keep: bool,
) {
    let mut text = Vec::with_capacity(64);
    encode::push_decimal(&mut text, u64::from(status));
    text.push(b' ');
    text.extend_from_slice(encode::reason(status).as_bytes());
    text.push(b'\n');
    let own = Own { status, fields: &[(b"Content-Type", b"text/plain")], body: text.into() };
    write(client, exchange, route, own, keep);
}

/// Answers with a fixed response.
pub async fn respond(
    client: &mut Client,
    exchange: &mut Exchange,
    route: &Route,
    respond: &Respond,
) -> After {
    let is_success = (200..300).contains(&respond.status);
    if is_success && is_extended_connect(&client.stream, exchange) {
        return status(client, exchange, Some(route), 502).await;
    }
    let keep = discard_body(client, exchange).await;
    let fields: [(&[u8], &[u8]); 1] = [(b"Content-Type", respond.content_type.as_bytes())];
    let fields = if respond.body.is_empty() { &fields[..0] } else { &fields[..] };
    let own = Own { status: respond.status, fields, body: respond.body.clone() };
    write(client, exchange, Some(route), own, keep);
    if keep { After::Keep } else { After::Close }
}

/// Sends the client elsewhere.
pub async fn redirect(
    client: &mut Client,
    exchange: &mut Exchange,
    route: Option<&Route>,
    redirect: &Redirect,
) -> After {
    let keep = discard_body(client, exchange).await;
    let mut location = Vec::with_capacity(128);
    redirect.to.render(&Context { exchange, addresses: &client.addresses }, &mut location);
    let fields: [(&[u8], &[u8]); 1] = [(b"Location", &location)];
    let own = Own { status: redirect.status, fields: &fields, body: bytes::Bytes::new() };
    write(client, exchange, route, own, keep);
    if keep { After::Keep } else { After::Close }
}

struct Own<'a> {
    status: u16,
    fields: &'a [(&'a [u8], &'a [u8])],
    body: bytes::Bytes,
}

fn write(
    client: &Client,
    exchange: &mut Exchange,
    route: Option<&Route>,
    own: Own<'_>,
    keep: bool,
) {
    let mut buffer = WriteBuf::new(&client.worker.ring);
    let out = &mut buffer.bytes;
    let (edits, date) = (response_edits(route), client.worker.date());
    headers::write_own(out, own.status, own.fields, own.body.len(), edits, &date);
    headers::push_own_edits(out, edits, exchange, &client.addresses);
    headers::push_connection(out, false, keep, exchange.request.version);
    out.extend_from_slice(b"\r\n");
    exchange.outcome.status = own.status;
    exchange.outcome.head_bytes = out.len() as u64;
    let bodiless = exchange.request.method == Method::Head || matches!(own.status, 204 | 304);
    if bodiless {
        client.stream.write_head(buffer, true);
    } else {
        exchange.outcome.body_bytes = own.body.len() as u64;
        client.stream.write_both(buffer, Chunk::Shared(own.body));
        if let Some(stream) = client.stream.http2() {
            stream.finish(std::iter::empty());
        }
    }
}

/// Reads a request body that nobody wants; false when the connection has to be closed instead.
async fn discard_body(client: &mut Client, exchange: &Exchange) -> bool {
    discard_rest(client, exchange, &mut BodyReader::on(&client.stream, exchange.request.framing))
        .await
}

/// Reads the rest of a request body that nobody wants; false when it is too long or does not come,
/// or the connection is not to be kept anyway.
pub async fn discard_rest(client: &mut Client, exchange: &Exchange, body: &mut BodyReader) -> bool {
    if !client.keeps(exchange) {
        return false;
    }
    if body.is_over() {
        return true;
    }
    if exchange.request.expect_continue || body.remaining().is_some_and(|left| left > DISCARD_MAX) {
        return false;
    }
    client.ask_for_the_rest();
    client.timer.set(millis(client.generation.service.http.client_body_timeout));
    let (input, stream, timer) = (&mut client.input, &client.stream, &client.timer);
    let began = body.received();
    poll_fn(|cx| {
        while body.received() - began <= DISCARD_MAX {
            match body.poll_piece(input, stream, cx) {
                Poll::Ready(Ok(Some(_))) => {}
                Poll::Ready(Ok(None)) => return Poll::Ready(true),
                Poll::Ready(Err(_)) => return Poll::Ready(false),
                Poll::Pending => return timer.poll_fired(cx).map(|()| false),
            }
        }
        Poll::Ready(false)
    })
    .await
}
