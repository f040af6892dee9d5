//! Limits for each client address: connections at a time, requests a second, least rates of bodies.
//!
//! What is known of addresses is one table of atomics that all shards share, so a limit is one figure and
//! not one for each shard. It has a fixed size: places of `WAYS` for addresses whose hash is alike, of
//! which the one that was quiet for longest makes room for a new address. An address with open connections
//! is never displaced; when there is no room, a new address goes unlimited and is counted.
//!
//! Error bounds: an address may get one connection too many for each other shard that accepts one of it at the
//! same moment as its place changes hands; two addresses share a limit when 64 bits of a keyed hash agree.

use std::cell::Cell;
use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use ipnet::IpNet;

use crate::counter::Counter;
use crate::l7::forwarded::is_trusted;
use crate::ring::timer::Millis;

/// Addresses of alike hash that have a place at the same time.
const WAYS: usize = 8;
const NANOS_PER_MS: u64 = 1_000_000;
const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// `[limits]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Connections an address may have open; 0: no limit.
    pub connections: u32,
    /// Requests a second; 0: no limit.
    pub request_rate: u32,
    /// Requests that may come at once.
    pub request_burst: u32,
    /// The status of refusals.
    pub status: u16,
    /// Least bytes a second of a request body, while it is waited for; 0: none.
    pub min_upload_rate: u64,
    /// Least bytes a second a client takes of a response, while it is waited for; 0: none.
    pub min_download_rate: u64,
    /// Waiting that these rates do not count, in milliseconds.
    pub rate_grace_ms: u64,
    /// Addresses without limits.
    pub exempt: Vec<IpNet>,
    /// Addresses the table has room for.
    pub table_size: usize,
}

/// What is known of one address.
#[derive(Debug, Default)]
struct Place {
    /// Hash of the address; 0: free.
    tag: AtomicU64,
    connections: AtomicU32,
    /// GCRA's theoretical arrival time: when the bucket is full again, in nanoseconds of the shards' clock.
    full_at: AtomicU64,
}

/// The limits and the table.
pub struct Clients {
    /// What is configured.
    pub settings: Settings,
    places: Box<[Place]>,
    hasher: RandomState,
}

impl fmt::Debug for Clients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clients").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// Equal when what is configured is; what is known of addresses is not compared.
impl PartialEq for Clients {
    fn eq(&self, other: &Self) -> bool {
        self.settings == other.settings
    }
}

/// An open connection in its address's count.
#[derive(Debug)]
pub struct Seat(Option<(Arc<Clients>, usize)>);

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some((clients, place)) = &self.0
            && let Some(place) = clients.places.get(*place)
        {
            place.connections.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// What was decided.
#[derive(Debug)]
pub enum Verdict<T> {
    /// Go on.
    Admitted(T),
    /// Too many.
    Refused,
    /// There is no room in the table: go on, without a limit.
    Untracked(T),
}

impl Clients {
    /// An empty table; `None` when nothing is limited.
    #[must_use]
    pub fn new(settings: Settings) -> Option<Self> {
        let limits = [u64::from(settings.connections), u64::from(settings.request_rate)];
        let rates = [settings.min_upload_rate, settings.min_download_rate];
        if limits.iter().chain(&rates).all(|limit| *limit == 0) {
            return None;
        }
        let tracks = limits.iter().any(|limit| *limit > 0);
        let sets = if tracks { settings.table_size.div_ceil(WAYS).next_power_of_two() } else { 1 };
        let places = (0..sets * WAYS).map(|_| Place::default()).collect();
        Some(Self { settings, places, hasher: RandomState::new() })
    }

    /// No limit applies to this address.
    #[must_use]
    pub fn is_exempt(&self, address: IpAddr) -> bool {
        !self.settings.exempt.is_empty() && is_trusted(address, &self.settings.exempt)
    }

    /// A connection of this address; its seat is to be kept for as long.
    #[must_use]
    pub fn connect(self_: &Arc<Self>, address: IpAddr, now: Millis) -> Verdict<Seat> {
        let max = self_.settings.connections;
        if max == 0 || self_.is_exempt(address) {
            return Verdict::Admitted(Seat(None));
        }
        // A place may change hands between finding and counting; the second try finds that out.
        for _ in 0..WAYS {
            let Some((index, tag)) = self_.find(address, now) else { break };
            let place = &self_.places[index];
            let before = place.connections.fetch_add(1, Ordering::AcqRel);
            let seat = Seat(Some((Arc::clone(self_), index)));
            if place.tag.load(Ordering::Acquire) != tag {
                continue; // the seat gives back what was counted for another
            }
            return if before < max { Verdict::Admitted(seat) } else { Verdict::Refused };
        }
        Verdict::Untracked(Seat(None))
    }

    /// A request of this address: a bucket of `request_burst` that fills at `request_rate` (GCRA).
    #[must_use]
    pub fn request(&self, address: IpAddr, now: Millis) -> Verdict<()> {
        let rate = u64::from(self.settings.request_rate);
        if rate == 0 || self.is_exempt(address) {
            return Verdict::Admitted(());
        }
        let Some((index, _)) = self.find(address, now) else { return Verdict::Untracked(()) };
        let full_at = &self.places[index].full_at;
        let step = NANOS_PER_SECOND / rate;
        let depth = step.saturating_mul(u64::from(self.settings.request_burst.max(1)));
        let now = now.saturating_mul(NANOS_PER_MS);
        let take = |full: u64| {
            let then = full.max(now).saturating_add(step);
            (then <= now.saturating_add(depth)).then_some(then)
        };
        match full_at.fetch_update(Ordering::AcqRel, Ordering::Acquire, take) {
            Ok(_) => Verdict::Admitted(()),
            Err(_) => Verdict::Refused,
        }
    }

    /// The address's place, made if need be, and its tag; `None` when all are taken by addresses with open
    /// connections or requests of late.
    fn find(&self, address: IpAddr, now: Millis) -> Option<(usize, u64)> {
        let hash = self.hasher.hash_one(unit(address));
        let tag = hash.max(1);
        let sets = self.places.len() / WAYS;
        let first = (usize::try_from(hash.rotate_left(32)).unwrap_or_default() & (sets - 1)) * WAYS;
        let set = &self.places[first..first + WAYS];
        if let Some(way) = set.iter().position(|place| place.tag.load(Ordering::Acquire) == tag) {
            return Some((first + way, tag));
        }
        let now = now.saturating_mul(NANOS_PER_MS);
        let idle = |place: &Place| {
            let full_at = place.full_at.load(Ordering::Relaxed);
            (place.connections.load(Ordering::Acquire) == 0 && full_at <= now).then_some(full_at)
        };
        let oldest = |(way, place): (usize, &Place)| Some((idle(place)?, way));
        let (_, way) = set.iter().enumerate().filter_map(oldest).min()?;
        let place = &set[way];
        let before = place.tag.load(Ordering::Acquire);
        // Another shard may be quicker, for the same address at best; the next request finds out.
        let won = place.tag.compare_exchange(before, tag, Ordering::AcqRel, Ordering::Acquire);
        won.is_ok().then_some((first + way, tag))
    }

    /// For a request body of a client; `None` when its rate is not limited.
    #[must_use]
    pub fn upload<'a>(&self, address: IpAddr, slow: &'a Counter) -> Option<Pace<'a>> {
        self.pace(self.settings.min_upload_rate, address, slow)
    }

    /// For a response to a client; `None` when its rate is not limited.
    #[must_use]
    pub fn download<'a>(&self, address: IpAddr, slow: &'a Counter) -> Option<Pace<'a>> {
        self.pace(self.settings.min_download_rate, address, slow)
    }

    fn pace<'a>(&self, least: u64, address: IpAddr, slow: &'a Counter) -> Option<Pace<'a>> {
        let grace_ms = self.settings.rate_grace_ms;
        (least > 0 && !self.is_exempt(address)).then(|| Pace {
            least,
            grace_ms,
            waited_ms: Cell::new(0),
            slow,
        })
    }
}

/// What counts as one client: an IPv4 address, or an IPv6 network of 64 bits, of which a client may have all
/// addresses.
fn unit(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4(v4),
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from(u128::from(v6) & (!0 << 64))),
    }
}

/// The least rate of one body. Only time in which the client is waited for counts: what the server or this
/// proxy takes is not the client's fault.
#[derive(Debug)]
pub struct Pace<'a> {
    least: u64,
    grace_ms: u64,
    waited_ms: Cell<u64>,
    slow: &'a Counter,
}

impl Pace<'_> {
    /// How long the client may still be waited for, having moved so many bytes, in milliseconds.
    #[must_use]
    pub fn left_ms(&self, moved: u64) -> u64 {
        let earned = moved.saturating_mul(1000) / self.least.max(1);
        self.grace_ms.saturating_add(earned).saturating_sub(self.waited_ms.get())
    }

    /// It was waited for.
    pub fn note(&self, waited_ms: u64) {
        self.waited_ms.set(self.waited_ms.get().saturating_add(waited_ms));
    }

    /// It was too slow, which is counted.
    pub fn give_up(&self) {
        self.slow.increment();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clients(change: impl FnOnce(&mut Settings)) -> Arc<Clients> {
        let mut settings = Settings {
            connections: 2,
            request_rate: 10,
            request_burst: 3,
            status: 429,
            min_upload_rate: 100,
            min_download_rate: 0,
            rate_grace_ms: 1000,
            exempt: vec!["10.0.0.0/8".parse().expect("a literal")],
            table_size: 64,
        };
        change(&mut settings);
        Arc::new(Clients::new(settings).expect("limits"))
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("a literal")
    }

    fn admits(clients: &Arc<Clients>, address: &str) -> Option<Seat> {
        match Clients::connect(clients, ip(address), 0) {
            Verdict::Admitted(seat) => Some(seat),
            _ => None,
        }
    }

    #[test]
    fn connections_are_counted_by_address_and_given_back() {
        let clients = clients(|_| {});
        let (one, two) = (admits(&clients, "192.0.2.1"), admits(&clients, "192.0.2.1"));
        assert!(one.is_some() && two.is_some());
        assert!(admits(&clients, "192.0.2.1").is_none());
        assert!(admits(&clients, "192.0.2.1").is_none(), "a refusal is not counted");
        assert!(admits(&clients, "::ffff:192.0.2.1").is_none(), "the same client");
        assert!(admits(&clients, "192.0.2.2").is_some());
        drop(one);
        assert!(admits(&clients, "192.0.2.1").is_some());
        let many: Vec<_> = (0..9).map(|_| admits(&clients, "10.1.1.1")).collect();
        assert!(many.iter().all(Option::is_some), "exempt");
    }

    #[test]
    fn an_ipv6_client_is_its_64_bits() {
        let clients = clients(|_| {});
        let held = (admits(&clients, "2001:db8::1"), admits(&clients, "2001:db8::2"));
        assert!(held.0.is_some() && held.1.is_some());
        assert!(admits(&clients, "2001:db8::3").is_none());
        assert!(admits(&clients, "2001:db8:0:1::3").is_some());
    }

    #[test]
    fn requests_fill_a_bucket_that_leaks() {
        let clients = clients(|_| {});
        let ask = |at| matches!(clients.request(ip("192.0.2.1"), at), Verdict::Admitted(()));
        assert_eq!([ask(0), ask(0), ask(0), ask(0)], [true, true, true, false]);
        assert_eq!([ask(99), ask(100), ask(101), ask(200)], [false, true, false, true]);
        assert_eq!([ask(9000), ask(9000), ask(9000), ask(9000)], [true, true, true, false]);
        assert!(matches!(clients.request(ip("192.0.2.9"), 9000), Verdict::Admitted(())));
        for _ in 0..99 {
            assert!(matches!(clients.request(ip("10.9.9.9"), 0), Verdict::Admitted(())));
        }
    }

    #[test]
    fn a_full_table_lets_new_addresses_pass_and_forgets_quiet_ones() {
        let clients = clients(|settings| settings.table_size = 1);
        let held: Vec<_> =
            (0..20).map(|n| Clients::connect(&clients, ip(&format!("192.0.2.{n}")), 0)).collect();
        let admitted = held.iter().filter(|one| matches!(one, Verdict::Admitted(_))).count();
        let untracked = held.iter().filter(|one| matches!(one, Verdict::Untracked(_))).count();
        assert_eq!((admitted, untracked), (WAYS, 20 - WAYS));
        drop(held);
        assert!(admits(&clients, "198.51.100.1").is_some(), "quiet ones make room");
        for n in 0..WAYS {
            let address = ip(&format!("203.0.113.{n}"));
            assert!(matches!(clients.request(address, 1), Verdict::Admitted(())));
        }
        let newcomer = ip("203.0.113.200");
        assert!(matches!(clients.request(newcomer, 1), Verdict::Untracked(())), "all are busy");
        assert!(matches!(clients.request(newcomer, 200), Verdict::Admitted(())));
    }

    #[test]
    fn slow_bodies_run_out_of_time() {
        let clients = clients(|_| {});
        let slow = Counter::default();
        assert!(clients.download(ip("192.0.2.1"), &slow).is_none());
        assert!(clients.upload(ip("10.0.0.1"), &slow).is_none());
        let pace = clients.upload(ip("192.0.2.1"), &slow).expect("limited");
        assert_eq!(pace.left_ms(0), 1000);
        pace.note(900);
        assert_eq!((pace.left_ms(0), pace.left_ms(50)), (100, 600));
        pace.note(900);
        assert_eq!((pace.left_ms(50), pace.left_ms(80)), (0, 0));
    }

    #[test]
    fn nothing_configured_is_nothing() {
        let settings = Settings {
            connections: 0,
            request_rate: 0,
            min_upload_rate: 0,
            ..clients(|_| {}).settings.clone()
        };
        assert!(Clients::new(settings).is_none());
    }

    #[test]
    fn threads_agree_on_one_limit() {
        let clients = clients(|settings| settings.connections = 100);
        let work = || {
            let clients = Arc::clone(&clients);
            std::thread::spawn(move || {
                (0..100).filter_map(|_| admits(&clients, "192.0.2.1")).collect::<Vec<_>>()
            })
        };
        let threads: Vec<_> = (0..4).map(|_| work()).collect();
        let seats: Vec<_> = threads.into_iter().map(|t| t.join().expect("no panic")).collect();
        assert_eq!(seats.iter().map(Vec::len).sum::<usize>(), 100);
    }
}
