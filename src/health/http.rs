//! A check's HTTP request, and the judgement of the response while it arrives. Pure.

use std::fmt::Write as _;
use std::net::SocketAddr;

use super::check::Http;
use crate::protocol::http1::{
    BodyDecoder, Framing, HeadScanner, Limits, Method, ResponseHead, Scan, Step,
};

/// Bounds of a response head.
const LIMITS: Limits = Limits { head_bytes: 16 * 1024, headers: 128 };
/// Interim responses (1xx) that are skipped.
const INTERIM_MAX: u32 = 8;

/// The request, for an endpoint at `address`.
#[must_use]
pub fn request(http: &Http, address: SocketAddr) -> Vec<u8> {
    let mut text = format!("{} {} HTTP/1.1\r\n", http.method, http.path);
    let own = |name: &str| http.headers.iter().any(|(own, _)| own.eq_ignore_ascii_case(name));
    if !own("host") {
        let _ = match &http.host {
            Some(host) => write!(text, "Host: {host}\r\n"),
            None => write!(text, "Host: {address}\r\n"),
        };
    }
    if !own("user-agent") {
        text.push_str("User-Agent: ringgate-health\r\n");
    }
    for (name, value) in &http.headers {
        let _ = write!(text, "{name}: {value}\r\n");
    }
    text.push_str("Connection: close\r\n\r\n");
    text.into_bytes()
}

/// What came of it: good, or why not.
pub type Judgement = Result<(), String>;

/// Judges one response.
#[derive(Debug)]
pub struct Judge {
    scanner: HeadScanner,
    head: Vec<u8>,
    interim: u32,
    decoder: Option<BodyDecoder>,
    body: Vec<u8>,
}

impl Default for Judge {
    fn default() -> Self {
        Self {
            scanner: HeadScanner::for_response(),
            head: Vec::new(),
            interim: 0,
            decoder: None,
            body: Vec::new(),
        }
    }
}

impl Judge {
    /// Takes in what has arrived; `None` as long as more is needed.
    pub fn take(&mut self, http: &Http, mut input: &[u8]) -> Option<Judgement> {
        while self.decoder.is_none() {
            if input.is_empty() {
                return None;
            }
            let scan = match self.scanner.scan(input, &LIMITS) {
                Ok(scan) => scan,
                Err(error) => return Some(Err(format!("malformed response: {error}"))),
            };
            let Scan::Complete(end) = scan else {
                self.head.extend_from_slice(input);
                return None;
            };
            let (head, rest) = input.split_at(end);
            self.head.extend_from_slice(head);
            input = rest;
            if let Some(judgement) = self.head(http) {
                return Some(judgement);
            }
        }
        self.body(http, input)
    }

    /// Judges a whole head; `None` when the body has to be seen, or a further head.
    fn head(&mut self, http: &Http) -> Option<Judgement> {
        let mut head = ResponseHead::new();
        let method = Method::of(http.method.as_bytes());
        if let Err(error) = head.parse(&self.head, &LIMITS, method) {
            return Some(Err(format!("malformed response: {error}")));
        }
        if head.status < 200 && head.status != 101 {
            self.interim += 1;
            self.scanner = HeadScanner::for_response();
            self.head.clear();
            let many = self.interim > INTERIM_MAX;
            return many.then(|| Err("too many interim responses".to_owned()));
        }
        if !http.status.iter().any(|range| range.contains(&head.status)) {
            return Some(Err(format!("status {}", head.status)));
        }
        if http.body.is_none() {
            return Some(Ok(()));
        }
        self.decoder = Some(BodyDecoder::new(head.framing));
        (head.framing == Framing::None).then(|| self.searched(http))
    }

    fn body(&mut self, http: &Http, mut input: &[u8]) -> Option<Judgement> {
        loop {
            let decoder = self.decoder.as_mut()?;
            match decoder.step(input) {
                Ok(Step::Data { start, end }) => {
                    let room = http.max_body.saturating_sub(self.body.len());
                    let data = input.get(start..end).unwrap_or_default();
                    self.body.extend(data.iter().take(room));
                    if data.len() >= room {
                        return Some(self.searched(http));
                    }
                    input = input.get(end..).unwrap_or_default();
                }
                Ok(Step::More) => return None,
                Ok(Step::End(_)) => return Some(self.searched(http)),
                Err(error) => return Some(Err(format!("malformed response: {error}"))),
            }
        }
    }

    /// The connection has ended.
    pub fn end(&mut self, http: &Http) -> Judgement {
        match &mut self.decoder {
            None if self.head.is_empty() => Err("closed without a response".into()),
            None => Err("closed inside the response head".into()),
            Some(decoder) => match decoder.eof() {
                Ok(()) => self.searched(http),
                Err(_) => Err("closed inside the response body".into()),
            },
        }
    }

    fn searched(&self, http: &Http) -> Judgement {
        match &http.body {
            Some(pattern) if !pattern.is_in(&self.body) => {
                let looked = self.body.len();
                Err(format!("\"{}\" is not in the body ({looked} bytes)", pattern.text()))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::check::Pattern;

    fn http(body: Option<&str>) -> Http {
        Http {
            method: "GET".into(),
            path: "/healthz?deep=1".into(),
            host: None,
            headers: vec![("X-Probe".into(), "1".into())],
            status: vec![200..=299, 304..=304],
            body: body.map(|text| Pattern::new(text).expect("a pattern")),
            max_body: 20,
            tls: None,
        }
    }

    /// In one piece, then byte by byte: the judgement must be the same.
    fn judged(http: &Http, response: &str) -> Judgement {
        let judge = |size: usize| {
            let mut judge = Judge::default();
            for piece in response.as_bytes().chunks(size) {
                if let Some(judgement) = judge.take(http, piece) {
                    return judgement;
                }
            }
            judge.end(http)
        };
        let whole = judge(response.len().max(1));
        assert_eq!(judge(1), whole, "{response:?}");
        whole
    }

    #[test]
    fn requests_say_who_is_asked() {
        let address = "[2001:db8::1]:8080".parse().expect("an address");
        let text = String::from_utf8(request(&http(None), address)).expect("text");
        assert_eq!(
            text,
            "GET /healthz?deep=1 HTTP/1.1\r\nHost: [2001:db8::1]:8080\r\nUser-Agent: \
             ringgate-health\r\nX-Probe: 1\r\nConnection: close\r\n\r\n"
        );
        let named = Http { host: Some("app".into()), ..http(None) };
        assert!(
            request(&named, address).starts_with(b"GET /healthz?deep=1 HTTP/1.1\r\nHost: app\r\n")
        );
        let own = Http { headers: vec![("hOst".into(), "x".into())], ..named };
        let text = String::from_utf8(request(&own, address)).expect("text");
        assert!(text.contains("hOst: x\r\n") && !text.contains("app"));
    }

    #[test]
    fn statuses() {
        for (response, good) in [
            ("HTTP/1.1 200 OK\r\n\r\n", Ok(())),
            ("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 304 X\r\n\r\n", Ok(())),
            ("HTTP/1.1 300 X\r\n\r\n", Err("status 300")),
            ("HTTP/1.1 503 X\r\nContent-Length: 5\r\n\r\n", Err("status 503")),
            ("HTTP/1.1 2", Err("closed inside the response head")),
            ("", Err("closed without a response")),
            ("SSH-2.0-OpenSSH_9\r\n\r\n", Err("malformed response: ")),
            ("HTTP/1.1 200 OK\nA: b\n\n", Err("malformed response: ")),
        ] {
            match (judged(&http(None), response), good) {
                (Ok(()), Ok(())) => {}
                (Err(why), Err(says)) => assert!(why.starts_with(says), "{response:?}: {why}"),
                (judged, _) => panic!("{response:?}: {judged:?}"),
            }
        }
        let interim = "HTTP/1.1 100 Continue\r\n\r\n".repeat(9);
        assert_eq!(judged(&http(None), &interim), Err("too many interim responses".into()));
    }

    #[test]
    fn bodies() {
        let asked = http(Some("^all (good|well)"));
        for (response, good) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nall good", true),
            ("HTTP/1.1 200 OK\r\n\r\nall well", true),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nall\r\n5\r\n well\r\n0\r\n\r\n",
                true,
            ),
            ("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nall wrong", false),
            ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", false),
            ("HTTP/1.1 204 OK\r\n\r\n", false),
            ("HTTP/1.1 200 OK\r\nContent-Length: 90\r\n\r\nall good", false),
            ("HTTP/1.1 500 X\r\nContent-Length: 8\r\n\r\nall good", false),
        ] {
            assert_eq!(judged(&asked, response).is_ok(), good, "{response:?}");
        }
        // The bound: a body that goes on is looked at so far and no further.
        let late = format!("HTTP/1.1 200 OK\r\n\r\n{}late", "x".repeat(17));
        assert!(judged(&http(Some("late")), &late).is_err());
        let within = format!("HTTP/1.1 200 OK\r\n\r\n{}late", "x".repeat(16));
        assert_eq!(judged(&http(Some("late")), &within), Ok(()));
    }
}
