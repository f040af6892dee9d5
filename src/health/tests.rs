//! The prober against real sockets.

use std::net::TcpListener;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use super::check::Kind;
use super::*;

type Told = (String, bool, bool);

/// Where verdicts go: a channel, and the name of the target.
struct Note(&'static str, Mutex<Sender<Told>>);

impl Sink for Note {
    fn set(&self, up: bool, change: bool) {
        let _ = self.1.lock().expect("no panic").send((self.0.to_owned(), up, change));
    }
}

struct Bench {
    prober: Prober,
    told: Receiver<Told>,
    sender: Sender<Told>,
    events: Receiver<Event>,
}

impl Bench {
    fn new() -> Self {
        let (sender, told) = channel();
        let (tell, events) = channel();
        let tell = Arc::new(move |event| tell.send(event).is_ok());
        Self { prober: Prober::start(64, tell).expect("a prober"), told, sender, events }
    }

    fn target(&self, name: &'static str, address: SocketAddr, check: &Check) -> Target {
        Target {
            group: "g".into(),
            server: name.into(),
            address,
            name: None,
            check: Arc::new(check.clone()),
            tls: None,
            sink: Arc::new(Note(name, Mutex::new(self.sender.clone()))),
            before: None,
        }
    }

    fn next(&self) -> Told {
        self.told.recv_timeout(Duration::from_secs(10)).expect("a verdict")
    }
}

fn check() -> Check {
    Check {
        kind: Kind::Tcp,
        interval: Duration::from_millis(20),
        retry_interval: None,
        jitter: 10,
        timeout: Duration::from_secs(5),
        rise: 2,
        fall: 3,
        warm_up: Duration::ZERO,
        start_down: false,
        port: None,
        address: None,
    }
}

fn told(name: &str, up: bool, change: bool) -> Told {
    (name.to_owned(), up, change)
}

fn await_that(what: &str, mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < Duration::from_secs(10), "{what}");
        thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn equal_targets_are_one_probe_and_keep_their_state() {
    let bench = Bench::new();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    bench.prober.set_targets(
        Layer::Proxy,
        vec![bench.target("a", address, &check()), bench.target("b", address, &check())],
    );
    assert_eq!([bench.next(), bench.next()], [told("a", true, false), told("b", true, false)]);
    await_that("the round", || bench.prober.is_first_round_over());
    assert_eq!(bench.prober.counts().probes, 1);
    drop(listener);
    assert_eq!([bench.next(), bench.next()], [told("a", false, true), told("b", false, true)]);
    // Another list with the same endpoint, and a new one: the first hears what is known, at once.
    let other = TcpListener::bind("127.0.0.1:0").expect("a port");
    let slower = Check { fall: 2, ..check() };
    bench.prober.set_targets(
        Layer::Proxy,
        vec![
            bench.target("c", address, &check()),
            bench.target("d", other.local_addr().expect("bound"), &slower),
        ],
    );
    assert_eq!([bench.next(), bench.next()], [told("c", false, false), told("d", true, false)]);
    let rows = bench.prober.rows(Layer::Proxy);
    let seen: Vec<_> = rows.iter().map(|row| (row.server.as_str(), row.up, row.changes)).collect();
    assert_eq!(seen, [("c", Some(false), 1), ("d", Some(true), 0)]);
    assert!(rows[0].why.to_lowercase().contains("refused") && rows[0].failures >= 3);
    let events: Vec<Event> = bench.events.try_iter().collect();
    let down = |event: &Event| matches!(event, Event::Verdict { up: false, .. });
    assert!(events.len() == 2 && events.iter().all(down), "{events:?}");
    bench.prober.set_targets(Layer::Proxy, Vec::new());
    await_that("nothing is probed", || bench.prober.counts().probes == 0);
    assert!(bench.prober.rows(Layer::Proxy).is_empty() && bench.prober.is_first_round_over());
}

#[test]
fn layers_share_probes_and_not_lists() {
    let bench = Bench::new();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    bench.prober.set_targets(Layer::Proxy, vec![bench.target("server", address, &check())]);
    assert_eq!(bench.next(), told("server", true, false));
    let real = || vec![bench.target("real", address, &check())];
    bench.prober.set_targets(Layer::Director, real());
    assert_eq!(bench.next(), told("real", true, false), "known already");
    await_that("the lists", || bench.prober.is_first_round_over());
    assert_eq!(bench.prober.counts().probes, 1);
    let names = |layer| -> Vec<String> {
        bench.prober.rows(layer).into_iter().map(|row| row.server).collect()
    };
    assert_eq!(
        (names(Layer::Proxy), names(Layer::Director)),
        (vec!["server".into()], vec!["real".into()])
    );
    let first = &bench.prober.rows(Layer::Director)[0];
    assert!(first.up == Some(true) && first.successes >= 1, "{first:?}");
    // What one layer lets go of, the other still has.
    bench.prober.set_targets(Layer::Proxy, Vec::new());
    await_that("the list", || names(Layer::Proxy).is_empty());
    assert_eq!((names(Layer::Director).len(), bench.prober.counts().probes), (1, 1));
    drop(listener);
    assert_eq!(bench.next(), told("real", false, true));
    let event = bench.events.recv_timeout(Duration::from_secs(10)).expect("an event");
    assert!(matches!(event, Event::Verdict { layer: Layer::Director, up: false, .. }), "{event:?}");
    bench.prober.set_targets(Layer::Director, Vec::new());
    await_that("nothing is probed", || bench.prober.counts().probes == 0);
}

#[test]
fn no_command_outlives_the_prober() {
    let directory = std::env::temp_dir().join(format!("ringgate-health-{}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("a directory");
    let pids = directory.join("pids");
    let text = format!("sleep 1000 & echo $$ $! > {}; wait", pids.display());
    let command = ["/bin/sh", "-c", &text].map(str::to_owned).to_vec();
    let kind = Kind::Exec(check::Exec { command, user: None });
    let hanging = Check { kind, timeout: Duration::from_secs(3600), ..check() };
    let bench = Bench::new();
    let address = SocketAddr::from(([127, 0, 0, 1], 1));
    bench.prober.set_targets(Layer::Director, vec![bench.target("x", address, &hanging)]);
    let mut started = Vec::new();
    await_that("the command", || {
        let text = std::fs::read_to_string(&pids).unwrap_or_default();
        started = text.split_whitespace().map(str::to_owned).collect();
        text.ends_with('\n')
    });
    assert_eq!(started.len(), 2);
    bench.prober.finish();
    for pid in started {
        await_that("the end of the command and its child", || !lives(&pid));
    }
    std::fs::remove_dir_all(directory).expect("ours");
}

/// And is no zombie that somebody else has to fetch.
fn lives(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

#[test]
fn alpha_is_down_before_the_first_result_and_warm_up_delays_no_start() {
    let bench = Bench::new();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    let late = Check { warm_up: Duration::from_secs(3600), start_down: true, ..check() };
    bench.prober.set_targets(Layer::Proxy, vec![bench.target("late", address, &late)]);
    assert_eq!(bench.next(), told("late", false, false));
    await_that("no round to wait for", || bench.prober.is_first_round_over());
    assert_eq!(bench.prober.rows(Layer::Proxy)[0].up, None);
    let now = Check { start_down: true, ..check() };
    bench.prober.set_targets(Layer::Proxy, vec![bench.target("now", address, &now)]);
    assert_eq!([bench.next(), bench.next()], [told("now", false, false), told("now", true, false)]);
}

#[test]
fn what_another_prober_knew_holds_until_rise_and_fall_say_otherwise() {
    let bench = Bench::new();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    let slow = Check { interval: Duration::from_secs(3600), ..check() };
    let before = |up, row| {
        let (why, since) = ("as it was".to_owned(), Duration::from_secs(90));
        Some(Verdict { up, why, since, row })
    };
    let down = Target { before: before(false, 1), ..bench.target("down", address, &slow) };
    bench.prober.set_targets(Layer::Proxy, vec![down]);
    assert_eq!(bench.next(), told("down", false, false));
    await_that("there is no first round", || bench.prober.is_first_round_over());
    let row = &bench.prober.rows(Layer::Proxy)[0];
    assert_eq!((row.up, row.why.as_str(), row.pending), (Some(false), "as it was", 1));
    assert!(row.since >= Duration::from_secs(90) && row.successes == 0);
    // All but one success were there already: the next one brings it back, as a change.
    let strict = Check { rise: 1_000_000, ..check() };
    let down = Target { before: before(false, 999_999), ..bench.target("back", address, &strict) };
    bench.prober.set_targets(Layer::Proxy, vec![down]);
    assert_eq!(
        [bench.next(), bench.next()],
        [told("back", false, false), told("back", true, true)]
    );
}

#[test]
fn more_than_fit_take_turns() {
    let (tell, _events) = channel();
    let tell = Arc::new(move |event| tell.send(event).is_ok());
    let prober = Prober::start(2, tell).expect("a prober");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("bound").port();
    let (sender, told) = channel();
    let target = |last: u8| Target {
        group: "g".into(),
        server: last.to_string(),
        address: SocketAddr::from(([127, 0, 0, 1], port)),
        name: Some(format!("n{last}")),
        check: Arc::new(check()),
        tls: None,
        sink: Arc::new(Note("x", Mutex::new(sender.clone()))),
        before: None,
    };
    prober.set_targets(Layer::Proxy, (1..=50).map(target).collect());
    for _ in 0..50 {
        assert_eq!(told.recv_timeout(Duration::from_secs(10)), Ok(self::told("x", true, false)));
    }
    assert!(prober.counts().running <= 2 && prober.counts().probes == 50);
}
