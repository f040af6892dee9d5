//! What the state machine does beyond the RFCs.

use super::*;

fn advert(priority: u8) -> Action {
    Action::Advertise { priority }
}

fn nopreempt(priority: u8) -> Config {
    Config { preempt: false, ..Config::new(priority) }
}

fn hear(router: &mut VirtualRouter, heard: Heard) -> Vec<Action> {
    run(|out| router.on_advert(heard.at, &heard, out))
}

/// Microseconds after the start at which a router that hears nothing more claims.
fn claims_at(router: &VirtualRouter) -> u128 {
    let mut router = router.clone();
    while router.state() == State::Backup {
        let deadline = router.deadline().unwrap();
        router.on_timer(deadline, &mut Vec::new());
    }
    assert_eq!(router.state(), State::Active);
    router.last_transition().at.since(at(0)).as_micros()
}

#[test]
fn preempt_delay_runs_from_the_first_inferior_advert() {
    let mut router = backup(Config { preempt_delay: MS * 500, ..Config::new(100) });
    for ms in (100..=500).step_by(100) {
        hear(&mut router, heard(ms, 60, 50));
        assert_eq!(claims_at(&router), u128::from(ms) * 1000 + 360_937);
    }
    // From 600 ms on they are discarded, and the timer set at 500 ms runs out.
    for ms in (600..=800).step_by(100) {
        hear(&mut router, heard(ms, 60, 50));
    }
    assert_eq!(claims_at(&router), 860_937);
    // A superior router in between makes the delay start again.
    hear(&mut router, heard(850, 61, 120));
    hear(&mut router, heard(900, 60, 50));
    assert_eq!(claims_at(&router), 900_000 + 360_937);
    // Silence is not preemption: no delay.
    let mut router = backup(Config { preempt_delay: MS * 500, ..Config::new(100) });
    hear(&mut router, heard(10, 60, 200));
    assert_eq!(claims_at(&router), 370_937);
}

#[test]
fn start_hint_shortens_the_first_wait() {
    let router = backup(Config { start_active: true, ..Config::new(100) });
    assert_eq!(claims_at(&router), 160_937);
}

#[test]
fn down_adverts_replace_the_three() {
    let router = backup(Config { down_adverts: 5, ..Config::new(100) });
    assert_eq!(claims_at(&router), 560_937);
}

#[test]
fn ten_millisecond_intervals() {
    let interval = Interval::from_centiseconds(1).unwrap();
    let mut router = backup(Config { interval, announce: silent(), ..Config::new(200) });
    assert_eq!(claims_at(&router), 32_187);
    let sent = advance(&mut router, 132)
        .into_iter()
        .filter(|action| matches!(action, Action::Advertise { .. }))
        .count();
    assert_eq!(sent, 10, "at 32, 42 ... 122 ms");
}

#[test]
fn adverts_keep_their_pace_when_woken_a_little_late() {
    let mut router = active(Config::new(100));
    let due = router.deadline().unwrap();
    let out = run(|out| router.on_timer(due.after(MS * 7), out));
    assert_eq!(out, [advert(100)]);
    assert_eq!(router.deadline(), Some(due.after(MS * 100)));
    // Later than a whole interval, the missed ones are not sent after it.
    let now = due.after(MS * 250);
    assert_eq!(run(|out| router.on_timer(now, out)), [advert(100)]);
    assert_eq!(router.deadline(), Some(now.after(MS * 100)));
}

#[test]
fn a_late_timer_listens_before_it_claims() {
    let mut router = backup(nopreempt(100));
    hear(&mut router, heard(10, 60, 200));
    // Stalled as a whole machine from 110 ms on: nothing was received meanwhile.
    let out = run(|out| router.on_timer(at(110), out));
    assert_eq!(out, []);
    assert_eq!(run(|out| router.on_timer(at(600), out)), []);
    assert_eq!((router.state(), router.late_wakeups()), (State::Backup, 1));
    assert_eq!(claims_at(&router), 600_000 + 260_937);
    hear(&mut router, heard(690, 60, 200));
    assert_eq!(claims_at(&router), 690_000 + 360_937);
}

#[test]
fn a_stall_before_the_timer_counts_as_well() {
    let mut router = backup(nopreempt(100));
    hear(&mut router, heard(10, 60, 200));
    // Awake again 10 ms before the timer (370 ms) would fire.
    assert_eq!(run(|out| router.on_timer(at(360), out)), []);
    assert_eq!(claims_at(&router), 360_000 + 260_937);
}

#[test]
fn always_late_is_no_excuse_for_ever() {
    let mut router = backup(nopreempt(100));
    let mut ms = 0;
    while router.state() == State::Backup {
        ms += 290;
        assert!(ms < 3_000);
        router.on_timer(at(ms), &mut Vec::new());
    }
    // Four times it listened.
    assert_eq!((ms, router.late_wakeups()), (290 * 5, 4));
}

#[test]
fn adverts_that_waited_in_the_socket_count_from_their_arrival() {
    let mut router = backup(nopreempt(100));
    // The process did not run for a second; the kernel received all the while.
    for ms in (100..=900).step_by(100) {
        run(|out| router.on_advert(at(1_000), &heard(ms, 60, 200), out));
    }
    assert_eq!(run(|out| router.on_timer(at(1_000), out)), []);
    assert_eq!(claims_at(&router), 900_000 + 360_937);
    // A copy over another path with an older time does not take anything back.
    let copy = Heard { path: Path(1), ..heard(850, 60, 200) };
    run(|out| router.on_advert(at(1_010), &copy, out));
    assert_eq!(claims_at(&router), 900_000 + 360_937);
}

#[test]
fn only_the_active_router_can_resign() {
    let mut router = backup(Config::new(100));
    hear(&mut router, heard(50, 60, 200));
    hear(&mut router, heard(60, 61, 0));
    assert_eq!(claims_at(&router), 50_000 + 360_937);
    hear(&mut router, heard(70, 60, 0));
    assert_eq!(claims_at(&router), 70_000 + 60_937);
    // A second copy does not put it off.
    hear(&mut router, heard(90, 60, 0));
    assert_eq!(claims_at(&router), 70_000 + 60_937);
    let out = advance(&mut router, 131);
    assert_eq!(split(out).1, Some(Reason::Resigned { peer: address(60) }));
}

#[test]
fn tracking_moves_the_priority_between_1_and_254() {
    let mut router = active(Config::new(100));
    let out = run(|out| router.set_priority(at(400), 80, out));
    assert_eq!(out, [advert(80)], "peers shall know at once");
    assert_eq!(run(|out| router.set_priority(at(401), 80, out)), []);
    for (wanted, effective) in [(0, 1), (255, 254), (1, 1)] {
        router.set_priority(at(402), wanted, &mut Vec::new());
        assert_eq!(router.priority(), effective);
    }
    let mut router = backup(Config::new(100));
    hear(&mut router, heard(50, 60, 200));
    assert_eq!(run(|out| router.set_priority(at(60), 228, out)), []);
    assert_eq!(claims_at(&router), 50_000 + 310_937);
    // A hastened timer stays what it is.
    hear(&mut router, heard(70, 60, 0));
    router.set_priority(at(71), 50, &mut Vec::new());
    assert_eq!(claims_at(&router), 70_000 + 10_937);
}

#[test]
fn the_owner_is_not_tracked_but_leaves_when_unhealthy() {
    let mut router = router(Config { announce: silent(), ..Config::new(255) });
    router.startup(at(0), &mut Vec::new());
    router.set_priority(at(1), 10, &mut Vec::new());
    assert_eq!(router.priority(), 255);
    let out = run(|out| router.set_healthy(at(2), false, out));
    let expected = (vec![advert(0), Action::Release], Some(Reason::Unhealthy));
    assert_eq!(split(out), expected);
    let out = run(|out| router.set_healthy(at(3), true, out));
    let claimed = vec![advert(255), Action::Claim, Action::Announce];
    assert_eq!(split(out), (claimed, Some(Reason::Owner)));
}

#[test]
fn an_unhealthy_router_leaves_whatever_preempt_says() {
    for config in [Config::new(100), nopreempt(100)] {
        let mut router = active(config);
        let out = run(|out| router.set_healthy(at(400), false, out));
        assert_eq!(split(out), (vec![advert(0), Action::Release], Some(Reason::Unhealthy)));
        assert_eq!((router.state(), router.deadline()), (State::Initialize, None));
        assert_eq!(run(|out| router.set_healthy(at(401), false, out)), []);
        let out = run(|out| router.set_healthy(at(500), true, out));
        assert_eq!(split(out), (vec![], Some(Reason::Recovered)));
        assert_eq!(claims_at(&router), 500_000 + 360_937);
    }
    let mut router = backup(Config::new(100));
    let out = run(|out| router.set_healthy(at(10), false, out));
    assert_eq!(split(out), (vec![], Some(Reason::Unhealthy)));
    // Healthy or not, a stopped router stays stopped.
    router.shutdown(at(20), &mut Vec::new());
    assert_eq!(run(|out| router.set_healthy(at(30), true, out)), []);
    assert_eq!(router.state(), State::Initialize);
}

#[test]
fn the_last_man_serves_on_and_yields_to_anyone() {
    let config = Config { last_man: true, ..Config::new(100) };
    let mut router = active(config.clone());
    let out = run(|out| router.set_healthy(at(400), false, out));
    assert_eq!(out, [advert(0)], "offers, and keeps the addresses");
    assert!(router.is_listening());
    // Four intervals and the skew of priority 1 later nobody has taken over.
    assert_eq!(advance(&mut router, 899), []);
    assert_eq!(advance(&mut router, 900), [advert(LAST_RESORT)]);
    assert_eq!(router.state(), State::Active);
    let out = run(|out| router.set_healthy(at(950), true, out));
    assert_eq!(out, [advert(100)]);

    let mut router = active(config.clone());
    router.set_healthy(at(400), false, &mut Vec::new());
    let out = hear(&mut router, heard(450, 40, 1));
    let reason = Reason::HandedOver { peer: address(40) };
    assert_eq!(split(out), (vec![Action::Release], Some(reason)));
    // And back, if that one goes too.
    assert_eq!(claims_at(&router), 450_000 + 399_609);

    let mut router = backup(config);
    assert_eq!(run(|out| router.set_healthy(at(10), false, out)), []);
    assert_eq!((router.state(), router.priority()), (State::Backup, LAST_RESORT));
}

#[test]
fn a_last_resort_is_relieved_at_once_even_without_preempt() {
    let mut router = backup(Config { preempt_delay: MS * 900, ..nopreempt(100) });
    hear(&mut router, heard(50, 60, 200));
    hear(&mut router, heard(100, 60, 1));
    assert_eq!(claims_at(&router), 100_000 + 60_937);
    hear(&mut router, heard(150, 60, 1));
    assert_eq!(claims_at(&router), 100_000 + 60_937);
    let reason = Reason::Inferior { peer: address(60), priority: 1 };
    assert_eq!(split(advance(&mut router, 161)).1, Some(reason));
    // Equals do not.
    let mut equal = backup(nopreempt(1));
    hear(&mut equal, heard(50, 60, 1));
    assert_eq!(claims_at(&equal), 50_000 + 399_609);
}

#[test]
fn release_holds_the_addresses_until_a_peer_is_active() {
    let mut router = active(Config::new(200));
    let before = router.deadline();
    assert!(before.is_some());
    assert_eq!(run(|out| router.release(at(400), out)), [advert(0)]);
    assert_eq!(run(|out| router.release(at(401), out)), []);
    // Another router's resignation is none of its business now.
    assert_eq!(hear(&mut router, heard(410, 61, 0)), []);
    let out = hear(&mut router, heard(420, 40, 100));
    let reason = Reason::HandedOver { peer: address(40) };
    assert_eq!(split(out), (vec![Action::Release], Some(reason)));
    // It does not take them back while released, not even by preempting.
    assert_eq!(router.priority(), LAST_RESORT);
    hear(&mut router, heard(520, 40, 100));
    assert_eq!(claims_at(&router), 520_000 + 399_609);
    router.resume(at(530), &mut Vec::new());
    assert!(!router.is_released());
    hear(&mut router, heard(620, 40, 100));
    assert_eq!(claims_at(&router), 520_000 + 321_875);
}

#[test]
fn release_without_a_successor_goes_on() {
    let mut router = active(Config::new(200));
    router.release(at(400), &mut Vec::new());
    assert_eq!(advance(&mut router, 900), [advert(LAST_RESORT)]);
    assert_eq!(run(|out| router.resume(at(901), out)), [advert(200)]);
    assert_eq!(router.state(), State::Active);
}

#[test]
fn prefer_claims_at_once_where_nobody_is_active() {
    let mut router = backup(nopreempt(100));
    let mut out = Vec::new();
    assert_eq!(router.prefer(at(60), &mut out), Ok(()));
    let (actions, reason) = split(out);
    assert_eq!(actions, [advert(254), Action::Claim, Action::Announce]);
    assert_eq!(reason, Some(Reason::Preferred));
    assert!(router.is_preferred());
    assert_eq!(run(|out| router.resume(at(70), out)), [advert(100)]);

    let mut out = Vec::new();
    let mut stopped = super::router(Config::new(100));
    assert_eq!(stopped.prefer(at(0), &mut out), Err(NotPreferred::Unfit));
    for (from, priority, outcome) in [
        (60, 255, Err(NotPreferred::Outranked)),
        (60, 254, Ok(())),
        (40, 254, Ok(())),
        (60, 253, Ok(())),
    ] {
        let mut router = backup(Config::new(100));
        hear(&mut router, heard(50, from, priority));
        assert_eq!(router.prefer(at(60), &mut Vec::new()), outcome);
        assert_eq!(router.asking(), outcome.is_ok().then_some(false));
        assert_eq!(router.is_preferred(), outcome.is_ok());
    }
    // After a hand-over it is the way back.
    let mut router = active(Config::new(100));
    router.release(at(400), &mut Vec::new());
    assert_eq!(run(|out| assert_eq!(router.prefer(at(410), out), Ok(()))), [advert(254)]);
    assert!(!router.is_listening());
}

#[test]
fn a_second_path_keeps_a_backup_quiet() {
    let mut router = backup(Config::new(100));
    for ms in (50..=1_050).step_by(100) {
        let over_second = Heard { path: Path(1), ..heard(ms, 9, 200) };
        hear(&mut router, over_second);
        assert_eq!(claims_at(&router), u128::from(ms) * 1000 + 360_937);
    }
    assert_eq!(router.active_peer(), Some((address(9), 200)));
}

#[test]
fn a_tie_is_decided_on_the_primary_path_while_that_works() {
    // Addresses compare the other way round on the second path.
    let second = |ms| Heard { path: Path(1), ..heard(ms, 9, 100) };
    let mut router = active(Config::new(100));
    router.set_source(Path(1), Some(address(5)));
    hear(&mut router, heard(430, 40, 100));
    assert_eq!(router.state(), State::Active, "lower on the primary path");
    hear(&mut router, second(431));
    assert_eq!(router.state(), State::Active, "the primary path has decided");
    // Nothing on the primary path for longer than a backup would wait.
    advance(&mut router, 850);
    hear(&mut router, second(850));
    assert_eq!(router.state(), State::Backup);
    // Without an own address on a path it decides nothing.
    let mut router = active(Config::new(100));
    hear(&mut router, second(430));
    assert_eq!(router.state(), State::Active);
    // Priority needs no address.
    hear(&mut router, Heard { path: Path(200), ..heard(440, 9, 101) });
    assert_eq!(router.state(), State::Backup);
}

#[test]
fn who_stalled_and_does_not_preempt_yields_to_its_successor() {
    let was_away = |router: &mut VirtualRouter, now: u64, ms: u64| {
        let out = run(|out| router.on_advert(at(now), &heard(ms, 60, 50), out));
        let reason = Reason::WasAway { peer: address(60) };
        assert_eq!(split(out), (vec![Action::Release], Some(reason)));
    };
    // Its advert is in the socket.
    let mut router = active(nopreempt(100));
    was_away(&mut router, 1_000, 950);
    // Or comes while it listens; it keeps the addresses meanwhile.
    let mut router = active(nopreempt(100));
    assert_eq!(run(|out| router.on_timer(at(1_000), out)), []);
    assert!(router.is_listening());
    was_away(&mut router, 1_090, 1_090);
    // Nobody there: it goes on without having let go.
    let mut router = active(nopreempt(100));
    router.on_timer(at(1_000), &mut Vec::new());
    assert_eq!(advance(&mut router, 1_200), [advert(100)]);
    // Who preempts asserts at once.
    let mut router = active(Config::new(100));
    assert_eq!(run(|out| router.on_timer(at(1_000), out)), [advert(100)]);
    // A short stall is nothing.
    let mut router = active(nopreempt(100));
    assert_eq!(run(|out| router.on_timer(at(600), out)), [advert(100)]);
}

#[test]
fn announcements() {
    let config = Config { announce: Announce::default(), ..Config::new(100) };
    let mut router = backup(config);
    let mut times = Vec::new();
    while router.deadline().is_some_and(|deadline| deadline <= at(130_000)) {
        let deadline = router.deadline().unwrap();
        let out = run(|out| router.on_timer(deadline, out));
        if out.contains(&Action::Announce) {
            times.push(deadline.since(at(0)).as_millis());
        }
    }
    let expected = [360, 380, 400, 420, 440, 5_360, 5_380, 5_400, 5_420, 5_440, 65_440, 125_440];
    assert_eq!(times, expected);
}

#[test]
fn foreign_claims_are_answered_and_the_last_word_is_ours() {
    let announce = Announce { provoked_gap: MS * 100, ..silent() };
    let mut router = active(Config::new(100));
    router.reconfigure(at(400), Config { announce, ..Config::new(100) }, &mut Vec::new());
    let mut claim = |ms| run(|out| router.on_foreign_claim(at(ms), out));
    assert_eq!(claim(500), [Action::Announce]);
    assert_eq!(claim(510), []);
    assert_eq!(claim(520), []);
    let out = advance(&mut router, 600);
    assert_eq!(out.iter().filter(|action| **action == Action::Announce).count(), 1);
    let mut backup = backup(Config::new(100));
    assert_eq!(run(|out| backup.on_foreign_claim(at(10), out)), []);
}

#[test]
fn a_flood_of_inferior_adverts_is_not_answered_one_by_one() {
    let mut router = active(Config::new(100));
    let mut sent = 0;
    for micros in 0..1_000 {
        let at = at(430).after(Duration::from_micros(micros * 100));
        let heard = Heard { at, ..heard(0, 60, 50) };
        let out = run(|out| router.on_advert(at, &heard, out));
        sent += out.iter().filter(|action| matches!(action, Action::Advertise { .. })).count();
    }
    assert!((1..=9).contains(&sent), "{sent} in one interval");
}

#[test]
fn reload_keeps_the_state() {
    let mut router = active(Config::new(100));
    let same = router.config().clone();
    assert_eq!(run(|out| router.reconfigure(at(400), same.clone(), out)), []);
    let other = Config { priority: 150, ..same };
    assert_eq!(run(|out| router.reconfigure(at(401), other, out)), [advert(150)]);
    assert_eq!(router.state(), State::Active);
}
