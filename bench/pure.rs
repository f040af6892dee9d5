//! The parts of a request that need no socket, for `bench/run --base` to count instructions of.
//!
//! Without arguments it names the parts; with a part and a number it does it so often. One process
//! does one part, so that the difference of two runs is that part and nothing else. It uses as
//! little of the library as it can, since it is built against older revisions, too.

use std::hint::black_box;
use std::io::{self, Write as _};
use std::process::ExitCode;

use ringgate::control::config;
use ringgate::l7::config::Service;
use ringgate::l7::exchange::{Addresses, Answer, Exchange};
use ringgate::l7::headers::{write_request, write_response};
use ringgate::l7::request_id::Generator;
use ringgate::l7::router::Router;
use ringgate::protocol::http1::{BodyDecoder, Framing, Limits, Step};

const LIMITS: Limits = Limits { head_bytes: 32 * 1024, headers: 100 };
const DATE: [u8; 29] = *b"Sun, 22 Nov 2026 00:00:00 GMT";
/// What ringgate-bench sends.
const SMALL: &[u8] = b"GET /team7/service327/item HTTP/1.1\r\nHost: shop.example\r\n\r\n";
/// What a browser sends.
const BROWSER: &[u8] = b"GET /team7/service327/item?colour=blue&size=42 HTTP/1.1\r\n\
Host: shop.example\r\n\
User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\r\n\
Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8\r\n\
Accept-Language: en-GB,en;q=0.7,de;q=0.3\r\n\
Accept-Encoding: gzip, deflate, br, zstd\r\n\
Referer: https://shop.example/team7/\r\n\
Cookie: session=6f1d2c3b4a5968778695a4b3c2d1e0ff; theme=dark; consent=yes\r\n\
Upgrade-Insecure-Requests: 1\r\n\
Connection: keep-alive\r\n\r\n";
const ANSWER: &[u8] =
    b"HTTP/1.1 200 OK\r\nServer: origin\r\nDate: Sun, 22 Nov 2026 00:00:00 GMT\r\n\
Content-Type: text/html; charset=utf-8\r\nContent-Length: 128\r\nETag: \"6f1d2c3b\"\r\n\
Cache-Control: max-age=60\r\nVary: Accept-Encoding\r\n\r\n";

/// Does a part so often.
type Work = fn(&mut Bench, usize);

const PARTS: [(&str, Work); 12] = [
    ("parse-small", |bench, times| repeat(times, || bench.parse(SMALL))),
    ("parse-browser", |bench, times| repeat(times, || bench.parse(BROWSER))),
    ("route-1000", |bench, times| {
        bench.parse(BROWSER);
        repeat(times, || bench.route());
    }),
    ("write-request", |bench, times| {
        bench.parse(BROWSER);
        repeat(times, || bench.write_request());
    }),
    ("response", |bench, times| {
        bench.parse(BROWSER);
        repeat(times, || bench.response());
    }),
    ("chunked-body-16k", |_, times| {
        let body = [b"400\r\n", [b'x'; 1024].as_slice(), b"\r\n"].concat().repeat(16);
        let body = [body.as_slice(), b"0\r\n\r\n"].concat();
        repeat(times, || decode(&body));
    }),
    ("verdict-1k-3", |_, times| verdicts(1000, 3, times)),
    ("verdict-100k-3", |_, times| verdicts(100_000, 3, times)),
    ("verdict-1m-3", |_, times| verdicts(1_000_000, 3, times)),
    ("verdict-100k-100", |_, times| verdicts(100_000, 100, times)),
    ("verdict-100k-1000", |_, times| verdicts(100_000, 1000, times)),
    ("whole-request", |bench, times| {
        repeat(times, || {
            bench.parse(SMALL);
            bench.route();
            bench.write_request();
            bench.response();
        });
    }),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut out = io::stdout();
    match arguments.as_slice() {
        [] => {
            PARTS.iter().for_each(|(name, _)| drop(writeln!(out, "{name}")));
            ExitCode::SUCCESS
        }
        [part, times] => {
            let found = PARTS.iter().find(|(name, _)| name == part);
            let (Some((_, work)), Ok(times)) = (found, times.parse()) else {
                return ExitCode::from(2);
            };
            work(&mut Bench::new(), times);
            ExitCode::SUCCESS
        }
        _ => ExitCode::from(2),
    }
}

/// Packets of so many established flows to so many servers through a director, `times` of them in
/// an order that caches do not guess. Says how long one takes, on standard error.
fn verdicts(flows: u32, servers: u32, times: usize) {
    use ringgate::l4::registry::Registry;
    use ringgate::l4::tables::Neighbour;
    use ringgate::l4::{Director, Frame, Verdict};
    use ringgate::protocol::ethernet::Mac;

    const OWN: Mac = Mac([2, 0, 0, 0, 0, 1]);
    let address = |n: u32| std::net::Ipv4Addr::from_bits(0x0a00_0001 + n);
    let list: Vec<String> =
        (0..servers).map(|n| format!("{{ address = \"{}\" }}", address(n))).collect();
    let text = format!(
        "[director]\nnew_flows_per_second = 0\n[[virtual_server]]\naddress = \"192.0.2.1:80\"\n\
         scheduler = \"rr\"\nservers = [{}]\n",
        list.join(",")
    );
    let mut registry = Registry::new(config::parse("pure", &text).expect("valid").l4, 1);
    registry.set_interfaces([(2, vec![OWN])].into());
    for n in 0..servers {
        let way = Neighbour { mac: OWN, source: OWN, ifindex: 3, vlan: None };
        registry.set_neighbour(address(n).into(), Some(way));
    }
    let mut director = Director::new(0, registry.tables(), 1 << 20);
    let mut bytes = vec![0; 60];
    bytes[..6].copy_from_slice(&OWN.0);
    bytes[12..24].copy_from_slice(&[8, 0, 0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6]);
    bytes[30..38].copy_from_slice(&[192, 0, 2, 1, 0, 0, 0, 80]);
    bytes[46] = 0x50;
    let mut judge = |flow: u32, flags: u8| {
        bytes[..6].copy_from_slice(&OWN.0);
        bytes[26..30].copy_from_slice(&(0xc612_0000 + (flow >> 4)).to_be_bytes());
        bytes[34..36]
            .copy_from_slice(&(1024 + u16::try_from(flow & 15).unwrap_or_default()).to_be_bytes());
        bytes[47] = flags;
        let mut frame = Frame { length: bytes.len(), bytes: &mut bytes, vlan: None, ifindex: 2 };
        let verdict = director.judge(1000, &mut frame);
        assert!(matches!(black_box(verdict), Verdict::Forward { .. }));
    };
    for flow in 0..flows {
        judge(flow, 2);
        judge(flow, 16);
    }
    let began = std::time::Instant::now();
    let mut random = 1_u32;
    for _ in 0..times {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let flow = (u64::from(random) * u64::from(flows)) >> 32;
        judge(u32::try_from(flow).unwrap_or_default(), 16);
    }
    let each = began.elapsed().as_nanos() / times.max(1) as u128;
    let _ = writeln!(io::stderr(), "{flows} flows, {servers} servers: {each} ns a verdict");
}

fn repeat(times: usize, mut work: impl FnMut()) {
    (0..times).for_each(|_| work());
}

fn decode(mut body: &[u8]) {
    let mut decoder = BodyDecoder::new(Framing::Chunked);
    loop {
        let used = match decoder.step(black_box(body)).expect("a valid body") {
            Step::Data { end, .. } => end,
            Step::More | Step::End(_) => return,
        };
        body = &body[used..];
    }
}

/// A proxy's state with a thousand routes and one request in it.
struct Bench {
    service: Service,
    router: Router,
    exchange: Exchange,
    answer: Answer,
    addresses: Addresses,
    ids: Generator,
    route: usize,
    out: Vec<u8>,
}

impl Bench {
    fn new() -> Self {
        let mut text = "[[listener]]\nbind = \"127.0.0.1:8080\"\n".to_owned();
        for number in 0..1000 {
            let path = format!("/team{}/service{number}/", number % 40);
            text += &format!("[[route]]\npath = \"{path}\"\nupstream = \"origin\"\n");
        }
        text += "[upstream.origin]\nservers = [{ address = \"127.0.0.1:9000\" }]\n";
        let service = config::parse("pure", &text).expect("a valid configuration").service;
        let client = ([192, 0, 2, 10], 50_000).into();
        Self {
            router: Router::new(&service.routes, service.listeners.len()),
            service,
            exchange: Exchange::default(),
            answer: Answer::default(),
            addresses: Addresses { peer: client, local: ([127, 0, 0, 1], 8080).into() },
            ids: Generator::new(1),
            route: 0,
            out: Vec::new(),
        }
    }

    /// A head as it comes from a socket, whole; taken apart, copied, parsed, and its sender identified.
    fn parse(&mut self, bytes: &[u8]) {
        self.exchange.clear();
        let length = self.exchange.request.take(black_box(bytes), &LIMITS).expect("a plain head");
        self.exchange.head.extend_from_slice(&bytes[..length]);
        self.exchange.parse(&LIMITS).expect("a valid request");
        let trusted = &self.service.http.trusted_proxies;
        self.exchange.identify(&self.addresses, trusted, self.ids.next());
    }

    fn route(&mut self) {
        let found = self.router.find(&self.service.routes, 0, black_box(&self.exchange));
        self.route = found.expect("a route");
    }

    fn write_request(&mut self) {
        self.out.clear();
        let route = &self.service.routes[self.route];
        write_request(&mut self.out, &self.exchange, &self.addresses, route, false);
        black_box(&self.out);
    }

    /// The response head from a server: taken apart, copied, parsed and written for the client.
    fn response(&mut self) {
        let Answer { bytes, head } = &mut self.answer;
        let length = head.take(black_box(ANSWER), &LIMITS).expect("a plain head");
        bytes.clear();
        bytes.extend_from_slice(&ANSWER[..length]);
        head.parse(bytes, &LIMITS, self.exchange.request.method).expect("a valid response");
        self.out.clear();
        let edits = &self.service.routes[self.route].response_headers;
        let response = (&self.exchange, &self.answer);
        write_response(&mut self.out, response, &self.addresses, edits, true, || DATE);
        black_box(&self.out);
    }
}
