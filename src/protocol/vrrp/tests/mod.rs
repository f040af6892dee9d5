mod codec;
mod extensions;
mod group;
mod handover;
mod observe;
mod rfc;
mod sim;

use std::net::IpAddr;
use std::time::Duration;

use super::*;

const MS: Duration = Duration::from_millis(1);

/// A point `ms` milliseconds after the start of a test.
fn at(ms: u64) -> Moment {
    Moment::from_nanos(1_000_000_000).after(MS * u32::try_from(ms).unwrap())
}

fn address(last: u8) -> IpAddr {
    [192, 0, 2, last].into()
}

/// Address 50 on the primary path, 100 ms intervals.
fn router(config: Config) -> VirtualRouter {
    let mut router = VirtualRouter::new(config);
    router.set_source(Path::PRIMARY, Some(address(50)));
    router
}

fn heard(ms: u64, from: u8, priority: u8) -> Heard {
    Heard {
        path: Path::PRIMARY,
        source: address(from),
        at: at(ms),
        priority,
        interval: Interval::TENTH,
    }
}

fn run(input: impl FnOnce(&mut Vec<Action>)) -> Vec<Action> {
    let mut out = Vec::new();
    input(&mut out);
    out
}

/// The actions but for the transition, and why the state changed if it did.
fn split(actions: Vec<Action>) -> (Vec<Action>, Option<Reason>) {
    let mut reason = None;
    let rest = actions
        .into_iter()
        .filter(|action| match action {
            Action::Transition(transition) => {
                assert!(reason.replace(transition.reason).is_none(), "two transitions");
                false
            }
            _ => true,
        })
        .collect();
    (rest, reason)
}

/// Advances a router that hears nothing, waking it at each of its deadlines, until `ms`.
fn advance(router: &mut VirtualRouter, ms: u64) -> Vec<Action> {
    let mut out = Vec::new();
    while let Some(deadline) = router.deadline().filter(|deadline| *deadline <= at(ms)) {
        router.on_timer(deadline, &mut out);
    }
    out
}

/// A router started at 0 that has become active, past its announcements: the next advertisement is
/// due at the given time.
fn active(config: Config) -> VirtualRouter {
    let mut router = router(Config { announce: silent(), ..config });
    router.startup(at(0), &mut Vec::new());
    advance(&mut router, 400);
    assert_eq!(router.state(), State::Active);
    router
}

fn backup(config: Config) -> VirtualRouter {
    let mut router = router(config);
    router.startup(at(0), &mut Vec::new());
    assert_eq!(router.state(), State::Backup);
    router
}

/// One round at the claim and no more, so that deadlines are those of VRRP.
fn silent() -> Announce {
    Announce {
        rounds: 1,
        repeat_after: None,
        refresh: None,
        provoked_gap: Duration::ZERO,
        ..Announce::default()
    }
}
