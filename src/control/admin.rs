//! The admin endpoint: `/metrics`, `/healthz`, `/readyz`, `/status`, and a page at `/` that shows the
//! last to people. One request a connection.

use std::cell::Cell;
use std::future::poll_fn;
use std::rc::Rc;

use crate::control::reload::{Cause, Outcome};
use crate::control::state::{Phase, State};
use crate::control::{metrics, status, vrrp};
use crate::l7::channel::Channel;
use crate::l7::flow::flush;
use crate::l7::input::Input;
use crate::protocol::http1::{HeadScanner, Limits, Method, RequestHead, encode};
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

/// What a client of the endpoint may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Look.
    Read,
    /// Give orders too: it came through the unix socket, whose permissions say who may.
    Control,
}

/// Serves the endpoint for as long as the process runs.
pub async fn serve(ring: Rc<Ring>, acceptor: Acceptor, state: Rc<State>, access: Access) {
    let open = Rc::new(Cell::new(0));
    let pause = Timer::new(&ring);
    loop {
        let stream = if open.get() < CONNECTIONS_MAX {
            acceptor.accept().await.ok()
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
        let (state, open) = (Rc::clone(&state), Rc::clone(&open));
        spawn(&ring, async move {
            answer(&stream.into(), &state, access).await;
            open.set(open.get() - 1);
        });
    }
}

async fn answer(stream: &Channel, state: &State, access: Access) {
    let timer = Timer::new(stream.ring());
    timer.set(TIMEOUT_MS);
    let (mut input, mut scanner) = (Input::default(), HeadScanner::new());
    let (mut head, mut request) = (Vec::new(), RequestHead::new());
    let read = poll_fn(|cx| input.poll_head(stream, &mut scanner, &LIMITS, &mut head, cx));
    let Ok(Ok(())) = timer.guard(read).await else { return };
    let page = match request.parse(&head, &LIMITS) {
        Ok(()) if access == Access::Control && request.method == Method::Post => {
            order(stream.ring(), request.target.of(&head), state).await
        }
        Ok(()) => page(&request, &head, state),
        Err(error) => Page::text(error.status(), encode::reason(error.status())),
    };
    stream.write(page.render(stream.ring(), request.method == Method::Head));
    if flush(stream, 0, &timer, TIMEOUT_MS).await.is_ok() {
        stream.shutdown_write();
        // Until the client has closed: closing first could reset the answer away.
        timer.set(TIMEOUT_MS);
        while let Ok(Ok(Some(_))) = timer.guard(poll_fn(|cx| stream.poll_recv(cx))).await {}
    }
}

struct Page {
    status: u16,
    content_type: &'static str,
    body: String,
}

impl Page {
    fn text(status: u16, text: &str) -> Self {
        Self { status, content_type: "text/plain; charset=utf-8", body: format!("{text}\n") }
    }

    fn render(&self, ring: &Rc<Ring>, head_only: bool) -> WriteBuf {
        let mut buffer = WriteBuf::new(ring);
        let out = &mut buffer.bytes;
        encode::push_status_line(out, self.status, encode::reason(self.status).as_bytes());
        encode::push_field(out, b"Content-Type", self.content_type.as_bytes());
        encode::push_field(out, b"Content-Length", self.body.len().to_string().as_bytes());
        encode::push_field(out, b"Cache-Control", b"no-store");
        encode::push_field(out, b"Connection", b"close");
        out.extend_from_slice(b"\r\n");
        if !head_only {
            out.extend_from_slice(self.body.as_bytes());
        }
        buffer
    }
}

/// Carries out `POST /vrrp/ORDER[?instance=NAME]` and `POST /reload`.
async fn order(ring: &Rc<Ring>, target: &[u8], state: &State) -> Page {
    let target = String::from_utf8_lossy(target);
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    if path == "/reload" {
        return reload(state, query == "dry-run").await;
    }
    let instance = query.strip_prefix("instance=").map(str::to_owned);
    let Some(order) = path.strip_prefix("/vrrp/").and_then(vrrp::order) else {
        return Page::text(
            404,
            "there are POST /reload, /vrrp/release, /vrrp/prefer and /vrrp/resume",
        );
    };
    match vrrp::carry_out(ring, state, order, instance).await {
        Ok(done) => Page::text(200, &done),
        Err(why) => Page::text(409, &why),
    }
}

/// `POST /reload[?dry-run]`: the difference in words, and what became of it.
async fn reload(state: &State, dry_run: bool) -> Page {
    let answer = state.reload.ask(Cause::Order, dry_run).await;
    Page::text(if answer.outcome == Outcome::Refused { 409 } else { 200 }, &answer.text)
}

fn page(request: &RequestHead, head: &[u8], state: &State) -> Page {
    if !matches!(request.method, Method::Get | Method::Head) {
        return Page::text(405, "only GET and HEAD");
    }
    let target = request.target.of(head);
    match target.split(|byte| *byte == b'?').next().unwrap_or_default() {
        b"/metrics" => Page {
            status: 200,
            content_type: "text/plain; version=0.0.4; charset=utf-8",
            body: metrics::render(state),
        },
        b"/status" => Page {
            status: 200,
            content_type: "application/json",
            body: format!("{:#}\n", status::render(state)),
        },
        b"/healthz" => Page::text(200, "ok"),
        b"/readyz" if state.phase.get() == Phase::Serving => Page::text(200, "ready"),
        b"/readyz" => Page::text(503, "draining"),
        b"/" => Page {
            status: 200,
            content_type: "text/html; charset=utf-8",
            body: include_str!("status.html").to_owned(),
        },
        _ => Page::text(404, "there are / /metrics /status /healthz /readyz"),
    }
}
