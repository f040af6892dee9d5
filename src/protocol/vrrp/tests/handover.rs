//! Asking the active router to hand over, and being asked.

use super::*;

fn advert(priority: u8) -> Action {
    Action::Advertise { priority }
}

fn tell(news: HandOver, peer: u8) -> Action {
    Action::Tell { news, peer: address(peer) }
}

fn answer(accepted: bool) -> Action {
    Action::Answer { path: Path::PRIMARY, peer: address(60), accepted }
}

/// A backup of priority 100, not preempting, that hears router 60 of priority 200 and is preferred at 60 ms.
fn asking() -> VirtualRouter {
    let mut router = backup(Config { preempt: false, announce: silent(), ..Config::new(100) });
    hear(&mut router, 50, 200);
    let mut out = Vec::new();
    assert_eq!(router.prefer(at(60), &mut out), Ok(()));
    assert_eq!(out, [tell(HandOver::Asked, 60), Action::Ask]);
    assert_eq!(router.asking(), Some(false));
    assert_eq!(router.active_ways().collect::<Vec<_>>(), [(Path::PRIMARY, address(60))]);
    router
}

fn hear(router: &mut VirtualRouter, ms: u64, priority: u8) -> Vec<Action> {
    run(|out| router.on_advert(at(ms), &heard(ms, 60, priority), out))
}

fn accept(router: &mut VirtualRouter, ms: u64) -> Vec<Action> {
    run(|out| router.on_answer(at(ms), address(60), true, out))
}

/// Hears the active router every 100 ms until `ms`, and what that brings about besides.
fn watch(
    router: &mut VirtualRouter,
    from: u64,
    to: u64,
    mut each: impl FnMut(&mut VirtualRouter, u64),
) -> Vec<Action> {
    let mut out = Vec::new();
    for ms in (from..=to).step_by(10) {
        if ms % 100 == 50 && router.state() == State::Backup {
            out.extend(hear(router, ms, 200));
        }
        each(router, ms);
        router.on_timer(at(ms), &mut out);
    }
    out
}

fn claimed(reason: Reason, out: Vec<Action>) {
    let (actions, why) = split(out);
    assert_eq!(actions, [advert(254), Action::Claim, Action::Announce]);
    assert_eq!(why, Some(reason));
}

#[test]
fn an_active_router_that_resigns_after_accepting_is_followed_after_the_shortest_skew() {
    let mut router = asking();
    assert_eq!(accept(&mut router, 61), [tell(HandOver::Accepted, 60)]);
    assert_eq!(router.asking(), Some(true));
    assert_eq!(accept(&mut router, 62), [], "told once");
    // It is asked on, every 100 ms, and nothing is taken from it while it answers: for seconds.
    let out = watch(&mut router, 70, 4_000, |router, ms| {
        if ms % 100 == 0 {
            accept(router, ms);
        }
    });
    assert_eq!(out, vec![Action::Ask; 39]);
    hear(&mut router, 4_050, 0);
    assert_eq!(run(|out| router.on_timer(at(4_050), out)), []);
    let out = run(|out| router.on_timer(at(4_051), out)); // (256 - 254) / 256 of 100 ms
    claimed(Reason::Resigned { peer: address(60) }, out);
    assert_eq!(router.asking(), None);
    assert!(router.is_preferred());
}

#[test]
fn one_that_does_not_answer_is_preempted_after_three_requests() {
    let mut router = asking();
    let out = watch(&mut router, 70, 350, |_, _| ());
    assert_eq!(out, [Action::Ask, Action::Ask]);
    let mut out = run(|out| router.on_timer(at(360), out));
    assert_eq!(out.remove(0), tell(HandOver::Unanswered, 60));
    claimed(Reason::Preferred, out);
}

#[test]
fn one_that_refuses_is_preempted_at_once() {
    let mut router = asking();
    // Not the active router's word.
    assert_eq!(run(|out| router.on_answer(at(69), address(61), false, out)), []);
    let mut out = run(|out| router.on_answer(at(70), address(60), false, out));
    assert_eq!(out.remove(0), tell(HandOver::Refused, 60));
    claimed(Reason::Preferred, out);
    assert_eq!(run(|out| router.on_answer(at(71), address(60), false, out)), []);
}

#[test]
fn one_that_accepted_and_falls_silent_or_takes_for_ever_is_preempted() {
    let mut router = asking();
    accept(&mut router, 61);
    watch(&mut router, 70, 1_050, |_, _| ());
    let mut out = run(|out| router.on_timer(at(1_061), out));
    assert_eq!(out.remove(0), tell(HandOver::Overdue, 60));
    claimed(Reason::Preferred, out);

    let mut router = asking();
    let out = watch(&mut router, 70, 20_000, |router, ms| drop(accept(router, ms)));
    assert!(out.contains(&tell(HandOver::Overdue, 60)));
    assert_eq!(router.last_transition().at, at(15_060), "15 s after it was asked");
}

#[test]
fn an_active_router_that_dies_while_asked_is_followed_as_ever() {
    let mut router = asking();
    accept(&mut router, 61);
    let out = run(|out| {
        while router.state() == State::Backup {
            let deadline = router.deadline().unwrap();
            router.on_timer(deadline, out);
        }
    });
    assert!(!out.iter().any(|action| matches!(action, Action::Tell { .. })), "{out:?}");
    assert_eq!(router.last_transition().reason, Reason::Silence);
    let after = router.last_transition().at.since(at(50)).as_micros();
    assert!((300_781..=310_781).contains(&after), "{after}");
}

#[test]
fn release_and_resume_take_the_request_back() {
    for undo in [VirtualRouter::release, VirtualRouter::resume] {
        let mut router = asking();
        undo(&mut router, at(70), &mut Vec::new());
        assert_eq!(router.asking(), None);
        let out = watch(&mut router, 80, 2_000, |_, _| ());
        assert_eq!((out, router.state()), (vec![], State::Backup));
        assert_eq!(run(|out| router.on_answer(at(2_001), address(60), false, out)), []);
    }
}

#[test]
fn one_that_became_unbeatable_meanwhile_stays_active() {
    let mut router = asking();
    hear(&mut router, 100, 255);
    let out = run(|out| router.on_answer(at(101), address(60), false, out));
    assert_eq!(out, [tell(HandOver::Unbeaten, 60)]);
    assert_eq!((router.state(), router.is_preferred()), (State::Backup, false));
}

#[test]
fn a_router_that_is_preferred_itself_can_be_asked_but_not_always_preempted() {
    for (own, unbeaten) in [(50, true), (70, false)] {
        let mut router = backup(Config { announce: silent(), ..Config::new(100) });
        router.set_source(Path::PRIMARY, Some(address(own)));
        hear(&mut router, 50, 254);
        assert_eq!(router.prefer(at(60), &mut Vec::new()), Ok(()));
        let out = advance(&mut router, 339);
        assert_eq!(out, [Action::Ask, Action::Ask]);
        hear(&mut router, 340, 254);
        let out = advance(&mut router, 360);
        let news = if unbeaten { HandOver::Unbeaten } else { HandOver::Unanswered };
        assert_eq!(out[0], tell(news, 60));
        assert_eq!(router.state() == State::Backup, unbeaten);
        assert_eq!(router.is_preferred(), !unbeaten);
    }
    // One that heeds a request gives its preference up.
    let mut router = active(Config::new(100));
    router.prefer(at(400), &mut Vec::new()).unwrap();
    run(|out| router.on_asked(at(401), Path::PRIMARY, address(60), out));
    run(|out| assert!(router.hand_over(at(410), out)));
    assert_eq!((router.is_preferred(), router.priority()), (false, 100));
}

#[test]
fn an_active_router_finishes_and_offers_once() {
    let mut router = active(Config::new(200));
    let ask = |router: &mut VirtualRouter, ms| {
        run(|out| router.on_asked(at(ms), Path::PRIMARY, address(60), out))
    };
    let heeded = [Action::Finish { peer: address(60) }, tell(HandOver::Heeded, 60), answer(true)];
    assert_eq!(ask(&mut router, 401), heeded);
    assert_eq!(router.finishing_for(), Some(address(60)));
    assert_eq!(ask(&mut router, 402), [], "not more than a hundred answers a second");
    assert_eq!(ask(&mut router, 501), [answer(true)]);
    // It is active all the while.
    assert_eq!(advance(&mut router, 620), [advert(200); 2]);
    assert_eq!(run(|out| assert!(router.hand_over(at(630), out))), [advert(0)]);
    assert_eq!(ask(&mut router, 640), [answer(true)]);
    let out = run(|out| router.on_advert(at(650), &heard(650, 60, 254), out));
    let reason = Reason::HandedOver { peer: address(60) };
    assert_eq!(split(out), (vec![Action::Release], Some(reason)));
    assert_eq!((router.priority(), router.is_released()), (200, false), "it takes part as before");
    assert!(run(|out| assert!(!router.hand_over(at(660), out))).is_empty());
    assert_eq!(ask(&mut router, 670), [], "only the active router answers");
}

#[test]
fn offers_that_nobody_takes_up_are_not_repeated_for_a_while() {
    let mut router = active(Config::new(200));
    let ask = |router: &mut VirtualRouter, ms| {
        run(|out| router.on_asked(at(ms), Path::PRIMARY, address(60), out))
    };
    for (asked, offered) in [(401, 410), (1_010, 1_020)] {
        assert_eq!(
            ask(&mut router, asked).last(),
            Some(&answer(true)),
            "whoever asks again was late"
        );
        run(|out| assert!(router.hand_over(at(offered), out)));
        assert_eq!(advance(&mut router, offered + 590)[0], advert(200), "its own priority again");
    }
    assert_eq!(ask(&mut router, 1_620), [tell(HandOver::Declined, 60), answer(false)]);
    assert_eq!(ask(&mut router, 11_009), [tell(HandOver::Declined, 60), answer(false)]);
    assert_eq!(ask(&mut router, 11_020).last(), Some(&answer(true)));
    // Nor after one that could not be finished.
    router.cannot_finish();
    assert_eq!(ask(&mut router, 11_100).last(), Some(&answer(false)));
}

#[test]
fn an_offer_stands_half_a_second_and_as_long_again_as_its_router_did_not_run() {
    let fast = || Config { interval: Interval::from_centiseconds(1).unwrap(), ..Config::new(200) };
    let mut router = active(fast());
    run(|out| assert!(router.hand_over(at(1_000), out)));
    assert_eq!(advance(&mut router, 1_499), [], "fifty intervals");
    assert_eq!(advance(&mut router, 1_500), [advert(200)]);

    let mut router = active(fast());
    run(|out| assert!(router.hand_over(at(1_000), out)));
    // The machine stood still, and with it the peer.
    assert_eq!(run(|out| router.on_timer(at(3_000), out)), []);
    assert_eq!(advance(&mut router, 3_499), []);
    assert_eq!(advance(&mut router, 3_500), [advert(200)]);
}

/// Two routers at 10 ms, of which `stalled` ones (a bit each) do not run for `span` ms from `from` ms after the request; the active one
/// finishes what is under way in 40 ms. The reasons for which they changed, and what was told.
fn hand_over_beside_a_stall(stalled: usize, from: u64, span: u64) -> (Vec<Reason>, Vec<HandOver>) {
    let interval = Interval::from_centiseconds(1).unwrap();
    let config = |priority| Config { interval, announce: silent(), ..Config::new(priority) };
    let mut routers = [active(config(200)), backup(config(100))];
    let (begin, mut wires) = (1_000, [Vec::new(), Vec::new()]);
    let (mut reasons, mut told, mut finished) = (Vec::new(), Vec::new(), None);
    let heard = |ms, priority| Heard { interval, ..heard(ms, 60, priority) };
    routers[1].on_advert(at(400), &heard(400, 200), &mut Vec::new());
    for ms in 400..begin + 2_000 {
        for place in 0..2 {
            let (router, mut out) = (&mut routers[place], Vec::new());
            if stalled >> place & 1 == 1 && (begin + from..begin + from + span).contains(&ms) {
                continue;
            }
            for (at_ms, action) in std::mem::take(&mut wires[place]) {
                match action {
                    Action::Advertise { priority } => {
                        router.on_advert(at(ms), &heard(at_ms, priority), &mut out);
                    }
                    Action::Ask => router.on_asked(at(ms), Path::PRIMARY, address(60), &mut out),
                    Action::Answer { accepted, .. } => {
                        router.on_answer(at(ms), address(60), accepted, &mut out);
                    }
                    _ => {}
                }
            }
            if place == 1 && ms == begin {
                router.prefer(at(ms), &mut out).unwrap();
            }
            if place == 0 && finished.is_some_and(|due| ms >= due) {
                finished = None;
                router.hand_over(at(ms), &mut out);
            }
            router.on_timer(at(ms), &mut out);
            for action in out {
                match action {
                    Action::Transition(transition) => reasons.push(transition.reason),
                    Action::Tell { news, .. } => told.push(news),
                    Action::Finish { .. } => finished = Some(ms + 40),
                    action => wires[1 - place].push((ms, action)),
                }
            }
        }
    }
    (reasons, told)
}

#[test]
fn a_hand_over_at_10_ms_survives_a_peer_or_a_machine_that_stands_still() {
    let peer = address(60);
    let wanted = [Reason::Resigned { peer }, Reason::HandedOver { peer }];
    // Told again: the second time, to one that was away for as long as an offer stands.
    let news = [HandOver::Asked, HandOver::Heeded, HandOver::Accepted, HandOver::Heeded];
    // From 43 ms on the new router is active, and its absence a failure.
    let spans = [20, 60, 150, 364, 480, 900];
    for (from, span) in (1..=42).flat_map(|from| spans.map(|span| (from, span))) {
        for stalled in [0b10, 0b11] {
            let (mut reasons, told) = hand_over_beside_a_stall(stalled, from, span);
            // Its timer had run out while it was away: that is the reason then, though the resignation came too.
            if reasons[0] == Reason::Silence {
                reasons[0] = wanted[0];
            }
            let case = format!("{stalled:b}: {span} ms after {from}: {told:?}");
            assert_eq!(reasons, wanted, "{case}");
            assert!(news.starts_with(&told), "{case}");
        }
    }
}

#[test]
fn owners_and_those_that_are_not_active_do_not_hand_over() {
    let mut owner = router(Config::new(255));
    owner.startup(at(0), &mut Vec::new());
    let out = run(|out| owner.on_asked(at(10), Path::PRIMARY, address(60), out));
    assert_eq!(out, [tell(HandOver::Declined, 60), answer(false)]);
    assert!(run(|out| assert!(!owner.hand_over(at(20), out))).is_empty());
    let mut backup = backup(Config::new(100));
    assert_eq!(run(|out| backup.on_asked(at(10), Path::PRIMARY, address(60), out)), []);
    assert!(run(|out| assert!(!backup.hand_over(at(20), out))).is_empty());
}
